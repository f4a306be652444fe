//! The caller is sent back to the dialplan or hung up when the AI is unreachable, closes or fails.

use std::collections::HashSet;

use crate::ari::ask::Verb;
use crate::ari::fake::{Fake, Trouble};
use crate::ari::rig::{APP, Rig, plain};
use crate::ari::world::{Channel, Pace};
use crate::bridge::{Bridge, Net};
use crate::http::free;

/// Waits until the only call is gone from the PBX and returns the TRUNKLESS_REASON that the
/// dialplan finds.
async fn reason(fake: &Fake) -> String {
    fake.is_clean(APP).await;
    let world = fake.world();
    assert_eq!(world.continued, ["ai.1"]);
    world.channels["ai.1"].variables["TRUNKLESS_REASON"].clone()
}

#[tokio::test]
async fn an_unreachable_ai_sends_the_caller_back_unanswered() {
    let net = Net::new();
    let fake = Fake::start(net.pbx()).await;
    let unused = free(net.ai());
    let bridge = Bridge::launch(&plain(net.bridge(), APP, fake.address, unused), "").await;
    fake.asked(Verb::Bridges, "", 1).await;
    fake.world().enter("ai.1", APP, &[], Channel::caller());
    assert_eq!(bridge.end().await, "ai_unreachable");
    assert_eq!(reason(&fake).await, "ai_unreachable");
    assert_eq!((fake.count(Verb::Answer, ""), fake.count(Verb::HangUp, "")), (0, 0));
    assert!(!fake.world().channels["ai.1"].up);
}

#[tokio::test]
async fn an_ai_that_refuses_or_does_not_answer_sends_the_caller_back() {
    for refuses in [true, false] {
        let rig = Rig::new("").await;
        rig.enter("ai.1");
        let handshake = rig.ai.handshake().await;
        let kept = match refuses {
            true => {
                handshake.refuse("503 Service Unavailable").await;
                None
            }
            false => Some(handshake),
        };
        assert_eq!(rig.bridge.end().await, "ai_unreachable");
        assert_eq!(reason(&rig.fake).await, "ai_unreachable");
        assert_eq!(rig.fake.count(Verb::Answer, ""), 0);
        drop(kept);
    }
}

#[tokio::test]
async fn an_ai_that_closes_ends_the_call() {
    let rig = Rig::new("").await;
    let (_caller, stream) = rig.call("ai.1").await;
    stream.close(1000).await;
    stream.ended().await;
    assert_eq!(rig.bridge.end().await, "ai_hangup");
    let hang_up = rig.fake.asked(Verb::HangUp, "ai.1", 1).await;
    assert_eq!((hang_up.ask.get("reason"), hang_up.status), ("normal", 204));
    rig.fake.is_clean(APP).await;
    assert!(rig.fake.world().continued.is_empty());
}

#[tokio::test]
async fn an_ai_that_closes_sends_the_caller_back_if_configured() {
    let rig = Rig::new("[calls]\non_ai_close = \"continue\"").await;
    let (_caller, stream) = rig.call("ai.1").await;
    stream.close(1000).await;
    assert_eq!(rig.bridge.end().await, "ai_hangup");
    assert_eq!(reason(&rig.fake).await, "ai_hangup");
    assert_eq!(rig.fake.count(Verb::HangUp, ""), 0);
}

/// Close code 4000 hands the caller over, whatever the settings.
#[tokio::test]
async fn an_ai_that_closes_with_4000_sends_the_caller_back() {
    let rig = Rig::new("[calls]\non_ai_close = \"hangup\"\non_ai_failure = \"hangup\"").await;
    let (_caller, stream) = rig.call("ai.1").await;
    stream.close(4000).await;
    stream.ended().await;
    assert_eq!(rig.bridge.end().await, "ai_handover");
    assert_eq!(reason(&rig.fake).await, "ai_handover");
    assert_eq!(rig.fake.count(Verb::HangUp, ""), 0);
}

/// The caller was never connected, so the dialplan may try something else.
#[tokio::test]
async fn an_ai_that_closes_before_start_declines_the_call() {
    for (code, label) in [(1000u16, "ai_hangup"), (4000, "ai_handover"), (1011, "ai_closed")] {
        let rig = Rig::new("").await;
        rig.fake.pace(Pace { request: 0, answer: 300, event: 10 });
        rig.enter("ai.1");
        let [high, low] = code.to_be_bytes();
        let connection = rig.ai.handshake().await.open_with_behind(&[0x88, 2, high, low]).await;
        let record = rig.bridge.record().await;
        assert_eq!((record.reason.label(), record.summary.answered), (label, false));
        assert_eq!(reason(&rig.fake).await, label);
        assert_eq!(rig.fake.count(Verb::HangUp, "ai.1"), 0);
        drop(connection);
    }
}

#[tokio::test]
async fn an_ai_that_fails_sends_the_caller_back() {
    let rig = Rig::new("").await;
    let (_caller, stream) = rig.call("ai.1").await;
    stream.reset().await;
    assert_eq!(rig.bridge.end().await, "ai_closed");
    assert_eq!(reason(&rig.fake).await, "ai_closed");
    assert_eq!(rig.fake.count(Verb::HangUp, ""), 0);
}

#[tokio::test]
async fn an_ai_that_fails_ends_the_call_if_configured() {
    let rig = Rig::new("[calls]\non_ai_failure = \"hangup\"").await;
    let (_caller, stream) = rig.call("ai.1").await;
    stream.reset().await;
    assert_eq!(rig.bridge.end().await, "ai_closed");
    rig.fake.asked(Verb::HangUp, "ai.1", 1).await;
    rig.fake.is_clean(APP).await;
    assert!(rig.fake.world().continued.is_empty());
}

/// The stream starts with the first packet; from then on, what the AI does counts.
#[tokio::test]
async fn a_caller_with_audio_is_connected_even_before_the_answer_to_addchannel() {
    for breaks in [true, false] {
        let rig = Rig::new("[calls]\non_ai_failure = \"hangup\"").await;
        rig.fake.trouble(APP, Verb::AddCaller, Trouble::Late).await;
        let (caller, stream) = rig.new_call("ai.1").await;
        match breaks {
            true => stream.reset().await,
            false => caller.hang_up(),
        }
        let record = rig.bridge.record().await;
        assert!(record.summary.answered);
        assert_eq!(record.reason.label(), if breaks { "ai_closed" } else { "caller_hangup" });
        rig.fake.is_clean(APP).await;
        assert_eq!(rig.fake.count(Verb::HangUp, "ai.1"), usize::from(breaks));
    }
}

/// Requests, answers and events of consecutive calls may overtake each other.
#[tokio::test]
async fn a_caller_who_reenters_from_the_dialplan_is_a_new_call() {
    let rig = Rig::new("").await;
    rig.fake.pace(Pace { request: 3, answer: 6, event: 10 });
    rig.fake.world().sent_back = 2;
    rig.enter("ai.1");
    let mut ids = HashSet::new();
    for _ in 0..2 {
        rig.ai.handshake().await.refuse("404 Not Found").await;
        let record = rig.bridge.record().await;
        assert_eq!(record.reason.label(), "ai_unreachable");
        assert!(ids.insert(record.id));
    }
    let stream = rig.ai.stream().await;
    let mut caller = rig.caller("ai.1").await;
    caller.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    rig.fake.is_clean(APP).await;
}

/// On shutdown, callers continue in the dialplan, whatever `on_ai_close` says.
#[tokio::test]
async fn shutdown_sends_callers_back() {
    let rig = Rig::new("[calls]\ndrain = \"100ms\"").await;
    let (_caller, stream) = rig.call("ai.1").await;
    let Rig { fake, bridge, .. } = rig;
    let (records, ()) = tokio::join!(bridge.all_records(), stream.stopped());
    assert_eq!(Vec::from_iter(records.iter().map(|r| r.reason.label())), ["drain"]);
    assert_eq!(reason(&fake).await, "drain");
}
