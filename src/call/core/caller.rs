//! The caller's frames and keys, on their way to the AI, the recording and those who listen in.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::call::core::{Call, Phase};
use crate::call::hearing::Heard;
use crate::call::words::{Output, audio, caller_tap};
use crate::media::frame::{self, FRAME_SAMPLES, Frame, Kind, SILENCE};
use crate::record::recording::Tap;
use crate::stream::ToAi;

impl Call {
    /// Passes on all frames and digits that are ready.
    pub(super) fn take_frames(&mut self, now: Instant) {
        while let Some(heard) = self.hearing.next(now) {
            match heard {
                Heard::Frame(index, frame) => self.on_caller_frame(now, index, frame),
                Heard::Digit(digit) => self.on_digit(digit),
            }
        }
    }

    pub(super) fn on_caller_frame(&mut self, now: Instant, index: u64, frame: Frame) {
        self.listen(&frame);
        self.speech_heard(now, index, &frame);
        self.peaks.caller = self.peaks.caller.max(frame::peak(frame.law, &frame.samples));
        if self.recording || self.listened {
            let heard = self.past.answered.filter(|_| frame.kind == Kind::Heard);
            let heard_at = heard.map(|at| now.saturating_duration_since(at));
            self.out.push_back(Output::Tap(caller_tap(index, &frame, heard_at)));
        }
        match self.phase {
            Phase::Talking => {
                self.turn_heard(now, &frame);
                let muted = self.orders.caller_muted;
                let samples = if muted { [SILENCE; FRAME_SAMPLES] } else { frame.mu_law() };
                self.out.push_back(Output::Ai(audio(index, samples)));
            }
            Phase::Connecting if self.orders.caller_muted => {
                let samples = [frame.law.silence(); FRAME_SAMPLES];
                self.hearing.keep_frame(index, Frame { samples, ..frame });
            }
            Phase::Connecting => self.hearing.keep_frame(index, frame),
            Phase::Finishing { .. } | Phase::Leaving { .. } | Phase::Ended => {}
        }
    }

    pub(super) fn on_digit(&mut self, digit: char) {
        self.spoken();
        self.turn_over();
        if self.recording {
            self.out.push_back(Output::Tap(Tap::Digit(digit)));
        }
        match self.phase {
            Phase::Talking | Phase::Connecting if self.orders.caller_muted => {}
            Phase::Talking => self.out.push_back(Output::Ai(ToAi::Digit(digit))),
            Phase::Connecting => self.hearing.keep_digit(digit),
            Phase::Finishing { .. } | Phase::Leaving { .. } | Phase::Ended => {}
        }
    }
}
