//! A tone that is recognised after transcoding, for tests of RTP.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::f64::consts::TAU;

use crate::media::frame::{SILENCE, Samples};
use crate::media::g711;

/// Frequency of the tone; a frame has a whole number of its periods.
const TONE_HZ: f64 = 1000.0;
const RATE: f64 = 8000.0;
const PEAK: f64 = 8000.0;
/// The part of a frame's power that is at that frequency.
const PURE: f64 = 0.7;
/// A frame with less power than this is silence.
const QUIET: f64 = 1e4;

/// Frame `index` of the tone, in mu-law.
pub fn tone(index: u64) -> Samples {
    let mut samples = [SILENCE; 160];
    for (n, sample) in samples.iter_mut().enumerate() {
        let time = (index % 50) as f64 * 0.02 + n as f64 / RATE;
        *sample = g711::encode(((time * TONE_HZ * TAU).sin() * PEAK) as i16);
    }
    samples
}

/// True if most of the frame's power is at the tone's frequency (Goertzel's algorithm).
pub fn is_tone(samples: &[u8]) -> bool {
    let coefficient = 2.0 * (TAU * TONE_HZ / RATE).cos();
    let (mut a, mut b, mut power) = (0.0f64, 0.0f64, 0.0f64);
    for sample in samples {
        let value = f64::from(g711::decode(*sample));
        power += value * value;
        (a, b) = (value + coefficient * a - b, a);
    }
    let count = samples.len().max(1) as f64;
    let at_tone = a * a + b * b - coefficient * a * b;
    power / count > QUIET && at_tone * 2.0 / (count * power) > PURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tone_is_recognised_and_nothing_else() {
        let frame = tone(7);
        assert!(is_tone(&frame));
        let mut a_law = frame;
        g711::mu_to_a(&mut a_law);
        g711::a_to_mu(&mut a_law);
        assert!(is_tone(&a_law), "transcoded");
        assert!(!is_tone(&[SILENCE; 160]) && !is_tone(&[]));
        let mut state = 1u32;
        let noise = [0; 160].map(|_: u8| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        assert!(!is_tone(&noise));
    }
}
