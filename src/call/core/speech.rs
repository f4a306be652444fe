//! The caller's voice, where something is made of it: see [`crate::call::speech`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::call::core::{Call, Phase};
use crate::call::words::Output;
use crate::media::frame::{FRAME_TIME, Frame};
use crate::stream::ToAi;

impl Call {
    /// Takes a frame of the caller's.
    pub(super) fn speech_heard(&mut self, now: Instant, index: u64, frame: &Frame) {
        let deaf = self.orders.caller_muted || self.is_on_hold();
        let Some(listener) = &mut self.listener else { return };
        let (out, at_ms) = (&mut self.out, (index + 1) * FRAME_TIME.as_millis() as u64);
        let mut each = |sign| out.push_back(Output::Ai(ToAi::Heard(sign)));
        let (streams, listens) = match self.phase {
            Phase::Connecting | Phase::Talking => (self.phase == Phase::Talking, !deaf),
            _ => (false, false),
        };
        let verdict = match listens {
            true => listener.caller(now, frame, at_ms, streams, &mut each),
            false => {
                if streams {
                    listener.deaf(now, at_ms, &mut each);
                }
                listener.passes()
            }
        };
        out.extend(verdict.map(Output::AnsweredBy));
        if !listener.is_needed() {
            self.listener = None;
            return;
        }
        if !listens {
            return;
        }
        // nothing but the AI's words is interrupted, and no command that waits for their end
        let may = self.phase == Phase::Talking
            && !self.playing.has_announcement()
            && !self.orders.pending();
        if may && listener.barges_in(now, self.playing.utterance_played()) {
            listener.barged_in(now);
            self.clear(now, true);
            self.tap_marks();
            self.take_cues(now);
        }
    }

    /// Discards the AI's queued audio. `by_caller`: the caller speaks, and the AI did not ask.
    pub(super) fn clear(&mut self, now: Instant, by_caller: bool) {
        let at = self.playing.stream_position();
        let (played, discarded) = self.playing.clear(now);
        self.turns.iter_mut().for_each(|turns| turns.cleared());
        if self.phase == Phase::Talking {
            self.out.push_back(Output::Ai(ToAi::Cleared { played, discarded, at, by_caller }));
        }
    }

    /// True while the AI's words count as interrupted by the caller.
    pub(super) fn is_interrupted(&self, now: Instant) -> bool {
        self.listener.as_ref().is_some_and(|listener| listener.is_interrupted(now))
    }

    /// False if this audio of the AI belongs to words that the caller has interrupted.
    pub(super) fn is_wanted(&mut self, now: Instant, audio: &[u8]) -> bool {
        let Some(listener) = &mut self.listener else { return true };
        let plays = listener.plays(now, audio);
        if !plays {
            self.playing.playout.leave_out(audio.len());
        }
        plays
    }
}
