//! Callers that cannot be taken, or must not be: they continue in the dialplan at once.

use crate::ari::ask::Verb;
use crate::ari::fake::Fake;
use crate::ari::rig::{APP, Rig};
use crate::ari::world::{Channel, World};
use crate::lines::Lines;

/// Waits until this caller continues in the dialplan, unanswered, and returns the reason set.
async fn sent_back(fake: &Fake, id: &str) -> String {
    let sent_back = |w: &World| w.continued.contains(&id.to_owned()).then_some(());
    fake.until("the caller continues in the dialplan", sent_back).await;
    assert_eq!(fake.count(Verb::Answer, id), 0);
    fake.world().channels[id].variables["TRUNKLESS_REASON"].clone()
}

#[tokio::test]
async fn callers_beyond_the_limit_are_sent_back() {
    for config in ["[calls]\nmax = 2", "[pbx.main.ari]\nmax_media = 2"] {
        let (lines, rig) = (Lines::new(), Rig::new(config).await);
        let (first, stream) = rig.call("ai.1").await;
        let (_second, other) = rig.call("ai.2").await;
        for id in ["ai.3", "ai.4", "ai.5"] {
            rig.enter(id);
            assert_eq!(sent_back(&rig.fake, id).await, "overload");
        }
        let refused = lines.with("call refused: ");
        assert_eq!(refused.len(), 3, "one line per caller: {refused:?}");
        for line in refused {
            assert!(line.contains(" is reached; ") && line.contains("native_id="), "{line}");
        }
        assert_eq!(rig.fake.count(Verb::Media, ""), 2);
        first.hang_up();
        stream.stopped().await;
        assert_eq!(rig.bridge.end().await, "caller_hangup");
        rig.fake.asked(Verb::DropMedia, "", 1).await;
        // wait for the answer to that request
        other.listen(100).await;
        let (third, stream) = rig.call("ai.6").await;
        third.hang_up();
        stream.stopped().await;
        assert_eq!(rig.bridge.end().await, "caller_hangup");
    }
}

#[tokio::test]
async fn callers_who_arrive_during_shutdown_are_sent_back() {
    let (lines, rig) = (Lines::new(), Rig::new("").await);
    let (mut caller, stream) = rig.call("ai.1").await;
    let fake = rig.fake.clone();
    let late = async {
        lines.until("waiting for calls to end").await;
        rig.fake.world().enter("ai.2", APP, &[], Channel::caller());
        assert_eq!(sent_back(&fake, "ai.2").await, "drain");
        caller.say(0..10).await;
        assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
        caller.hang_up();
        stream.stopped().await;
    };
    let (records, ()) = tokio::join!(rig.bridge.all_records(), late);
    assert_eq!(records.len(), 1);
    fake.is_clean(APP).await;
}
