//! Panics of the program, at the places of `src/call/fault_point.rs`. Each test runs in a process
//! of its own, because other tests assert that nothing panics.

use std::process::Command;

use tokio_tungstenite::tungstenite::Message;
use trunkless::telemetry::PANICS;

use crate::ari::ask::Verb;
use crate::ari::rig::{APP, Rig};
use crate::ari::world::{Channel, World};

/// Set in the process that runs one test.
const ALONE: &str = "TRUNKLESS_TEST_ALONE";

/// Runs a test of this file in a process of its own, unless this is that process.
fn ran_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return false;
    }
    let program = std::env::current_exe().expect("this program");
    let test = format!("ari::panics::{test}");
    let run = Command::new(program).args(["--exact", &test]).env(ALONE, "1").output();
    let run = run.expect("the test runs");
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
    true
}

#[tokio::test]
async fn a_panic_while_a_call_is_offered_ends_that_call_alone() {
    if ran_alone("a_panic_while_a_call_is_offered_ends_that_call_alone") {
        return;
    }
    let rig = Rig::new("").await;
    let (mut caller, stream) = rig.call("ai.1").await;
    rig.fake.world().enter("ai.2", APP, &["fault=source"], Channel::caller());
    let sent_back = |w: &World| w.continued.contains(&"ai.2".to_owned()).then_some(());
    rig.fake.until("the caller continues in the dialplan", sent_back).await;
    rig.fake.asked(Verb::Events, APP, 2).await;
    caller.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    assert_eq!(PANICS.get(), 1);
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    rig.fake.is_clean(APP).await;
}

#[tokio::test]
async fn an_event_that_panics_ends_no_call() {
    if ran_alone("an_event_that_panics_ends_no_call") {
        return;
    }
    let rig = Rig::new("").await;
    let (mut caller, stream) = rig.call("ai.1").await;
    for n in 0..3 {
        rig.fake.say(APP, Message::Text(r#"{"type":"X-Fault: event"}"#.into()));
        rig.fake.asked(Verb::Events, APP, n as usize + 2).await;
        let n = n * 5;
        caller.say(n..n + 5).await;
        assert_eq!(stream.heard(n as usize + 5).await, Vec::from_iter(0..n + 5));
    }
    assert_eq!(PANICS.get(), 3);
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    rig.fake.is_clean(APP).await;
}
