//! A caller whose AI has failed goes down the ladder: the rungs are tried in order until one
//! takes the caller.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::call::core::leaving::TAKEN_AWAY;
use crate::call::core::state::{Falling, Open};
use crate::call::core::{Call, Phase};
use crate::call::departure::Departure;
use crate::call::end::EndReason;
use crate::call::ladder::Rung;
use crate::call::words::{DialAgain, Output};
use crate::call::{AnswerWhen, SourceRequest};
use crate::command::{OnFail, Sender, Transfer, TransferKind};
use crate::stream::ToAi;

/// A closed AI is dialled again for this long (`on_ai_close = "reconnect"`).
const RECONNECT: Duration = Duration::from_secs(5);
/// The pause before that, if its stream was short.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a transfer's target may ring.
const RING: Duration = Duration::from_secs(25);
/// A caller whom a shutdown sends down the ladder has this long.
const LEAVE: Duration = Duration::from_secs(10);
/// An AI that has had the caller for this long has not failed at once: the next failure begins at
/// the top of the ladder.
const SETTLED: Duration = Duration::from_secs(60);
/// The number of the ladder's own transfers, which are not orders.
const NOBODYS: u32 = 0;
/// The number of requests whose outcome does not matter.
pub(super) const WHATEVER: u32 = u32::MAX;

impl Call {
    /// The AI has failed, or an order sends the caller down the ladder.
    pub(super) fn ai_failed(&mut self, now: Instant, reason: EndReason) {
        if self.leaves() {
            return;
        }
        self.leave_ai();
        if self.orders.decide() && self.past.answered.is_some() {
            // what the AI said before it is played, and then its outcome decides
            self.phase = Phase::Finishing { reason, until: None };
            return self.hand_over();
        }
        self.phase = Phase::Finishing { reason, until: None };
        self.playing.drop_ai_audio();
        self.give_up_waiting(now);
        self.release_caller();
        let settled = self.past.ai_started.is_some_and(|at| at + SETTLED <= now);
        self.falling = self.falling.take().filter(|falling| falling.active || !settled);
        // each AI of the route but the one that has failed
        let rung = |rung: &Rung| match rung {
            Rung::Next(ai) if *ai == self.ai => Rung::Next(self.first),
            other => other.clone(),
        };
        let rungs = || self.ladder.iter().map(rung).collect();
        let falling =
            self.falling.get_or_insert_with(|| Falling { reason, rungs: rungs(), active: false });
        if !std::mem::replace(&mut falling.active, true) {
            falling.reason = reason;
        }
        self.next_rung(now);
    }

    /// The AI gets no more of the call.
    pub(super) fn leave_ai(&mut self) {
        match self.phase {
            Phase::Talking => self.out.push_back(Output::Ai(ToAi::Stop)),
            // it is still being dialled, or its stream has not started
            Phase::Connecting => self.out.push_back(Output::CloseAi),
            Phase::Finishing { .. } | Phase::Leaving { .. } | Phase::Ended => {}
        }
    }

    /// Undoes what the AI, or an order for it, has done to the call. The next AI knows nothing of
    /// it, and the caller has to hear the prompts.
    pub(super) fn release_caller(&mut self) {
        (self.orders.caller_muted, self.orders.ai_muted) = (false, false);
        if std::mem::take(&mut self.orders.held) {
            let request = SourceRequest::Hold { order: WHATEVER, on: false };
            self.out.push_back(Output::Request(request));
            self.tell_hold();
        }
    }

    /// All calls have to end, so the caller goes down the ladder, for a limited time.
    pub(super) fn dismiss(&mut self, now: Instant, reason: EndReason) {
        let time = if self.owned.is_some() { TAKEN_AWAY } else { LEAVE };
        self.leave_by = Some(now + time);
        self.interrupt(now, reason);
    }

    /// The recording is required, and lacks audio: the caller may not talk to an AI any more.
    pub(super) fn recording_lost(&mut self, now: Instant) {
        self.unrecorded = true;
        self.interrupt(now, EndReason::NotRecorded);
    }

    /// The call may not continue, for a reason that is not the AI's. What already leads to its end
    /// is not cut.
    fn interrupt(&mut self, now: Instant, reason: EndReason) {
        if !matches!(self.phase, Phase::Finishing { .. }) {
            return self.ai_failed(now, reason);
        }
        self.falling.iter_mut().for_each(|falling| falling.reason = reason);
    }

    /// The call may not go to its AI: the caller goes down the ladder from the beginning.
    pub fn refuse(&mut self, now: Instant, reason: EndReason) {
        // it may have been about to be answered
        self.out.clear();
        self.past.answer_wanted = None;
        self.unrecorded = reason == EndReason::NotRecorded;
        self.ai_failed(now, reason);
    }

    /// Tries the next rung.
    pub(super) fn next_rung(&mut self, now: Instant) {
        let Some(reason) = self.falling.as_ref().map(|falling| falling.reason) else { return };
        let connected = self.past.answered.is_some();
        self.phase = Phase::Finishing { reason, until: None };
        while let Some(rung) = self.falling.as_mut().and_then(|falling| falling.rungs.pop_front()) {
            match rung {
                // these are not the AI's fault, and another AI would not be better off
                Rung::Ai(_) | Rung::Next(_) if self.leave_by.is_some() || self.unrecorded => {}
                // there is no room at any AI, or no time
                Rung::Ai(_) | Rung::Next(_)
                    if matches!(reason, EndReason::Overload | EndReason::Drain) => {}
                Rung::Ai(ai) | Rung::Next(ai) => {
                    self.out.push_back(Output::Step(rung));
                    return self.dial_ai(ai, None);
                }
                Rung::Play(ref prompt) | Rung::PlayIfConnected(ref prompt) if connected => {
                    if !prompt.is_empty() {
                        self.playing.announce(now, prompt, None);
                        // the AI that has failed costs nothing while the call continues without it
                        return self.out.extend([Output::CloseAi, Output::Step(rung)]);
                    }
                }
                // an owner takes unanswered callers, too
                Rung::Transfer(ref to) if connected || self.owned.is_some() => {
                    if self.falls_to(to) {
                        return self.out.extend([Output::CloseAi, Output::Step(rung)]);
                    }
                }
                // no callee is called for an announcement
                Rung::Play(_) | Rung::Transfer(_) if self.outgoing.is_some() => {}
                // these need the caller
                Rung::Play(_) | Rung::Transfer(_) => {
                    self.falling.iter_mut().for_each(|f| f.rungs.push_front(rung.clone()));
                    if self.past.answer_wanted.is_none() {
                        self.answer(now);
                    }
                    return;
                }
                Rung::PlayIfConnected(_) => {}
                Rung::Continue if self.can_continue => {
                    let departure = Departure::Continue;
                    let request = SourceRequest::End { reason, departure };
                    return self.end_with(reason, Some(request));
                }
                Rung::Continue => {}
                Rung::Hangup(Some(cause)) => {
                    let request = SourceRequest::HangUp { reason, cause };
                    return self.end_with(reason, Some(request));
                }
                Rung::Hangup(None) => break,
            }
        }
        let request = SourceRequest::End { reason, departure: Departure::HangUp };
        self.end_with(reason, Some(request));
    }

    /// True if another AI of the route follows should the one that is dialled fail.
    pub fn has_next_ai(&self) -> bool {
        let next = match &self.falling {
            Some(falling) => falling.rungs.front(),
            None => self.ladder.first(),
        };
        matches!(next, Some(Rung::Next(_)))
    }

    /// True while the caller is on the way down.
    pub(super) fn falls(&self) -> bool {
        self.falling.as_ref().is_some_and(|falling| falling.active)
            && matches!(self.phase, Phase::Finishing { .. })
    }

    /// Begins a transfer to a target of the configuration; false if it is not allowed.
    fn falls_to(&mut self, to: &str) -> bool {
        if self.transfers.find(to).is_none() {
            return false;
        }
        let (kind, on_fail) = (TransferKind::Blind, OnFail::Ladder);
        let transfer = Transfer { to: to.to_owned(), kind, timeout: RING, on_fail, status: None };
        self.transfer(NOBODYS, transfer, &Sender::Ai);
        matches!(self.orders.open.get(&NOBODYS), Some(Open::Transferring(_)))
    }

    /// Dials an AI in place of the one before. What the caller says meanwhile is kept for it.
    pub(super) fn dial_ai(&mut self, ai: usize, again: Option<DialAgain>) {
        self.phase = Phase::Connecting;
        self.ai_open = false;
        // a session that continues need not speak before the caller does
        (self.past.ai_started, self.past.ai_heard) = (None, again.is_some() && self.past.resuming);
        self.playing.forget_marks();
        self.listener.iter_mut().for_each(|listener| listener.stream_ends());
        self.hearing.keep_more();
        (self.limits.silent_timeout, self.limits.drain_on_close) =
            self.limits_by_ai.get(ai).copied().unwrap_or_default();
        self.ai = ai;
        if again.is_none() {
            (self.reconnecting, self.past.resuming) = (None, false);
        }
        self.out.push_back(Output::DialAi { ai, again });
        if self.answer == AnswerWhen::AtOnce {
            self.past.answer_wanted.get_or_insert(self.created);
        }
    }

    /// Dials an AI again that has closed its stream. An AI that keeps closing it has failed.
    pub(super) fn dial_again(&mut self, now: Instant) {
        let lasted = self.past.ai_started.map(|at| now.saturating_duration_since(at));
        let lasted = lasted.unwrap_or_default();
        if lasted >= RECONNECT {
            self.reconnecting = None;
        }
        if lasted >= SETTLED {
            self.falling = None;
        }
        let since = *self.reconnecting.get_or_insert(now);
        let limit = (since + RECONNECT).saturating_duration_since(now);
        if limit.is_zero() {
            return self.ai_failed(now, EndReason::AiClosed);
        }
        let pause = if lasted < RECONNECT { AGAIN.min(limit) } else { Duration::ZERO };
        self.dial_ai(self.ai, Some(DialAgain { limit, pause }));
    }

    /// The AI is not dialled, and this step is taken instead. If it is not possible, the ladder
    /// follows without its AIs.
    pub(super) fn instead(&mut self, now: Instant, rung: Rung) {
        if self.phase != Phase::Connecting {
            return;
        }
        let reason = EndReason::AiHangup;
        self.phase = Phase::Finishing { reason, until: None };
        self.playing.drop_ai_audio();
        self.give_up_waiting(now);
        self.release_caller();
        let is_ai = |rung: &&Rung| matches!(rung, Rung::Ai(_) | Rung::Next(_));
        let others = self.ladder.iter().filter(|rung| !is_ai(rung)).cloned();
        let rungs = [rung].into_iter().chain(others).collect();
        self.falling = Some(Falling { reason, rungs, active: true });
        self.next_rung(now);
    }

    /// The AI that was dialled could not be reached.
    pub(super) fn ai_unreachable(&mut self, now: Instant) {
        if self.phase != Phase::Connecting {
            return;
        }
        // it may not have noticed yet that the connection before is gone
        let since = self.reconnecting.filter(|_| self.past.resuming);
        match since.is_some_and(|since| now.saturating_duration_since(since) + AGAIN < RECONNECT) {
            true => self.dial_again(now),
            false => self.ai_failed(now, EndReason::AiUnreachable),
        }
    }

    /// The AI is gone, and nothing that is open decides any more what becomes of the caller.
    pub(super) fn settle(&mut self, now: Instant) {
        self.settle_leaving(now);
        let Phase::Finishing { reason, until: None } = self.phase else { return };
        if self.past.answered.is_none() || self.orders.pending() || self.playing.has_audio() {
            return;
        }
        // the last frame has been sent, but not yet played
        match self.playing.played_at().filter(|at| *at > now) {
            Some(until) => self.phase = Phase::Finishing { reason, until: Some(until) },
            None => self.played_out(now, reason),
        }
    }

    /// Everything has been played to a caller without an AI.
    pub(super) fn played_out(&mut self, now: Instant, reason: EndReason) {
        match reason {
            _ if self.falls() => self.next_rung(now),
            EndReason::AiHangup | EndReason::AiHandover | EndReason::ApiHangup => self.end(reason),
            _ => self.ai_failed(now, reason),
        }
    }
}
