//! Distinguishes answering machines from people by how they answer, and finds the beep after which
//! a machine records.
//!
//! A person says a word or two and waits. A machine speaks for longer without a pause. How long the
//! first words last is therefore the sign; the beep is a tone after words.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::media::frame::{FRAME_TIME, Samples};
use crate::media::g711::Law;
use crate::media::tone::{Tone, Tones};

/// Silence that ends the first words of a person.
const END: Duration = Duration::from_millis(900);
/// First words of this length are said by people and machines equally often.
const EVEN: f64 = 2.0;
/// How fast it becomes certain around that length, per second.
const STEEP: f64 = 2.0;
/// Words that reach this confidence are those of a machine, although they have not ended.
const CERTAIN: f64 = 0.85;
/// Without a word for this long after the answer, nothing will be known.
const MUTE: Duration = Duration::from_secs(10);
/// A beep lasts from 120 ms to 4 s.
const BEEP: std::ops::RangeInclusive<u32> = 6..=200;
/// The frequency of a beep is not that of ringing and busy tones, 425 Hz ± 5 %, unless the greeting
/// was one of a machine.
const RINGING: std::ops::RangeInclusive<f64> = 400.0..=450.0;

/// A result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// A person or a machine has answered, and how certain that is, in percent.
    AnsweredBy { machine: bool, confidence: u8 },
    /// A machine records from here on.
    Beep { hertz: u16, length: Duration, confidence: u8 },
}

/// Listens to the beginning of a call.
#[derive(Debug, Default)]
pub struct MachineDetector {
    tones: Tones,
    /// Frames since the answer.
    frames: u32,
    /// Frames of the first words, pauses within them included.
    words: u32,
    /// Frames without speech since then.
    silence: u32,
    /// True once it is known who has answered, or that it will not be known.
    decided: bool,
    /// True if it is a machine.
    machine: bool,
}

impl MachineDetector {
    /// Adds the next frame. `speaks`: someone speaks in it.
    pub fn hears(&mut self, law: Law, samples: &Samples, speaks: bool) -> Option<Finding> {
        self.frames = self.frames.saturating_add(1);
        let tone = self.tones.hears(law, samples);
        if let Some(beep) = tone.and_then(|tone| self.beep(tone)) {
            (self.decided, self.machine) = (true, true);
            return Some(beep);
        }
        if speaks {
            self.words = self.words.saturating_add(1 + std::mem::take(&mut self.silence));
        } else if self.words > 0 {
            self.silence = self.silence.saturating_add(1);
        } else if FRAME_TIME * self.frames > MUTE {
            self.decided = true;
        }
        if self.decided {
            return None;
        }
        let confidence = likely_machine(FRAME_TIME * self.words);
        let ended = self.words > 0 && FRAME_TIME * self.silence >= END;
        if confidence < CERTAIN && !ended {
            return None;
        }
        (self.decided, self.machine) = (true, confidence >= 0.5);
        let confidence = if self.machine { confidence } else { 1.0 - confidence };
        let confidence = (confidence * 100.0).round() as u8;
        Some(Finding::AnsweredBy { machine: self.machine, confidence })
    }

    /// True once it is certain that nothing will be known: no word was said.
    pub fn gave_up(&self) -> bool {
        self.decided && self.words == 0
    }

    /// A tone that comes after words is a beep.
    fn beep(&self, tone: Tone) -> Option<Finding> {
        let known = self.machine || !RINGING.contains(&tone.hertz);
        if self.words == 0 || !BEEP.contains(&tone.frames) || !known {
            return None;
        }
        let confidence = if self.machine { 98 } else { 90 };
        let (hertz, length) = (tone.hertz.round() as u16, FRAME_TIME * tone.frames);
        Some(Finding::Beep { hertz, length, confidence })
    }
}

/// How likely first words of this length are those of a machine.
fn likely_machine(words: Duration) -> f64 {
    1.0 / (1.0 + (-(words.as_secs_f64() - EVEN) * STEEP).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::frame::FRAME_SAMPLES;

    const SILENCE: Samples = [0xff; FRAME_SAMPLES];

    /// Feeds stretches of speech (true) and silence, in ms, and returns the findings with their
    /// times.
    fn heard(stretches: &[(bool, u64)]) -> Vec<(u64, Finding)> {
        let (mut detector, mut found, mut at) = (MachineDetector::default(), Vec::new(), 0);
        for (speaks, ms) in stretches {
            for _ in 0..ms / 20 {
                at += 20;
                let finding = detector.hears(Law::Mu, &SILENCE, *speaks);
                found.extend(finding.map(|finding| (at, finding)));
            }
        }
        found
    }

    #[test]
    fn short_words_and_a_wait_are_a_person() {
        let all = heard(&[(false, 400), (true, 600), (false, 3000), (true, 9000)]);
        let [(at, Finding::AnsweredBy { machine: false, confidence })] = all[..] else {
            panic!("{all:?}")
        };
        assert_eq!(at, 400 + 600 + 900);
        assert!(confidence > 90, "{confidence}");
    }

    #[test]
    fn long_words_are_a_machine_before_they_end() {
        let all = heard(&[(false, 800), (true, 1500), (false, 300), (true, 4000), (false, 3000)]);
        let [(at, Finding::AnsweredBy { machine: true, confidence })] = all[..] else {
            panic!("{all:?}")
        };
        assert!((800 + 2500..800 + 3200).contains(&at), "{at}");
        assert!((85..90).contains(&confidence), "{confidence}");
    }

    #[test]
    fn a_mute_line_says_nothing() {
        assert_eq!(heard(&[(false, 30_000), (true, 5000)]), []);
    }
}
