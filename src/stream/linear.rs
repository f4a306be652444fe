//! Linear audio of an AI: 16 bits, little-endian, at 8 kHz or a multiple of it. Calls have mu-law
//! at 8 kHz. At 8 kHz, the way there and back changes no byte.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::media::frame::{FRAME_SAMPLES, RATE, Samples};
use crate::media::g711;
use crate::media::resample::Resampler;

/// The highest rate, as a multiple of 8 kHz.
const MAX_MULTIPLE: usize = 6;
/// Bytes of a frame at the highest rate.
pub(super) const MAX_FRAME_BYTES: usize = FRAME_SAMPLES * MAX_MULTIPLE * 2;

/// Converts the audio of one stream in both directions.
#[derive(Default)]
pub(super) struct Linear {
    /// To the AI; `None` at 8 kHz.
    up: Option<Box<Resampler>>,
    /// From the AI.
    down: Option<Box<Resampler>>,
    /// The first half of a sample from the AI whose second half is in its next message.
    half: Option<u8>,
}

impl Linear {
    /// `rate` is a multiple of 8 kHz, up to 48 kHz.
    pub fn new(rate: u32) -> Linear {
        Linear::between(rate, rate)
    }

    /// The same for an AI that speaks at another rate than it listens.
    pub fn between(to_ai: u32, from_ai: u32) -> Linear {
        let resampler = |from, to| match from == to {
            true => None,
            false => Resampler::new(from, to).map(Box::new),
        };
        let ours = RATE as u32;
        Linear { up: resampler(ours, to_ai), down: resampler(from_ai, ours), half: None }
    }

    /// Converts a frame for the AI; returns its part of `out`.
    pub fn encode<'a>(
        &mut self,
        samples: &Samples,
        out: &'a mut [u8; MAX_FRAME_BYTES],
    ) -> &'a [u8] {
        let mut length = 0;
        let (pairs, _) = out.as_chunks_mut::<2>();
        let mut put = |sample: i16| {
            if let Some(place) = pairs.get_mut(length) {
                *place = sample.to_le_bytes();
                length += 1;
            }
        };
        let linear = samples.iter().map(|sample| g711::decode(*sample));
        match &mut self.up {
            None => linear.for_each(put),
            Some(up) => linear.for_each(|sample| up.push(sample, &mut put)),
        }
        &out[..2 * length]
    }

    /// Converts audio from the AI, of any length, in place. What does not make up a whole block
    /// waits for the next message: half a sample, and up to 5 ms at other rates than 8 kHz.
    pub fn decode(&mut self, audio: &mut Vec<u8>) {
        let raw = audio.len();
        audio.reserve(raw / 2 + 1);
        let mut at = 0;
        while at < raw {
            let low = match self.half.take() {
                Some(low) => low,
                None => {
                    at += 1;
                    audio[at - 1]
                }
            };
            if at == raw {
                self.half = Some(low);
                break;
            }
            let sample = i16::from_le_bytes([low, audio[at]]);
            at += 1;
            match &mut self.down {
                None => audio.push(g711::encode(sample)),
                Some(down) => down.push(sample, &mut |sample| audio.push(g711::encode(sample))),
            }
        }
        audio.drain(..raw);
    }

    /// Forgets what waits for the AI's next message, because it has cleared its audio.
    pub fn clear(&mut self) {
        self.half = None;
        self.down.iter_mut().for_each(|down| down.reset());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::pattern;

    /// Passes audio from the AI in pieces of these lengths, in turn.
    fn decoded(linear: &mut Linear, audio: &[u8], lengths: &[usize]) -> Vec<u8> {
        let (mut rest, mut out) = (audio, Vec::new());
        for length in lengths.iter().cycle() {
            let (piece, left) = rest.split_at((*length).min(rest.len()));
            let mut buffer = piece.to_vec();
            linear.decode(&mut buffer);
            out.extend(buffer);
            rest = left;
            if rest.is_empty() {
                return out;
            }
        }
        out
    }

    #[test]
    fn at_8_khz_no_byte_changes() {
        let mut linear = Linear::new(8000);
        let every: Samples = std::array::from_fn(|n| n as u8);
        let mut others = [0xff; FRAME_SAMPLES];
        others[..96].copy_from_slice(&std::array::from_fn::<u8, 96, _>(|n| n as u8 + 160));
        let (mut sent, mut expected) = (Vec::new(), Vec::new());
        for frame in [every, others, pattern::frame(1, 2)] {
            let mut out = [0; MAX_FRAME_BYTES];
            let linear = linear.encode(&frame, &mut out);
            assert_eq!(linear.len(), 320);
            sent.extend_from_slice(linear);
            expected.extend(frame);
        }
        // mu-law has two zeros, and linear has one
        expected.iter_mut().filter(|byte| **byte == 0x7f).for_each(|byte| *byte = 0xff);
        for lengths in [&[320][..], &[1], &[3, 1, 7], &[960], &[0, 5]] {
            assert_eq!(decoded(&mut linear, &sent, lengths), expected, "{lengths:?}");
        }
    }

    #[test]
    fn pieces_of_any_length_sound_the_same() {
        for rate in [16_000, 24_000, 48_000] {
            let tone = |n: u32| {
                (f64::from(n) * 1000.0 * std::f64::consts::TAU / f64::from(rate)).sin() * 9000.0
            };
            let audio: Vec<u8> =
                (0..rate / 8).flat_map(|n| (tone(n).round() as i16).to_le_bytes()).collect();
            let whole = decoded(&mut Linear::new(rate), &audio, &[audio.len()]);
            assert_eq!(whole.len(), 1000);
            for lengths in [&[1][..], &[641, 3], &[3200, 7, 77]] {
                assert_eq!(decoded(&mut Linear::new(rate), &audio, lengths), whole, "{lengths:?}");
            }
        }
    }

    #[test]
    fn a_cleared_half_is_not_heard_later() {
        let mut linear = Linear::new(8000);
        linear.decode(&mut vec![1]);
        linear.clear();
        let mut audio = 1000i16.to_le_bytes().to_vec();
        linear.decode(&mut audio);
        assert_eq!(audio, [g711::encode(1000)]);
    }

    #[test]
    fn frames_have_their_length_at_every_rate() {
        for rate in [8000, 16_000, 24_000, 32_000, 48_000] {
            let mut out = [0; MAX_FRAME_BYTES];
            let bytes = Linear::new(rate).encode(&[0x55; FRAME_SAMPLES], &mut out).len();
            assert_eq!(bytes, rate as usize / 50 * 2);
        }
    }
}
