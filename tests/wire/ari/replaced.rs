//! Another client takes over the name of our Stasis application.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::ari::ask::Verb;
use crate::ari::fake::Fake;
use crate::ari::rig::{APP, Rig, plain};
use crate::ari::world::{self, Channel};
use crate::bridge::{Bridge, Net};
use crate::lines::Lines;
use crate::stream::AGENT;

/// Connects another program under our application's name.
async fn other(fake: &Fake) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let url = format!("ws://{}/ari/events?app={APP}", fake.address);
    let mut request = url.into_client_request().unwrap();
    let basic = format!("Basic {}", BASE64.encode("other:secret"));
    request.headers_mut().insert("Authorization", basic.parse().unwrap());
    connect_async(request).await.unwrap().0
}

#[tokio::test]
async fn a_live_call_survives_and_its_end_is_noticed_without_events() {
    let lines = Lines::new();
    let rig = Rig::new("").await;
    let (mut caller, stream) = rig.call("ai.1").await;
    let mut socket = other(&rig.fake).await;
    lines.until("Stasis application taken over by another program").await;
    caller.say(0..20).await;
    stream.play_frames(0..20).await;
    assert_eq!(stream.heard(20).await, Vec::from_iter(0..20));
    assert_eq!(caller.external.media.numbered(AGENT, 20).await, Vec::from_iter(0..20));
    // the other program's caller and bridge
    rig.enter("ai.2");
    rig.fake.world().bridges.insert("theirs".into(), world::Bridge::default());
    let theirs = socket.next().await.unwrap().unwrap().into_text().unwrap();
    assert!(theirs.contains("StasisStart") && theirs.contains("ai.2"), "{theirs}");
    rig.fake.asked(Verb::Bridges, "", 2).await;
    assert!(timeout(Duration::ZERO, rig.bridge.useless()).await.is_err());
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    let useless = timeout(Duration::from_secs(5), rig.bridge.useless()).await;
    assert!(useless.is_ok(), "the last call is over");
    assert_eq!(rig.fake.world().left(APP), ["ai.2"]);
    assert!(rig.fake.world().bridges.contains_key("theirs"));
    assert_eq!(rig.fake.count(Verb::Events, APP), 2, "our socket and the other program's");
    assert!(rig.fake.world().continued.is_empty());
}

#[tokio::test]
async fn a_live_call_can_be_ended_by_its_ai_without_events() {
    let rig = Rig::new("").await;
    let (_caller, stream) = rig.call("ai.1").await;
    let _socket = other(&rig.fake).await;
    stream.listen(200).await;
    stream.close(1000).await;
    assert_eq!(rig.bridge.end().await, "ai_hangup");
    rig.fake.is_clean(APP).await;
    let useless = timeout(Duration::from_secs(5), rig.bridge.useless()).await;
    assert!(useless.is_ok(), "the last call is over");
}

#[tokio::test]
async fn without_calls_a_replaced_bridge_is_useless_at_once() {
    let rig = Rig::new("").await;
    let _socket = other(&rig.fake).await;
    let useless = timeout(Duration::from_secs(5), rig.bridge.useless()).await;
    assert!(useless.is_ok());
    rig.fake.take_seen();
    rig.enter("ai.1");
    // the other program's caller: neither moved nor hung up, and not offered to the AI
    assert!(rig.ai.is_left_alone(Duration::from_millis(500)).await);
    assert_eq!(rig.fake.world().left(APP), ["ai.1"]);
    assert!(rig.fake.world().continued.is_empty());
    let asked: Vec<_> = rig.fake.take_seen().into_iter().map(|seen| seen.ask).collect();
    assert!(!asked.iter().any(|ask| ask.id == "ai.1"), "{asked:?}");
    assert!(!asked.iter().any(|ask| ask.verb == Verb::Events), "the name is taken back: {asked:?}");
    assert_eq!(rig.bridge.all_records().await.len(), 0);
}

/// A bridge on another host cannot know that the calls it finds still have an owner. It treats them
/// as left by a crashed process: their callers continue in the dialplan, and none is left in
/// silence.
#[tokio::test]
async fn a_second_bridge_on_another_host_sends_the_first_ones_callers_back() {
    let net = Net::new();
    let rig = Rig::with(net, Fake::start(net.pbx()).await, "").await;
    let (caller, stream) = rig.call("ai.1").await;
    let address = rig.fake.also_at(net.host(10)).await;
    let second = Bridge::launch(&plain(net.host(11), APP, address, rig.ai.address), "").await;
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "transferred");
    caller.continued().await;
    let useless = timeout(Duration::from_secs(5), rig.bridge.useless()).await;
    assert!(useless.is_ok(), "the last call is over");
    let (caller, stream) = rig.call("ai.2").await;
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(second.end().await, "caller_hangup");
    assert_eq!(rig.fake.count(Verb::Events, APP), 2);
}

#[tokio::test]
async fn a_second_bridge_on_the_same_host_waits_until_the_first_ends() {
    let (lines, net) = (Lines::new(), Net::new());
    let rig = Rig::with(net, Fake::start(net.pbx()).await, "").await;
    let (caller, stream) = rig.call("ai.1").await;
    let plain = plain(net.host(10), APP, rig.fake.address, rig.ai.address);
    let second = Bridge::launch(&plain, "").await;
    lines.until("another trunkless").await;
    stream.listen(600).await;
    caller.hang_up();
    stream.stopped().await;
    let Rig { fake, ai, bridge } = rig;
    assert_eq!(fake.count(Verb::Events, APP), 1);
    assert_eq!(bridge.all_records().await.len(), 1);
    fake.asked(Verb::Events, APP, 2).await;
    fake.asked(Verb::Bridges, "", 2).await;
    fake.world().enter("ai.2", APP, &[], Channel::caller());
    let stream = ai.stream().await;
    fake.world().hang_up("ai.2");
    stream.stopped().await;
    assert!(second.record().await.summary.answered);
    assert_eq!(lines.with("another trunkless").len(), 1);
}

/// The PBX has two addresses, and each bridge knows another one.
#[tokio::test]
async fn a_second_bridge_at_another_address_of_the_pbx_waits_until_the_first_ends() {
    let (lines, net) = (Lines::new(), Net::new());
    let fake = Fake::start(net.pbx()).await;
    fake.world().entity = Some("02:42:ac:11:00:02");
    let rig = Rig::with(net, fake, "").await;
    let (caller, stream) = rig.call("ai.1").await;
    let address = rig.fake.also_at(net.host(10)).await;
    let second = Bridge::launch(&plain(net.host(11), APP, address, rig.ai.address), "").await;
    lines.until("another trunkless").await;
    stream.listen(600).await;
    assert_eq!(rig.fake.count(Verb::Events, APP), 1);
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(rig.bridge.all_records().await.len(), 1);
    rig.fake.asked(Verb::Events, APP, 2).await;
    drop(second);
}
