//! Turn latency: from the caller's last word to the AI's answer, for each turn of the conversation,
//! split into the AI's share and ours (pure).
//!
//! ```text
//! caller stops speaking ──AI's share──> first audio of the answer arrives ──ours──> first RTP
//! ```
//!
//! A turn counts only if the caller has spoken, has stopped, and the AI then begins to speak. The
//! rest of an utterance that the caller has interrupted is not an answer, unless the AI discards it
//! (`clear`) and begins again. Prompts, key presses, holds and mutes end the wait for an answer,
//! because then the time says nothing about the AI.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::media::voice::Voice;

/// This many frames of voice, 120 ms, are speech. Less is a click or a breath.
const MIN_SPEECH: u32 = 6;
/// The caller has stopped speaking when this many frames, 200 ms, have no voice.
const MAX_PAUSE: u32 = 10;
/// The same as a time.
const PAUSE: Duration = Duration::from_millis(200);
/// An answer that takes longer than this is not an answer to what the caller said.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// The AI still speaks this long after its last audible frame, and its echo may still arrive.
const AI_TAIL: Duration = Duration::from_millis(250);
/// While the AI speaks, sounds of the caller that are 15 dB softer than the AI are its echo.
const ECHO: u64 = 32;
/// At most this many turns of a call are kept; later ones only count.
pub const MAX_TURNS: usize = 1000;

/// One turn. Times are since the call's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The end of the caller's last audible frame.
    pub caller_stopped: Duration,
    /// Arrival of the first audio of the answer.
    pub ai_first_audio: Duration,
    /// When the beginning of that audio was sent to the caller.
    pub first_rtp: Duration,
}

impl Turn {
    /// The time that the caller waits.
    pub fn total(&self) -> Duration {
        self.first_rtp.saturating_sub(self.caller_stopped)
    }

    /// The AI's part of it, with the network between trunkless and the AI.
    pub fn ai_share(&self) -> Duration {
        self.ai_first_audio.saturating_sub(self.caller_stopped)
    }

    /// Our part of it.
    pub fn bridge_share(&self) -> Duration {
        self.first_rtp.saturating_sub(self.ai_first_audio)
    }
}

/// The turn latency of a call so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnLatency {
    pub turns: u64,
    pub last: Turn,
    /// Of the time that the caller waits; of the first [`MAX_TURNS`] turns.
    pub median: Duration,
    pub p95: Duration,
}

/// An answer of the AI.
#[derive(Debug, Clone, Copy)]
struct Answer {
    /// When its first audio arrived.
    at: Instant,
    /// Its place among all audio of the AI, in bytes.
    from: u64,
    /// When its first frame was sent.
    sent: Option<Instant>,
}

/// Measures the turns of one call.
#[derive(Debug, Default)]
pub struct Turns {
    voice: Voice,
    /// Frames with voice in the sound that the caller makes.
    voiced: u32,
    /// Frames without voice since then.
    pause: u32,
    /// The end of the caller's last audible frame, if the AI has not answered what was said.
    spoke: Option<Instant>,
    /// True if the AI continued an older utterance after that.
    interrupted: bool,
    /// The AI's answer, until it is certain that the caller has stopped.
    answer: Option<Answer>,
    /// When the AI's last audible frame was sent, and how loud the AI has been lately.
    ai_heard: Option<Instant>,
    ai_level: u64,
    /// The turns so far, in order, and how long the caller waited in each, sorted.
    turns: Vec<Turn>,
    waits: Vec<Duration>,
    /// Number of all turns, and the last one.
    count: u64,
    last: Option<Turn>,
}

impl Turns {
    /// Takes a frame of the caller's, by its energy; 0 if nothing was received. Returns true if a
    /// turn is complete: see [`Turns::take`].
    pub fn caller(&mut self, now: Instant, energy: u64) -> bool {
        let is_echo = self.ai_speaks(now) && energy < self.ai_level / ECHO;
        // echo is noise too
        let has_voice = self.voice.hears(energy) && !is_echo;
        if has_voice {
            (self.voiced, self.pause) = (self.voiced.saturating_add(1), 0);
            if self.voiced >= MIN_SPEECH {
                // what the AI says meanwhile is not an answer
                (self.spoke, self.answer, self.interrupted) = (Some(now), None, false);
            }
            return false;
        }
        self.pause = self.pause.saturating_add(1);
        if self.pause > MAX_PAUSE {
            self.voiced = 0;
        }
        let Some(spoke) = self.spoke else { return false };
        let passed = now.saturating_duration_since(spoke);
        if passed > MAX_WAIT && self.answer.is_none() {
            self.dismiss();
        }
        passed >= PAUSE && self.answer.is_some_and(|answer| answer.sent.is_some())
    }

    /// Returns the turn that is complete. `zero`: the call's answer.
    pub fn take(&mut self, zero: Instant) -> Option<Turn> {
        let (spoke, answer) = (self.spoke.take()?, self.answer.take()?);
        let since = |at: Instant| at.saturating_duration_since(zero);
        let turn = Turn {
            caller_stopped: since(spoke),
            ai_first_audio: since(answer.at),
            first_rtp: since(answer.sent?),
        };
        (self.count, self.last, self.voiced) = (self.count + 1, Some(turn), 0);
        if self.turns.len() < MAX_TURNS {
            self.turns.push(turn);
            let wait = turn.total();
            let place = self.waits.partition_point(|other| *other <= wait);
            self.waits.insert(place, wait);
        }
        Some(turn)
    }

    /// True if the next audible audio of the AI is an answer.
    pub fn awaits_answer(&self) -> bool {
        self.spoke.is_some() && self.answer.is_none()
    }

    /// Audible audio of the AI has arrived. `from`: its place among all audio of the AI.
    pub fn ai_audio(&mut self, now: Instant, from: u64) {
        if !self.awaits_answer() {
            return;
        }
        match (self.interrupted, self.ai_speaks(now)) {
            (false, _) => self.answer = Some(Answer { at: now, from, sent: None }),
            // the rest of the older utterance
            (true, true) => {}
            // the AI has finished that, and took no notice of the caller
            (true, false) => self.dismiss(),
        }
    }

    /// A frame from the AI was sent. `passed`: all audio of the AI up to its end.
    pub fn ai_sent(&mut self, now: Instant, energy: u64, passed: u64) {
        self.ai_level = energy.max(self.ai_level / 8 * 7);
        let is_audible = is_audible(energy);
        if is_audible {
            self.ai_heard = Some(now);
        }
        match &mut self.answer {
            Some(answer) if passed > answer.from => {
                answer.sent.get_or_insert(now);
            }
            // before the answer, or without one
            _ if is_audible && self.spoke.is_some() => {
                (self.interrupted, self.answer) = (true, None);
            }
            _ => {}
        }
    }

    /// The AI has discarded its audio.
    pub fn cleared(&mut self) {
        (self.interrupted, self.ai_heard) = (false, None);
        if self.answer.is_some_and(|answer| answer.sent.is_none()) {
            self.answer = None;
        }
    }

    /// Ends the wait for an answer, because it could not be measured any more.
    pub fn dismiss(&mut self) {
        (self.spoke, self.answer, self.interrupted, self.voiced) = (None, None, false, 0);
    }

    /// The figures of the turns so far; `None` if there was none.
    pub fn latency(&self) -> Option<TurnLatency> {
        let part = |percent: usize| {
            let place = (self.waits.len() * percent).div_ceil(100).saturating_sub(1);
            self.waits.get(place).copied()
        };
        Some(TurnLatency { turns: self.count, last: self.last?, median: part(50)?, p95: part(95)? })
    }

    /// The turns so far.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    fn ai_speaks(&self, now: Instant) -> bool {
        self.ai_heard.is_some_and(|at| now.saturating_duration_since(at) <= AI_TAIL)
    }
}

/// True if a frame with this energy is more than silence.
pub fn is_audible(energy: u64) -> bool {
    energy >= AUDIBLE
}

/// The energy of a frame of −50 dBFS.
const AUDIBLE: u64 = 104 * 104 * 160;
