//! Carries out the orders of calls in SIP mode: hang-up with a cause, hold, and keys by INFO.

use std::collections::VecDeque;

use crate::call::{Signal, SourceRequest};
use crate::command::{Cause, Failure, PAUSE};
use crate::sip::agent::{CallKey, Command};
use crate::sip::endpoint::Endpoint;
use crate::sip::endpoint::counters::count_refused;
use crate::sip::endpoint::translate::refusal;
use crate::sip::sdp::Direction;

impl Endpoint {
    pub(super) fn on_order(&mut self, call: CallKey, request: SourceRequest) {
        let Some(link) = self.calls.get_mut(&call) else { return };
        match request {
            SourceRequest::HangUp { cause, .. } => {
                self.drop_transfer(call);
                self.hang_up(call, cause);
            }
            SourceRequest::Transfer { .. } => self.start_transfer(call, request),
            SourceRequest::CompleteTransfer => self.complete_transfer(call),
            SourceRequest::CancelTransfer => self.cancel_transfer(call),
            SourceRequest::Hold { order, .. } if link.holding.is_some() => {
                self.reply(call, order, Err(Failure::WrongState));
            }
            SourceRequest::Hold { order, on } => {
                link.holding = Some(order);
                let direction = if on { Direction::SendOnly } else { Direction::SendRecv };
                self.command(Command::Direction { call, direction });
            }
            SourceRequest::Digits { order, digits } => {
                // a PBX takes each INFO as it comes: the answer to one paces the next
                let keys: VecDeque<char> =
                    digits.as_str().chars().filter(|key| *key != PAUSE).collect();
                link.keys.push_back((order, keys));
                if link.keys.len() == 1 {
                    self.press_next(call);
                }
            }
            SourceRequest::SetVariables { order, .. } | SourceRequest::Lead { order, .. } => {
                self.reply(call, order, Err(Failure::Unsupported));
            }
            SourceRequest::Answer
            | SourceRequest::Ringing
            | SourceRequest::End { .. }
            | SourceRequest::Disposition(_)
            | SourceRequest::Spoken
            | SourceRequest::Capture(_) => {}
        }
    }

    pub(super) fn reply(&mut self, call: CallKey, order: u32, result: Result<(), Failure>) {
        self.signal(call, Signal::Replied { order, result });
    }

    fn hang_up(&mut self, call: CallKey, cause: Cause) {
        let answered = self.calls.get(&call).is_some_and(|link| link.answered);
        if answered {
            let (q850, text) = (u16::from(cause.q850()), cause.name());
            return self.command(Command::Hangup { call, q850, text });
        }
        let (code, reason) = refusal(cause);
        count_refused(Some("INVITE"), code);
        self.command(Command::Reject { call, code, reason, retry_after_s: None });
    }

    pub(super) fn on_directed(&mut self, call: CallKey, accepted: bool) {
        let order = self.calls.get_mut(&call).and_then(|link| link.holding.take());
        if let Some(order) = order {
            self.reply(call, order, accepted.then_some(()).ok_or(Failure::Refused));
        }
    }

    /// Sends the next key of the first order, or completes the order.
    fn press_next(&mut self, call: CallKey) {
        let Some(link) = self.calls.get_mut(&call) else { return };
        let Some((order, keys)) = link.keys.front_mut() else { return };
        match keys.pop_front() {
            Some(digit) => self.command(Command::Info { call, digit }),
            None => {
                let order = *order;
                self.keys_done(call, order, Ok(()));
            }
        }
    }

    fn keys_done(&mut self, call: CallKey, order: u32, result: Result<(), Failure>) {
        if let Some(link) = self.calls.get_mut(&call) {
            link.keys.pop_front();
        }
        self.reply(call, order, result);
        self.press_next(call);
    }

    pub(super) fn on_key_pressed(&mut self, call: CallKey, accepted: bool) {
        let first = self.calls.get(&call).and_then(|link| link.keys.front());
        let Some(order) = first.map(|(order, _)| *order) else { return };
        match accepted {
            true => self.press_next(call),
            false => self.keys_done(call, order, Err(Failure::Refused)),
        }
    }
}
