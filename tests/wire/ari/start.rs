//! A PBX that cannot be used: one line in the log says why, the program lives, and calls are taken
//! as soon as they can be.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ari::ask::Verb;
use crate::ari::fake::{Fake, Gate, Trouble};
use crate::ari::rig::{APP, plain};
use crate::ari::world::{Channel, External, World};
use crate::bridge::{Bridge, Net};
use crate::call::CALLER;
use crate::http::{free, status};
use crate::lines::Lines;
use crate::log::pass;
use crate::stream::{AGENT, What};
use crate::strict::Ai;

/// The log's word for it.
const REFUSED: &str = "ARI cannot be used";
/// Longer than a refusal is left to be one.
const LATER: Duration = Duration::from_secs(31);

async fn skip() {
    tokio::time::pause();
    tokio::time::advance(LATER).await;
    tokio::time::resume();
}

/// A bridge whose PBX is not to be used yet.
struct Start {
    lines: Lines,
    bridge: Bridge,
    ai: Ai,
    http: SocketAddr,
}

impl Start {
    async fn new(net: Net, pbx: SocketAddr) -> Start {
        let (lines, ai) = (Lines::new(), Ai::start(net.ai()).await);
        let http = free(net.bridge());
        let plain = plain(net.bridge(), APP, pbx, ai.address);
        let bridge = Bridge::launch(&plain, &format!("[http]\nlisten = \"{http}\"")).await;
        Start { lines, bridge, ai, http }
    }

    /// The one line, and what the two questions are answered with.
    async fn refused(&self, with: &str) -> String {
        let line = self.lines.until(with).await;
        assert!(line.contains("WARN") && line.contains(REFUSED), "{line}");
        assert!(line.contains("pbx=\"main\""), "{line}");
        assert_eq!(status(self.http, "/readyz").await, 503);
        assert_eq!(status(self.http, "/healthz").await, 200);
        line
    }

    /// Calls are taken, and nothing more was said before.
    async fn recovers(self, fake: &Fake, lines: usize) {
        self.lines.until("ARI events are open").await;
        assert_eq!(status(self.http, "/readyz").await, 200);
        assert_eq!(self.lines.with(REFUSED).len(), lines, "{:?}", self.lines.with(""));
        fake.world().enter("ai.1", APP, &[], Channel::caller());
        let stream = self.ai.stream().await;
        fake.world().hang_up("ai.1");
        stream.stopped().await;
        assert!(self.bridge.record().await.summary.answered);
        fake.is_clean(APP).await;
    }
}

#[tokio::test]
async fn a_pbx_that_is_not_there_is_told_of_once_and_found_when_it_comes() {
    let net = Net::new();
    let address = free(net.pbx());
    let start = Start::new(net, address).await;
    start.refused(REFUSED).await;
    pass(Duration::from_millis(400)).await;
    let fake = Fake::at(address, 1).await;
    start.recovers(&fake, 1).await;
}

/// While Asterisk starts it answers 404 and then 503, the REST before the events.
#[tokio::test]
async fn a_pbx_that_is_starting_is_told_of_once_for_each_state() {
    let net = Net::new();
    let fake = Fake::start(net.pbx()).await;
    let not_there = fake.refuse(404).await;
    let start = Start::new(net, fake.address).await;
    start.refused("404").await;
    fake.asked(Verb::Bridge, "", 2).await;
    fake.take_seen();
    let not_booted = fake.refuse(503).await;
    drop(not_there);
    fake.gate(Gate::Refused(503));
    start.refused("503").await;
    fake.asked(Verb::Bridge, "", 2).await;
    assert_eq!(fake.count(Verb::Events, ""), 0);
    drop(not_booted);
    fake.asked(Verb::Events, "", 2).await;
    assert_eq!(status(start.http, "/readyz").await, 503);
    fake.gate(Gate::Open);
    start.recovers(&fake, 2).await;
}

/// What stays until somebody changes something is looked at again every half a minute, which is
/// skipped here.
async fn refused_until_changed(with: u16, words: &[&str]) {
    let net = Net::new();
    let fake = Fake::start(net.pbx()).await;
    let refusal = fake.refuse(with).await;
    let start = Start::new(net, fake.address).await;
    let line = start.refused(&with.to_string()).await;
    for word in words {
        assert!(line.contains(word), "{line}");
    }
    drop(refusal);
    pass(Duration::from_millis(500)).await;
    assert_eq!((fake.count(Verb::Bridge, ""), fake.count(Verb::Events, "")), (1, 0));
    skip().await;
    start.recovers(&fake, 1).await;
}

#[tokio::test]
async fn a_wrong_password_is_told_of_and_a_right_one_found() {
    refused_until_changed(401, &["user \"ai\"", "password", "ari.conf"]).await;
}

#[tokio::test]
async fn a_user_who_may_only_read_takes_no_callers() {
    refused_until_changed(403, &["user \"ai\"", "read_only"]).await;
}

/// Callers must not enter an application that cannot help them; the one who has is sent on when it
/// can. Calls that are up go on.
#[tokio::test]
async fn commands_that_are_refused_later_close_the_events_and_not_the_calls() {
    let net = Net::new();
    let fake = Fake::start(net.pbx()).await;
    let start = Start::new(net, fake.address).await;
    fake.asked(Verb::Bridges, "", 1).await;
    fake.world().enter("ai.1", APP, &[], Channel::caller());
    let stream = start.ai.stream().await;
    let External { media, host } = fake.until("connected", |w| w.external_of("ai.1")).await;
    fake.asked(Verb::AddCaller, "", 1).await;
    let refusal = fake.refuse(403).await;
    fake.world().enter("ai.2", APP, &[], Channel::caller());
    start.refused("read_only").await;
    assert!(fake.world().sockets.is_empty());
    stream.play_frames(0..5).await;
    assert_eq!(media.numbered(AGENT, 5).await, [0, 1, 2, 3, 4]);
    // longer than a call whose PBX is lost would live
    let mut talker = External::talker();
    media.say(host, &mut talker, CALLER, 0..115).await;
    assert_eq!(stream.heard(115).await, Vec::from_iter(0..115));
    drop(refusal);
    skip().await;
    start.lines.until("calls without an owner").await;
    let goes_on = |w: &World| (w.continued == ["ai.2"]).then_some(());
    fake.until("the caller goes on", goes_on).await;
    assert!(!stream.told().iter().any(|t| t.what == What::Stop));
}

#[tokio::test]
async fn commands_that_are_refused_later_are_told_of_once() {
    let net = Net::new();
    let fake = Fake::start(net.pbx()).await;
    let start = Start::new(net, fake.address).await;
    fake.asked(Verb::Bridges, "", 1).await;
    let _refusal = fake.refuse(403).await;
    for n in 0..5 {
        fake.world().enter(&format!("ai.{n}"), APP, &[], Channel::caller());
    }
    for _ in 0..5 {
        assert_eq!(start.bridge.end().await, "pbx_error");
    }
    start.refused("read_only").await;
    let warnings = start.lines.with("events are lost");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
}

/// Until then it is not known how many calls of an earlier process are there.
#[tokio::test]
async fn callers_who_come_before_the_first_look_are_taken_after_it() {
    let net = Net::new();
    let fake = Fake::start(net.pbx()).await;
    fake.trouble(APP, Verb::Channels, Trouble::Late).await;
    let start = Start::new(net, fake.address).await;
    fake.asked(Verb::Channels, "", 1).await;
    for id in ["ai.1", "ai.2", "ai.3"] {
        fake.world().enter(id, APP, &[], Channel::caller());
    }
    fake.world().hang_up("ai.2");
    let streams = [start.ai.stream().await, start.ai.stream().await];
    for id in ["ai.1", "ai.3"] {
        fake.world().hang_up(id);
    }
    for stream in streams {
        stream.stopped().await;
    }
    fake.is_clean(APP).await;
    assert_eq!(start.bridge.all_records().await.len(), 2);
}
