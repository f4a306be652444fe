//! The answerer of a call: a person or a machine, in the words of Twilio's `AnsweredBy`
//! (<https://www.twilio.com/docs/voice/answering-machine-detection>; pure).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::media::frame::{FRAME_TIME, Samples};
use crate::media::g711::Law;
use crate::media::machine::{Finding, MachineDetector};

/// Silence that ends the greeting of a machine without a beep. Twilio's default.
const MESSAGE_END: Duration = Duration::from_millis(2400);

/// A wish to find out who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detection {
    /// Wait until a machine records, rather than for the beginning of its greeting.
    pub message_end: bool,
    /// Give up after this time.
    pub limit: Duration,
}

impl Default for Detection {
    fn default() -> Self {
        Detection { message_end: false, limit: Duration::from_secs(30) }
    }
}

/// The answerer of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnsweredBy {
    Human,
    /// A machine, whose greeting has begun.
    MachineStart,
    /// A machine that records now: it has beeped, or is silent.
    MachineEndBeep,
    MachineEndSilence,
    /// A machine whose greeting did not end in time.
    MachineEndOther,
    Unknown,
}

impl AnsweredBy {
    pub const ALL: [AnsweredBy; 6] = [
        AnsweredBy::Human,
        AnsweredBy::MachineStart,
        AnsweredBy::MachineEndBeep,
        AnsweredBy::MachineEndSilence,
        AnsweredBy::MachineEndOther,
        AnsweredBy::Unknown,
    ];

    /// Twilio's word.
    pub fn word(self) -> &'static str {
        match self {
            AnsweredBy::Human => "human",
            AnsweredBy::MachineStart => "machine_start",
            AnsweredBy::MachineEndBeep => "machine_end_beep",
            AnsweredBy::MachineEndSilence => "machine_end_silence",
            AnsweredBy::MachineEndOther => "machine_end_other",
            AnsweredBy::Unknown => "unknown",
        }
    }
}

/// The result, and how long it took from the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub by: AnsweredBy,
    pub took: Duration,
}

/// Listens to how a call begins.
#[derive(Debug)]
pub struct Answering {
    detector: MachineDetector,
    wanted: Detection,
    /// Frames since the answer.
    frames: u32,
    /// Frames since the last one with speech.
    silence: u32,
    /// True once a machine greets.
    machine: bool,
    done: bool,
}

impl Answering {
    pub fn new(wanted: Detection) -> Answering {
        let detector = MachineDetector::default();
        Answering { detector, wanted, frames: 0, silence: 0, machine: false, done: false }
    }

    /// Adds the next frame. `speaks`: someone speaks in it. Returns what was found, and the
    /// verdict, once.
    pub fn hears(
        &mut self,
        law: Law,
        samples: &Samples,
        speaks: bool,
    ) -> (Option<Finding>, Option<Verdict>) {
        self.frames = self.frames.saturating_add(1);
        self.silence = if speaks { 0 } else { self.silence.saturating_add(1) };
        let finding = self.detector.hears(law, samples, speaks);
        let by = if self.done { None } else { self.judge(finding) };
        self.done |= by.is_some();
        (finding, by.map(|by| Verdict { by, took: FRAME_TIME * self.frames }))
    }

    /// Notes the time of a frame in which the callee is not listened to.
    pub fn passes(&mut self) -> Option<Verdict> {
        self.frames = self.frames.saturating_add(1);
        let late = !self.done && FRAME_TIME * self.frames >= self.wanted.limit;
        self.done |= late;
        let by = if self.machine { AnsweredBy::MachineEndOther } else { AnsweredBy::Unknown };
        late.then(|| Verdict { by, took: FRAME_TIME * self.frames })
    }

    fn judge(&mut self, finding: Option<Finding>) -> Option<AnsweredBy> {
        let message_end = self.wanted.message_end;
        match finding {
            Some(Finding::AnsweredBy { machine: false, .. }) => return Some(AnsweredBy::Human),
            Some(Finding::Beep { .. }) if message_end => return Some(AnsweredBy::MachineEndBeep),
            Some(_) if !message_end => return Some(AnsweredBy::MachineStart),
            Some(_) => self.machine = true,
            None => {}
        }
        let late = FRAME_TIME * self.frames >= self.wanted.limit;
        match self.machine {
            true if FRAME_TIME * self.silence >= MESSAGE_END => Some(AnsweredBy::MachineEndSilence),
            true => late.then_some(AnsweredBy::MachineEndOther),
            false => (late || self.detector.gave_up()).then_some(AnsweredBy::Unknown),
        }
    }

    /// True once there is a verdict.
    pub fn is_done(&self) -> bool {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::frame::FRAME_SAMPLES;
    use crate::media::g711::encode;

    /// A frame of a tone of 1 kHz, which is 20 whole periods.
    fn tone() -> Samples {
        std::array::from_fn(|n| {
            let phase = n as f64 * std::f64::consts::TAU / 8.0;
            encode((phase.sin() * 8000.0) as i16)
        })
    }

    /// Feeds stretches of speech (`s`), silence (`-`), a tone (`t`) and hold (`h`), in ms. Returns
    /// the verdict, which comes once.
    fn verdict(
        message_end: bool,
        limit_s: u64,
        stretches: &[(char, u64)],
    ) -> Option<(u64, &'static str)> {
        let wanted = Detection { message_end, limit: Duration::from_secs(limit_s) };
        let mut answering = Answering::new(wanted);
        let (silence, tone) = ([0xff; FRAME_SAMPLES], tone());
        let mut found = Vec::new();
        for (what, ms) in stretches {
            let samples = if *what == 't' { &tone } else { &silence };
            for _ in 0..ms / 20 {
                found.extend(match what {
                    'h' => answering.passes(),
                    _ => answering.hears(Law::Mu, samples, *what == 's').1,
                });
            }
        }
        assert!(found.len() <= 1 && answering.is_done() != found.is_empty(), "{found:?}");
        found.first().map(|verdict| (verdict.took.as_millis() as u64, verdict.by.word()))
    }

    #[test]
    fn each_way_to_answer_has_its_word() {
        let person = [('-', 400), ('s', 600), ('-', 5000)];
        let greets = ('s', 5000);
        for message_end in [false, true] {
            assert_eq!(verdict(message_end, 30, &person), Some((1900, "human")));
            assert_eq!(verdict(message_end, 30, &[('-', 20_000)]), Some((10_020, "unknown")));
            assert_eq!(verdict(message_end, 3, &[('-', 20_000)]), Some((3000, "unknown")));
            assert_eq!(verdict(message_end, 30, &[('-', 400), ('s', 600)]), None);
        }
        let (at, word) = verdict(false, 30, &[greets]).unwrap();
        assert!(word == "machine_start" && (2800..3200).contains(&at), "{at} {word}");
        assert_eq!(verdict(true, 30, &[greets]), None);
        let beep = [greets, ('-', 600), ('t', 400), ('-', 3000)];
        let (at, word) = verdict(true, 30, &beep).unwrap();
        assert!(word == "machine_end_beep" && (6000..6200).contains(&at), "{at} {word}");
        assert_eq!(verdict(true, 30, &[greets, ('-', 5000)]), Some((7400, "machine_end_silence")));
        assert_eq!(verdict(true, 7, &[('s', 60_000)]), Some((7000, "machine_end_other")));
        // the time on hold counts
        assert_eq!(verdict(true, 9, &[('s', 600), ('h', 60_000)]), Some((9000, "unknown")));
        let (at, word) = verdict(true, 9, &[greets, ('h', 60_000)]).unwrap();
        assert_eq!((at, word), (9000, "machine_end_other"));
        // a pause within the greeting
        assert_eq!(verdict(true, 30, &[greets, ('-', 2300), ('s', 300), ('-', 2300)]), None);
    }
}
