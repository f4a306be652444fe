//! The AI's orders on its WebSocket, and the answers to them.

use std::time::Duration;

use serde_json::{Value, json};
use trunkless::sip::message::Message;

use crate::bridge::Rig;
use crate::call::sdp;
use crate::pbx::accept;
use crate::stream::{AGENT, Stream};

/// The statuses of an order's replies.
pub fn statuses(replies: &[Value]) -> Vec<&str> {
    replies.iter().filter_map(|reply| reply["status"].as_str()).collect()
}

pub async fn order(stream: &Stream, id: &str, event: &str, body: Value) -> Vec<Value> {
    stream.order(&json!({"event": event, "streamSid": stream.sid, "id": id, event: body})).await;
    stream.replied(id).await
}

#[tokio::test]
async fn a_hang_up_after_the_audio_lets_the_caller_hear_the_goodbye() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    stream.play_frames(0..50).await;
    let body = json!({"when": "after_audio", "cause": "busy"});
    let replies = order(&stream, "bye", "hangup", body).await;
    assert_eq!(statuses(&replies), ["accepted", "done"]);
    assert_eq!(replies[1], json!({"command": "hangup", "status": "done"}));
    assert_eq!(call.hung_up().await, "Q.850;cause=17;text=\"busy\"");
    assert_eq!(call.media.numbered(AGENT, 50).await.len(), 50);
    stream.until_stop().await;
    let record = rig.bridge.record().await;
    assert_eq!(record.reason.label(), "ai_hangup");
    assert_eq!(record.commands.len(), 1);
}

#[tokio::test]
async fn marks_and_clear_tell_what_was_heard() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let unknown = order(&stream, "1", "mute", json!({"side": "both"})).await;
    assert_eq!(unknown[0]["reason"], "invalid");
    assert_eq!(unknown[0]["detail"], "mute.side is \"both\", not one of caller, ai");
    stream.play_frames(0..20).await;
    stream.mark("first").await;
    stream.play_frames(20..100).await;
    stream.mark("second").await;
    stream.marked("first").await;
    stream.clear().await;
    stream.marked("second").await;
    let own = stream.own();
    let cleared = own.iter().find(|own| own["event"] == "cleared").expect("an answer to clear");
    let ms = |name: &str| cleared["cleared"][name].as_u64().unwrap();
    assert!((400..600).contains(&ms("playedMs")), "{cleared}");
    assert_eq!(ms("playedMs") + ms("discardedMs"), 2000);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn our_own_messages_can_be_announced_or_turned_off() {
    let rig = Rig::new("[ai]\nextensions = \"always\"").await;
    let (mut call, stream) = rig.call().await;
    let announced = stream.parameters["bridge_control"].as_str().unwrap_or_default();
    assert!(announced.starts_with("1 hangup,transfer,"), "{announced}");
    stream.expect_own();
    call.reinvite("", &sdp(call.media.address(), "0 8 101", "sendonly")).await;
    stream.state("held").await;
    call.reinvite("", &sdp(call.media.address(), "0 8 101", "sendrecv")).await;
    stream.state("resumed").await;
    call.bye().await;
    stream.stopped().await;

    let rig = Rig::new("[ai]\nextensions = \"off\"").await;
    let (mut call, stream) = rig.call().await;
    assert_eq!(stream.parameters["bridge_control"], Value::Null);
    stream.say(&json!({"event": "hangup"})).await;
    stream.play_frames(0..10).await;
    assert_eq!(call.media.numbered(AGENT, 10).await.len(), 10);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn hold_is_a_reinvite_and_a_refused_one_changes_nothing() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let address = call.media.address();
    rig.pbx.answer_with(move |request: &Message| {
        let response = accept(request)?;
        let offered = String::from_utf8_lossy(&request.body);
        let direction = if offered.contains("a=sendonly") { "recvonly" } else { "sendrecv" };
        Some(match request.method() {
            Some("INVITE") => response
                .with("Contact", format!("<sip:pbx@{}>", address.ip()))
                .with_body("application/sdp", sdp(address, "0 101", direction)),
            _ => response,
        })
    });
    assert_eq!(statuses(&order(&stream, "1", "hold", json!({})).await), ["accepted", "done"]);
    stream.state("held").await;
    let offer = rig.pbx.request("INVITE").await;
    assert!(String::from_utf8_lossy(&offer.body).contains("a=sendonly"));
    while !call.media.is_quiet(Duration::from_millis(80)).await {}
    // a refresh by the PBX does not end the hold
    let answer = call.reinvite("", &sdp(address, "0 8 101", "sendrecv")).await;
    assert!(String::from_utf8_lossy(&answer.body).contains("a=sendonly"));
    assert_eq!(statuses(&order(&stream, "2", "unhold", json!({})).await), ["accepted", "done"]);
    stream.state("resumed").await;
    stream.play_frames(0..10).await;
    assert_eq!(call.media.numbered(AGENT, 10).await.len(), 10);

    rig.pbx.answer_with(|request| match request.method() {
        Some("INVITE") => Some(Message::response(request, 488, "Not Acceptable Here", "pbx")),
        _ => accept(request),
    });
    let refused = order(&stream, "3", "hold", json!({})).await;
    assert_eq!(
        (statuses(&refused), &refused[1]["reason"]),
        (vec!["accepted", "failed"], &json!("refused"))
    );
    stream.play_frames(10..20).await;
    assert_eq!(call.media.numbered(AGENT, 20).await.len(), 20);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn keys_are_events_or_info() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let replies = order(&stream, "1", "sendDigits", json!({"digits": "4#"})).await;
    assert_eq!(statuses(&replies), ["accepted", "done"]);
    let packets = call.media.packets();
    let events: Vec<u8> = packets
        .iter()
        .filter(|packet| packet.payload_type == 101)
        .map(|packet| packet.payload[0])
        .collect();
    assert_eq!(events, [[4; 7], [11; 7]].concat());
    call.bye().await;
    stream.stopped().await;

    // a PBX that offers no events gets INFO
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.offer = Some(sdp(call.media.address(), "0", "sendrecv"));
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    let replies = order(&stream, "1", "sendDigits", json!({"digits": "4w#"})).await;
    assert_eq!(statuses(&replies), ["accepted", "done"]);
    let mut pressed = String::new();
    for _ in 0..2 {
        let info = rig.pbx.request("INFO").await;
        pressed += &String::from_utf8_lossy(&info.body).replace("\r\n", " ");
    }
    assert_eq!(pressed, "Signal=4 Duration=160 Signal=# Duration=160 ");
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn what_a_call_cannot_do_is_refused_and_the_disposition_is_kept() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    for (id, event, body, reason) in [
        ("1", "transfer", json!({"to": "+19005550100"}), "not_allowed"),
        ("2", "record", json!({"action": "start"}), "not_recorded"),
        ("3", "play", json!({"prompt": "hello"}), "no_such_prompt"),
    ] {
        let replies = order(&stream, id, event, body).await;
        assert_eq!(replies[0]["reason"], reason, "{event}");
    }
    stream.order(&json!({"event": "setVariables", "id": "4", "variables": {"A": "1"}})).await;
    assert_eq!(stream.replied("4").await[0]["reason"], "unsupported");
    let body = json!({"status": "SALE", "data": {"amount": 7}});
    assert_eq!(statuses(&order(&stream, "5", "disposition", body).await), ["done"]);
    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    let disposition = record.disposition.expect("a disposition");
    assert_eq!((&*disposition.status, &*disposition.data), ("SALE", "{\"amount\":7}"));
    let given: Vec<&str> = record.commands.iter().map(|given| given.command).collect();
    assert_eq!(given, ["transfer", "record", "play", "setVariables", "disposition"]);
}
