//! The audio frame: 20 ms of G.711 at 8 kHz.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::media::g711::{self, Law};

/// Samples per frame, and also bytes: a G.711 sample is one byte.
pub const FRAME_SAMPLES: usize = 160;
pub const FRAME_TIME: Duration = Duration::from_millis(20);
/// Samples per second.
pub const RATE: u64 = 8000;
/// The mu-law byte for silence.
pub const SILENCE: u8 = 0xff;

/// The samples of one frame, in mu-law unless a law is given with them.
pub type Samples = [u8; FRAME_SAMPLES];

/// The origin of a frame's audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Received, at least in part.
    Heard,
    /// Synthesised in place of lost packets.
    Concealed,
    /// Filled in because nothing was received.
    Silence,
}

/// A frame on the caller's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// In `law`, as received.
    pub samples: Samples,
    pub law: Law,
    pub kind: Kind,
}

impl Frame {
    /// Returns the samples in mu-law, converted if necessary.
    pub fn mu_law(&self) -> Samples {
        match (self.law, self.kind) {
            (Law::Mu, _) => self.samples,
            (Law::A, Kind::Silence) => [SILENCE; FRAME_SAMPLES],
            (Law::A, _) => {
                let mut samples = self.samples;
                g711::a_to_mu(&mut samples);
                samples
            }
        }
    }
}

/// The number of samples in `duration` at 8 kHz, rounded down.
pub fn samples_in(duration: Duration) -> u64 {
    // in two parts, because 128-bit arithmetic is slow on the frame path
    duration.as_secs() * RATE + u64::from(duration.subsec_nanos()) * RATE / 1_000_000_000
}

/// The loudest sample of a frame, as a magnitude from 0 to 32,767. Compares the companded samples,
/// which is a few wide instructions, and decodes only the loudest.
pub fn peak(law: Law, samples: &Samples) -> u16 {
    // without the sign bit, and with the bits inverted as G.711 demands, the byte grows with the
    // magnitude
    let inverted = match law {
        Law::Mu => 0x7f,
        Law::A => 0x55,
    };
    let loudest = samples.iter().map(|s| (s ^ inverted) & 0x7f).max().unwrap_or(0);
    law.decode((loudest ^ inverted) | 0x80).unsigned_abs()
}

/// The level (RMS) of mu-law audio in dBFS: 0 for a full-scale square wave, −∞ for digital silence.
pub fn level_dbfs(samples: &[u8]) -> f64 {
    let energy: f64 = samples.iter().map(|s| f64::from(g711::decode(*s)).powi(2)).sum();
    let rms = (energy / samples.len().max(1) as f64).sqrt();
    20.0 * (rms / 32768.0).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_minus_infinity_and_full_scale_is_zero() {
        assert_eq!(level_dbfs(&[SILENCE; 160]), f64::NEG_INFINITY);
        let loud = level_dbfs(&[0x80; 160]);
        assert!(loud > -0.5 && loud <= 0.0, "{loud}");
    }

    #[test]
    fn the_peak_is_the_loudest_sample_of_either_sign() {
        for law in [Law::Mu, Law::A] {
            let mut samples = [law.silence(); FRAME_SAMPLES];
            assert!(peak(law, &samples) <= 8);
            for loudest in [300, -2000, 9000, -32_000] {
                samples[7] = law.encode(loudest);
                let expected = law.decode(law.encode(loudest)).unsigned_abs();
                assert_eq!(peak(law, &samples), expected, "{law:?} {loudest}");
            }
        }
    }

    #[test]
    fn durations_convert_to_samples() {
        assert_eq!(samples_in(FRAME_TIME), FRAME_SAMPLES as u64);
        assert_eq!(samples_in(Duration::from_micros(125)), 1);
    }
}
