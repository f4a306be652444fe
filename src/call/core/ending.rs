//! How a call ends: by its AI, by a limit, or by its source.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::call::SourceRequest;
use crate::call::core::{Call, Phase};
use crate::call::end::EndReason;
use crate::call::limits::State;
use crate::call::words::Output;
use crate::stream::ToAi;
use crate::stream::closed::Closed;

impl Call {
    pub(super) fn on_ai_closed(&mut self, now: Instant, closed: &Closed) {
        // a failed AI was sent `stop`, and closes its stream in response
        if matches!(self.phase, Phase::Finishing { .. }) {
            return;
        }
        match closed {
            Closed::Orderly(_) | Closed::HandOver => {
                let reason = match closed {
                    Closed::HandOver => EndReason::AiHandover,
                    _ => EndReason::AiHangup,
                };
                self.playing.no_more_audio();
                let until = match self.playing.has_audio() {
                    true => Some(now + self.limits.drain_on_close),
                    // the last frame has been sent, but not yet played
                    false => self.playing.played_at(),
                };
                match until.filter(|until| *until > now) {
                    Some(until) => self.phase = Phase::Finishing { reason, until: Some(until) },
                    None => self.end(reason),
                }
            }
            Closed::Failed(_) => self.ai_failed(EndReason::AiClosed),
            Closed::Protocol(_) => self.ai_failed(EndReason::AiProtocol),
            Closed::Stalled | Closed::Unanswered => self.ai_failed(EndReason::AiTimeout),
        }
    }

    /// Ends the call, after playing the prompt if there is one and the caller is connected.
    pub(super) fn ai_failed(&mut self, reason: EndReason) {
        let connected = self.past.answered.is_some();
        let prompt = self.prompt.take().filter(|prompt| connected && !prompt.is_empty());
        let Some(prompt) = prompt else { return self.end(reason) };
        if self.phase == Phase::Talking {
            self.out.push_back(Output::Ai(ToAi::Stop));
        }
        self.playing.drop_ai_audio();
        self.playing.announce(&prompt);
        self.phase = Phase::Finishing { reason, until: None };
    }

    /// The earliest time at which the call ends, and the reason.
    pub(super) fn limit(&self) -> Option<(Instant, EndReason)> {
        let state = State {
            heard: self.hearing.receiver.last_heard(),
            on_hold: self.remote.is_some_and(|r| r.is_on_hold()),
            talking: self.phase == Phase::Talking,
            finish_by: match self.phase {
                Phase::Finishing { reason, until } => until.map(|until| (until, reason)),
                _ => None,
            },
        };
        self.limits.earliest(&self.past, state)
    }

    pub(super) fn end(&mut self, reason: EndReason) {
        let connected = self.past.answered.is_some();
        if let Some(departure) = self.departure.departure(reason, connected, self.can_continue) {
            self.out.push_back(Output::Request(SourceRequest::End { reason, departure }));
        }
        if self.phase == Phase::Talking {
            self.out.push_back(Output::Ai(ToAi::Stop));
        }
        self.phase = Phase::Ended;
        self.out.push_back(Output::Ended(reason));
    }
}
