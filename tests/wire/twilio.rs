//! The control API in the shape of Twilio's.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::bridge::{Net, Rig};
use crate::control::request;
use crate::http::free;
use crate::pbx::Pbx;
use crate::stream::AGENT;
use crate::strict::Ai;

const TOKEN: &str = "a-token-for-the-tests";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";

struct Api {
    rig: Rig,
    backup: Ai,
    address: SocketAddr,
}

async fn api() -> Api {
    let net = Net::new();
    let address = free(net.bridge());
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let backup = Ai::start(net.host(5)).await;
    let url = format!("ws://{}/media", backup.address);
    let config = format!(
        "[control]\nlisten = \"{address}\"\n[control.tokens.app]\ntoken = \"{TOKEN}\"\n\
         [endpoint.other]\nurl = \"{url}\"\n\
         [pbx.main.transfer]\ntargets = {{ humans = \"1001\" }}\n"
    );
    Api { rig: Rig::with(net, pbx, ai, &config).await, backup, address }
}

/// Authorization as Twilio's libraries send it.
fn basic(password: &str) -> String {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("AC1:{password}"));
    format!("Authorization: Basic {pair}\r\n{FORM}")
}

impl Api {
    async fn send(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let head = format!("{method} /2010-04-01/Accounts/{path}");
        request(self.address, &head, &basic(TOKEN), body).await
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

#[tokio::test]
async fn a_call_is_shown_and_ended() {
    let api = api().await;
    let (call, stream) = api.rig.call().await;
    let (account, sid) = (stream.account_sid.clone(), stream.call_sid.clone());
    let path = format!("{account}/Calls/{sid}.json");
    let (status, shown) = api.send("GET", &path, "").await;
    assert_eq!((status, &shown["status"]), (200, &json!("in-progress")));
    assert_eq!((&shown["sid"], &shown["from"]), (&json!(sid), &json!("5550100")));
    let (_, list) = api.send("GET", &format!("{account}/Calls.json?Status=in-progress"), "").await;
    assert_eq!(list["calls"][0]["sid"], sid.as_str());

    for (method, path, body, code, number) in [
        ("GET", format!("{account}/Calls/CA0.json"), "", 404, 20404),
        ("POST", format!("AC0/Calls/{sid}.json"), "Status=completed", 404, 20404),
        ("POST", path.clone(), "Twiml=%3CSay%2F%3E", 400, 12100),
        (
            "POST",
            path.clone(),
            "Twiml=%3CResponse%3E%3CDial%3E%2B1900%3C%2FDial%3E%3C%2FResponse%3E",
            403,
            21215,
        ),
        ("POST", path.clone(), "Url=http%3A%2F%2Fx", 400, 20001),
        ("POST", format!("{account}/Calls/{sid}/Recordings.json"), "", 400, 21220),
    ] {
        let (status, answer) = api.send(method, &path, body).await;
        assert_eq!((status, &answer["code"]), (code, &json!(number)), "{path} {body} {answer}");
    }
    let head = format!("GET /2010-04-01/Accounts/{path}");
    let (status, answer) = request(api.address, &head, &basic("wrong"), "").await;
    assert_eq!((status, &answer["code"]), (401, &json!(20003)));

    stream.play_frames(0..5).await;
    assert_eq!(call.media.numbered(AGENT, 5).await.len(), 5);
    let (status, ended) = api.send("POST", &path, "Status=completed").await;
    assert_eq!((status, &ended["status"]), (200, &json!("completed")));
    assert!(call.hung_up().await.contains("cause=16"));
    stream.until_stop().await;
    // the library closes its socket afterwards, and may send the request again
    let (status, again) = api.send("POST", &path, "Status=completed").await;
    assert_eq!((status, &again["status"]), (200, &json!("completed")));
    let twiml = format!("Twiml={}", encoded("<Response><Hangup/></Response>"));
    let (status, late) = api.send("POST", &path, &twiml).await;
    assert_eq!((status, &late["code"]), (400, &json!(21220)));
}

/// A program that ends all calls of a list ends only those that it means.
#[tokio::test]
async fn a_list_is_filtered_and_an_answered_call_is_not_cancelled() {
    let api = api().await;
    let (mut call, stream) = api.rig.call().await;
    let list = format!("{}/Calls.json", stream.account_sid);
    let (_, all) = api.send("GET", &format!("{list}?PageSize=50&Page=0"), "").await;
    let to = all["calls"][0]["to"].as_str().expect("a number").to_owned();
    for (query, count) in [
        (format!("From=5550100&To={}&Status=in-progress", encoded(&to)), 1),
        ("From=5550101".to_owned(), 0),
        ("To=0".to_owned(), 0),
        ("From=5550100&Status=ringing".to_owned(), 0),
    ] {
        let (status, answer) = api.send("GET", &format!("{list}?{query}"), "").await;
        let calls = answer["calls"].as_array().map(Vec::len);
        assert_eq!((status, calls), (200, Some(count)), "{query}");
    }
    let (status, refused) = api.send("GET", &format!("{list}?StartTime=2026-01-01"), "").await;
    assert_eq!((status, &refused["code"]), (400, &json!(20001)));
    let path = format!("{}/Calls/{}.json", stream.account_sid, stream.call_sid);
    let (status, refused) = api.send("POST", &path, "Status=canceled").await;
    assert_eq!((status, &refused["code"]), (400, &json!(21220)));
    stream.play_frames(0..5).await;
    assert_eq!(call.media.numbered(AGENT, 5).await.len(), 5);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_call_is_redirected_to_another_ai() {
    let api = api().await;
    let (mut call, stream) = api.rig.call().await;
    let path = format!("{}/Calls/{}.json", stream.account_sid, stream.call_sid);
    let url = format!("ws://{}/media", api.backup.address);
    let other = "<Response><Connect><Stream url=\"ws://evil.example/\"/></Connect></Response>";
    let (status, _) = api.send("POST", &path, &format!("Twiml={}", encoded(other))).await;
    assert_eq!(status, 403);
    let twiml = format!(
        "<Response><Play digits=\"1\"/><Connect><Stream url=\"{url}\"/></Connect></Response>"
    );
    let (status, _) = api.send("POST", &path, &format!("Twiml={}", encoded(&twiml))).await;
    assert_eq!(status, 200);
    stream.until_stop().await;
    let second = api.backup.stream().await;
    assert_eq!(second.call_sid, stream.call_sid);
    call.say(0..10).await;
    second.hears(9).await;
    let keys = call.media.packets().iter().filter(|h| h.payload_type == 101).count();
    assert_eq!(keys, 7);
    call.bye().await;
    second.stopped().await;
}
