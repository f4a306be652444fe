//! The uses of the caller's voice, where they are configured: events for the AI, an end of what
//! the AI says as soon as the caller speaks, and the difference between people and answering
//! machines (pure).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::call::answering::{Answering, Detection, Verdict};
use crate::media::frame::{FRAME_SAMPLES, Frame, Kind, Samples};
use crate::media::g711::Law;
use crate::media::quiet::{energy, is_quiet};
use crate::media::speech::{Change, Speech};
use crate::stream::HeardSign;

/// The AI still sounds this long after its last frame, as its echo may arrive that late.
const AI_TAIL: Duration = Duration::from_millis(250);
/// While the AI speaks, sounds that are 20 dB softer than the AI are its echo.
const ECHO: u64 = 100;
/// A pause in the AI's audio that ends the words which were interrupted: 200 ms.
const GAP: Duration = Duration::from_millis(200);
const GAP_BYTES: usize = GAP.as_millis() as usize * 8;
/// The same, even if the caller has not stopped: 1 s.
const NEW: Duration = Duration::from_secs(1);
const NEW_BYTES: usize = NEW.as_millis() as usize * 8;
/// The AI has been speaking up to now if it was heard within this time.
const SPEAKS: Duration = Duration::from_millis(500);
/// The AI is heard again this long after the caller has stopped, whatever it sends.
const PATIENCE: Duration = Duration::from_secs(5);
/// And this long after the interruption, if what the caller says has no end.
const LONGEST: Duration = Duration::from_secs(30);

/// At most this many findings wait for the AI's stream.
const MAX_ANSWERS: usize = 8;

/// `[speech]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpeechSettings {
    /// Tell the AI when the caller begins and stops speaking.
    pub events: bool,
    /// The silence after which speech has stopped.
    pub pause: Duration,
    /// Discard the AI's audio once the caller has spoken for this long; `None` = never.
    pub barge_in_after: Option<Duration>,
    /// But not while less than this of its utterance has been played.
    pub protect_first: Duration,
    /// Tell the AI whether a person or a machine has answered, and when the machine beeps.
    pub machine_detection: bool,
}

impl SpeechSettings {
    /// True if anything is listened for.
    pub fn wanted(&self) -> bool {
        self.events || self.barge_in_after.is_some() || self.machine_detection
    }
}

/// The AI's words after they were interrupted by the caller: what arrives of them is not played.
#[derive(Debug)]
struct Interrupted {
    since: Instant,
    /// When the AI last sent any of it.
    sent: Instant,
    /// Bytes without a sound, up to the last one.
    silent: usize,
    /// When the caller stopped.
    stopped: Option<Instant>,
}

impl Interrupted {
    /// True if what the AI sends now is new.
    fn are_over(&self, now: Instant) -> bool {
        let past = |at: Instant, time: Duration| now.saturating_duration_since(at) >= time;
        let paused = past(self.sent, GAP) || self.silent >= GAP_BYTES;
        // an AI that has sent nothing for a while had said everything before
        let new = past(self.sent, NEW) || self.silent >= NEW_BYTES || past(self.since, LONGEST);
        new || self.stopped.is_some_and(|at| paused || past(at, PATIENCE))
    }
}

/// Listens to the caller of one call.
pub struct Listener {
    settings: SpeechSettings,
    speech: Speech,
    answering: Option<Answering>,
    /// True if a program wants to know who answers.
    reports: bool,
    /// When the last audible frame was sent to the caller, and how loud these have been lately.
    ai_heard: Option<Instant>,
    ai_level: u64,
    /// The same for its own words, without prompts.
    ai_spoke: Option<Instant>,
    /// Findings about who has answered, which wait for the AI's stream.
    answers: Vec<HeardSign>,
    /// True if the present speech has been reported to the AI.
    reported: bool,
    /// True once the present speech has interrupted the AI.
    barged: bool,
    interrupted: Option<Interrupted>,
}

impl Listener {
    /// Returns a listener if anything is listened for.
    pub fn if_needed(settings: SpeechSettings, wanted: Option<Detection>) -> Option<Box<Listener>> {
        let needed = settings.wanted() || wanted.is_some();
        needed.then(|| Box::new(Listener::new(settings, wanted)))
    }

    /// `wanted`: what a program wants to know of who answers.
    pub fn new(settings: SpeechSettings, wanted: Option<Detection>) -> Listener {
        let told = settings.machine_detection.then(Detection::default);
        Listener {
            settings,
            speech: Speech::new(settings.pause),
            answering: wanted.or(told).map(Answering::new),
            reports: wanted.is_some(),
            ai_heard: None,
            ai_level: 0,
            ai_spoke: None,
            answers: Vec::new(),
            reported: false,
            barged: false,
            interrupted: None,
        }
    }

    /// Adds a frame of the caller, which ends at `at_ms` of the call. `streams`: the AI's stream
    /// has started. `each` gets the reports. Returns who has answered, once that is known.
    pub fn caller(
        &mut self,
        now: Instant,
        frame: &Frame,
        at_ms: u64,
        streams: bool,
        each: &mut dyn FnMut(HeardSign),
    ) -> Option<Verdict> {
        let silence = [frame.law.silence(); FRAME_SAMPLES];
        let samples = if frame.kind == Kind::Silence { &silence } else { &frame.samples };
        let echo = self.ai_speaks(now) && energy(frame.law, samples) < self.ai_level / ECHO;
        let change = self.speech.hears(frame.law, samples, echo);
        match change {
            Some(Change::Started) => self.barged = false,
            Some(Change::Stopped) => self.stopped(now),
            None => {}
        }
        self.report(at_ms, streams, each);
        // a pause within words is counted by the detector itself
        let speaks = self.speech.speaks_now();
        let heard = self.answering.as_mut().map(|a| a.hears(frame.law, samples, speaks));
        let (finding, verdict) = heard.unwrap_or_default();
        let tells = self.settings.machine_detection && self.answers.len() < MAX_ANSWERS;
        if let Some(finding) = finding.filter(|_| tells) {
            self.answers.push(HeardSign::Answer { finding, at_ms });
        }
        if streams {
            self.answers.drain(..).for_each(each);
        }
        verdict.filter(|_| self.reports)
    }

    /// Notes the time of a frame in which the caller is not listened to.
    pub fn passes(&mut self) -> Option<Verdict> {
        let verdict = self.answering.as_mut().and_then(Answering::passes);
        verdict.filter(|_| self.reports)
    }

    /// False once nothing more is listened for.
    pub fn is_needed(&self) -> bool {
        self.settings.wanted() || self.answering.as_ref().is_some_and(|a| !a.is_done())
    }

    /// Reports that speech has begun or stopped.
    fn report(&mut self, at_ms: u64, streams: bool, each: &mut dyn FnMut(HeardSign)) {
        if !self.settings.events {
            return;
        }
        let speaks = self.speech.speaking().is_some();
        if streams && speaks && !self.reported {
            each(HeardSign::SpeechStarted { at_ms });
        } else if self.reported && !speaks {
            let pause = self.settings.pause.as_millis() as u64;
            each(HeardSign::SpeechStopped { at_ms: at_ms.saturating_sub(pause) });
        }
        self.reported = speaks && (streams || self.reported);
    }

    /// Notes that a stream of the AI starts: nothing has been reported on it, and what it brings is
    /// new.
    pub fn stream_starts(&mut self) {
        (self.reported, self.interrupted, self.ai_spoke) = (false, None, None);
    }

    /// Notes that the AI's stream is over, and another AI is dialled.
    pub fn stream_ends(&mut self) {
        self.stream_starts();
        self.speech.stop();
    }

    /// Ends the present speech, because the caller is not heard any more.
    pub fn deaf(&mut self, now: Instant, at_ms: u64, each: &mut dyn FnMut(HeardSign)) {
        if self.speech.stop() {
            self.stopped(now);
            self.report(at_ms, false, each);
        }
    }

    fn stopped(&mut self, now: Instant) {
        if let Some(interrupted) = &mut self.interrupted {
            interrupted.stopped = Some(now);
        }
    }

    /// Adds a frame that is sent to the caller. `is_own`: it is not the AI's.
    pub fn sent(&mut self, now: Instant, samples: &Samples, is_own: bool) {
        let energy = energy(Law::Mu, samples);
        // follows rising levels at once, and falling ones within a second
        self.ai_level = energy.max(self.ai_level - self.ai_level / 16);
        if !is_quiet(Law::Mu, samples) {
            self.ai_heard = Some(now);
            self.ai_spoke = self.ai_heard.filter(|_| !is_own).or(self.ai_spoke);
        }
    }

    fn ai_speaks(&self, now: Instant) -> bool {
        self.ai_heard.is_some_and(|at| now.saturating_duration_since(at) < AI_TAIL)
    }

    /// True if the AI's audio is to be discarded now. `played`: how much of its present words the
    /// caller has heard.
    pub fn barges_in(&self, now: Instant, played: Duration) -> bool {
        let long = |after: Duration| self.speech.speaking().is_some_and(|time| time >= after);
        let speaks = self.ai_spoke.is_some_and(|at| now.saturating_duration_since(at) < SPEAKS);
        !self.barged
            && speaks
            && self.settings.barge_in_after.is_some_and(long)
            && played >= self.settings.protect_first
    }

    /// Notes that the AI's audio has been discarded.
    pub fn barged_in(&mut self, now: Instant) {
        self.barged = true;
        let stopped = None;
        self.interrupted = Some(Interrupted { since: now, sent: now, silent: 0, stopped });
    }

    /// Notes that the AI has discarded its audio itself: what it sends now is new.
    pub fn ai_cleared(&mut self) {
        (self.interrupted, self.ai_spoke) = (None, None);
        self.barged |= self.speech.speaking().is_some();
    }

    /// True while the AI's words count as interrupted.
    pub fn is_interrupted(&self, now: Instant) -> bool {
        self.interrupted.as_ref().is_some_and(|words| !words.are_over(now))
    }

    /// Takes audio of the AI. Returns false if it belongs to words that were interrupted.
    pub fn plays(&mut self, now: Instant, audio: &[u8]) -> bool {
        if !self.is_interrupted(now) {
            self.interrupted = None;
        }
        let Some(words) = &mut self.interrupted else { return true };
        words.sent = now;
        let mut frames = audio.rchunks(FRAME_SAMPLES);
        let silent = frames.position(|samples| !is_silent(samples)).map(|n| n * FRAME_SAMPLES);
        words.silent = silent.unwrap_or(words.silent + audio.len());
        false
    }
}

fn is_silent(samples: &[u8]) -> bool {
    let level = 104u64.pow(2) * samples.len() as u64;
    energy(Law::Mu, samples) < level
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    fn listener(settings: SpeechSettings) -> Listener {
        Listener::new(SpeechSettings { pause: Duration::from_millis(200), ..settings }, None)
    }

    /// Lets the caller speak for `frames`; returns the signs.
    fn speak(listener: &mut Listener, frames: usize, streams: bool) -> Vec<HeardSign> {
        let voice = include_bytes!("../cli/assets/caller.ulaw").as_chunks::<FRAME_SAMPLES>().0;
        let mut signs = Vec::new();
        for (n, samples) in voice.iter().cycle().take(frames).enumerate() {
            let frame = Frame { samples: *samples, law: Law::Mu, kind: Kind::Heard };
            listener.caller(start(), &frame, n as u64 * 20, streams, &mut |sign| signs.push(sign));
        }
        signs
    }

    #[test]
    fn a_new_stream_is_heard_at_once() {
        let barge_in_after = Some(Duration::from_millis(100));
        let mut listener = listener(SpeechSettings { barge_in_after, ..Default::default() });
        speak(&mut listener, 200, true);
        assert!(!listener.barges_in(start(), Duration::ZERO), "the AI does not speak");
        listener.sent(start(), &[0x10; FRAME_SAMPLES], true);
        assert!(!listener.barges_in(start(), Duration::ZERO), "a prompt");
        listener.sent(start(), &[0x10; FRAME_SAMPLES], false);
        assert!(listener.barges_in(start(), Duration::ZERO));
        listener.barged_in(start());
        assert!(!listener.barges_in(start(), Duration::ZERO), "once");
        assert!(!listener.plays(start(), &[0; 160]));
        listener.stream_starts();
        assert!(listener.plays(start(), &[0; 160]));
    }

    #[test]
    fn the_ai_is_heard_again_at_the_latest_after_half_a_minute() {
        let mut listener = listener(SpeechSettings::default());
        listener.barged_in(start());
        // without a pause
        let at = |n: u32| start() + Duration::from_millis(20) * n;
        assert!((0..1500).all(|n| !listener.plays(at(n), &[0; 160])));
        assert!(listener.plays(at(1500), &[0; 160]));
    }

    #[test]
    fn an_answer_is_heard_although_the_caller_has_not_stopped() {
        let mut listener = listener(SpeechSettings::default());
        listener.barged_in(start());
        // the AI had said everything before, and answers at once
        assert!(listener.plays(start() + Duration::from_millis(1000), &[0; 16_000]));
    }

    #[test]
    fn what_was_found_before_the_stream_waits_for_it() {
        let settings =
            SpeechSettings { machine_detection: true, events: true, ..Default::default() };
        let mut listener = listener(settings);
        assert_eq!(speak(&mut listener, 1500, false), []);
        listener.stream_starts();
        let signs = speak(&mut listener, 1, true);
        assert!(signs.iter().any(|sign| matches!(sign, HeardSign::Answer { .. })), "{signs:?}");
    }
}
