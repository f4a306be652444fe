//! A redirect: the AI's stream ends, and something else is done with the caller.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::call::core::state::Open;
use crate::call::core::{Call, Phase};
use crate::call::end::EndReason;
use crate::call::words::Output;
use crate::command::{Failure, Redirect, Reply, Sender, Then};
use crate::stream::ToAi;

impl Call {
    /// Checks whether a redirect is possible, before anything is changed.
    pub(super) fn may_redirect(&self, redirect: &Redirect) -> Result<(), Failure> {
        let allowed = match &redirect.then {
            Then::Hangup(_) => true,
            Then::Transfer(transfer) => self.transfers.find(&transfer.to).is_some(),
            Then::Ai(ai) => self.ai_named(ai).is_some(),
        };
        match allowed {
            false => Err(Failure::NotAllowed),
            true if self.orders.transfer() => Err(Failure::WrongState),
            true => Ok(()),
        }
    }

    fn ai_named(&self, name: &str) -> Option<usize> {
        self.ais.iter().position(|(known, url)| known == name || url == name)
    }

    pub(super) fn redirect(&mut self, now: Instant, number: u32, redirect: Redirect, by: &Sender) {
        if self.phase == Phase::Talking {
            self.out.push_back(Output::Ai(ToAi::Stop));
        }
        self.out.push_back(Output::CloseAi);
        self.phase = Phase::Finishing { reason: EndReason::ApiHangup, until: None };
        self.falling = None;
        self.playing.drop_ai_audio();
        // the last redirect counts
        let superseded = self.orders.take_waiting().into_iter().map(|(number, ..)| number);
        let superseded: Vec<u32> = superseded.chain(self.orders.take_redirect()).collect();
        for number in superseded {
            self.reply(number, Reply::Failed(Failure::Cancelled));
        }
        self.release_caller();
        let Redirect { keys, then } = redirect;
        match keys {
            None => self.then(now, number, then, by),
            Some(keys) => {
                let open = Open::Redirecting { then, by: by.clone() };
                self.press(now, number, &keys, open);
            }
        }
    }

    pub(super) fn then(&mut self, now: Instant, number: u32, then: Then, by: &Sender) {
        match then {
            Then::Hangup(cause) => {
                self.reply(number, Reply::Done);
                self.hang_up(cause, by);
            }
            Then::Transfer(transfer) => self.transfer(number, transfer, by),
            Then::Ai(name) => match self.ai_named(&name) {
                Some(ai) => {
                    self.reply(number, Reply::Done);
                    self.dial_ai(ai, None);
                }
                None => self.ai_failed(now, EndReason::AiUnreachable),
            },
        }
    }
}
