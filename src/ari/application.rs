//! Our Stasis application on one PBX: its calls, the cap on external media channels, and the
//! removal of orphans.
//!
//! Call [`Application::handle`], then drain [`Application::poll`], then wait for the next input or
//! [`Application::next_timeout`]. Nothing here waits for a response: each arrives as an input.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod arrivals;
mod events;
mod music;
mod orders;
mod placing;
mod reconcile;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::ari::api::{CallKey, Input, NewCall, Output, RequestId, Settings};
use crate::ari::application::music::Music;
use crate::ari::bridging::Bridging;
use crate::ari::bridging::words::{Action, Names, Step, Tell, TransferStep};
use crate::ari::event::Channel;
use crate::ari::request::RestRequest;
use crate::ari::sweep::{Orphans, Sweep};

/// The purpose of a pending request, which decides who gets the outcome.
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
    /// The list of channels for the reading with this number.
    Channels(u64),
    /// The list of bridges for the reading with this number.
    Bridges(u64),
    /// Sets the reason for the dialplan on an orphaned caller's channel.
    OrphanReason(String),
    /// Returns an orphaned caller to the dialplan.
    OrphanCaller,
    Info,
    /// A step of an order, and those behind it.
    Order {
        call: CallKey,
        order: u32,
        rest: VecDeque<RestRequest>,
    },
    /// A request whose outcome does not matter.
    Extra,
}

/// The state of the events socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Down,
    Up,
    /// Another client took over the application.
    Replaced,
    /// Closed for good: no more callers enter.
    Closed,
}

pub(super) struct Call {
    pub(super) bridging: Bridging,
    pub(super) created: Instant,
    /// The call to offer, while its channel variables are being read; then `None`.
    pub(super) asking: Option<Box<NewCall>>,
    /// True if it was refused, and never gets an external media channel.
    pub(super) refused: bool,
}

/// Our Stasis application on one PBX.
pub struct Application {
    pub(super) names: Names,
    settings: Settings,
    pub(super) calls: HashMap<CallKey, Call>,
    /// Calls by the ids of their channels: callers and external media.
    pub(super) channels: HashMap<String, CallKey>,
    /// Calls by the ids of their bridges.
    pub(super) bridges: HashMap<String, CallKey>,
    /// Requests without an outcome yet: their purpose, and their name for the log.
    pending: HashMap<RequestId, (Purpose, &'static str)>,
    /// Requests that start and stop music.
    music: Music,
    /// Outputs not polled yet.
    pub(super) out: VecDeque<Output>,
    pub(super) link: Link,
    /// True once no more calls are to be taken.
    stopping: bool,
    /// When the events socket was last opened.
    pub(super) connected_at: Option<Instant>,
    /// Callers who arrived before the first reading, with their `Stasis()` arguments. They wait,
    /// because objects left by an earlier process count towards the cap.
    pub(super) early: Vec<(Channel, Vec<String>)>,
    pub(super) sweep: Sweep,
    /// Orphans to delete once the last orphaned caller has been released.
    pub(super) doomed: Orphans,
    /// Number of orphaned callers not released yet.
    pub(super) callers_leaving: usize,
    /// When the PBX started, as it last reported; a change means a restart.
    pub(super) startup: Option<String>,
    /// True if no further reading is needed before closing.
    pub(super) last_look: bool,
    last_key: u64,
    last_request: u64,
}

/// Interval of readings that replace events after another client took over the application.
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
            music: Music::default(),
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

    /// Returns an application without calls that takes this one's place. Its ids are new.
    pub fn successor(&self) -> Application {
        Application {
            link: self.link,
            stopping: self.stopping,
            last_key: self.last_key,
            last_request: self.last_request,
            ..Application::new(self.settings.clone())
        }
    }

    /// Continues after a panic, in which an input was lost. Returns the calls that have been
    /// offered and are not ending.
    pub fn recover(&mut self) -> Vec<CallKey> {
        let waiting = std::mem::take(&mut self.music).into_waiting();
        self.out.extend(waiting.map(|(id, request)| Output::Send(id, request)));
        let pending = self.pending.values();
        let read = pending.filter_map(|(purpose, _)| match purpose {
            Purpose::Variable { call, .. } => Some(*call),
            _ => None,
        });
        let read: HashSet<CallKey> = read.collect();
        let lost = self.calls.iter_mut().filter(|(key, _)| !read.contains(key));
        lost.for_each(|(_, call)| call.asking = None);
        let live = self.calls.iter();
        let live = live.filter(|(_, c)| c.asking.is_none() && !c.bridging.is_ending());
        live.map(|(key, _)| *key).collect()
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Number of calls with objects left on the PBX.
    pub fn call_count(&self) -> usize {
        self.calls.len()
    }

    /// True after [`Input::Close`] once none of our objects are left or nothing more can be done.
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
                let stopping = self.stopping;
                self.bridging(now, call, |bridging, names| {
                    let spared = stopping.then(|| bridging.spare_callee(names)).flatten();
                    spared.unwrap_or_else(|| bridging.answer(now, names))
                });
            }
            Input::Ring(call) => self.bridging(now, call, |bridging, _| {
                let channel = bridging.channel.clone();
                let ring = Action::Send(Step::Extra, RestRequest::Ring { channel });
                if bridging.is_waiting() { vec![ring] } else { vec![] }
            }),
            Input::End(call, after) => {
                self.bridging(now, call, |bridging, names| bridging.end(after, names))
            }
            Input::Order { call, order, wish } => self.on_order(call, order, wish),
            Input::Transfer { call, order, wish } => {
                self.bridging(now, call, |bridging, names| {
                    bridging.transfer(now, order, wish, names)
                });
            }
            Input::CompleteTransfer(call) => {
                self.bridging(now, call, |bridging, names| bridging.complete_transfer(names));
            }
            Input::CancelTransfer(call) => {
                self.bridging(now, call, |bridging, names| bridging.cancel_transfer(names));
            }
            Input::Stop => self.stopping = true,
            Input::Resume => self.stopping = false,
            Input::Change { max_media, variables } => {
                self.settings = Settings { max_media, variables, ..self.settings.clone() };
            }
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

    /// Notifies all offered calls that are not ending.
    pub(super) fn tell_all(&mut self, tell: &Tell) {
        let live = self.calls.iter().filter(|(_, c)| !c.bridging.is_ending() && c.asking.is_none());
        let keys: Vec<CallKey> = live.map(|(key, _)| *key).collect();
        self.out.extend(keys.into_iter().map(|key| Output::Tell(key, tell.clone())));
    }

    /// Runs `act` on one call's bridging and performs the actions that it returns.
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
        let target = entry.bridging.target_id(&self.names);
        let (media, bridge) =
            (entry.bridging.media_id(&self.names), entry.bridging.bridge_id(&self.names));
        for action in actions {
            match action {
                Action::Send(step, request) => {
                    match step {
                        // registered before the request is sent
                        Step::Media => drop(self.channels.insert(media.clone(), call)),
                        Step::Bridge => drop(self.bridges.insert(bridge.clone(), call)),
                        Step::Transfer(_, TransferStep::Target) => {
                            self.channels.insert(target.clone(), call);
                        }
                        _ => {}
                    }
                    self.send(Purpose::Bridging { call, step, generation }, request);
                }
                Action::Tell(tell) if offered => self.out.push_back(Output::Tell(call, tell)),
                Action::Tell(_) => {}
                Action::Sweep => self.sweep.soon(now),
                Action::MediaLeft => {
                    // counts towards the cap until a reading shows that it is gone
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

/// Prefix of the ids of an application's channels and bridges.
pub fn prefix(app: &str) -> String {
    format!("trunkless-{app}-")
}
