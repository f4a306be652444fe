//! The application against a small Asterisk in virtual time, whose events and answers come in any
//! order that a real one's may.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::ari::api::Ids;
use crate::ari::bridging::words::Cause;
use crate::ari::event::Dialplan;
use crate::ari::sweep::is_ours;
use crate::testing::start;

/// Seeded: a failing seed repeats its run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// What a real one would hold, and what is on its way to us.
struct Pbx {
    /// Our channels and callers; whether one is still in our application.
    channels: BTreeMap<String, bool>,
    bridges: BTreeMap<String, BTreeSet<String>>,
    /// In order, as on one WebSocket.
    events: VecDeque<Event>,
    /// In any order: each request has a connection of its own.
    requests: Vec<(RequestId, RestRequest)>,
    answers: Vec<(RequestId, Outcome)>,
    app: Application,
    now: Instant,
    random: Random,
    offered: Vec<CallKey>,
    tells: Vec<(CallKey, Tell)>,
    finished: usize,
    continued: usize,
    /// Of 100 requests so many are refused or not answered, though done perhaps.
    trouble: usize,
    startup: String,
}

fn settings(max_media: usize) -> Settings {
    Settings {
        app: "ai".into(),
        format: "ulaw",
        max_media,
        variables: vec!["CAMPCUST".into()],
        ids: Ids { seconds: 1_795_000_000, seed: 7 },
    }
}

fn channel(id: &str, name: &str) -> Channel {
    let dialplan = Dialplan {
        app_name: "Stasis".into(),
        app_data: "ai".into(),
        exten: "8010".into(),
        ..Dialplan::default()
    };
    let state = "Ring".into();
    Channel { id: id.into(), name: name.into(), state, dialplan, ..Channel::default() }
}

fn found(it_is: bool) -> u16 {
    if it_is { 204 } else { 404 }
}

/// A channel as a list has it.
fn listed(id: &str, here: bool) -> serde_json::Value {
    let app = if here { "Stasis" } else { "Playback" };
    let dialplan = serde_json::json!({ "app_name": app, "app_data": "ai" });
    serde_json::json!({ "id": id, "name": "PJSIP/x", "dialplan": dialplan })
}

impl Pbx {
    fn new(seed: u64, max_media: usize) -> Pbx {
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
            trouble: 0,
            startup: "1".into(),
        };
        pbx.feed(Input::Connected([127, 0, 0, 1].into()));
        pbx.settle();
        pbx
    }

    fn call(&mut self, id: &str) {
        self.channels.insert(id.into(), true);
        let channel = Box::new(channel(id, "PJSIP/x"));
        self.events.push_back(Event::StasisStart { channel, args: vec!["k=v".into()] });
    }

    fn hang_up(&mut self, id: &str) {
        if self.channels.remove(id) == Some(true) {
            self.events.push_back(Event::HangupRequest { channel: id.into() });
            self.events.push_back(Event::StasisEnd { channel: id.into() });
        }
        self.bridges.values_mut().for_each(|members| {
            members.remove(id);
        });
    }

    fn feed(&mut self, input: Input) {
        self.app.handle(self.now, input);
        while let Some(output) = self.app.poll() {
            match output {
                Output::Send(id, request) => self.requests.push((id, request)),
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

    /// One of the things that may happen next.
    fn step(&mut self) -> bool {
        let choices =
            [!self.events.is_empty(), !self.requests.is_empty(), !self.answers.is_empty()];
        let possible: Vec<usize> = (0..3).filter(|n| choices[*n]).collect();
        let Some(choice) = possible.get(self.random.below(possible.len())) else { return false };
        self.now += Duration::from_millis(1);
        match choice {
            0 => {
                let event = self.events.pop_front().expect("chosen");
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

    fn serve(&mut self, request: RestRequest) -> Outcome {
        let trouble = self.random.below(100) < self.trouble;
        if trouble && self.random.below(2) == 0 {
            return Outcome::Answered { status: 500, body: "{}".into() };
        }
        let (status, body) = self.obey(request);
        match trouble {
            true => Outcome::Unknown,
            false => Outcome::Answered { status, body },
        }
    }

    fn obey(&mut self, request: RestRequest) -> (u16, String) {
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
            RestRequest::Continue { channel } => match self.channels.get_mut(&channel) {
                Some(here) if *here => {
                    *here = false;
                    self.continued += 1;
                    self.bridges.values_mut().for_each(|m| {
                        m.remove(&channel);
                    });
                    self.events.push_back(Event::StasisEnd { channel });
                    (204, String::new())
                }
                Some(_) => (409, String::new()),
                None => (404, String::new()),
            },
            RestRequest::HangUp { channel } => {
                let known = self.channels.contains_key(&channel);
                self.hang_up(&channel);
                (found(known), String::new())
            }
            RestRequest::DeleteBridge { id } => {
                (found(self.bridges.remove(&id).is_some()), String::new())
            }
            RestRequest::Channel { channel } => match self.channels.get(&channel) {
                Some(here) => (200, listed(&channel, *here).to_string()),
                None => (404, String::new()),
            },
            RestRequest::Channels => {
                let all = self.channels.iter().map(|(id, here)| listed(id, *here));
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
            RestRequest::Variable { .. } => (404, String::new()),
            _ => (204, String::new()),
        }
    }

    /// Until nothing happens any more.
    fn settle(&mut self) {
        while self.step() {}
    }

    /// The same, with the timers of some seconds.
    fn settle_for(&mut self, seconds: u64) {
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

    fn told(&self, call: CallKey) -> Vec<&Tell> {
        self.tells.iter().filter(|(c, _)| *c == call).map(|(_, tell)| tell).collect()
    }

    /// No object of ours, no caller of ours without an owner.
    fn assert_clean(&self, seed: u64) {
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

#[test]
fn a_whole_call() {
    let mut pbx = Pbx::new(1, 10);
    pbx.call("1.1");
    pbx.settle();
    let call = pbx.offered[0];
    let to = "127.0.0.1:10000".parse().expect("an address");
    assert_eq!(pbx.told(call), [&Tell::Media(to)], "the AI is not there yet");
    pbx.feed(Input::Answer(call));
    pbx.settle();
    assert_eq!(pbx.told(call).last(), Some(&&Tell::Connected));
    assert_eq!(pbx.bridges.values().next().map(BTreeSet::len), Some(2));
    pbx.events.push_back(Event::Digit { channel: "1.1".into(), digit: '5' });
    pbx.hang_up("1.1");
    pbx.settle();
    let ended = Tell::Ended(Cause::CallerHangup);
    assert_eq!(pbx.told(call)[2..], [&Tell::Digit('5'), &ended]);
    pbx.assert_clean(1);
}

/// Hang-ups, ends of ours and refused commands at any moment of the set-up.
#[test]
fn any_order_of_events_and_answers_leaves_nothing() {
    for seed in 0..3000 {
        let mut pbx = Pbx::new(seed, 10);
        pbx.trouble = [0, 0, 20][seed as usize % 3];
        pbx.call("1.1");
        pbx.call("1.2");
        let (hangup, answer, end) =
            (pbx.random.below(40), pbx.random.below(30), pbx.random.below(60));
        for n in 0..60 {
            if n == answer {
                pbx.offered.clone().into_iter().for_each(|call| pbx.feed(Input::Answer(call)));
            }
            if n == hangup {
                pbx.hang_up("1.1");
            }
            if n == end {
                let after = [After::HangUp, After::Continue("drain".into())];
                let after = after[pbx.random.below(2)].clone();
                pbx.offered
                    .clone()
                    .into_iter()
                    .for_each(|c| pbx.feed(Input::End(c, after.clone())));
            }
            pbx.step();
        }
        pbx.settle();
        // what is up is ended by its call
        for call in pbx.offered.clone() {
            pbx.feed(Input::End(call, After::HangUp));
        }
        pbx.trouble = 0;
        pbx.settle_for(10);
        pbx.hang_up("1.2");
        pbx.settle();
        assert_eq!(pbx.finished, 2, "seed {seed}");
        pbx.assert_clean(seed);
        for call in pbx.offered.clone() {
            let ends = pbx.told(call).iter().filter(|t| matches!(t, Tell::Ended(_))).count();
            assert!(ends <= 1, "seed {seed}: call {call} ended {ends} times");
        }
    }
}

#[test]
fn calls_over_the_cap_go_on_in_the_dialplan() {
    let mut pbx = Pbx::new(3, 2);
    for n in 0..20 {
        pbx.call(&format!("1.{n}"));
    }
    pbx.settle();
    assert_eq!((pbx.offered.len(), pbx.continued), (2, 18));
    let media = pbx.channels.keys().filter(|id| is_ours("trunkless-ai-", id)).count();
    assert_eq!(media, 2);
}

/// After a crash: another process's calls are there, some callers have left meanwhile.
#[test]
fn orphans_are_sent_on_and_deleted_and_strangers_are_not() {
    let mut pbx = Pbx::new(4, 10);
    let before = "trunkless-ai-m-1794000000-00000000aa";
    for (id, here) in [("1.1", true), ("1.2", false), (before, true), ("em-9", false)] {
        pbx.channels.insert(id.into(), here);
    }
    pbx.bridges.insert("trunkless-ai-b-1794000000-00000000aa".into(), BTreeSet::new());
    pbx.bridges.insert("foreign".into(), BTreeSet::new());
    pbx.feed(Input::Disconnected);
    pbx.feed(Input::Connected([127, 0, 0, 1].into()));
    let begin = pbx.now;
    pbx.settle_for(1);
    assert!(pbx.now - begin < Duration::from_millis(500));
    assert_eq!(pbx.channels.get("1.1"), Some(&false), "sent on, not hung up");
    assert_eq!(pbx.channels.keys().collect::<Vec<_>>(), ["1.1", "1.2", "em-9"]);
    assert_eq!(pbx.bridges.keys().collect::<Vec<_>>(), ["foreign"]);
}

#[test]
fn a_lost_socket_keeps_live_calls_and_releases_the_others() {
    let mut pbx = Pbx::new(5, 10);
    pbx.call("1.1");
    pbx.call("1.2");
    pbx.settle();
    pbx.offered.clone().into_iter().for_each(|call| pbx.feed(Input::Answer(call)));
    pbx.settle();
    pbx.feed(Input::Disconnected);
    pbx.hang_up("1.1");
    pbx.events.clear();
    pbx.feed(Input::Connected([127, 0, 0, 1].into()));
    pbx.settle();
    assert_eq!((pbx.app.call_count(), pbx.finished), (1, 1));
    let ended = pbx.tells.iter().filter(|(_, t)| *t == Tell::Ended(Cause::CallerHangup)).count();
    assert_eq!(ended, 1);
    assert_eq!(pbx.bridges.len(), 1);
}

#[test]
fn lost_objects_are_made_anew_once() {
    let mut pbx = Pbx::new(6, 10);
    pbx.call("1.1");
    pbx.settle();
    let call = pbx.offered[0];
    pbx.feed(Input::Answer(call));
    pbx.settle();
    for times in 0..2 {
        let media = pbx.channels.keys().find(|id| is_ours("trunkless-ai-", id)).cloned();
        pbx.hang_up(&media.expect("external media"));
        pbx.settle();
        let media = pbx.told(call).iter().filter(|t| matches!(t, Tell::Media(_))).count();
        assert_eq!(media, 2);
        if times == 0 {
            assert_eq!(pbx.bridges.values().next().map(BTreeSet::len), Some(2));
        }
    }
    assert!(matches!(pbx.told(call).last(), Some(Tell::Ended(Cause::Failed(_)))));
    assert_eq!(pbx.continued, 1, "the caller goes to a human");
    pbx.assert_clean(6);
}

#[test]
fn a_transfer_is_no_hangup() {
    let mut pbx = Pbx::new(7, 10);
    pbx.call("1.1");
    pbx.settle();
    pbx.channels.insert("1.1".into(), false);
    pbx.events.push_back(Event::StasisEnd { channel: "1.1".into() });
    pbx.settle();
    let call = pbx.offered[0];
    assert_eq!(pbx.told(call).last(), Some(&&Tell::Ended(Cause::Transferred)));
    assert!(pbx.channels.contains_key("1.1"), "never hung up by us");
    pbx.assert_clean(7);
}

/// Until it is known what a process before us has left, nobody is given a channel.
#[test]
fn the_cap_counts_what_is_left_of_a_process_before() {
    let mut pbx = Pbx::new(8, 2);
    pbx.feed(Input::Disconnected);
    for n in 0..2 {
        pbx.channels.insert(format!("trunkless-ai-m-1794000000-00000000a{n}"), true);
    }
    pbx.feed(Input::Connected([127, 0, 0, 1].into()));
    pbx.call("1.1");
    pbx.settle();
    assert_eq!((pbx.offered.len(), pbx.continued), (0, 1), "no room");
    pbx.settle_for(2);
    pbx.call("1.2");
    pbx.settle();
    assert_eq!(pbx.offered.len(), 1, "the rest is deleted");
}

/// Somebody else's callers are not sent on by a bridge that ends.
#[test]
fn at_the_end_who_is_left_goes_on_unless_the_application_is_taken() {
    for taken in [false, true] {
        let mut pbx = Pbx::new(9, 2);
        if taken {
            pbx.events.push_back(Event::Replaced);
            pbx.settle();
        }
        pbx.channels.insert("1.1".into(), true);
        pbx.feed(Input::Stop);
        pbx.feed(Input::Close);
        assert!(pbx.app.is_closed() == taken, "one look at least");
        pbx.settle_for(1);
        assert!(pbx.app.is_closed());
        assert_eq!(pbx.channels.get("1.1"), Some(&taken));
    }
}

/// A restarted PBX has none of the calls, whatever its lists say; one that has come since is its
/// own.
#[test]
fn a_restart_ends_the_old_calls_only() {
    let mut pbx = Pbx::new(10, 5);
    pbx.call("1.1");
    pbx.settle();
    pbx.feed(Input::Disconnected);
    pbx.channels.clear();
    pbx.bridges.clear();
    pbx.startup = "2".into();
    pbx.now += Duration::from_secs(1);
    pbx.feed(Input::Connected([127, 0, 0, 1].into()));
    pbx.now += Duration::from_millis(1);
    pbx.call("2.1");
    pbx.settle();
    let (old, new) = (pbx.offered[0], pbx.offered[1]);
    assert_eq!(pbx.told(old).last(), Some(&&Tell::Ended(Cause::Restarted)));
    assert!(!pbx.told(new).iter().any(|t| matches!(t, Tell::Ended(_))));
    pbx.feed(Input::Answer(new));
    pbx.settle();
    assert_eq!(pbx.told(new).last(), Some(&&Tell::Connected));
}

/// VICIdial takes the caller away while we are about to let him go: he is not touched.
#[test]
fn nobody_is_commanded_who_has_left() {
    for after in [After::HangUp, After::Continue("ai_hangup".into())] {
        let mut pbx = Pbx::new(11, 5);
        pbx.call("1.1");
        pbx.settle();
        pbx.feed(Input::End(pbx.offered[0], after));
        pbx.channels.insert("1.1".into(), false);
        pbx.settle();
        assert_eq!(pbx.channels.get("1.1"), Some(&false), "he is where he was taken");
        assert_eq!(pbx.continued, 0);
    }
}
