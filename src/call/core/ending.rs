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
    /// Notes that the AI has sent something that only concerns the worker: it is not silent.
    pub fn ai_works(&mut self) {
        self.past.ai_heard = true;
    }

    pub(super) fn on_ai_closed(&mut self, now: Instant, closed: &Closed) {
        // a failed AI was sent `stop`, and closes its stream in response
        if matches!(self.phase, Phase::Finishing { .. } | Phase::Leaving { .. }) {
            return;
        }
        self.past.resuming = matches!(closed, Closed::Resumable(_));
        match closed {
            Closed::Orderly(_) | Closed::HandOver => {
                let reason = match closed {
                    Closed::HandOver => EndReason::AiHandover,
                    _ => EndReason::AiHangup,
                };
                self.on_orderly_close(now, closed, reason);
            }
            Closed::SessionEnded(_) => self.on_session_end(now, self.reconnect),
            Closed::Resumable(_) => self.on_session_end(now, true),
            Closed::Failed(_) => self.ai_failed(now, EndReason::AiClosed),
            Closed::Protocol(_) => self.ai_failed(now, EndReason::AiProtocol),
            Closed::Stalled | Closed::Unanswered => self.ai_failed(now, EndReason::AiTimeout),
        }
    }

    /// The session of a model is over, or its connection. Only another one continues the call.
    fn on_session_end(&mut self, now: Instant, again: bool) {
        let again = again && self.phase == Phase::Talking;
        match again && !self.orders.transfer() && !self.orders.decide() {
            true => self.dial_again(now),
            false => self.ai_failed(now, EndReason::AiClosed),
        }
    }

    fn on_orderly_close(&mut self, now: Instant, closed: &Closed, reason: EndReason) {
        if self.orders.transfer() {
            self.phase = Phase::Finishing { reason, until: None };
            return self.hand_over();
        }
        let again = self.reconnect && matches!(closed, Closed::Orderly(_));
        if again && self.phase == Phase::Talking && !self.orders.decide() {
            return self.dial_again(now);
        }
        self.playing.no_more_audio();
        let until = match self.playing.has_audio() {
            true => Some(now + self.limits.drain_on_close),
            // the last frame has been sent, but not yet played
            false => self.playing.played_at(),
        };
        match until.filter(|until| *until > now) {
            // an order that waits for the audio decides what comes after it
            _ if self.orders.pending() => self.phase = Phase::Finishing { reason, until: None },
            Some(until) => self.phase = Phase::Finishing { reason, until: Some(until) },
            None => self.end(reason),
        }
    }

    /// When the queued audio has been played, in which phase that matters.
    pub(super) fn finish_by(&self) -> Option<Instant> {
        match self.phase {
            Phase::Finishing { until, .. } => until,
            _ => None,
        }
    }

    /// The earliest time at which the call ends, and the reason.
    pub(super) fn limit(&self) -> Option<(Instant, EndReason)> {
        let until = match self.phase {
            Phase::Finishing { reason, until } => until.map(|until| (until, reason)),
            _ => None,
        };
        let leave_by = self.leave_by.map(|by| (by, EndReason::Drain));
        let left_by = self.left_by().map(|by| (by, EndReason::Internal));
        let state = State {
            heard: self.hearing.receiver.last_heard(),
            on_hold: self.is_on_hold(),
            talking: self.phase == Phase::Talking,
            leaves: self.leaves(),
            finish_by: [until, leave_by, left_by].into_iter().flatten().min_by_key(|(at, _)| *at),
        };
        self.limits.earliest(&self.past, state)
    }

    pub(super) fn end(&mut self, reason: EndReason) {
        let connected = self.past.answered.is_some();
        let departure = self.departure.departure(reason, connected, self.can_continue);
        self.end_with(reason, departure.map(|departure| SourceRequest::End { reason, departure }));
    }

    pub(super) fn end_with(&mut self, reason: EndReason, request: Option<SourceRequest>) {
        if let Phase::Leaving { reason } = self.phase {
            return match request {
                // the source has ended it, as the owner wanted
                None => self.ended(reason),
                Some(_) => self.give_up_leaving(reason),
            };
        }
        // without a request, the source has ended it
        let leaves = self.owned.is_some() && request.is_some();
        self.out.extend(request.map(Output::Request));
        self.conclude(reason, leaves);
    }

    /// Ends the AI's part of the call. `leaves`: the owner ends the rest, and it lasts until then.
    pub(super) fn conclude(&mut self, reason: EndReason, leaves: bool) {
        self.fail_open();
        if self.phase == Phase::Talking {
            self.out.push_back(Output::Ai(ToAi::Stop));
        }
        if leaves { self.leave(reason) } else { self.ended(reason) }
    }

    pub(super) fn ended(&mut self, reason: EndReason) {
        self.phase = Phase::Ended;
        self.out.push_back(Output::Ended(reason));
    }
}
