//! The AI of a call: when its stream starts, and what becomes of its messages.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::call::core::{Call, Phase};
use crate::call::words::{Output, audio};
use crate::media::playout::Cue;
use crate::record::recording::Tap;
use crate::stream::{FromAi, ToAi};

/// Marks from before `start` that are kept; an AI that sends more is not waiting for them.
const MAX_EARLY_MARKS: usize = 100;

impl Call {
    /// Starts the AI's stream once both its WebSocket and the caller are connected.
    pub(super) fn start_stream(&mut self, now: Instant) {
        let waits = self.data_by().is_some_and(|by| by > now);
        let connected = self.ai_open && self.past.answered.is_some();
        if self.phase != Phase::Connecting || !connected || waits {
            return;
        }
        self.phase = Phase::Talking;
        self.falling.iter_mut().for_each(|falling| falling.active = false);
        self.past.ai_started = Some(now);
        self.turn_over();
        self.listener.iter_mut().for_each(|listener| listener.stream_starts());
        let (frames, digits) = self.hearing.take_preroll();
        self.out.push_back(Output::AiStart { burst: frames.len() });
        for (index, frame) in frames {
            self.out.push_back(Output::Ai(audio(index, frame.mu_law())));
        }
        self.out.extend(digits.into_iter().map(|digit| Output::Ai(ToAi::Digit(digit))));
        self.take_cues(now);
    }

    /// Audio from before `start` is kept: some AIs greet as soon as their stream is open.
    pub(super) fn on_ai(&mut self, now: Instant, message: FromAi<'_>) {
        // an AI whose messages cannot be used is as good as silent
        self.past.ai_heard |= !matches!(message, FromAi::Ignored(_));
        if !matches!(self.phase, Phase::Connecting | Phase::Talking) {
            return;
        }
        match message {
            FromAi::Audio(audio) if !self.is_wanted(now, audio) => {}
            FromAi::Audio(audio) => {
                self.turn_answered(now, audio);
                self.playing.push_audio(now, audio);
            }
            // before `start`, no mark can be returned
            FromAi::Mark(_)
                if self.phase == Phase::Connecting
                    && self.playing.marks_waiting() >= MAX_EARLY_MARKS => {}
            FromAi::Mark(name) if self.is_interrupted(now) => self.playing.return_mark(now, name),
            FromAi::Mark(name) => self.playing.push_cue(now, Cue::Mark(name)),
            FromAi::Clear => {
                self.listener.iter_mut().for_each(|listener| listener.ai_cleared());
                self.clear(now, false);
            }
            // the worker numbers orders and has tools called; the socket ends a stream that failed
            FromAi::Order(_) | FromAi::Tool(_) | FromAi::Failed(_) | FromAi::SessionEnded(_) => {}
            FromAi::Done(_) | FromAi::Warning(_) | FromAi::Ignored(_) => {}
        }
        self.tap_marks();
        self.take_cues(now);
    }

    /// Puts the marks that have been passed into the recording, behind the last frame sent.
    pub(super) fn tap_marks(&mut self) {
        let recording = self.recording;
        let taps = self.playing.passed_marks().map(|name| Output::Tap(Tap::Mark(name.to_owned())));
        self.out.extend(taps.filter(|_| recording));
    }
}
