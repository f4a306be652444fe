//! The beep that tells a caller that he is recorded.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use bytes::Bytes;

use crate::media::frame::RATE;
use crate::media::g711;

/// What recorders on telephone lines use (47 CFR 64.501: 1400 Hz, a fifth of a second and more).
const HERTZ: f64 = 1400.0;
const SECONDS: f64 = 0.4;
/// Of full scale, some 15 dB below speech's peaks.
const LEVEL: f64 = 0.15;
/// The tone's ends are faded, so that they do not click.
const FADE: f64 = 0.005;

/// Mu-law, 0.4 s.
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
    fn it_is_heard_and_ends() {
        let beep = beep();
        assert_eq!(beep.len(), 3200);
        let level = level_dbfs(&beep);
        assert!((-21.0..-17.0).contains(&level), "{level}");
        assert!(g711::decode(beep[0]).abs() < 100);
    }
}
