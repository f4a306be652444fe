//! Our Stasis application on one PBX: its calls, and what it must not harm.
//!
//! [`Application::handle`], then drain [`Application::poll`], then wait for the next input or
//! [`Application::next_timeout`]. Nothing here waits for an answer: each comes back as an input.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::ari::api::{CallKey, Input, NewCall, Output, RequestId, Settings};
use crate::ari::bridging::Bridging;
use crate::ari::bridging::words::{Action, After, Names, Step, Tell};
use crate::ari::event::{Channel, Event};
use crate::ari::request::{Outcome, RestRequest};
use crate::ari::sweep::{Orphans, Sweep, is_ours};

pub(super) enum Purpose {
    Bridging {
        call: CallKey,
        step: Step,
        generation: u8,
    },
    Variable {
        call: CallKey,
        name: String,
    },
    /// Of the reading with this number.
    Channels(u64),
    Bridges(u64),
    /// One of the orphaned callers is told why, and sent on.
    OrphanReason(String),
    OrphanCaller,
    Info,
    Extra,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Down,
    Up,
    Replaced,
    /// The events socket is closed for good: nobody comes any more.
    Closed,
}

pub(super) struct Call {
    pub(super) bridging: Bridging,
    pub(super) created: Instant,
    /// Until it is offered: what is still asked for.
    pub(super) asking: Option<Box<NewCall>>,
}

pub struct Application {
    pub(super) names: Names,
    settings: Settings,
    pub(super) calls: HashMap<CallKey, Call>,
    pub(super) channels: HashMap<String, CallKey>,
    pub(super) bridges: HashMap<String, CallKey>,
    pending: HashMap<RequestId, (Purpose, &'static str)>,
    pub(super) out: VecDeque<Output>,
    pub(super) link: Link,
    stopping: bool,
    pub(super) connected_at: Option<Instant>,
    /// Callers who came before the first reading: what is left of a process before us counts too.
    pub(super) early: Vec<(Channel, Vec<String>)>,
    pub(super) sweep: Sweep,
    /// Deleted when the last orphaned caller has been sent on.
    pub(super) doomed: Orphans,
    pub(super) callers_leaving: usize,
    pub(super) startup: Option<String>,
    /// Nothing is left that another look would find.
    pub(super) last_look: bool,
    last_key: u64,
    last_request: u64,
}

/// How often the lists are read in place of events that do not come any more.
pub(super) const WITHOUT_EVENTS: Duration = Duration::from_secs(1);

impl Application {
    pub fn new(settings: Settings) -> Application {
        let names = Names {
            app: settings.app.clone(),
            prefix: prefix(&settings.app),
            format: settings.format,
            pbx: IpAddr::from([127, 0, 0, 1]),
        };
        Application {
            names,
            settings,
            calls: HashMap::new(),
            channels: HashMap::new(),
            bridges: HashMap::new(),
            pending: HashMap::new(),
            out: VecDeque::new(),
            link: Link::Down,
            stopping: false,
            connected_at: None,
            early: Vec::new(),
            sweep: Sweep::default(),
            doomed: Orphans::default(),
            callers_leaving: 0,
            startup: None,
            last_look: false,
            last_key: 0,
            last_request: 0,
        }
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Calls whose objects are not all gone.
    pub fn call_count(&self) -> usize {
        self.calls.len()
    }

    /// After [`Input::Close`]: nothing of ours is left, or nothing more can be done.
    pub fn is_closed(&self) -> bool {
        let quiet = self.calls.is_empty() && self.pending.is_empty();
        self.link == Link::Closed && self.last_look && quiet
    }

    pub fn is_replaced(&self) -> bool {
        self.link == Link::Replaced
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        let sweep = self.sweep.next_timeout().filter(|_| self.link != Link::Down);
        self.calls.values().filter_map(|c| c.bridging.next_timeout()).chain(sweep).min()
    }

    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Connected(pbx) => self.on_connected(now, pbx),
            Input::Disconnected => self.on_disconnected(),
            Input::Event(event) => self.on_event(now, event),
            Input::Outcome(id, outcome) => self.on_outcome(now, id, outcome),
            Input::Accept(call, host) => {
                self.bridging(now, call, |bridging, names| bridging.begin(now, host, names));
            }
            Input::Answer(call) => {
                self.bridging(now, call, |bridging, names| bridging.answer(now, names))
            }
            Input::Ring(call) => self.bridging(now, call, |bridging, _| {
                let channel = bridging.channel.clone();
                let ring = Action::Send(Step::Extra, RestRequest::Ring { channel });
                if bridging.is_waiting() { vec![ring] } else { vec![] }
            }),
            Input::End(call, after) => {
                self.bridging(now, call, |bridging, names| bridging.end(after, names))
            }
            Input::Stop => self.stopping = true,
            Input::Close => self.on_close(now),
            Input::Timeout => self.on_timeout(now),
        }
    }

    fn on_connected(&mut self, now: Instant, pbx: IpAddr) {
        self.connected_at = Some(now);
        self.names.pbx = pbx;
        if matches!(self.link, Link::Replaced | Link::Closed) {
            return;
        }
        self.link = Link::Up;
        self.send(Purpose::Info, RestRequest::Info);
        self.send(Purpose::Extra, RestRequest::EventFilter { app: self.names.app.clone() });
    }

    fn on_disconnected(&mut self) {
        if self.link == Link::Up {
            self.link = Link::Down;
            self.sweep.stop();
            self.early.clear();
            self.tell_all(&Tell::Lost);
        }
    }

    pub(super) fn tell_all(&mut self, tell: &Tell) {
        let live = self.calls.iter().filter(|(_, c)| !c.bridging.is_ending() && c.asking.is_none());
        let keys: Vec<CallKey> = live.map(|(key, _)| *key).collect();
        self.out.extend(keys.into_iter().map(|key| Output::Tell(key, tell.clone())));
    }

    fn on_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::StasisStart { channel, args } => self.on_start(now, *channel, args),
            Event::StasisEnd { channel } | Event::Destroyed { channel } => {
                self.on_end(now, &channel);
            }
            Event::HangupRequest { channel } => {
                self.of_caller(now, &channel, |bridging, _| {
                    bridging.on_hangup_request();
                    vec![]
                });
            }
            Event::Digit { channel, digit } => self.tell_caller(&channel, Tell::Digit(digit)),
            Event::Hold { channel, on } => self.tell_caller(&channel, Tell::Hold(on)),
            Event::BridgeDestroyed { bridge } => {
                if let Some(call) = self.bridges.get(&bridge).copied() {
                    self.bridging(now, call, |bridging, names| {
                        match bridging.bridge_id(names) == bridge {
                            true => bridging.on_bridge_lost(now, names),
                            false => vec![],
                        }
                    });
                }
            }
            Event::Replaced => {
                self.link = Link::Replaced;
                self.out.push_back(Output::Replaced);
                self.sweep.stop();
                self.sweep.now(now + WITHOUT_EVENTS);
            }
            Event::Other => {}
        }
    }

    pub(super) fn on_start(&mut self, now: Instant, channel: Channel, args: Vec<String>) {
        if is_ours(&self.names.prefix, &channel.id) {
            return match self.channels.get(&channel.id).copied() {
                Some(call) => self.bridging(now, call, |bridging, names| {
                    match bridging.media_id(names) == channel.id {
                        true => bridging.on_media_started(names),
                        false => vec![],
                    }
                }),
                // of a call that is over: its POST was answered too late
                None => self.send(Purpose::Extra, RestRequest::HangUp { channel: channel.id }),
            };
        }
        let known = self.channels.get(&channel.id).and_then(|call| self.calls.get(call));
        if known.is_some_and(|c| c.bridging.has_caller()) || channel.name.starts_with("UnicastRTP/")
        {
            return; // told twice, or somebody else's
        }
        if !self.sweep.seen && self.link == Link::Up {
            let known = self.early.iter().any(|(c, _)| c.id == channel.id);
            if !known && self.early.len() < self.settings.max_media {
                return self.early.push((channel, args));
            }
        }
        let refused = match self.stopping {
            true => Some("drain"),
            false if self.media() >= self.settings.max_media => Some("overload"),
            false => None,
        };
        self.take(now, channel, args, refused);
    }

    /// Begins a call, or sends the caller on at once.
    pub(super) fn take(
        &mut self,
        now: Instant,
        channel: Channel,
        args: Vec<String>,
        refused: Option<&'static str>,
    ) {
        self.last_key += 1;
        let call = self.last_key;
        let id = self.settings.ids.id(call);
        let bridging = Bridging::new(channel.id.clone(), id.clone(), channel.is_up());
        self.channels.insert(channel.id.clone(), call);
        let new = Box::new(NewCall { call, id, channel, args, variables: Vec::new() });
        self.calls.insert(call, Call { bridging, created: now, asking: None });
        if let Some(why) = refused {
            self.out.push_back(Output::Refused(why));
            let after = After::Continue(why.to_owned());
            return self.bridging(now, call, |bridging, names| bridging.end(after, names));
        }
        self.ask(call, new);
    }

    /// External media channels that are there or may be.
    fn media(&self) -> usize {
        let held = self.calls.values().filter(|c| c.bridging.holds_media() || c.asking.is_some());
        held.count() + self.sweep.media
    }

    /// Asks for the next variable; with the last one the call is offered.
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

    fn on_variable(&mut self, now: Instant, call: CallKey, name: String, outcome: &Outcome) {
        let Some(entry) = self.calls.get_mut(&call) else { return };
        let Some(mut new) = entry.asking.take() else { return };
        if entry.bridging.is_ending() {
            // left before it was offered: nobody else will end it
            return self.bridging(now, call, |_, _| vec![]);
        }
        new.variables.push((name, outcome.value().unwrap_or_default()));
        // a PBX that does not answer now is not asked for the others
        while outcome.status().is_none() && new.variables.len() < self.settings.variables.len() {
            new.variables.push((String::new(), String::new()));
        }
        self.ask(call, new);
    }

    fn on_end(&mut self, now: Instant, channel: &str) {
        self.early.retain(|(c, _)| c.id != channel);
        let Some(call) = self.channels.get(channel).copied() else { return };
        self.bridging(now, call, |bridging, names| {
            if bridging.channel == channel {
                bridging.on_caller_left(names)
            } else if bridging.media_id(names) == channel {
                bridging.on_media_lost(now, names)
            } else {
                vec![]
            }
        });
    }

    fn of_caller(
        &mut self,
        now: Instant,
        channel: &str,
        act: impl FnOnce(&mut Bridging, &Names) -> Vec<Action>,
    ) {
        let Some(call) = self.channels.get(channel).copied() else { return };
        if self.calls.get(&call).is_some_and(|c| c.bridging.channel == channel) {
            self.bridging(now, call, act);
        }
    }

    fn tell_caller(&mut self, channel: &str, tell: Tell) {
        let Some(call) = self.channels.get(channel).copied() else { return };
        let caller = self.calls.get(&call).filter(|c| c.bridging.channel == channel);
        if caller.is_some_and(|c| !c.bridging.is_ending()) {
            self.out.push_back(Output::Tell(call, tell));
        }
    }

    /// Lets one call's bridging act, and does what it wants.
    pub(super) fn bridging(
        &mut self,
        now: Instant,
        call: CallKey,
        act: impl FnOnce(&mut Bridging, &Names) -> Vec<Action>,
    ) {
        let Some(entry) = self.calls.get_mut(&call) else { return };
        let actions = act(&mut entry.bridging, &self.names);
        let generation = entry.bridging.generation();
        let offered = entry.asking.is_none();
        let (media, bridge) =
            (entry.bridging.media_id(&self.names), entry.bridging.bridge_id(&self.names));
        for action in actions {
            match action {
                Action::Send(step, request) => {
                    match step {
                        // known before the request goes out
                        Step::Media => drop(self.channels.insert(media.clone(), call)),
                        Step::Bridge => drop(self.bridges.insert(bridge.clone(), call)),
                        _ => {}
                    }
                    self.send(Purpose::Bridging { call, step, generation }, request);
                }
                Action::Tell(tell) if offered => self.out.push_back(Output::Tell(call, tell)),
                Action::Tell(_) => {}
                Action::Sweep => self.sweep.soon(now),
                Action::MediaLeft => {
                    // counted until a reading shows that it is gone
                    self.sweep.media += 1;
                    self.sweep.soon(now);
                }
            }
        }
        self.forget_finished(call);
    }

    fn forget_finished(&mut self, call: CallKey) {
        let Some(entry) = self.calls.get(&call) else { return };
        if entry.bridging.is_finished() && entry.asking.is_none() {
            self.calls.remove(&call);
            self.channels.retain(|_, of| *of != call);
            self.bridges.retain(|_, of| *of != call);
            self.out.push_back(Output::Finished(call));
        }
    }

    pub(super) fn send(&mut self, purpose: Purpose, request: RestRequest) {
        self.last_request += 1;
        self.pending.insert(self.last_request, (purpose, request.name()));
        self.out.push_back(Output::Send(self.last_request, request));
    }

    fn on_outcome(&mut self, now: Instant, id: RequestId, outcome: Outcome) {
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
                self.send(Purpose::OrphanCaller, RestRequest::Continue { channel });
            }
            Purpose::OrphanCaller => {
                self.callers_leaving -= 1;
                self.delete_doomed();
            }
            Purpose::Info => self.on_info(now, outcome.startup_time()),
            Purpose::Channels(_) | Purpose::Bridges(_) | Purpose::Extra => {}
        }
    }

    pub(super) fn on_timeout(&mut self, now: Instant) {
        let due =
            self.calls.iter().filter(|(_, c)| c.bridging.next_timeout().is_some_and(|t| t <= now));
        let due: Vec<CallKey> = due.map(|(key, _)| *key).collect();
        for call in due {
            self.bridging(now, call, |bridging, names| bridging.on_timeout(now, names));
        }
        if self.link != Link::Down && self.sweep.start(now) {
            let n = self.sweep.reading.number;
            self.send(Purpose::Channels(n), RestRequest::Channels);
            self.send(Purpose::Bridges(n), RestRequest::Bridges);
        }
    }
}

/// What the ids of an application's objects begin with.
pub fn prefix(app: &str) -> String {
    format!("trunkless-{app}-")
}

#[cfg(test)]
mod tests;
