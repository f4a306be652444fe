//! The tools of a model: call control, the webhook, and tools without a server.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use trunkless::sip::message::Message;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::{Rig, say_frames};
use crate::call::sdp;
use crate::pbx::accept;
use crate::stream::AGENT;
use crate::webhook::{KEY, assert_signed};

#[tokio::test]
async fn the_model_says_goodbye_and_hangs_up() {
    let rig = Rig::new("").await;
    let (call, session) = rig.call().await;
    session.begin().await;
    // whichever comes first, the caller hears all of it
    session.call("call_1", "hang_up", json!({})).await;
    say_frames(&session, "item_1", 0..40).await;
    session.done("completed").await;
    assert_eq!(call.hung_up().await, "Q.850;cause=16;text=\"normal\"");
    assert_eq!(call.media.numbered(AGENT, 40).await.len(), 40);
    assert_eq!(session.output("call_1").await, "{\"status\":\"done\"}");
    session.closed().await;
    assert!(session.all("response.create").is_empty());
    assert_eq!(rig.bridge.end().await, "ai_hangup");
}

#[tokio::test]
async fn keys_and_the_disposition_are_answered_together() {
    let rig = Rig::new("").await;
    let (mut call, session) = rig.call().await;
    session.begin().await;
    session.call("call_1", "send_dtmf", json!({"digits": "4#"})).await;
    session.call("call_2", "set_disposition", json!({"status": "SALE"})).await;
    session.call("call_3", "send_dtmf", json!({"digits": "x"})).await;
    session.done("completed").await;
    assert_eq!(session.output("call_1").await, "{\"status\":\"done\"}");
    assert_eq!(session.output("call_2").await, "{\"status\":\"done\"}");
    let invalid = session.output("call_3").await;
    assert!(invalid.as_str().unwrap().contains("\"reason\":\"invalid\""), "{invalid}");
    session.count("response.create", 1).await;
    let keys = call.media.packets().into_iter().filter(|h| h.payload_type == 101);
    let mut keys: Vec<u8> = keys.map(|h| h.payload[0]).collect();
    keys.dedup();
    assert_eq!(keys, [4, 11]);
    call.bye().await;
    session.closed().await;
    assert_eq!(session.all("response.create").len(), 1);
    let record = rig.bridge.record().await;
    assert_eq!(record.disposition.expect("a disposition").status, "SALE");
}

#[tokio::test]
async fn a_transfer_that_fails_returns_the_caller_to_the_model() {
    let rig = Rig::new("[pbx.main.transfer]\ntargets = { sales = \"1001\" }").await;
    let (mut call, session) = rig.call().await;
    let update = session.until("the session", |e| e["type"] == "session.update").await;
    let tools = update["session"]["tools"].as_array().unwrap();
    let transfer = tools.iter().find(|tool| tool["name"] == "transfer_call").unwrap();
    assert_eq!(transfer["parameters"]["properties"]["target"]["enum"], json!(["sales"]));
    let address = call.media.address();
    rig.pbx.answer_with(move |request: &Message| match request.method() {
        Some("INVITE") if request.to().is_some_and(|to| to.tag().is_none()) => {
            Some(Message::response(request, 486, "Busy Here", "pbx"))
        }
        Some("INVITE") => {
            let held = String::from_utf8_lossy(&request.body).contains("a=sendonly");
            let direction = if held { "recvonly" } else { "sendrecv" };
            Some(accept(request)?.with_body("application/sdp", sdp(address, "0 101", direction)))
        }
        _ => accept(request),
    });
    session.begin().await;
    session.call("call_1", "transfer_call", json!({"target": "sales"})).await;
    session.done("completed").await;
    let output = session.output("call_1").await;
    assert!(output.as_str().unwrap().contains("\"reason\":\"busy\""), "{output}");
    session.count("response.create", 1).await;
    say_frames(&session, "item_1", 0..5).await;
    assert_eq!(call.media.numbered(AGENT, 5).await.len(), 5);
    session.done("completed").await;
    // a target that is not allowed
    session.begin().await;
    session.call("call_2", "transfer_call", json!({"target": "+19005550100"})).await;
    session.done("completed").await;
    let output = session.output("call_2").await;
    assert!(output.as_str().unwrap().contains("\"reason\":\"invalid\""), "{output}");
    call.bye().await;
    session.closed().await;
}

#[tokio::test]
async fn a_transfer_ends_the_session() {
    let rig = Rig::new("[pbx.main.transfer]\ntargets = { sales = \"1001\" }").await;
    let (mut call, session) = rig.call().await;
    let address = call.media.address();
    let target = rig.pbx.call(&rig.bridge).await;
    let target_media = target.media.address();
    rig.pbx.answer_with(move |request: &Message| {
        let first = request.to().is_some_and(|to| to.tag().is_none());
        match request.method() {
            Some("INVITE") => {
                let media = if first { target_media } else { address };
                let held = String::from_utf8_lossy(&request.body).contains("a=sendonly");
                let direction = if held { "recvonly" } else { "sendrecv" };
                let contact = format!("<sip:1001@{}>", media.ip());
                let body = sdp(media, "0 101", direction);
                let response = accept(request)?.with("Contact", contact);
                Some(response.with_body("application/sdp", body))
            }
            Some("REFER") => Some(Message::response(request, 202, "Accepted", "pbx")),
            _ => accept(request),
        }
    });
    session.begin().await;
    say_frames(&session, "item_1", 0..10).await;
    session.call("call_1", "transfer_call", json!({"target": "sales"})).await;
    session.done("completed").await;
    rig.pbx.request("REFER").await;
    assert_eq!(call.media.numbered(AGENT, 10).await.len(), 10);
    call.bye().await;
    session.closed().await;
    assert!(session.all("response.create").is_empty());
    assert_eq!(rig.bridge.end().await, "transferred");
}

/// A server for tools, which answers with this.
async fn webhook(answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(answer).mount(&server).await;
    server
}

fn config(server: &MockServer) -> String {
    let secret = BASE64.encode(KEY);
    format!("[ai]\ntool_webhook = \"{}/tools\"\ntool_webhook_secret = \"{secret}\"", server.uri())
}

#[tokio::test]
async fn other_tools_are_called_by_the_webhook() {
    let answer = ResponseTemplate::new(200).set_body_json(json!({"open": true}));
    let server = webhook(answer).await;
    let rig = Rig::new(&config(&server)).await;
    let (mut call, session) = rig.call().await;
    session.begin().await;
    session.call("call_1", "opening_hours", json!({"day": "Monday"})).await;
    // the model may still be speaking
    assert_eq!(session.output("call_1").await, "{\"open\":true}");
    session.done("completed").await;
    session.count("response.create", 1).await;
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests.len(), 1);
    assert_signed(&requests[0]);
    let body: Value = requests[0].body_json().unwrap();
    assert!(body["call_sid"].as_str().unwrap().starts_with("CA"), "{body}");
    assert_eq!((&body["id"], &body["name"]), (&json!("call_1"), &json!("opening_hours")));
    assert_eq!(body["arguments"], json!({"day": "Monday"}));
    assert_eq!(body["parameters"]["from_number"], "5550100");
    call.bye().await;
    session.closed().await;
}

#[tokio::test]
async fn a_tool_that_cannot_be_called_fails_and_the_call_continues() {
    let long = ResponseTemplate::new(200).set_body_string("x".repeat(70_000));
    let elsewhere = ResponseTemplate::new(302).insert_header("location", "http://127.0.0.1:1/");
    for (answer, reason) in [
        (ResponseTemplate::new(500), "the server answered 500"),
        (elsewhere, "the server answered 302"),
        (long, "longer than 65536 bytes"),
    ] {
        let server = webhook(answer).await;
        let rig = Rig::new(&config(&server)).await;
        let (mut call, session) = rig.call().await;
        session.begin().await;
        session.call("call_1", "look_up", json!({})).await;
        session.done("completed").await;
        let output = session.output("call_1").await;
        assert!(output.as_str().unwrap().contains(reason), "{output}");
        session.count("response.create", 1).await;
        call.bye().await;
        session.closed().await;
    }
    // without a webhook
    let rig = Rig::new("").await;
    let (mut call, session) = rig.call().await;
    session.begin().await;
    session.call("call_1", "look_up", json!({})).await;
    session.done("completed").await;
    let output = session.output("call_1").await;
    assert!(output.as_str().unwrap().contains("there is no such tool"), "{output}");
    session.count("response.create", 1).await;
    call.bye().await;
    session.closed().await;
}

#[tokio::test]
async fn a_slow_webhook_holds_up_nothing_and_only_four_tools_run_at_once() {
    let answer = ResponseTemplate::new(200).set_delay(Duration::from_millis(700));
    let server = webhook(answer.set_body_string("late")).await;
    let rig = Rig::new(&config(&server)).await;
    let (mut call, session) = rig.call().await;
    session.begin().await;
    for n in 1..=5 {
        session.call(&format!("call_{n}"), "look_up", json!({})).await;
    }
    say_frames(&session, "item_1", 0..10).await;
    session.done("completed").await;
    let output = session.output("call_5").await;
    assert!(output.as_str().unwrap().contains("too many"), "{output}");
    assert_eq!(call.media.numbered(AGENT, 10).await.len(), 10);
    assert!(session.all("response.create").is_empty());
    for n in 1..=4 {
        assert_eq!(session.output(&format!("call_{n}")).await, "late");
    }
    session.count("response.create", 1).await;
    call.bye().await;
    session.closed().await;
    assert_eq!(session.all("response.create").len(), 1);
}
