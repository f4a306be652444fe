//! Finds single tones, such as the beep of an answering machine, in one stream of frames.
//!
//! A sine wave is known from its last two samples: x(n) = a·x(n−1) − x(n−2), with a = 2·cos(ω). The
//! best `a` for a frame shows the frequency, and what is left over how pure the tone is: less than
//! 1 % for a beep in G.711, more than 10 % for voices, music and two tones far apart.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::f64::consts::TAU;

use crate::media::frame::{FRAME_SAMPLES, RATE, Samples};
use crate::media::g711::Law;

/// The most that may be left over.
const PURE: f64 = 0.02;
/// Beeps are louder than −40 dBFS (RMS), of 32768.
const LEAST: f64 = 328.0;
/// The frequencies of beeps, in Hz.
const RANGE: std::ops::RangeInclusive<f64> = 350.0..=2500.0;
/// A tone keeps its frequency, apart from this share of it.
const STEADY: f64 = 0.03;

/// A tone that has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tone {
    pub hertz: f64,
    pub frames: u32,
    /// The share that was left over on average, from 0 to [`PURE`].
    pub impurity: f64,
}

/// The tone that lasts, if there is one.
#[derive(Debug, Default)]
pub struct Tones {
    present: Option<Tone>,
}

impl Tones {
    /// Adds the next frame. Returns the tone that ended before it.
    pub fn hears(&mut self, law: Law, samples: &Samples) -> Option<Tone> {
        let heard = pure(law, samples);
        match (&mut self.present, heard) {
            (Some(tone), Some((hertz, left))) if (hertz / tone.hertz - 1.0).abs() < STEADY => {
                let frames = f64::from(tone.frames);
                tone.impurity = (tone.impurity * frames + left) / (frames + 1.0);
                tone.frames = tone.frames.saturating_add(1);
                None
            }
            (present, heard) => {
                let new = heard.map(|(hertz, impurity)| Tone { hertz, frames: 1, impurity });
                std::mem::replace(present, new)
            }
        }
    }
}

/// Returns the frequency of a frame that is one tone, and the share that is left over.
pub fn pure(law: Law, samples: &Samples) -> Option<(f64, f64)> {
    let mut linear = [0f64; FRAME_SAMPLES];
    for (linear, sample) in linear.iter_mut().zip(samples) {
        *linear = f64::from(law.decode(*sample));
    }
    let energy: f64 = linear.iter().map(|sample| sample * sample).sum();
    if energy < LEAST * LEAST * FRAME_SAMPLES as f64 {
        return None;
    }
    let (mut cross, mut middle) = (0.0, 0.0);
    for three in linear.array_windows::<3>() {
        cross += (three[0] + three[2]) * three[1];
        middle += three[1] * three[1];
    }
    let a = (cross / middle).clamp(-2.0, 2.0);
    let left: f64 =
        linear.array_windows::<3>().map(|t| (t[0] + t[2] - a * t[1]).powi(2)).sum::<f64>() / energy;
    let hertz = (a / 2.0).acos() / TAU * RATE as f64;
    (left < PURE && RANGE.contains(&hertz)).then_some((hertz, left))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(hertz: &[f64], level: f64, count: usize) -> Vec<Samples> {
        let sample = |n: usize| {
            let one = |hertz: &f64| (hertz * TAU * n as f64 / RATE as f64).sin() * level;
            Law::Mu.encode(hertz.iter().map(one).sum::<f64>() as i16)
        };
        (0..count).map(|f| std::array::from_fn(|i| sample(f * FRAME_SAMPLES + i))).collect()
    }

    fn found(all: &[Samples]) -> Vec<Tone> {
        let mut tones = Tones::default();
        let silence = [Law::Mu.silence(); FRAME_SAMPLES];
        all.iter().chain([&silence]).filter_map(|frame| tones.hears(Law::Mu, frame)).collect()
    }

    #[test]
    fn beeps_of_all_usual_frequencies_and_levels_are_found() {
        for hertz in [400.0, 440.0, 800.0, 1000.0, 1400.0, 2000.0] {
            for level in [800.0, 4000.0, 20_000.0] {
                let found = found(&frames(&[hertz], level, 20));
                let [tone] = &found[..] else { panic!("{hertz} Hz, {level}: {found:?}") };
                assert_eq!(tone.frames, 20);
                assert!((tone.hertz / hertz - 1.0).abs() < 0.02, "{hertz}: {tone:?}");
            }
        }
    }

    #[test]
    fn keys_and_voices_are_not_tones() {
        assert_eq!(found(&frames(&[697.0, 1209.0], 4000.0, 20)), []);
        assert_eq!(found(&frames(&[440.0, 880.0], 4000.0, 20)), []);
        let speech = include_bytes!("../cli/assets/greeting.ulaw");
        let long = found(speech.as_chunks::<FRAME_SAMPLES>().0);
        assert!(long.iter().all(|tone| tone.frames < 3), "{long:?}");
    }
}
