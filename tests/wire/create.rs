//! `[ai.create]`: a server names the AI's URL before its socket is opened, or decides otherwise.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkless::call::ended::Record;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::bridge::{Net, Rig};
use crate::pbx::{Pbx, accept};
use crate::strict::Ai;

/// A rig whose AI is asked for at this server.
struct Created {
    rig: Rig,
    server: MockServer,
}

impl Created {
    async fn new(create: &str, more: &str) -> Created {
        let net = Net::new();
        let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
        let listener = std::net::TcpListener::bind((net.host(5), 0)).unwrap();
        let server = MockServer::builder().listener(listener).start().await;
        let config = format!(
            "[ai.create]\nurl = \"{}/call?key=hush\"\nallow_hosts = [\"ws://{}\"]\n{create}\n\
             [pbx.main.transfer]\ntargets = {{ humans = \"1001\" }}\n{more}",
            server.uri(),
            ai.address
        );
        Created { rig: Rig::with(net, pbx, ai, &config).await, server }
    }

    /// Gives this answer to one request.
    async fn answer(&self, answer: ResponseTemplate) {
        Mock::given(method("POST"))
            .and(path("/call"))
            .respond_with(answer)
            .up_to_n_times(1)
            .mount(&self.server)
            .await;
    }

    async fn say(&self, body: Value) {
        self.answer(ResponseTemplate::new(200).set_body_json(body)).await;
    }

    fn url(&self) -> String {
        format!("ws://{}/media", self.rig.ai.address)
    }

    /// The status with which a call is refused, and its record.
    async fn refused(&self) -> (u16, Record) {
        let mut call = self.rig.pbx.call(&self.rig.bridge).await;
        call.invite().await;
        let code = call.refused().await.code();
        (code.unwrap_or_default(), self.rig.bridge.record().await)
    }
}

#[tokio::test]
async fn the_answer_has_the_url_and_parameters() {
    let body = "headers = { Authorization = \"Bearer key\" }\n\
                body = { call = { from = \"{from_number}\", to = \"{to_number}\" } }";
    let created = Created::new(body, "").await;
    Mock::given(method("POST"))
        .and(header("authorization", "Bearer key"))
        .respond_with(ResponseTemplate::new(200).set_body_json(json!({
            "url": created.url(),
            "parameters": {"greeting": "Hello Eve", "pbx": "other"},
        })))
        .mount(&created.server)
        .await;
    let (mut call, stream) = created.rig.call().await;
    assert_eq!(stream.parameters["greeting"], "Hello Eve");
    assert_eq!(stream.parameters["pbx"], "main");
    let requests = created.server.received_requests().await.unwrap();
    let sent: Value = requests[0].body_json().unwrap();
    assert_eq!(sent, json!({"call": {"from": "5550100", "to": "ai"}}));
    call.bye().await;
    stream.stopped().await;
    assert_eq!(created.rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_vendor_has_the_url_in_a_field_of_its_own() {
    let created = Created::new("url_field = \"data.signed_url\"", "").await;
    created.say(json!({"data": {"signed_url": created.url()}, "reject": true})).await;
    let (mut call, stream) = created.rig.call().await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn the_answer_may_reject_or_transfer_the_caller() {
    let created = Created::new("", "").await;
    for (body, code) in [(json!({"reject": true}), 603), (json!({"reject": "busy"}), 486)] {
        created.say(body).await;
        let (status, record) = created.refused().await;
        assert_eq!((status, record.reason.label()), (code, "ai_hangup"));
    }
    created.say(json!({"transfer": "humans"})).await;
    created.rig.pbx.answer_with(|request| match request.method() {
        Some("INVITE") if request.uri().contains("1001@") => None,
        _ => accept(request),
    });
    let mut call = created.rig.pbx.call(&created.rig.bridge).await;
    call.invite().await;
    call.answered().await;
    let mut invite = created.rig.pbx.request("INVITE").await;
    while !invite.uri().contains("1001@") {
        invite = created.rig.pbx.request("INVITE").await;
    }
    call.bye().await;
    assert_eq!(created.rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_useless_answer_is_an_ai_that_cannot_be_reached() {
    let created = Created::new("", "[calls]\nanswer_wait = \"300ms\"\n").await;
    let foreign = json!({"url": "ws://169.254.169.254/latest?token=hush"});
    let ok = || ResponseTemplate::new(200);
    let away = ResponseTemplate::new(302).insert_header("location", "http://127.0.0.1:9/");
    for (answer, why) in [
        (ok().set_delay(Duration::from_secs(3)), "no answer within 300ms"),
        (away, "it redirects (302), which is not followed"),
        (ok().set_body_json(foreign), "leads to ws://169.254.169.254, which allow_hosts"),
        (ok().set_body_string("token=hush"), "the answer is not JSON"),
        (ok().set_body_string("x".repeat(70_000)), "longer than"),
        (ok().set_body_json(json!({"transfer": "boss"})), "does not allow"),
        (ResponseTemplate::new(500).set_body_string("token=hush"), "it answered 500"),
    ] {
        let begin = Instant::now();
        created.answer(answer).await;
        let (status, record) = created.refused().await;
        let text = record.ai_end.unwrap_or_default();
        assert!(text.contains(why) && !text.contains("hush"), "{text}");
        assert_eq!((status, record.reason.label()), (503, "ai_unreachable"), "{why}");
        assert_eq!(record.dialled[0].failure, Some("create"), "{why}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{why}: {:?}", begin.elapsed());
        // an answer closes the breaker
        created.say(json!({"reject": true})).await;
        assert_eq!(created.refused().await.0, 603);
    }
}

#[tokio::test]
async fn an_ai_that_is_not_created_makes_room_for_the_next() {
    let net = Net::new();
    let backup = Ai::start(net.host(6)).await;
    let more = format!(
        "[calls]\non_ai_failure = [\"ai:backup\"]\n[endpoint.backup]\nurl = \"ws://{}/media\"\n",
        backup.address
    );
    let created = Created::new("", &more).await;
    created.answer(ResponseTemplate::new(500)).await;
    let mut call = created.rig.pbx.call(&created.rig.bridge).await;
    call.invite().await;
    let stream = backup.stream().await;
    call.answered().await;
    call.bye().await;
    stream.stopped().await;
    assert_eq!(created.rig.bridge.record().await.dialled.len(), 2);
}
