//! What a frame carries: whose it is, its number, when it was sent, and a filler of these that is
//! checked to the last byte.
//!
//! No byte has bit 6 set. So none is 0x7f or 0xff, mu-law's two zeros, of which a bridge that
//! decodes and encodes again makes one; every other byte comes through such a bridge unchanged.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::media::frame::{FRAME_SAMPLES, SILENCE, Samples};

const MARK: [u8; 4] = [0x92, 0x1a, 0x35, 0x87];
/// Bytes of the filler: the whole words behind the fields.
const FILLER: usize = 32;
const WORDS: usize = (FRAME_SAMPLES - FILLER) / 8;
/// Bits of each byte that may be set.
const MASK: u64 = 0xbfbf_bfbf_bfbf_bfbf;

/// One frame's facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the call, or of the AI's stream: below 2^24.
    pub sender: u32,
    /// Of the frame, in its direction of its call: below 2^30.
    pub number: u32,
    /// Microseconds since the common start: below 2^42.
    pub sent_us: u64,
    /// Whether it is counted: sent in the measured time, by a call that has settled.
    pub judged: bool,
    pub kind: Kind,
}

/// What a frame is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of many, 20 ms after the one before.
    Paced,
    /// The first of a talkspurt: nothing of this call waits before it.
    First,
    /// One of a second of audio that came in one piece; its place in it, from 0.
    Flood(u8),
}

/// What a frame turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Ours(Stamp),
    Silence,
    /// Neither: changed on the way, or made up by the bridge.
    Damaged,
}

/// Writes `value` in 6 bits a byte, the highest first.
fn put(out: &mut [u8], value: u64) {
    let shifts = (0..out.len()).rev().map(|place| 6 * place);
    out.iter_mut().zip(shifts).for_each(|(byte, shift)| *byte = 0x80 | (value >> shift) as u8 & 63);
}

fn take(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 6 | u64::from(byte & 63))
}

/// The filler's words, each from the one before.
fn filler(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..WORDS).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & MASK
    })
}

impl Stamp {
    /// The kind with its place in a flood, and whether it is judged.
    fn flags(&self) -> (u64, u64) {
        let (kind, place) = match self.kind {
            Kind::Paced => (0, 0),
            Kind::First => (1, 0),
            Kind::Flood(place) => (2, u64::from(place)),
        };
        (kind << 1 | u64::from(self.judged), place)
    }

    /// Of all fields, so that none can change unseen.
    fn seed(&self) -> u64 {
        let (flags, place) = self.flags();
        let whose = u64::from(self.sender) << 32 | u64::from(self.number);
        whose ^ self.sent_us.rotate_left(20) ^ (flags << 8 | place).rotate_left(12)
    }

    /// Writes the whole frame.
    pub fn write(&self, out: &mut Samples) {
        let (flags, place) = self.flags();
        out[..4].copy_from_slice(&MARK);
        put(&mut out[4..8], u64::from(self.sender));
        put(&mut out[8..13], u64::from(self.number));
        put(&mut out[13..20], self.sent_us);
        put(&mut out[20..21], flags);
        put(&mut out[21..23], place);
        out[23..FILLER].fill(0x80);
        for (bytes, word) in out[FILLER..].chunks_exact_mut(8).zip(filler(self.seed())) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Reads one, and checks every byte.
    pub fn read(samples: &[u8]) -> Read {
        let Some(samples) = samples.first_chunk::<FRAME_SAMPLES>().filter(|s| s.starts_with(&MARK))
        else {
            let silent = samples.iter().all(|s| *s == SILENCE);
            return if silent { Read::Silence } else { Read::Damaged };
        };
        let flags = take(&samples[20..21]);
        let kind = match flags >> 1 {
            0 => Kind::Paced,
            1 => Kind::First,
            _ => Kind::Flood(take(&samples[21..23]) as u8),
        };
        let stamp = Stamp {
            sender: take(&samples[4..8]) as u32,
            number: take(&samples[8..13]) as u32,
            sent_us: take(&samples[13..20]),
            judged: flags & 1 == 1,
            kind,
        };
        let mut whole: Samples = [0; FRAME_SAMPLES];
        stamp.write(&mut whole);
        if *samples == whole { Read::Ours(stamp) } else { Read::Damaged }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp {
            sender: 2_000_017,
            number: 987_654,
            sent_us: 12_345_678_901,
            judged: true,
            kind: Kind::Flood(49),
        }
    }

    #[test]
    fn every_byte_counts() {
        let mut frame = [0; 160];
        for kind in [Kind::Paced, Kind::First, Kind::Flood(49)] {
            let stamp = Stamp { kind, ..stamp() };
            stamp.write(&mut frame);
            assert_eq!(Stamp::read(&frame), Read::Ours(stamp));
        }
        for at in 0..160 {
            for bit in 0..8 {
                let mut changed = frame;
                changed[at] ^= 1 << bit;
                assert_eq!(Stamp::read(&changed), Read::Damaged, "byte {at}, bit {bit}");
            }
        }
        assert_eq!(Stamp::read(&frame[..159]), Read::Damaged);
        assert_eq!(Stamp::read(&[SILENCE; 160]), Read::Silence);
        assert_eq!(Stamp::read(&[0x80; 160]), Read::Damaged);
    }

    #[test]
    fn neither_zero_of_mu_law_occurs() {
        let mut frame = [0; 160];
        for number in 0..500 {
            Stamp { number, ..stamp() }.write(&mut frame);
            assert!(frame.iter().all(|b| b & 0x40 == 0));
            assert!(frame.iter().all(|b| ![0x7f, 0xff].contains(b)));
        }
    }
}
