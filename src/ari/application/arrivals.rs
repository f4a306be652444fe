//! Callers and our own channels entering the application: the cap on external media, and the
//! channel variables that are read before a call is offered.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::ari::api::{CallKey, NewCall, NotTaken, Output};
use crate::ari::application::{Application, Call, Link, Purpose};
use crate::ari::bridging::Bridging;
use crate::ari::bridging::words::{Action, Step};
use crate::ari::event::Channel;
use crate::ari::request::{NORMAL, Outcome, RestRequest};
use crate::ari::sweep::is_ours;

impl Application {
    pub(super) fn on_start(&mut self, now: Instant, channel: Channel, args: Vec<String>) {
        if is_ours(&self.names.prefix, &channel.id) {
            return match self.channels.get(&channel.id).copied() {
                Some(call) => self.bridging(now, call, |bridging, names| {
                    if bridging.channel == channel.id {
                        bridging.on_callee_started(now, names)
                    } else if bridging.media_id(names) == channel.id {
                        bridging.on_media_started(names)
                    } else if bridging.target_id(names) == channel.id {
                        bridging.on_target_started(now, names)
                    } else {
                        // it was given up before it was created
                        let request = RestRequest::HangUp { channel: channel.id, reason: NORMAL };
                        vec![Action::Send(Step::Extra, request)]
                    }
                }),
                // its call is over: the channel was created too late
                None => self.send(
                    Purpose::Extra,
                    RestRequest::HangUp { channel: channel.id, reason: NORMAL },
                ),
            };
        }
        let known = self.channels.get(&channel.id).and_then(|call| self.calls.get(call));
        if known.is_some_and(|c| c.bridging.has_caller()) || channel.name.starts_with("UnicastRTP/")
        {
            return; // already known, or another program's external media
        }
        if !self.sweep.seen && self.link == Link::Up {
            let known = self.early.iter().any(|(c, _)| c.id == channel.id);
            if !known && self.early.len() < self.settings.max_media {
                return self.early.push((channel, args));
            }
        }
        let refused = match self.stopping {
            true => Some(NotTaken::Stopping),
            false if self.media() >= self.settings.max_media => Some(NotTaken::Full),
            false => None,
        };
        self.take(now, channel, args, refused);
    }

    /// Begins a call, unless `refused` gives a reason not to.
    pub(super) fn take(
        &mut self,
        now: Instant,
        channel: Channel,
        args: Vec<String>,
        refused: Option<NotTaken>,
    ) {
        self.last_key += 1;
        let call = self.last_key;
        let id = self.settings.ids.id(call);
        let context = channel.dialplan.context.clone();
        let bridging = Bridging::new(channel.id.clone(), id.clone(), channel.is_up(), context);
        self.channels.insert(channel.id.clone(), call);
        let new = Box::new(NewCall { call, id, channel, args, variables: Vec::new() });
        self.calls.insert(
            call,
            Call { bridging, created: now, asking: None, refused: refused.is_some() },
        );
        if let Some(why) = refused {
            return self.out.push_back(Output::Refused(call, why, Box::new(new.channel)));
        }
        self.ask(call, new);
    }

    /// Number of external media channels that exist or may exist.
    pub(super) fn media(&self) -> usize {
        // a refused caller has none, and may wait for the owner of the calls
        let holds = |c: &&Call| !c.refused && (c.bridging.holds_media() || c.asking.is_some());
        self.calls.values().filter(holds).count() + self.sweep.media
    }

    /// Requests the next channel variable; after the last one, offers the call.
    fn ask(&mut self, call: CallKey, new: Box<NewCall>) {
        let Some(entry) = self.calls.get_mut(&call) else { return };
        match self.settings.variables.get(new.variables.len()) {
            Some(name) => {
                let (channel, name) = (new.channel.id.clone(), name.clone());
                entry.asking = Some(new);
                let purpose = Purpose::Variable { call, name: name.clone() };
                self.send(purpose, RestRequest::Variable { channel, name });
            }
            None => self.out.push_back(Output::Offer(new)),
        }
    }

    pub(super) fn on_variable(
        &mut self,
        now: Instant,
        call: CallKey,
        name: String,
        outcome: &Outcome,
    ) {
        let Some(entry) = self.calls.get_mut(&call) else { return };
        let Some(mut new) = entry.asking.take() else { return };
        if entry.bridging.is_ending() {
            // the caller left before the call was offered: remove the call here
            return self.bridging(now, call, |_, _| vec![]);
        }
        new.variables.push((name, outcome.value().unwrap_or_default()));
        // if the PBX does not respond, do not request the other variables
        while outcome.status().is_none() && new.variables.len() < self.settings.variables.len() {
            new.variables.push((String::new(), String::new()));
        }
        self.ask(call, new);
    }
}
