//! What becomes of the caller when the AI is not there, or ends or breaks the call.

use std::collections::HashSet;

use crate::ari::ask::Verb;
use crate::ari::fake::{Fake, Trouble};
use crate::ari::rig::{APP, Rig, plain};
use crate::ari::world::{Channel, Pace};
use crate::bridge::{Bridge, Net};
use crate::http::free;

/// The value of TRUNKLESS_REASON that the dialplan finds.
async fn reason(fake: &Fake) -> String {
    fake.is_clean(APP).await;
    let world = fake.world();
    assert_eq!(world.continued, ["ai.1"]);
    world.channels["ai.1"].variables["TRUNKLESS_REASON"].clone()
}

#[tokio::test]
async fn an_ai_that_is_not_there_sends_the_caller_on_unanswered() {
    let net = Net::new();
    let fake = Fake::start(net.pbx()).await;
    let nobody = free(net.ai());
    let bridge = Bridge::launch(&plain(net.bridge(), APP, fake.address, nobody), "").await;
    fake.asked(Verb::Bridges, "", 1).await;
    fake.world().enter("ai.1", APP, &[], Channel::caller());
    assert_eq!(bridge.end().await, "ai_unreachable");
    assert_eq!(reason(&fake).await, "ai_unreachable");
    assert_eq!((fake.count(Verb::Answer, ""), fake.count(Verb::HangUp, "")), (0, 0));
    assert!(!fake.world().channels["ai.1"].up);
}

#[tokio::test]
async fn an_ai_that_refuses_or_says_nothing_sends_the_caller_on() {
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
async fn an_ai_that_closes_ends_the_call_for_the_caller() {
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
async fn an_ai_that_closes_sends_the_caller_on_if_so_configured() {
    let rig = Rig::new("[calls]\non_ai_close = \"continue\"").await;
    let (_caller, stream) = rig.call("ai.1").await;
    stream.close(1000).await;
    assert_eq!(rig.bridge.end().await, "ai_hangup");
    assert_eq!(reason(&rig.fake).await, "ai_hangup");
    assert_eq!(rig.fake.count(Verb::HangUp, ""), 0);
}

#[tokio::test]
async fn an_ai_that_breaks_sends_the_caller_on() {
    let rig = Rig::new("").await;
    let (_caller, stream) = rig.call("ai.1").await;
    stream.reset().await;
    assert_eq!(rig.bridge.end().await, "ai_closed");
    assert_eq!(reason(&rig.fake).await, "ai_closed");
    assert_eq!(rig.fake.count(Verb::HangUp, ""), 0);
}

#[tokio::test]
async fn an_ai_that_breaks_ends_the_call_if_so_configured() {
    let rig = Rig::new("[calls]\non_ai_failure = \"hangup\"").await;
    let (_caller, stream) = rig.call("ai.1").await;
    stream.reset().await;
    assert_eq!(rig.bridge.end().await, "ai_closed");
    rig.fake.asked(Verb::HangUp, "ai.1", 1).await;
    rig.fake.is_clean(APP).await;
    assert!(rig.fake.world().continued.is_empty());
}

/// The AI has begun with the first packet; what it does counts from then on.
#[tokio::test]
async fn a_caller_who_is_heard_is_connected_though_the_answer_to_addchannel_is_late() {
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

/// Requests, answers and events of the two may overtake each other.
#[tokio::test]
async fn a_caller_whom_the_dialplan_sends_back_is_a_new_call() {
    let rig = Rig::new("").await;
    rig.fake.pace(Pace { request: 3, answer: 6, event: 10 });
    rig.fake.world().sent_back = 10;
    rig.enter("ai.1");
    let mut ids = HashSet::new();
    for _ in 0..10 {
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

/// The callers of an ended program go on, whatever on_ai_close says.
#[tokio::test]
async fn the_end_of_the_program_sends_callers_on() {
    let rig = Rig::new("[calls]\ndrain = \"100ms\"").await;
    let (_caller, stream) = rig.call("ai.1").await;
    let Rig { fake, bridge, .. } = rig;
    let (records, ()) = tokio::join!(bridge.all_records(), stream.stopped());
    assert_eq!(Vec::from_iter(records.iter().map(|r| r.reason.label())), ["drain"]);
    assert_eq!(reason(&fake).await, "drain");
}
