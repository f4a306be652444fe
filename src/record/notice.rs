//! The beep that announces the recording to the caller.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use bytes::Bytes;

use crate::media::frame::RATE;
use crate::media::g711;

/// The tone of recorders on telephone lines (47 CFR 64.501: 1400 Hz for at least a fifth of a
/// second).
const HERTZ: f64 = 1400.0;
const SECONDS: f64 = 0.4;
/// Fraction of full scale: about 15 dB below the peaks of speech.
const LEVEL: f64 = 0.15;
/// Seconds of fade at either end, so that the tone does not click.
const FADE: f64 = 0.005;

/// Returns 0.4 s of tone in mu-law.
pub fn beep() -> Bytes {
    let rate = RATE as f64;
    let samples = (SECONDS * rate) as usize;
    let sample = |n: usize| {
        let at = n as f64 / rate;
        let edge = (at.min(SECONDS - at) / FADE).min(1.0);
        let value = (std::f64::consts::TAU * HERTZ * at).sin() * LEVEL * edge;
        g711::encode((value * f64::from(i16::MAX)) as i16)
    };
    (0..samples).map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::frame::level_dbfs;

    #[test]
    fn the_beep_has_the_right_length_and_level() {
        let beep = beep();
        assert_eq!(beep.len(), 3200);
        let level = level_dbfs(&beep);
        assert!((-21.0..-17.0).contains(&level), "{level}");
        assert!(g711::decode(beep[0]).abs() < 100);
    }
}
