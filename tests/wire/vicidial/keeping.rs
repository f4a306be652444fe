//! Calls are kept until VICIdial has their status: across outages, restarts and crashes.

use std::time::Duration;

use serde_json::json;

use crate::bridge::Rig;
use crate::lines::Lines;
use crate::log::pass;
use crate::vicidial::fake::{PASSWORD, Vicidial, until};
use crate::vicidial::{CALL, LEAD, dial, order, rig, talk};

/// The customer hangs up, and VICIdial leaves the call without a decision.
#[tokio::test]
async fn an_undecided_call_gets_its_status() {
    for (left_with, speaks, given, wanted) in [
        ("DROP", true, None, "AICLH"),
        ("XFER", false, None, "AINSP"),
        ("QUEUE", true, Some("SALE"), "SALE"),
    ] {
        let vicidial = Vicidial::start().await;
        let rig = rig(&vicidial, "").await;
        let (mut call, stream) = talk(&rig).await;
        if let Some(status) = given {
            order(&stream, "disposition", json!({"status": status})).await;
        }
        if speaks {
            call.say(0..30).await;
            stream.heard(30).await;
        }
        vicidial.world().end(CALL, left_with);
        call.bye().await;
        assert_eq!(rig.bridge.end().await, "caller_hangup");
        until(|| vicidial.world().status(CALL) == wanted).await;
        until(|| vicidial.world().leads.get(LEAD).is_some_and(|s| s == wanted)).await;
        until(|| vicidial.kept_calls() == 0).await;
        assert_eq!(vicidial.count("update_log_entry"), 1);
    }
}

/// An answering machine was found by the campaign, and the AI gives no status.
#[tokio::test]
async fn a_machine_has_a_status_of_its_own() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.replace = Some(("Alice".to_owned(), CALL.to_owned()));
    call.headers = "X-AMD-Status: MACHINE\r\n".to_owned();
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    assert_eq!(stream.parameters["amd_status"], "MACHINE");
    stream.close(1000).await;
    assert_eq!(vicidial.asked("ra_call_control", 0).await["status"], "AIMACH");
    call.bye().await;
}

/// The dialler still has a call whose BYE it has not noticed.
#[tokio::test]
async fn a_call_that_vicidial_still_has_is_ended_with_its_status() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, _stream) = talk(&rig).await;
    call.bye().await;
    let order = vicidial.asked("ra_call_control", 0).await;
    assert_eq!((&*order["stage"], &*order["status"]), ("HANGUP", "AINSP"));
    until(|| vicidial.kept_calls() == 0).await;
    assert_eq!(vicidial.count("update_log_entry"), 0);
}

/// VICIdial does not answer for a while: each status arrives once, in a later process too.
#[tokio::test]
async fn statuses_survive_an_outage_and_a_restart() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, _stream) = talk(&rig).await;
    vicidial.world().end(CALL, "XFER");
    vicidial.world().down = true;
    call.bye().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    rig.bridge.shutdown().await;
    assert_eq!(vicidial.kept_calls(), 1);
    let text = std::fs::read_to_string(vicidial.kept().join(format!("{CALL}.json"))).unwrap();
    assert!(!text.contains("canary"), "{text}");
    vicidial.world().down = false;
    let _next = Rig::new(&vicidial.config("")).await;
    until(|| vicidial.world().status(CALL) == "AINSP").await;
    until(|| vicidial.kept_calls() == 0).await;
    assert_eq!(vicidial.count("update_log_entry"), 1);
}

/// The log entry of a call may come late. A call that has none does not hold up the others.
#[tokio::test]
async fn a_call_without_a_log_entry_is_tried_again_behind_others() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, _stream) = talk(&rig).await;
    vicidial.world().end(CALL, "DROP");
    vicidial.world().calls.get_mut(CALL).unwrap().group = "NONE".to_owned();
    call.bye().await;
    vicidial.asked("update_log_entry", 0).await;
    let second = "V1231456150000402028";
    vicidial.world().begin("7001", second);
    let mut call = dial(&rig, second).await;
    let _stream = rig.ai.stream().await;
    call.answered().await;
    vicidial.world().end(second, "DROP");
    call.bye().await;
    until(|| vicidial.world().status(second) == "AINSP").await;
}

/// The process before was killed while calls were up.
#[tokio::test]
async fn the_customers_of_a_killed_process_go_to_humans() {
    let vicidial = Vicidial::start().await;
    std::fs::create_dir_all(vicidial.kept()).unwrap();
    let gone = "V1231456150000402028";
    let calls = [(CALL, json!("SALE")), (gone, json!(null))];
    for (id, given) in calls {
        let kept = json!({"call": id, "since": now(), "answered": true, "given": given});
        std::fs::write(vicidial.kept().join(format!("{id}.json")), kept.to_string()).unwrap();
    }
    vicidial.world().begin("7002", gone);
    vicidial.world().end(gone, "XFER");
    let begin = tokio::time::Instant::now();
    let _rig = rig(&vicidial, "in_group = \"SALESLINE\"").await;
    let order = vicidial.asked("ra_call_control", 0).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    until(|| vicidial.kept_calls() == 0).await;
    assert_eq!((&*order["stage"], &*order["ingroup_choices"]), ("INGROUPTRANSFER", "SALESLINE"));
    let world = vicidial.world();
    assert_eq!((world.status(CALL), world.status(gone)), ("SALE", "AIERR"));
    assert_eq!(world.calls[CALL].user, "7001");
}

/// A call that was not answered yet may be with a human now, whom the dialplan has dialled.
#[tokio::test]
async fn an_unanswered_customer_of_a_killed_process_is_left_alone() {
    let vicidial = Vicidial::start().await;
    std::fs::create_dir_all(vicidial.kept()).unwrap();
    let kept = json!({"call": CALL, "since": now(), "answered": false});
    std::fs::write(vicidial.kept().join(format!("{CALL}.json")), kept.to_string()).unwrap();
    let _rig = rig(&vicidial, "").await;
    until(|| vicidial.kept_calls() == 0).await;
    assert_eq!(vicidial.count("ra_call_control"), 0);
}

/// The lead has a newer result, or is being called again: an old status does not replace it.
#[tokio::test]
async fn a_newer_result_is_kept() {
    for redialled in [false, true] {
        let vicidial = Vicidial::start().await;
        let rig = rig(&vicidial, "").await;
        let (mut call, _stream) = talk(&rig).await;
        vicidial.world().down = true;
        vicidial.world().end(CALL, "XFER");
        call.bye().await;
        rig.bridge.end().await;
        // an answer is shared by all who need it within 50 ms
        pass(Duration::from_millis(100)).await;
        if redialled {
            vicidial.world().begin("7002", "V1231459990000402027");
        } else {
            vicidial.world().leads.insert(LEAD.to_owned(), "SALE".to_owned());
        }
        vicidial.world().down = false;
        until(|| vicidial.kept_calls() == 0).await;
        assert_eq!(vicidial.count("update_log_entry") + vicidial.count("update_lead"), 0);
        assert_eq!(vicidial.world().status(CALL), "XFER");
    }
}

fn now() -> u64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    time.expect("after 1970").as_secs()
}

/// The API user lacks a function: the status waits, and those that need other functions do not.
#[tokio::test]
async fn a_missing_permission_holds_up_only_what_needs_it() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, _stream) = talk(&rig).await;
    vicidial.world().forbidden = vec!["update_log_entry"];
    vicidial.world().end(CALL, "XFER");
    call.bye().await;
    vicidial.asked("update_log_entry", 0).await;
    let second = "V1231456150000402028";
    vicidial.world().begin("7001", second);
    let mut call = dial(&rig, second).await;
    let _stream = rig.ai.stream().await;
    call.answered().await;
    call.bye().await;
    until(|| vicidial.world().status(second) == "AINSP").await;
    until(|| vicidial.kept_calls() == 1).await;
    assert_eq!(vicidial.count("update_log_entry"), 1);
}

/// Another process with the same folder has calls: they are not orphans.
#[tokio::test]
async fn the_calls_of_another_process_are_left_alone() {
    let vicidial = Vicidial::start().await;
    let first = rig(&vicidial, "").await;
    let (mut call, stream) = talk(&first).await;
    until(|| vicidial.kept_calls() == 1).await;
    let second = Rig::new(&vicidial.config("")).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!(vicidial.count("ra_call_control"), 0);
    stream.close(1000).await;
    vicidial.asked("ra_call_control", 0).await;
    call.bye().await;
    until(|| vicidial.kept_calls() == 0).await;
    drop(second);
}

/// A wrong password is tried once, by many calls at the same time, too, and is in no log.
#[tokio::test]
async fn a_refused_login_is_not_repeated() {
    let (lines, vicidial) = (Lines::new(), Vicidial::start().await);
    vicidial.world().begin("7001", CALL);
    let config = vicidial.config("").replace(PASSWORD, "wrong-canary");
    let rig = Rig::new(&config).await;
    let mut calls = Vec::new();
    for nth in 0..20 {
        let mut call = dial(&rig, &format!("V12314561500004020{nth:02}")).await;
        let stream = rig.ai.stream().await;
        call.answered().await;
        calls.push((call, stream));
    }
    for (call, stream) in calls {
        stream.close(1000).await;
        call.hung_up().await;
        assert_eq!(rig.bridge.end().await, "ai_hangup");
    }
    lines.until("VICIdial refuses the login").await;
    assert_eq!(vicidial.world().wrong, 1);
    let all = lines.with("");
    assert!(all.iter().all(|line| !line.contains("wrong-canary")), "{all:?}");
    // their statuses wait for a better password
    assert_eq!(vicidial.kept_calls(), 20);
}
