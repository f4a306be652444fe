//! Carries out the orders of calls on the PBX, one request after the other.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;

use crate::ari::api::{CallKey, Output, Wish};
use crate::ari::application::{Application, Purpose};
use crate::ari::bridging::words::Tell;
use crate::ari::request::{Outcome, RestRequest};
use crate::command::Failure;

impl Application {
    pub(super) fn on_order(&mut self, call: CallKey, order: u32, wish: Wish) {
        let live = self.calls.get(&call).filter(|c| !c.bridging.is_ending());
        let Some(live) = live else {
            return self.replied(call, order, Err(Failure::Ended));
        };
        let channel = live.bridging.channel.clone();
        let requests = match wish {
            Wish::Hold(on) => vec![RestRequest::Music { channel, on }],
            Wish::Digits(digits) => vec![RestRequest::Digits { channel, digits }],
            Wish::Variables(variables) => variables
                .into_iter()
                .map(|(name, value)| RestRequest::SetVariable {
                    channel: channel.clone(),
                    name,
                    value,
                })
                .collect(),
        };
        self.next_step(call, order, requests.into());
    }

    fn next_step(&mut self, call: CallKey, order: u32, mut rest: VecDeque<RestRequest>) {
        match rest.pop_front() {
            Some(request) => self.send(Purpose::Order { call, order, rest }, request),
            None => self.replied(call, order, Ok(())),
        }
    }

    pub(super) fn on_ordered(
        &mut self,
        call: CallKey,
        order: u32,
        rest: VecDeque<RestRequest>,
        outcome: &Outcome,
    ) {
        match outcome.is_success() {
            true => self.next_step(call, order, rest),
            false => self.replied(call, order, Err(Failure::Refused)),
        }
    }

    fn replied(&mut self, call: CallKey, order: u32, result: Result<(), Failure>) {
        self.out.push_back(Output::Tell(call, Tell::Replied(order, result)));
    }
}
