//! A PBX that cannot be used: the log states the reason once, the program keeps running, and calls
//! are taken as soon as possible.

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

/// The log message for an unusable PBX.
const REFUSED: &str = "ARI unavailable";
/// Longer than the interval after which a lasting refusal is tried again.
const LATER: Duration = Duration::from_secs(31);

/// Advances the clock by `LATER`.
async fn skip() {
    tokio::time::pause();
    tokio::time::advance(LATER).await;
    tokio::time::resume();
}

/// A bridge whose PBX cannot be used yet.
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

    /// Waits for the log line with this text, and checks that the bridge is alive but not ready.
    async fn refused(&self, with: &str) -> String {
        let line = self.lines.until(with).await;
        assert!(line.contains("WARN") && line.contains(REFUSED), "{line}");
        assert!(line.contains("pbx=\"main\""), "{line}");
        assert_eq!(status(self.http, "/readyz").await, 503);
        assert_eq!(status(self.http, "/healthz").await, 200);
        line
    }

    /// Checks that calls are taken, and that the log has `lines` refusals.
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
async fn an_unreachable_pbx_is_logged_once_and_used_when_it_appears() {
    let net = Net::new();
    let address = free(net.pbx());
    let start = Start::new(net, address).await;
    start.refused(REFUSED).await;
    pass(Duration::from_millis(400)).await;
    let fake = Fake::at(address, 1).await;
    start.recovers(&fake, 1).await;
}

/// While Asterisk starts it answers 404 and then 503; REST works before events do.
#[tokio::test]
async fn a_starting_pbx_is_logged_once_per_state() {
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

/// A refusal that lasts until the configuration changes is tried again every half minute. The test
/// skips that time.
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
async fn a_wrong_password_is_logged_and_a_corrected_one_is_used() {
    refused_until_changed(401, &["user \"ai\"", "password", "ari.conf"]).await;
}

#[tokio::test]
async fn a_read_only_user_takes_no_callers() {
    refused_until_changed(403, &["user \"ai\"", "read_only"]).await;
}

/// Callers must not enter an application that cannot serve them. The one who already has is sent
/// back to the dialplan as soon as possible. Live calls continue.
#[tokio::test]
async fn commands_refused_later_close_the_events_socket_but_no_calls() {
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
    start.lines.until("orphaned calls found").await;
    let continues = |w: &World| (w.continued == ["ai.2"]).then_some(());
    fake.until("the caller continues in the dialplan", continues).await;
    assert!(!stream.told().iter().any(|t| t.what == What::Stop));
}

#[tokio::test]
async fn commands_refused_later_are_logged_once() {
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
    let warnings = start.lines.with("ARI events lost");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
}

/// Before the first look at the PBX's lists, it is unknown how many calls of an earlier process
/// exist.
#[tokio::test]
async fn callers_who_arrive_before_the_first_look_are_taken_after_it() {
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
