//! Calls out in ARI mode: the callee is originated into the application.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::ari::ask::Verb;
use crate::ari::fake::{Fake, Trouble};
use crate::ari::rig::{APP, Rig};
use crate::bridge::Net;
use crate::control::{bearer, request};
use crate::dialout::{TOKEN, callback_server, callbacks, control, place};
use crate::http::free;
use crate::stream::AGENT;
use crate::strict::Opened;

const NUMBER: &str = "+4930123456";

struct Dialout {
    rig: Rig,
    api: SocketAddr,
}

async fn rig(dial: &str) -> Dialout {
    let net = Net::new();
    let api = free(net.bridge());
    let config = format!(
        "{}[pbx.main.dial]\nallow = \"_+4930.\"\ncaller_id = \"+49301\"\ncontext = \"out\"\n\
         per_second = 100\n{dial}",
        control(api)
    );
    let fake = Fake::start(net.pbx()).await;
    Dialout { rig: Rig::with(net, fake, &config).await, api }
}

impl Dialout {
    async fn placed(&self, more: Value) -> String {
        let mut body = json!({"to": NUMBER});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, call) = place(self.api, &body).await;
        assert_eq!(status, 201, "{call}");
        call["id"].as_str().unwrap().to_owned()
    }

    /// Places a call number `nth`, whose AI opens and whose callee is called.
    async fn calls(&self, nth: usize, more: Value) -> (String, Opened, String) {
        let id = self.placed(more).await;
        let opened = self.rig.ai.handshake().await.open().await;
        let asked = self.rig.fake.asked(Verb::Originate, "", nth).await;
        (id, opened, asked.ask.id)
    }

    async fn hang_up(&self, id: &str) {
        let body = json!({"command": "hangup"}).to_string();
        let path = format!("POST /v1/calls/{id}/commands?wait=5");
        assert_eq!(request(self.api, &path, &bearer(TOKEN), &body).await.0, 200);
    }
}

#[tokio::test]
async fn the_callee_is_called_once_ai_and_media_are_there_and_hears_the_ai_at_once() {
    let server = callback_server().await;
    let host = server.address();
    let dialout = rig(&format!("callback_hosts = [\"{host}\"]")).await;
    let callback = json!({
        "url": format!("http://{host}/status"),
        "events": ["initiated", "ringing", "answered", "completed"],
    });
    dialout.placed(json!({"status_callback": callback})).await;
    let handshake = dialout.rig.ai.handshake().await;
    let external = dialout.rig.fake.external().await;
    external.media.until("silence", |h| h.is_silence()).await;
    assert_eq!(dialout.rig.fake.count(Verb::Originate, ""), 0, "the AI is not there yet");
    let opened = handshake.open().await;
    let asked = dialout.rig.fake.asked(Verb::Originate, "", 1).await;
    let ask = asked.ask;
    assert_eq!(dialout.rig.fake.count(Verb::AddMedia, ""), 1);
    let given =
        ["endpoint", "callerId", "app", "timeout", "formats"].map(|name| ask.get(name).to_owned());
    assert_eq!(given, ["Local/+4930123456@out/n", "+49301", APP, "65", "ulaw"]);
    let callee = ask.id.clone();
    dialout.rig.fake.world().dial(&callee, "RINGING");
    dialout.rig.fake.world().callee_answers(&callee);
    let stream = opened.started().await;
    let expected = json!({
        "from_number": "+49301", "to_number": NUMBER, "pbx": "main", "direction": "outbound",
        "sip_call_id": callee, "context": "out", "channel_id": callee,
    });
    assert_eq!(stream.parameters, expected);
    let mut caller = dialout.rig.caller(&callee).await;
    stream.play_frames(0..20).await;
    caller.say(0..20).await;
    assert_eq!(external.media.numbered(AGENT, 20).await, Vec::from_iter(0..20));
    stream.hears(19).await;
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(dialout.rig.bridge.end().await, "caller_hangup");
    dialout.rig.fake.is_clean(APP).await;
    let forms = callbacks(&server, 4).await;
    let words: Vec<&str> = forms.iter().map(|form| &*form["CallStatus"]).collect();
    assert_eq!(words, ["initiated", "ringing", "in-progress", "completed"]);
}

#[tokio::test]
async fn each_failure_has_its_reason() {
    let dialout = rig("").await;
    for (nth, (status, cause, reason)) in [
        ("BUSY", 17, "busy"),
        ("NOANSWER", 19, "no_answer"),
        ("CONGESTION", 1, "invalid_number"),
        ("CONGESTION", 34, "dial_failed"),
        ("RINGING", 21, "rejected"),
    ]
    .into_iter()
    .enumerate()
    {
        let (_, opened, callee) = dialout.calls(nth + 1, json!({})).await;
        dialout.rig.fake.world().callee_fails(&callee, status, cause);
        assert_eq!(dialout.rig.bridge.end().await, reason, "{status} {cause}");
        dialout.rig.fake.is_clean(APP).await;
        drop(opened);
    }
    // the PBX refuses the request
    dialout.rig.fake.trouble(APP, Verb::Originate, Trouble::Status(400)).await;
    let (_, _opened, _) = dialout.calls(6, json!({})).await;
    assert_eq!(dialout.rig.bridge.end().await, "dial_failed");
    dialout.rig.fake.is_clean(APP).await;
}

#[tokio::test]
async fn a_call_is_given_up_at_each_stage() {
    let dialout = rig("").await;
    // before the AI is there
    let id = dialout.placed(json!({})).await;
    let handshake = dialout.rig.ai.handshake().await;
    dialout.hang_up(&id).await;
    assert_eq!(dialout.rig.bridge.end().await, "api_hangup");
    drop(handshake);
    dialout.rig.fake.is_clean(APP).await;
    assert_eq!(dialout.rig.fake.count(Verb::Originate, ""), 0);

    // while it rings, by a program
    let (id, opened, callee) = dialout.calls(1, json!({})).await;
    dialout.rig.fake.world().dial(&callee, "RINGING");
    dialout.hang_up(&id).await;
    assert_eq!(dialout.rig.bridge.end().await, "api_hangup");
    dialout.rig.fake.is_clean(APP).await;
    drop(opened);

    // because there is no answer
    let (_, opened, _) = dialout.calls(2, json!({"timeout": 1})).await;
    assert_eq!(dialout.rig.bridge.end().await, "no_answer");
    dialout.rig.fake.is_clean(APP).await;
    drop(opened);

    // because the AI goes away
    let (_, opened, callee) = dialout.calls(3, json!({})).await;
    dialout.rig.fake.world().dial(&callee, "RINGING");
    drop(opened);
    assert_eq!(dialout.rig.bridge.end().await, "ai_closed");
    dialout.rig.fake.is_clean(APP).await;
}

#[tokio::test]
async fn without_an_ai_no_callee_is_called() {
    let dialout = rig("").await;
    dialout.placed(json!({})).await;
    dialout.rig.ai.handshake().await.refuse("401 Unauthorized").await;
    assert_eq!(dialout.rig.bridge.end().await, "ai_unreachable");
    dialout.rig.fake.is_clean(APP).await;
    assert_eq!(dialout.rig.fake.count(Verb::Originate, ""), 0);
    let quiet = dialout.rig.ai.is_left_alone(Duration::from_millis(1)).await;
    assert!(quiet);
}
