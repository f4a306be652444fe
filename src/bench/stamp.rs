//! The content of a frame: its sender, its number, the time it was due, and a filler derived from
//! these. Every byte is checked on arrival.
//!
//! A frame also carries the number of the sender that its own sender hears. The other end compares
//! it with its own number, which reveals calls that were crossed from their first frame on.
//!
//! No byte has bit 6 set, so none is 0x7f or 0xff, the two zeros of mu-law. A bridge that decodes
//! and re-encodes merges these two; every other byte passes through such a bridge unchanged.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::media::frame::{FRAME_SAMPLES, SILENCE, Samples};

/// First bytes of every stamp.
const MARK: [u8; 4] = [0x92, 0x1a, 0x35, 0x87];
/// Offset of the filler, which follows the fields in 64-bit words.
const FILLER: usize = 32;
const WORDS: usize = (FRAME_SAMPLES - FILLER) / 8;
/// The quietest values that a bridge makes of A-law.
const QUIETEST: [u8; 2] = [0xfe, 0x7e];
/// The bits that may be set in each byte.
const MASK: u64 = 0xbfbf_bfbf_bfbf_bfbf;

/// The fields of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the call or of the AI stream; below 2^24.
    pub sender: u32,
    /// Number of the sender heard at this end, if it has heard one; below 2^24 - 1.
    pub hears: Option<u32>,
    /// Number of the frame in its direction of the call; below 2^30.
    pub number: u32,
    /// Time at which the frame was due, in microseconds since the common start; below 2^42. The
    /// time at which it was really sent would hide every delay that also holds up the generator.
    pub due_us: u64,
    pub scope: Scope,
    /// True if the generator itself sent the frame so late that a delay proves nothing.
    pub sent_late: bool,
    pub kind: Kind,
}

/// The part of a measurement that a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The frame is not judged.
    Ignored,
    /// The first second of a call: the frame has to arrive, at whatever time.
    FirstSecond,
    /// The measured time.
    Measured,
}

/// The place of a frame in the audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A frame sent 20 ms after the previous one.
    Paced,
    /// The first frame of a talkspurt: no other frame of the call is queued before it.
    First,
    /// A frame of audio sent in one piece, which is played whole. The number is its position in it,
    /// from 0; it is due 20 ms after the one before.
    Queued(u8),
    /// The same for a flood, which a `clear` cuts short.
    Flood(u8),
}

/// The result of reading a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Ours(Stamp),
    Silence,
    /// Neither of these: changed on the way, or invented by the bridge.
    Damaged,
}

/// Writes `value` with 6 bits per byte, most significant first.
fn put(out: &mut [u8], value: u64) {
    let shifts = (0..out.len()).rev().map(|place| 6 * place);
    out.iter_mut().zip(shifts).for_each(|(byte, shift)| *byte = 0x80 | (value >> shift) as u8 & 63);
}

fn take(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 6 | u64::from(byte & 63))
}

/// Returns the words of the filler, each computed from the previous one.
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
    pub fn is_judged(&self) -> bool {
        self.scope != Scope::Ignored
    }

    /// Returns the flags, and the position in audio sent in one piece.
    fn flags(&self) -> (u64, u64) {
        let (kind, place) = match self.kind {
            Kind::Paced => (0, 0),
            Kind::First => (1, 0),
            Kind::Queued(place) => (2, u64::from(place)),
            Kind::Flood(place) => (3, u64::from(place)),
        };
        let scope = match self.scope {
            Scope::Ignored => 0,
            Scope::FirstSecond => 1,
            Scope::Measured => 2,
        };
        (kind << 3 | scope << 1 | u64::from(self.sent_late), place)
    }

    /// Returns the number of the sender heard plus one, or 0.
    fn heard(&self) -> u64 {
        self.hears.map_or(0, |number| u64::from(number) + 1)
    }

    /// Returns the filler's seed. It depends on all fields, so that no change goes unnoticed.
    fn seed(&self) -> u64 {
        let (flags, place) = self.flags();
        let whose = u64::from(self.sender) << 32 | u64::from(self.number);
        let rest = (flags << 8 | place).rotate_left(12) ^ self.heard().rotate_left(36);
        whose ^ self.due_us.rotate_left(20) ^ rest
    }

    /// Writes the whole frame.
    pub fn write(&self, out: &mut Samples) {
        let (flags, place) = self.flags();
        out[..4].copy_from_slice(&MARK);
        put(&mut out[4..8], u64::from(self.sender));
        put(&mut out[8..13], u64::from(self.number));
        put(&mut out[13..20], self.due_us);
        put(&mut out[20..21], flags);
        put(&mut out[21..23], place);
        put(&mut out[23..28], self.heard());
        out[28..FILLER].fill(0x80);
        for (bytes, word) in out[FILLER..].chunks_exact_mut(8).zip(filler(self.seed())) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Reads a frame and checks every byte.
    pub fn read(samples: &[u8]) -> Read {
        let Some(samples) = samples.first_chunk::<FRAME_SAMPLES>().filter(|s| s.starts_with(&MARK))
        else {
            // A-law has no zero: its two quietest values become the last two of mu-law
            let silent = samples.iter().all(|s| *s == SILENCE || QUIETEST.contains(s));
            return if silent { Read::Silence } else { Read::Damaged };
        };
        let flags = take(&samples[20..21]);
        let place = take(&samples[21..23]) as u8;
        let stamp = Stamp {
            sender: take(&samples[4..8]) as u32,
            hears: take(&samples[23..28]).checked_sub(1).map(|number| number as u32),
            number: take(&samples[8..13]) as u32,
            due_us: take(&samples[13..20]),
            scope: match flags >> 1 & 3 {
                0 => Scope::Ignored,
                1 => Scope::FirstSecond,
                _ => Scope::Measured,
            },
            sent_late: flags & 1 == 1,
            kind: match flags >> 3 & 3 {
                0 => Kind::Paced,
                1 => Kind::First,
                2 => Kind::Queued(place),
                _ => Kind::Flood(place),
            },
        };
        let mut whole: Samples = [0; FRAME_SAMPLES];
        stamp.write(&mut whole);
        if *samples == whole { Read::Ours(stamp) } else { Read::Damaged }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::g711::Law;

    fn stamp() -> Stamp {
        Stamp {
            sender: 2_000_017,
            hears: Some(3_000_001),
            number: 987_654,
            due_us: 12_345_678_901,
            scope: Scope::Measured,
            sent_late: true,
            kind: Kind::Flood(49),
        }
    }

    #[test]
    fn any_changed_bit_is_detected() {
        let mut frame = [0; 160];
        let kinds = [Kind::Paced, Kind::First, Kind::Queued(3), Kind::Flood(49)];
        let scopes = [Scope::Ignored, Scope::FirstSecond, Scope::Measured];
        for (kind, scope) in kinds.iter().flat_map(|k| scopes.map(|s| (*k, s))) {
            for hears in [None, Some(0), Some(3_000_001)] {
                let stamp = Stamp { kind, scope, hears, ..stamp() };
                stamp.write(&mut frame);
                assert_eq!(Stamp::read(&frame), Read::Ours(stamp));
            }
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
        assert_eq!(Stamp::read(&[0xfe; 160]), Read::Silence);
        assert_eq!(Stamp::read(&[0x80; 160]), Read::Damaged);
    }

    #[test]
    fn stamps_survive_conversion_to_a_law_and_back() {
        let mut frame = [0; 160];
        for number in 0..500 {
            let stamp = Stamp { number, ..stamp() };
            stamp.write(&mut frame);
            Law::Mu.convert(Law::A, &mut frame);
            assert_eq!(Stamp::read(&frame), Read::Damaged);
            Law::A.convert(Law::Mu, &mut frame);
            assert_eq!(Stamp::read(&frame), Read::Ours(stamp));
        }
    }

    #[test]
    fn stamps_contain_neither_zero_of_mu_law() {
        let mut frame = [0; 160];
        for number in 0..500 {
            Stamp { number, ..stamp() }.write(&mut frame);
            assert!(frame.iter().all(|b| b & 0x40 == 0));
            assert!(frame.iter().all(|b| ![0x7f, 0xff].contains(b)));
        }
    }
}
