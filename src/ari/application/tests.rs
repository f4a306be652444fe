//! Tests the application against a simulated Asterisk in virtual time. Its events and responses
//! arrive in any order that is possible with a real one.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::ari::api::Ids;
use crate::ari::bridging::words::Cause;
use crate::ari::event::Dialplan;
use crate::ari::sweep::is_ours;
use crate::testing::start;

/// A seeded generator: the same seed repeats a failed run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// The simulated PBX: its state, the messages in flight, and the application under test.
struct Pbx {
    /// All channels by id; true while the channel is in our application.
    channels: BTreeMap<String, bool>,
    /// The members of each bridge.
    bridges: BTreeMap<String, BTreeSet<String>>,
    /// Events on their way, delivered in order, as on one WebSocket.
    events: VecDeque<Event>,
    /// Requests on their way, executed in any order: each has its own connection.
    requests: Vec<(RequestId, RestRequest)>,
    /// Outcomes on their way, delivered in any order.
    answers: Vec<(RequestId, Outcome)>,
    app: Application,
    now: Instant,
    random: Random,
    offered: Vec<CallKey>,
    tells: Vec<(CallKey, Tell)>,
    finished: usize,
    /// Number of callers who continued in the dialplan.
    continued: usize,
    /// Percentage of requests that fail: they are refused, or executed but never answered.
    failure_percent: usize,
    /// The start time that the PBX reports.
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

fn found(exists: bool) -> u16 {
    if exists { 204 } else { 404 }
}

/// A channel as it appears in ARI's list.
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
            failure_percent: 0,
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
            self.events.push_back(Event::HangupRequest { channel: id.into(), cause: 16 });
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

    /// Performs one of the possible next steps at random. Returns false if there is none.
    fn step(&mut self) -> bool {
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

    fn serve(&mut self, request: RestRequest) -> Outcome {
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

    fn execute(&mut self, request: RestRequest) -> (u16, String) {
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

    /// Runs until there is nothing left to do.
    fn settle(&mut self) {
        while self.step() {}
    }

    /// Does the same and also fires the timers that expire within this many seconds.
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

    fn tells_of(&self, call: CallKey) -> Vec<&Tell> {
        self.tells.iter().filter(|(c, _)| *c == call).map(|(_, tell)| tell).collect()
    }

    /// Checks that none of our objects, no stuck caller and no state of a call are left.
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
fn a_complete_call() {
    let mut pbx = Pbx::new(1, 10);
    pbx.call("1.1");
    pbx.settle();
    let call = pbx.offered[0];
    let to = "127.0.0.1:10000".parse().expect("an address");
    assert_eq!(pbx.tells_of(call), [&Tell::Media(to)], "the AI is not connected yet");
    pbx.feed(Input::Answer(call));
    pbx.settle();
    assert_eq!(pbx.tells_of(call).last(), Some(&&Tell::Connected));
    assert_eq!(pbx.bridges.values().next().map(BTreeSet::len), Some(2));
    pbx.events.push_back(Event::Digit { channel: "1.1".into(), digit: '5' });
    pbx.hang_up("1.1");
    pbx.settle();
    let (cause, ended) = (Tell::HangupCause(16), Tell::Ended(Cause::CallerHangup));
    assert_eq!(pbx.tells_of(call)[2..], [&Tell::Digit('5'), &cause, &ended]);
    pbx.assert_clean(1);
}

/// The caller hangs up, the call is ended and commands fail at any moment of the set-up.
#[test]
fn any_order_of_events_and_responses_leaves_nothing_behind() {
    for seed in 0..3000 {
        let mut pbx = Pbx::new(seed, 10);
        pbx.failure_percent = [0, 0, 20][seed as usize % 3];
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
        // end the calls that are still up
        for call in pbx.offered.clone() {
            pbx.feed(Input::End(call, After::HangUp));
        }
        pbx.failure_percent = 0;
        pbx.settle_for(10);
        pbx.hang_up("1.2");
        pbx.settle();
        assert_eq!(pbx.finished, 2, "seed {seed}");
        pbx.assert_clean(seed);
        for call in pbx.offered.clone() {
            let ends = pbx.tells_of(call).iter().filter(|t| matches!(t, Tell::Ended(_))).count();
            assert!(ends <= 1, "seed {seed}: call {call} ended {ends} times");
        }
    }
}

#[test]
fn calls_over_the_cap_continue_in_the_dialplan() {
    let mut pbx = Pbx::new(3, 2);
    for n in 0..20 {
        pbx.call(&format!("1.{n}"));
    }
    pbx.settle();
    assert_eq!((pbx.offered.len(), pbx.continued), (2, 18));
    let media = pbx.channels.keys().filter(|id| is_ours("trunkless-ai-", id)).count();
    assert_eq!(media, 2);
}

/// After a crash, the earlier process's objects are still on the PBX. Some of its callers have left
/// our application.
#[test]
fn orphans_are_removed_and_other_objects_are_kept() {
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
    assert_eq!(pbx.channels.get("1.1"), Some(&false), "continues in the dialplan, not hung up");
    assert_eq!(pbx.channels.keys().collect::<Vec<_>>(), ["1.1", "1.2", "em-9"]);
    assert_eq!(pbx.bridges.keys().collect::<Vec<_>>(), ["foreign"]);
}

#[test]
fn after_a_lost_socket_live_calls_continue_and_ended_ones_are_cleaned_up() {
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
fn a_lost_external_media_channel_is_replaced_once() {
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
        let media = pbx.tells_of(call).iter().filter(|t| matches!(t, Tell::Media(_))).count();
        assert_eq!(media, 2);
        if times == 0 {
            assert_eq!(pbx.bridges.values().next().map(BTreeSet::len), Some(2));
        }
    }
    assert!(matches!(pbx.tells_of(call).last(), Some(Tell::Ended(Cause::Failed(_)))));
    assert_eq!(pbx.continued, 1, "the caller continues in the dialplan");
    pbx.assert_clean(6);
}

#[test]
fn a_transfer_is_not_a_hangup() {
    let mut pbx = Pbx::new(7, 10);
    pbx.call("1.1");
    pbx.settle();
    pbx.channels.insert("1.1".into(), false);
    pbx.events.push_back(Event::StasisEnd { channel: "1.1".into() });
    pbx.settle();
    let call = pbx.offered[0];
    assert_eq!(pbx.tells_of(call).last(), Some(&&Tell::Ended(Cause::Transferred)));
    assert!(pbx.channels.contains_key("1.1"), "never hung up by us");
    pbx.assert_clean(7);
}

/// No external media channel is created until the number left by an earlier process is known.
#[test]
fn the_cap_includes_channels_left_by_an_earlier_process() {
    let mut pbx = Pbx::new(8, 2);
    pbx.feed(Input::Disconnected);
    for n in 0..2 {
        pbx.channels.insert(format!("trunkless-ai-m-1794000000-00000000a{n}"), true);
    }
    pbx.feed(Input::Connected([127, 0, 0, 1].into()));
    pbx.call("1.1");
    pbx.settle();
    assert_eq!((pbx.offered.len(), pbx.continued), (0, 1), "the cap is reached");
    pbx.settle_for(2);
    pbx.call("1.2");
    pbx.settle();
    assert_eq!(pbx.offered.len(), 1, "the orphans are deleted");
}

/// On shutdown, remaining callers return to the dialplan. If another program took over the
/// application, they are its callers and are left alone.
#[test]
fn on_close_remaining_callers_continue_unless_the_application_was_taken_over() {
    for taken in [false, true] {
        let mut pbx = Pbx::new(9, 2);
        if taken {
            pbx.events.push_back(Event::Replaced);
            pbx.settle();
        }
        pbx.channels.insert("1.1".into(), true);
        pbx.feed(Input::Stop);
        pbx.feed(Input::Close);
        assert!(pbx.app.is_closed() == taken, "at least one reading unless taken over");
        pbx.settle_for(1);
        assert!(pbx.app.is_closed());
        assert_eq!(pbx.channels.get("1.1"), Some(&taken));
    }
}

/// A restarted PBX has none of the old calls. A call that arrived after the restart is kept.
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
    assert_eq!(pbx.tells_of(old).last(), Some(&&Tell::Ended(Cause::Restarted)));
    assert!(!pbx.tells_of(new).iter().any(|t| matches!(t, Tell::Ended(_))));
    pbx.feed(Input::Answer(new));
    pbx.settle();
    assert_eq!(pbx.tells_of(new).last(), Some(&&Tell::Connected));
}

/// VICIdial transfers the caller while our release is on its way: the caller is left alone.
#[test]
fn a_caller_who_left_gets_no_commands() {
    for after in [After::HangUp, After::Continue("ai_hangup".into())] {
        let mut pbx = Pbx::new(11, 5);
        pbx.call("1.1");
        pbx.settle();
        pbx.feed(Input::End(pbx.offered[0], after));
        pbx.channels.insert("1.1".into(), false);
        pbx.settle();
        assert_eq!(pbx.channels.get("1.1"), Some(&false), "still where VICIdial put the caller");
        assert_eq!(pbx.continued, 0);
    }
}
