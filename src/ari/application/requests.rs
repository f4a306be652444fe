//! Sends requests and passes their outcomes to whoever made them.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::ari::api::{Output, RequestId};
use crate::ari::application::{Application, Link, Purpose};
use crate::ari::request::{Outcome, RestRequest};

impl Application {
    pub(super) fn send(&mut self, purpose: Purpose, request: RestRequest) {
        self.last_request += 1;
        self.pending.insert(self.last_request, (purpose, request.name()));
        if let Some(request) = self.music.admit(self.last_request, request) {
            self.out.push_back(Output::Send(self.last_request, request));
        }
    }

    pub(super) fn on_outcome(&mut self, now: Instant, id: RequestId, outcome: Outcome) {
        if let Some((next, request)) = self.music.next(id) {
            self.out.push_back(Output::Send(next, request));
        }
        let Some((purpose, name)) = self.pending.remove(&id) else { return };
        let refused = outcome.status().is_some_and(|s| s == 401 || s == 403);
        if refused && self.link == Link::Up {
            self.out.push_back(Output::Failed(name, outcome.clone()));
        }
        match purpose {
            Purpose::Bridging { call, step, generation } => {
                self.bridging(now, call, |bridging, names| {
                    match step.builds() && generation != bridging.generation() {
                        true => vec![],
                        false => bridging.on_outcome(now, step, &outcome, names),
                    }
                });
            }
            Purpose::Variable { call, name } => self.on_variable(now, call, name, &outcome),
            Purpose::Channels(n) if n == self.sweep.reading.number => {
                self.sweep.reading.channels = outcome.channels();
                self.on_reading(now, self.sweep.reading.channels.is_some());
            }
            Purpose::Bridges(n) if n == self.sweep.reading.number => {
                self.sweep.reading.bridges = outcome.bridges();
                self.on_reading(now, self.sweep.reading.bridges.is_some());
            }
            Purpose::OrphanReason(channel) => {
                self.send(Purpose::OrphanCaller, RestRequest::Continue { channel, to: None });
            }
            Purpose::OrphanCaller => {
                self.callers_leaving -= 1;
                self.delete_doomed();
            }
            Purpose::Order { call, order, rest } => self.on_ordered(call, order, rest, &outcome),
            Purpose::Info => self.on_info(now, outcome.startup_time()),
            Purpose::Channels(_) | Purpose::Bridges(_) | Purpose::Extra => {}
        }
    }
}
