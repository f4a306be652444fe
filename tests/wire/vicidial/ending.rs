//! How calls end: by orders to VICIdial, and never by a BYE while VICIdial may still act.

use std::time::Duration;

use serde_json::json;

use crate::bridge::Rig;
use crate::log::pass;
use crate::vicidial::fake::{Vicidial, until};
use crate::vicidial::{CALL, dial, order, rig, talk};

/// The bot closes its stream: VICIdial ends the call, and not we, although it no longer lists the
/// call and takes its time.
#[tokio::test]
async fn a_call_ends_by_an_order_and_not_by_a_bye() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, stream) = talk(&rig).await;
    assert_eq!(order(&stream, "disposition", json!({"status": "SALE"})).await["status"], "done");
    stream.close(1000).await;
    let order = vicidial.asked("ra_call_control", 0).await;
    assert_eq!((&*order["stage"], &*order["value"]), ("HANGUP", CALL));
    assert_eq!((&*order["agent_user"], &*order["status"]), ("7001", "SALE"));
    assert!(rig.pbx.none_of("BYE", Duration::from_secs(9)).await, "VICIdial is slow");
    call.bye().await;
    assert_eq!(rig.bridge.end().await, "ai_hangup");
    assert_eq!(vicidial.count("ra_call_control"), 1);
}

#[tokio::test]
async fn a_transfer_is_an_order_and_a_socket_that_closes_then_ends_nothing() {
    for (to, stage, key, value) in [
        ("sales", "INGROUPTRANSFER", "ingroup_choices", "SALESLINE"),
        ("usual", "INGROUPTRANSFER", "ingroup_choices", "DEFAULTINGROUP"),
        ("desk", "EXTENSIONTRANSFER", "phone_number", "1001"),
    ] {
        let vicidial = Vicidial::start().await;
        let rig = rig(&vicidial, "").await;
        let (mut call, stream) = talk(&rig).await;
        let transfer = json!({"event": "transfer", "streamSid": stream.sid, "id": "t",
            "transfer": {"to": to, "status": "WARM"}});
        stream.order(&transfer).await;
        // the bot does not wait for the reply
        stream.close(1000).await;
        let order = vicidial.asked("ra_call_control", 0).await;
        assert_eq!((&*order["stage"], &*order[key]), (stage, value));
        assert_eq!(order["status"], "WARM");
        assert!(rig.pbx.none_of("BYE", Duration::from_secs(4)).await, "{to}");
        call.bye().await;
        let record = rig.bridge.record().await;
        assert_eq!(record.reason.label(), "transferred");
        assert_eq!(record.disposition.map(|of| of.status).as_deref(), Some("WARM"));
        assert_eq!(vicidial.count("ra_call_control"), 1);
    }
}

/// A transfer that VICIdial refuses has a reason, and the customer is with the AI again.
#[tokio::test]
async fn a_refused_transfer_leaves_the_call_as_it_was() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, stream) = talk(&rig).await;
    let reply = order(&stream, "transfer", json!({"to": "gone", "status": "WARM"})).await;
    assert_eq!((&reply["status"], &reply["reason"]), (&json!("failed"), &json!("no_such_target")));
    call.say(0..20).await;
    stream.heard(20).await;
    stream.close(1000).await;
    let second = vicidial.asked("ra_call_control", 1).await;
    assert_eq!((&*second["stage"], &*second["status"]), ("HANGUP", "AIHUP"));
    call.bye().await;
}

/// The AI is down: the customer goes to humans before the answer, by a CANCEL of VICIdial.
#[tokio::test]
async fn an_unanswered_caller_is_taken_away() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "in_group = \"SALESLINE\"").await;
    let mut call = dial(&rig, CALL).await;
    rig.ai.handshake().await.refuse("401 Unauthorized").await;
    let order = vicidial.asked("ra_call_control", 0).await;
    assert_eq!((&*order["stage"], &*order["ingroup_choices"]), ("INGROUPTRANSFER", "SALESLINE"));
    assert_eq!(order["status"], "AIERR");
    pass(Duration::from_secs(8)).await;
    call.cancel().await;
    assert_eq!(call.refused().await.code(), Some(487), "neither answered nor refused before");
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
    until(|| vicidial.kept_calls() == 0).await;
    assert_eq!(vicidial.count("ra_call_control"), 1);
    assert_eq!(vicidial.world().status(CALL), "AIERR");
}

/// VICIdial refuses: the caller is answered, hears the prompt, and the second order counts.
#[tokio::test]
async fn a_caller_who_is_not_taken_away_hears_a_prompt_and_is_transferred_then() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    vicidial.world().refusals = vec!["ERROR: no active call found - V1"];
    let mut call = dial(&rig, CALL).await;
    rig.ai.handshake().await.refuse("401 Unauthorized").await;
    call.answered().await;
    let second = vicidial.asked("ra_call_control", 1).await;
    assert_eq!(second["stage"], "INGROUPTRANSFER");
    assert!(rig.pbx.none_of("BYE", Duration::from_secs(4)).await);
    call.bye().await;
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
}

/// VICIdial accepts the order and does nothing for 15 s.
#[tokio::test]
async fn a_caller_who_is_forgotten_hears_a_prompt() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let mut call = dial(&rig, CALL).await;
    let begin = tokio::time::Instant::now();
    rig.ai.handshake().await.refuse("401 Unauthorized").await;
    vicidial.asked("ra_call_control", 0).await;
    assert!(rig.pbx.none_of("BYE", Duration::from_secs(12)).await);
    call.answered().await;
    let waited = begin.elapsed();
    assert!((14..17).contains(&waited.as_secs()), "{waited:?}");
    vicidial.asked("ra_call_control", 1).await;
    // VICIdial does not have it any more
    call.hung_up().await;
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
}

/// There is no room: the customer goes to humans unanswered, or hears a prompt if VICIdial does not
/// take the customer away.
#[tokio::test]
async fn a_caller_for_whom_there_is_no_room_is_taken_away() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "[calls]\nmax = 1").await;
    let (mut first, _stream) = rig.call().await;
    // one that may pass
    vicidial.world().refusals = vec!["<html>busy</html>"];
    let mut call = dial(&rig, CALL).await;
    let order = vicidial.asked("ra_call_control", 1).await;
    assert_eq!((&*order["stage"], &*order["status"]), ("INGROUPTRANSFER", "AIFULL"));
    pass(Duration::from_secs(1)).await;
    call.cancel().await;
    assert_eq!(call.refused().await.code(), Some(487));

    assert_eq!(rig.bridge.end().await, "overload");

    // VICIdial does not take this one: never a refusal, which would lead to the voicemail
    let mut call = dial(&rig, "V1231456150000402028").await;
    call.answered().await;
    call.hung_up().await;
    assert_eq!(rig.bridge.end().await, "overload");
    first.bye().await;
}

/// Another program ends the call through VICIdial: a BYE alone does not show it.
#[tokio::test]
async fn vicidial_knows_who_has_ended_a_call() {
    for (left_with, reason) in [
        ("XFER", "caller_hangup"),
        ("DROP", "caller_hangup"),
        ("NI", "api_hangup"),
        ("RAXFER", "transferred"),
    ] {
        let vicidial = Vicidial::start().await;
        let rig = rig(&vicidial, "").await;
        let (mut call, _stream) = talk(&rig).await;
        vicidial.world().end(CALL, left_with);
        call.bye().await;
        assert_eq!(rig.bridge.end().await, reason, "{left_with}");
    }
}

/// The dialler's agents are logged out 40 s after they became inactive. Any other agent's name is
/// good for an order; without one, the call ends by a BYE, and its status is repaired.
#[tokio::test]
async fn calls_end_without_their_agent() {
    for others in [true, false] {
        let vicidial = Vicidial::start().await;
        let rig = rig(&vicidial, "").await;
        let (mut call, stream) = talk(&rig).await;
        let agents = if others { vec![("1001".to_owned(), String::new())] } else { vec![] };
        vicidial.asked("logged_in_agents", 0).await;
        vicidial.world().agents = agents;
        pass(Duration::from_millis(2100)).await;
        stream.close(1000).await;
        if others {
            // the first order names the agent of the call
            let order = vicidial.asked("ra_call_control", 1).await;
            assert_eq!((&*order["stage"], &*order["agent_user"]), ("HANGUP", "1001"));
            call.bye().await;
        } else {
            call.hung_up().await;
            vicidial.world().end(CALL, "XFER");
            until(|| vicidial.world().status(CALL) == "AINSP").await;
        }
        assert_eq!(rig.bridge.end().await, "ai_hangup");
    }
}

/// The response to an order is lost, and the order was carried out: the customer is on the way to a
/// human.
#[tokio::test]
async fn an_order_without_a_response_counts_if_the_call_is_gone() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, stream) = talk(&rig).await;
    vicidial.world().lost = 1;
    let reply = order(&stream, "transfer", json!({"to": "sales"})).await;
    assert_eq!(reply["status"], "done");
    assert!(rig.pbx.none_of("BYE", Duration::from_secs(6)).await);
    call.bye().await;
    assert_eq!(rig.bridge.end().await, "transferred");
    assert_eq!(vicidial.world().status(CALL), "AIXFER");
}

/// VICIdial hangs: many calls end at the same time, and none waits for the time limits of others.
#[tokio::test]
async fn a_vicidial_that_hangs_holds_up_no_call() {
    let vicidial = Vicidial::start().await;
    let rig = Rig::new(&vicidial.config("")).await;
    let mut calls = Vec::new();
    for nth in 0..12 {
        let id = format!("V12314561500005000{nth:02}");
        vicidial.world().begin(&format!("{}", 7001 + nth), &id);
        let mut call = dial(&rig, &id).await;
        let stream = rig.ai.stream().await;
        call.answered().await;
        calls.push((call, stream));
    }
    let all = ["ra_call_control", "logged_in_agents", "callid_info"];
    let slow = Duration::from_secs(60);
    vicidial.world().slow = all.into_iter().map(|function| (function, slow)).collect();
    let begin = tokio::time::Instant::now();
    for (_, stream) in &calls {
        stream.close(1000).await;
    }
    for (call, _) in &calls {
        tokio::time::timeout(Duration::from_secs(20), call.hung_up()).await.expect("it ends");
    }
    let waited = begin.elapsed();
    assert!(waited < Duration::from_secs(14), "{waited:?}");
}

/// VICIdial is down: no caller is left in silence.
#[tokio::test]
async fn without_vicidial_calls_end_as_others_do() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (call, stream) = talk(&rig).await;
    vicidial.world().down = true;
    stream.close(1000).await;
    call.hung_up().await;
    assert_eq!(rig.bridge.end().await, "ai_hangup");
    vicidial.world().down = false;
    vicidial.world().end(CALL, "XFER");
    until(|| vicidial.world().status(CALL) == "AINSP").await;
}
