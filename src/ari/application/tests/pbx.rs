//! An Asterisk in virtual time. Its events and responses arrive in any order that is possible with
//! a real one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::ari::api::{CallKey, Ids, Input, Output, RequestId, Settings};
use crate::ari::application::Application;
use crate::ari::bridging::transfer::{PEER, SNIPPET};
use crate::ari::bridging::words::{After, Tell};
use crate::ari::event::{Channel, Dialplan, Event};
use crate::ari::request::{Outcome, RestRequest};
use crate::ari::sweep::is_ours;
use crate::testing::start;

/// A seeded generator: the same seed repeats a failed run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// The simulated PBX: its state, the messages in flight, and the application under test.
pub(super) struct Pbx {
    /// All channels by id; true while the channel is in our application.
    pub(super) channels: BTreeMap<String, bool>,
    /// The members of each bridge.
    pub(super) bridges: BTreeMap<String, BTreeSet<String>>,
    /// Events on their way, delivered in order, as on one WebSocket.
    pub(super) events: VecDeque<Event>,
    /// Requests on their way, executed in any order: each has its own connection.
    pub(super) requests: Vec<(RequestId, RestRequest)>,
    /// Outcomes on their way, delivered in any order.
    pub(super) answers: Vec<(RequestId, Outcome)>,
    pub(super) app: Application,
    pub(super) now: Instant,
    pub(super) random: Random,
    pub(super) offered: Vec<CallKey>,
    pub(super) tells: Vec<(CallKey, Tell)>,
    pub(super) finished: usize,
    /// Number of callers who continued in the dialplan.
    pub(super) continued: usize,
    /// Percentage of requests that fail: they are refused, or executed but never answered.
    pub(super) failure_percent: usize,
    /// The start time that the PBX reports.
    pub(super) startup: String,
    /// The value of TRUNKLESS_PEER of each caller.
    peers: BTreeMap<String, String>,
    /// The target that the snippet has joined each caller with.
    pub(super) joined: BTreeMap<String, String>,
    /// True for channels that hear music.
    pub(super) music: BTreeMap<String, bool>,
}

pub(super) fn settings(max_media: usize) -> Settings {
    Settings {
        app: "ai".into(),
        format: "ulaw",
        max_media,
        variables: vec!["CAMPCUST".into()],
        ids: Ids { seconds: 1_795_000_000, seed: 7 },
        is_owned: None,
    }
}

pub(super) fn channel(id: &str, name: &str) -> Channel {
    let dialplan = Dialplan {
        app_name: "Stasis".into(),
        app_data: "ai".into(),
        exten: "8010".into(),
        ..Dialplan::default()
    };
    let state = "Ring".into();
    Channel { id: id.into(), name: name.into(), state, dialplan, ..Channel::default() }
}

pub(super) fn found(exists: bool) -> u16 {
    if exists { 204 } else { 404 }
}

/// A channel as it appears in ARI's list. `peer`: the channel that the dialplan joins it with.
fn listed(id: &str, here: bool, peer: Option<&String>) -> serde_json::Value {
    let (app, data) = match peer {
        Some(peer) => ("Bridge", format!("{peer},x")),
        None => (if here { "Stasis" } else { "Playback" }, "ai".to_owned()),
    };
    let dialplan = serde_json::json!({ "app_name": app, "app_data": data });
    serde_json::json!({ "id": id, "name": "PJSIP/x", "dialplan": dialplan })
}

impl Pbx {
    pub(super) fn new(seed: u64, max_media: usize) -> Pbx {
        let mut pbx = Pbx {
            channels: BTreeMap::new(),
            bridges: BTreeMap::new(),
            events: VecDeque::new(),
            requests: Vec::new(),
            answers: Vec::new(),
            app: Application::new(settings(max_media)),
            now: start(),
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            offered: Vec::new(),
            tells: Vec::new(),
            finished: 0,
            continued: 0,
            failure_percent: 0,
            startup: "1".into(),
            peers: BTreeMap::new(),
            joined: BTreeMap::new(),
            music: BTreeMap::new(),
        };
        pbx.feed(Input::Connected([127, 0, 0, 1].into()));
        pbx.settle();
        pbx
    }

    pub(super) fn call(&mut self, id: &str) {
        self.channels.insert(id.into(), true);
        let channel = Box::new(channel(id, "PJSIP/x"));
        self.events.push_back(Event::StasisStart { channel, args: vec!["k=v".into()] });
    }

    pub(super) fn hang_up(&mut self, id: &str) {
        let here = self.channels.remove(id);
        let pair = self.joined.iter().find(|(caller, peer)| *caller == id || *peer == id);
        if let Some((caller, peer)) = pair.map(|(a, b)| (a.clone(), b.clone())) {
            self.joined.remove(&caller);
            self.channels.remove(&peer);
        }
        if here == Some(false) && is_ours("trunkless-ai-", id) {
            self.events.push_back(Event::Destroyed { channel: id.into(), cause: 16 });
        }
        if here == Some(true) {
            self.events.push_back(Event::HangupRequest { channel: id.into(), cause: 16 });
            self.events.push_back(Event::StasisEnd { channel: id.into() });
        }
        self.bridges.values_mut().for_each(|members| {
            members.remove(id);
        });
    }

    pub(super) fn feed(&mut self, input: Input) {
        self.app.handle(self.now, input);
        while let Some(output) = self.app.poll() {
            match output {
                Output::Send(id, request) => self.requests.push((id, request)),
                Output::Refused(call, why, _) => {
                    let after = After::Continue(format!("{why:?}"));
                    self.feed(Input::End(call, after));
                }
                Output::Offer(new) => {
                    self.offered.push(new.call);
                    let host = "127.0.0.1:4000".parse().expect("an address");
                    self.feed(Input::Accept(new.call, host));
                }
                Output::Tell(call, tell) => self.tells.push((call, tell)),
                Output::Finished(_) => self.finished += 1,
                _ => {}
            }
        }
    }

    /// Performs one of the possible next steps at random. Returns false if there is none.
    pub(super) fn step(&mut self) -> bool {
        let choices =
            [!self.events.is_empty(), !self.requests.is_empty(), !self.answers.is_empty()];
        let possible: Vec<usize> = (0..3).filter(|n| choices[*n]).collect();
        let Some(choice) = possible.get(self.random.below(possible.len())) else { return false };
        self.now += Duration::from_millis(1);
        match choice {
            0 => {
                let event = self.events.pop_front().expect("an event");
                self.feed(Input::Event(event));
            }
            1 => {
                let n = self.random.below(self.requests.len());
                let (id, request) = self.requests.swap_remove(n);
                let outcome = self.serve(request);
                self.answers.push((id, outcome));
            }
            _ => {
                let n = self.random.below(self.answers.len());
                let (id, outcome) = self.answers.swap_remove(n);
                self.feed(Input::Outcome(id, outcome));
            }
        }
        true
    }

    pub(super) fn serve(&mut self, request: RestRequest) -> Outcome {
        let fails = self.random.below(100) < self.failure_percent;
        if fails && self.random.below(2) == 0 {
            return Outcome::Answered { status: 500, body: "{}".into() };
        }
        let (status, body) = self.execute(request);
        match fails {
            true => Outcome::Unknown,
            false => Outcome::Answered { status, body },
        }
    }

    pub(super) fn execute(&mut self, request: RestRequest) -> (u16, String) {
        match request {
            RestRequest::ExternalMedia { id, .. } => {
                self.channels.insert(id.clone(), true);
                let channel = Box::new(channel(&id, "UnicastRTP/x"));
                self.events.push_back(Event::StasisStart { channel, args: vec![] });
                let vars = serde_json::json!({ "UNICASTRTP_LOCAL_PORT": "10000" });
                (200, serde_json::json!({ "id": id, "channelvars": vars }).to_string())
            }
            RestRequest::CreateBridge { id } => {
                let body = serde_json::json!({ "id": id }).to_string();
                self.bridges.insert(id, BTreeSet::new());
                (200, body)
            }
            RestRequest::AddChannel { bridge, channel } => {
                let known = self.channels.get(&channel).copied();
                match (self.bridges.get_mut(&bridge), known) {
                    (None, _) => (404, String::new()),
                    (_, None) => (400, String::new()),
                    (_, Some(false)) => (422, String::new()),
                    (Some(members), _) => {
                        members.insert(channel);
                        (204, String::new())
                    }
                }
            }
            RestRequest::Answer { channel } | RestRequest::Ring { channel } => {
                (found(self.channels.contains_key(&channel)), String::new())
            }
            RestRequest::Continue { channel, to } => {
                let joins = to.is_some_and(|(_, exten, _)| exten == SNIPPET);
                (self.send_off(channel, joins), String::new())
            }
            RestRequest::HangUp { channel, .. } => {
                let known = self.channels.contains_key(&channel);
                self.hang_up(&channel);
                (found(known), String::new())
            }
            RestRequest::DeleteBridge { id } => {
                (found(self.bridges.remove(&id).is_some()), String::new())
            }
            RestRequest::Channel { channel } => match self.channels.get(&channel) {
                Some(here) => {
                    let peer = self.joined.get(&channel);
                    (200, listed(&channel, *here, peer).to_string())
                }
                None => (404, String::new()),
            },
            RestRequest::Channels => {
                let all = self.channels.iter();
                let all = all.map(|(id, here)| listed(id, *here, self.joined.get(id)));
                (200, serde_json::Value::from_iter(all).to_string())
            }
            RestRequest::Bridges => {
                let all = self.bridges.keys().map(|id| serde_json::json!({ "id": id }));
                (200, serde_json::Value::from_iter(all).to_string())
            }
            RestRequest::Info => {
                let status = serde_json::json!({ "startup_time": self.startup });
                (200, serde_json::json!({ "status": status }).to_string())
            }
            request => self.execute_transfer(request),
        }
    }

    /// Carries out the requests that transfers make.
    fn execute_transfer(&mut self, request: RestRequest) -> (u16, String) {
        match request {
            RestRequest::Variable { name, .. } if name.starts_with("DIALPLAN_EXISTS") => {
                (200, r#"{"value":"1"}"#.to_owned())
            }
            RestRequest::Variable { .. } => (404, String::new()),
            RestRequest::Originate { id, .. } => {
                let body = serde_json::json!({ "id": id }).to_string();
                self.channels.insert(id, false);
                (200, body)
            }
            RestRequest::SetVariable { channel, name, value } if name == PEER => {
                let known = self.channels.contains_key(&channel);
                self.peers.insert(channel, value);
                (found(known), String::new())
            }
            RestRequest::RemoveChannel { bridge, channel } => {
                let removed = self.bridges.get_mut(&bridge).is_some_and(|m| m.remove(&channel));
                (if removed { 204 } else { 422 }, String::new())
            }
            RestRequest::Music { channel, on } => {
                let known = self.channels.contains_key(&channel);
                self.music.insert(channel, on);
                (found(known), String::new())
            }
            _ => (204, String::new()),
        }
    }

    fn send_off(&mut self, channel: String, joins: bool) -> u16 {
        match self.channels.get_mut(&channel) {
            Some(here) if *here => *here = false,
            Some(_) => return 409,
            None => return 404,
        }
        self.continued += 1;
        self.bridges.values_mut().for_each(|members| {
            members.remove(&channel);
        });
        self.events.push_back(Event::StasisEnd { channel: channel.clone() });
        if joins {
            self.join(channel);
        }
        204
    }

    /// The snippet joins a caller with the target, if it still exists.
    fn join(&mut self, caller: String) {
        let Some(peer) = self.peers.get(&caller) else { return };
        let in_bridge = self.bridges.values().any(|members| members.contains(peer));
        assert!(
            !in_bridge || self.failure_percent > 0,
            "the bridge may be deleted at the same moment"
        );
        if let Some(here) = self.channels.get_mut(peer) {
            *here = false;
            self.events.push_back(Event::StasisEnd { channel: peer.clone() });
            self.joined.insert(caller, peer.clone());
        }
    }

    /// A call whose caller is connected.
    pub(super) fn connected(&mut self, id: &str) -> CallKey {
        self.call(id);
        self.settle();
        let call = *self.offered.last().expect("an offer");
        self.feed(Input::Answer(call));
        self.settle();
        assert!(self.tells_of(call).contains(&&Tell::Connected));
        call
    }

    /// Runs until there is nothing left to do.
    pub(super) fn settle(&mut self) {
        while self.step() {}
    }

    /// Does the same and also fires the timers that expire within this many seconds.
    pub(super) fn settle_for(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        loop {
            self.settle();
            match self.app.next_timeout().filter(|at| *at <= end) {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.feed(Input::Timeout);
                }
                None => return,
            }
        }
    }

    pub(super) fn tells_of(&self, call: CallKey) -> Vec<&Tell> {
        self.tells.iter().filter(|(c, _)| *c == call).map(|(_, tell)| tell).collect()
    }

    /// Checks that none of our objects, no stuck caller and no state of a call are left.
    pub(super) fn assert_clean(&self, seed: u64) {
        let ours: Vec<&String> =
            self.channels.keys().filter(|id| is_ours("trunkless-ai-", id)).collect();
        assert!(ours.is_empty() && self.bridges.is_empty(), "seed {seed}: {ours:?}");
        let stuck: Vec<_> = self.channels.iter().filter(|(_, here)| **here).collect();
        assert!(stuck.is_empty(), "seed {seed}: {stuck:?}");
        assert_eq!(self.app.call_count(), 0, "seed {seed}");
        let left = [self.app.channels.len(), self.app.bridges.len(), self.app.pending.len()];
        assert_eq!(left, [0; 3], "seed {seed}");
    }
}
