//! Reads the messages and the end of a capture back from its pcapng file, as it arrives. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::capture::framing::text_of;
use crate::capture::pcapng::{COMMENT, PACKET, STATISTICS};

/// The longest block. Longer ones do not occur in our files.
const MAX_BLOCK: usize = 16 << 20;

/// Something that the file contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A message in JSON: its time since 1970, what it is, and its text.
    Message { at: Duration, label: String, text: Vec<u8> },
    /// A packet.
    Packet,
    /// How the capture ended.
    End(String),
}

/// Splits a file that arrives in parts into its blocks.
#[derive(Debug, Default)]
pub struct Extractor {
    /// The beginning of an incomplete block.
    held: Vec<u8>,
}

impl Extractor {
    /// Takes a part of the file, and returns the blocks that are complete, and what is in them.
    ///
    /// # Errors
    /// Returns an error if it is not a pcapng file as we write it.
    pub fn add(&mut self, part: &[u8]) -> Result<(Vec<u8>, Vec<Found>), &'static str> {
        self.held.extend_from_slice(part);
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(length) = u32_at(&self.held[at..], 4) {
            let length = length as usize;
            if !(12..=MAX_BLOCK).contains(&length) || !length.is_multiple_of(4) {
                return Err("the response is not a pcapng file");
            }
            let Some(block) = self.held.get(at..at + length) else { break };
            found.extend(read(block));
            at += length;
        }
        let rest = self.held.split_off(at);
        Ok((std::mem::replace(&mut self.held, rest), found))
    }
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

/// Reads a whole block; `None` if it is of no interest or damaged.
fn read(block: &[u8]) -> Option<Found> {
    let body = block.get(8..block.len() - 4)?;
    match u32_at(block, 0)? {
        PACKET => {
            let (interface, kept) = (u32_at(body, 0)?, u32_at(body, 12)? as usize);
            if interface == 0 {
                return Some(Found::Packet);
            }
            let micros = u64::from(u32_at(body, 4)?) << 32 | u64::from(u32_at(body, 8)?);
            let text = text_of(body.get(20..20 + kept)?)?.to_vec();
            let label = comment(body.get(20 + kept.next_multiple_of(4)..)?)?;
            Some(Found::Message { at: Duration::from_micros(micros), label, text })
        }
        STATISTICS if u32_at(body, 0)? == 0 => Some(Found::End(comment(body.get(12..)?)?)),
        _ => None,
    }
}

/// Returns the comment among the options of a block.
fn comment(mut options: &[u8]) -> Option<String> {
    while let Some(([a, b, c, d], rest)) = options.split_first_chunk::<4>() {
        let (code, length) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]).into());
        if code == COMMENT {
            return Some(String::from_utf8_lossy(rest.get(..length)?).into_owned());
        }
        options = rest.get(usize::next_multiple_of(length, 4)..)?;
    }
    None
}
