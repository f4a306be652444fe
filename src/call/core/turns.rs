//! The turns of a call's conversation: which of its audio they are measured by.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::call::core::Call;
use crate::call::playing::DueFrame;
use crate::call::turns::{Turn, is_audible};
use crate::call::words::Output;
use crate::media::frame::{FRAME_SAMPLES, Frame, Kind};
use crate::media::g711::Law;
use crate::media::quiet::energy;

/// At most this much of a message is looked at for its first audible frame: 2 s.
const LOOKED_AT: usize = 100 * FRAME_SAMPLES;

impl Call {
    /// Takes a frame of the caller's that the AI gets.
    pub(super) fn turn_heard(&mut self, now: Instant, frame: &Frame) {
        let Some(turns) = &mut self.turns else { return };
        let energy = match frame.kind {
            _ if self.orders.caller_muted || self.orders.held || self.orders.away => {
                return turns.dismiss();
            }
            Kind::Heard => energy(frame.law, &frame.samples),
            // a copy of what was heard before
            Kind::Concealed => return,
            Kind::Silence => 0,
        };
        if turns.caller(now, energy)
            && let Some(turn) = self.past.answered.and_then(|zero| turns.take(zero))
        {
            self.out.push_back(Output::Turn(turn));
        }
    }

    /// Takes audio of the AI, before it is queued.
    pub(super) fn turn_answered(&mut self, now: Instant, audio: &[u8]) {
        let Some(turns) = &mut self.turns else { return };
        if !turns.awaits_answer() {
            return;
        }
        let mut frames = audio[..audio.len().min(LOOKED_AT)].chunks(FRAME_SAMPLES);
        if frames.any(|samples| is_audible(energy(Law::Mu, samples))) {
            turns.ai_audio(now, self.playing.playout.end());
        }
    }

    /// Takes a frame that is sent to the caller. `heard`: false if the caller gets silence instead.
    pub(super) fn turn_sent(&mut self, now: Instant, frame: &DueFrame, heard: bool) {
        let Some(turns) = &mut self.turns else { return };
        if frame.is_own || !heard {
            turns.dismiss();
        } else if frame.is_audio {
            turns.ai_sent(now, energy(Law::Mu, &frame.samples), self.playing.playout.passed());
        }
    }

    /// Ends the wait for an answer, because it could not be measured any more.
    pub(super) fn turn_over(&mut self) {
        self.turns.iter_mut().for_each(|turns| turns.dismiss());
    }

    /// The turns that were measured.
    pub fn turns(&self) -> &[Turn] {
        self.turns.as_ref().map(|turns| turns.turns()).unwrap_or_default()
    }
}
