//! 20 ms of audio.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::media::g711::{self, Law};

/// Samples, and with mu-law bytes, of one frame.
pub const FRAME_SAMPLES: usize = 160;
pub const FRAME_TIME: Duration = Duration::from_millis(20);
/// Samples a second.
pub const RATE: u64 = 8000;
/// Mu-law silence.
pub const SILENCE: u8 = 0xff;

/// Mu-law at 8 kHz.
pub type Samples = [u8; FRAME_SAMPLES];

/// Where a frame's audio comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As received, wholly or in part.
    Heard,
    /// Made up for packets that were lost.
    Concealed,
    /// Nothing was received.
    Silence,
}

/// One frame of the caller's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// In `law`, as received.
    pub samples: Samples,
    pub law: Law,
    pub kind: Kind,
}

impl Frame {
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

/// A duration as samples at 8 kHz, rounded down.
pub fn samples_in(duration: Duration) -> u64 {
    duration.as_micros() as u64 * RATE / 1_000_000
}

/// Loudness of mu-law audio in dBFS (0 = a full-scale square wave); −∞ for digital silence.
pub fn level_dbfs(samples: &[u8]) -> f64 {
    let energy: f64 = samples.iter().map(|s| f64::from(g711::decode(*s)).powi(2)).sum();
    let rms = (energy / samples.len().max(1) as f64).sqrt();
    20.0 * (rms / 32768.0).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        assert_eq!(level_dbfs(&[SILENCE; 160]), f64::NEG_INFINITY);
        let loud = level_dbfs(&[0x80; 160]);
        assert!(loud > -0.5 && loud <= 0.0, "{loud}");
    }

    #[test]
    fn durations() {
        assert_eq!(samples_in(FRAME_TIME), FRAME_SAMPLES as u64);
        assert_eq!(samples_in(Duration::from_micros(125)), 1);
    }
}
