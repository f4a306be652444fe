//! The events socket ends: the bridge opens it again at once, live calls are not affected, and
//! missed events are caught up on. Objects left by an earlier process are removed as well, those of
//! other programs are not touched.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ari::ask::Verb;
use crate::ari::fake::{Fake, Gate, Seen};
use crate::ari::rig::{APP, Rig};
use crate::ari::world::{Bridge, Channel, External, Item, World};
use crate::bridge::Net;
use crate::log::pass;
use crate::media::Media;
use crate::stream::AGENT;

#[tokio::test]
async fn a_live_call_is_not_affected() {
    tokio::join!(live_call(Item::Reset), live_call(Item::Close));
}

async fn live_call(cut: Item) {
    let rig = Rig::new("").await;
    let (mut caller, stream) = rig.call("ai.1").await;
    caller.say(0..10).await;
    rig.fake.take_seen();
    let begin = Instant::now();
    rig.fake.cut(APP, cut);
    rig.fake.asked(Verb::Events, APP, 1).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    caller.press("7");
    stream.pressed("7").await;
    stream.play_frames(0..20).await;
    // longer than a call would survive the loss of its PBX
    caller.say(10..130).await;
    assert_eq!(stream.heard(130).await, Vec::from_iter(0..130));
    assert_eq!(caller.external.media.numbered(AGENT, 20).await, Vec::from_iter(0..20));
    let verbs: Vec<Verb> = rig.fake.take_seen().iter().map(|s| s.ask.verb).collect();
    let expected = [Verb::Events, Verb::Info, Verb::Filter, Verb::Channels, Verb::Bridges];
    assert!(verbs.iter().all(|v| expected.contains(v)), "{verbs:?}");
    assert_eq!(verbs.iter().filter(|v| **v == Verb::Events).count(), 1);
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    rig.fake.is_clean(APP).await;
}

#[tokio::test]
async fn a_caller_who_hung_up_meanwhile_has_one_record() {
    for how in [Item::Reset, Item::Close] {
        let rig = Rig::new("").await;
        let (first, stream) = rig.call("ai.1").await;
        let (mut second, other) = rig.call("ai.2").await;
        first.external.media.next().await;
        rig.fake.gate(Gate::Held);
        rig.fake.cut(APP, how);
        first.hang_up();
        // no caller may enter without a client: the dialplan continues
        rig.enter("ai.3");
        rig.fake.gate(Gate::Open);
        stream.stopped().await;
        let record = rig.bridge.record().await;
        assert_eq!(record.reason.label(), "caller_hangup");
        second.say(0..5).await;
        assert_eq!(other.heard(5).await, [0, 1, 2, 3, 4]);
        second.hang_up();
        other.stopped().await;
        rig.fake.is_clean(APP).await;
        let Rig { bridge, fake, .. } = rig;
        assert_eq!(bridge.all_records().await.len(), 1, "of the second call");
        let ended = [Verb::DropMedia, Verb::DropBridge];
        // the trial bridge from the start is deleted too
        assert_eq!(ended.map(|verb| fake.count(verb, "")), [2, 3]);
        assert!(fake.world().continued.is_empty());
    }
}

/// Calls without RTP survive because they are in the PBX's lists.
#[tokio::test]
async fn a_call_in_set_up_and_a_silent_call_survive() {
    tokio::join!(slow_ai(), mute_caller());
}

/// A caller who is waiting for a slow AI is still connected.
async fn slow_ai() {
    let rig = Rig::new("[calls]\nanswer_wait = \"5s\"").await;
    rig.enter("ai.1");
    let handshake = rig.ai.handshake().await;
    rig.fake.asked(Verb::AddMedia, "", 1).await;
    cut_and_wait(&rig).await;
    let stream = handshake.open().await.started().await;
    let mut caller = rig.caller("ai.1").await;
    caller.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
}

/// Asterisk forwards no RTP while the caller sends none.
async fn mute_caller() {
    let rig = Rig::new("").await;
    let (mut caller, stream) = rig.call("ai.1").await;
    caller.say(0..5).await;
    cut_and_wait(&rig).await;
    caller.say(5..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
}

async fn cut_and_wait(rig: &Rig) {
    rig.fake.take_seen();
    rig.fake.cut(APP, Item::Reset);
    rig.fake.asked(Verb::Bridges, "", 1).await;
    // longer than a call would survive the loss of its PBX
    pass(Duration::from_millis(2200)).await;
    assert_eq!(
        rig.fake.count(Verb::Continue, ""),
        0,
        "sent back to the dialplan though the PBX has returned"
    );
}

/// The first attempt is made at once, later ones are not.
#[tokio::test]
async fn a_pbx_that_closes_every_time_is_retried_at_intervals() {
    let rig = Rig::new("").await;
    rig.fake.gate(Gate::Closing);
    rig.fake.take_seen();
    rig.fake.cut(APP, Item::Close);
    pass(Duration::from_secs(1)).await;
    let tries = rig.fake.count(Verb::Events, APP);
    assert!((2..=20).contains(&tries), "{tries} times in a second");
    rig.fake.gate(Gate::Open);
    rig.fake.take_seen();
    rig.fake.asked(Verb::Bridges, "", 1).await;
    let (caller, stream) = rig.call("ai.1").await;
    caller.hang_up();
    stream.stopped().await;
}

#[tokio::test]
async fn a_restarted_pbx_has_none_of_our_calls() {
    let rig = Rig::new("").await;
    let mut streams = Vec::new();
    for id in ["ai.1", "ai.2", "ai.3"] {
        streams.push(rig.call(id).await.1);
    }
    rig.fake.gate(Gate::Held);
    rig.fake.cut(APP, Item::Reset);
    rig.fake.take_seen();
    {
        let mut world = rig.fake.world();
        world.channels.clear();
        world.bridges.clear();
        world.startup = "2026-11-23T15:00:00.000+0000";
    }
    let begin = Instant::now();
    rig.fake.gate(Gate::Open);
    for stream in &streams {
        stream.stopped().await;
        assert_eq!(rig.bridge.end().await, "pbx_lost");
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let (caller, stream) = rig.call("ai.4").await;
    let touched = |s: &Seen| ["ai.1", "ai.2", "ai.3"].contains(&s.ask.id.as_str());
    assert!(!rig.fake.take_seen().iter().any(touched));
    caller.hang_up();
    stream.stopped().await;
    rig.fake.is_clean(APP).await;
}

/// Adds objects left by an earlier process, and some that belong to others.
fn leave_behind(fake: &Fake, net: Net) {
    let stasis = |app: &str| Some((app.to_owned(), Vec::new()));
    let media =
        External { host: SocketAddr::new(net.ai(), 9), media: Media::bind(net.pbx()).into() };
    let external = |app: &str| Channel {
        name: "UnicastRTP/127.0.0.1:9-0x7f041c00fc60".into(),
        stasis: stasis(app),
        external: Some(media.clone()),
        ..Channel::caller()
    };
    let mut world = fake.world();
    let mut add = |id: &str, channel| drop(world.channels.insert(id.into(), channel));
    add("ai.1", Channel { stasis: stasis("ai"), ..Channel::caller() });
    add("ai.2", Channel { stasis: stasis("ai"), up: true, ..Channel::caller() });
    add("trunkless-ai-m-1794000000-00000000aa", external("ai"));
    add("trunkless-ai-m-1794000001-00000000ab-again", external("ai"));
    // applications whose name begins like ours, whose ids do, or whose name contains ours
    for app in ["ai2", "ai-m", "ai-m-1794000000", "not-ai"] {
        add(&format!("{app}.1"), Channel { stasis: stasis(app), ..Channel::caller() });
        add(&format!("trunkless-{app}-m-1794000000-00000000aa"), external(app));
    }
    add("theirs", external("ai"));
    add(
        "snoop",
        Channel { name: "Snoop/ai.1-0001".into(), stasis: stasis("ai"), ..Channel::caller() },
    );
    add("queued.1", Channel::caller());
    add("trunkless-ai-m-sales", external("other"));
    let bridges = ["ai", "ai2", "ai-m", "ai-m-1794000000", "not-ai"];
    let names = bridges.map(|app| format!("trunkless-{app}-b-1794000000-00000000aa"));
    let others = ["theirs", "trunkless-ai-b-sales", "trunkless-ai"].map(str::to_owned);
    for name in names.into_iter().chain(others) {
        world.bridges.insert(name, Bridge::default());
    }
    let ours = world.bridges.get_mut("trunkless-ai-b-1794000000-00000000aa").unwrap();
    ours.members.insert("ai.2".into());
    ours.members.insert("trunkless-ai-m-1794000000-00000000aa".into());
}

#[tokio::test]
async fn only_what_an_earlier_process_left_is_removed() {
    let net = Net::new();
    let fake = Fake::start(net.pbx()).await;
    leave_behind(&fake, net);
    let all = |fake: &Fake| {
        let world = fake.world();
        Vec::from_iter(world.channels.keys().chain(world.bridges.keys()).cloned())
    };
    let before = all(&fake);
    let rig = Rig::with(net, fake, "").await;
    let begin = Instant::now();
    let gone = |w: &World| {
        let left = w.left(APP);
        (left == ["snoop"]).then_some(())
    };
    rig.fake.until("our leftovers are removed", gone).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    // wait for requests on their way
    pass(Duration::from_millis(100)).await;
    let after = all(&rig.fake);
    let gone: Vec<&String> = before.iter().filter(|id| !after.contains(id)).collect();
    let ours = [
        "trunkless-ai-m-1794000000-00000000aa",
        "trunkless-ai-m-1794000001-00000000ab-again",
        "trunkless-ai-b-1794000000-00000000aa",
    ];
    assert_eq!(gone, ours);
    assert_eq!(rig.fake.world().continued.len(), 2);
    assert!(rig.fake.world().channels["snoop"].is_in(APP));
    // callers first: without their bridge they would be left in silence
    let order: Vec<Verb> = rig.fake.take_seen().iter().map(|s| s.ask.verb).collect();
    let last = order.iter().rposition(|v| *v == Verb::Continue).unwrap();
    let first = order.iter().position(|v| *v == Verb::DropMedia).unwrap();
    assert!(last < first, "{order:?}");
}
