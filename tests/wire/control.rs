//! The control API over HTTP: who may use it, what it shows, and commands.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bridge::Rig;
use crate::http::free;

pub const TOKEN: &str = "a-token-for-the-tests";
pub const READER: &str = "a-token-that-only-reads";

/// A rig with the control API, and its address.
pub async fn rig(more: &str) -> (Rig, SocketAddr) {
    let net = crate::bridge::Net::new();
    let address = free(net.bridge());
    let config = format!(
        "[control]\nlisten = \"{address}\"\n{more}\n\
         [control.tokens.desk]\ntoken = \"{TOKEN}\"\n\
         [control.tokens.wall]\ntoken = \"{READER}\"\nscopes = [\"read\"]\n"
    );
    let pbx = crate::pbx::Pbx::udp(net.pbx()).await;
    let ai = crate::strict::Ai::start(net.ai()).await;
    (Rig::with(net, pbx, ai, &config).await, address)
}

/// Sends a request, and returns the status and the body.
pub async fn request(to: SocketAddr, head: &str, headers: &str, body: &str) -> (u16, Value) {
    let (status, _, body) = exchange(to, head, headers, body).await;
    (status, body)
}

/// Sends a request, and returns the status, the head and the body.
pub async fn exchange(
    to: SocketAddr,
    head: &str,
    headers: &str,
    body: &str,
) -> (u16, String, Value) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let length = body.len();
    let host = if headers.contains("Host:") { String::new() } else { format!("Host: {to}\r\n") };
    let text = format!("{head} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // audio is not text
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_ascii_lowercase().contains("access-control"), "{head}");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
}

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

pub async fn command(to: SocketAddr, call: &str, body: Value) -> (u16, Value) {
    let head = format!("POST /v1/calls/{call}/commands?wait=5");
    request(to, &head, &bearer(TOKEN), &body.to_string()).await
}

/// Opens the stream of events.
pub async fn listen(api: SocketAddr, token: &str) -> TcpStream {
    let mut stream = TcpStream::connect(api).await.unwrap();
    let text = format!("GET /v1/events HTTP/1.1\r\nHost: {api}\r\n{}\r\n", bearer(token));
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    stream
}

/// Waits until the server ends the stream.
pub async fn until_closed(stream: &mut TcpStream) {
    let read = async { while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {} };
    timeout(Duration::from_secs(10), read).await.expect("the stream ends");
}

#[tokio::test]
async fn calls_are_listed_and_commanded() {
    let (rig, api) = rig("").await;
    let (status, list) = request(api, "GET /v1/calls", &bearer(READER), "").await;
    assert_eq!((status, list), (200, json!({"calls": []})));
    let (call, stream) = rig.call().await;
    let (_, list) = request(api, "GET /v1/calls", &bearer(READER), "").await;
    // without the scope `numbers`
    assert_eq!(list["calls"][0]["from_number"], "*****00");
    let (_, list) = request(api, "GET /v1/calls", &bearer(TOKEN), "").await;
    let shown = &list["calls"][0];
    assert_eq!((&shown["state"], &shown["from_number"]), (&json!("talking"), &json!("5550100")));
    assert_eq!(shown["call_sid"], stream.call_sid.as_str());
    let (id, sid) = (shown["id"].as_str().unwrap(), &stream.call_sid);
    for name in [id, sid] {
        let path = format!("GET /v1/calls/{name}");
        let (status, one) = request(api, &path, &bearer(READER), "").await;
        assert_eq!((status, &one["id"]), (200, &json!(id)));
    }
    let mute = json!({"command": "mute", "side": "caller", "id": "m1"});
    let done = json!({"id": "m1", "command": "mute", "status": "done"});
    assert_eq!(command(api, id, mute).await, (200, done));
    let (status, failed) = command(api, id, json!({"command": "transfer", "to": "1"})).await;
    assert_eq!((status, &failed["reason"]), (403, &json!("not_allowed")));
    stream.play_frames(0..20).await;
    let hangup = json!({"command": "hangup", "when": "after_audio"});
    let (status, done) = command(api, sid, hangup.clone()).await;
    assert_eq!((status, &done["status"]), (200, &json!("done")));
    assert_eq!(call.media.numbered(crate::stream::AGENT, 20).await.len(), 20);
    assert!(call.hung_up().await.contains("cause=16"));
    stream.until_stop().await;
    let record = rig.bridge.record().await;
    assert_eq!(record.reason.label(), "api_hangup");
    assert_eq!(record.commands[0].by.to_string(), "http:desk");
    let (_, one) = request(api, &format!("GET /v1/calls/{id}"), &bearer(READER), "").await;
    assert_eq!((&one["state"], &one["end_reason"]), (&json!("ended"), &json!("api_hangup")));
    let (status, failed) = command(api, id, hangup).await;
    assert_eq!((status, &failed["reason"]), (409, &json!("ended")));
}

#[tokio::test]
async fn only_a_token_with_the_scope_and_a_known_host_are_let_in() {
    let (rig, api) = rig("hosts = [\"pbx.example.com\"]").await;
    let (mut call, stream) = rig.call().await;
    let sid = stream.call_sid.clone();
    let hangup = json!({"command": "hangup"}).to_string();
    let post = format!("POST /v1/calls/{sid}/commands");
    let basic = "Authorization: Basic QUM6YS10b2tlbi1mb3ItdGhlLXRlc3Rz\r\n";
    let with_host = |host: &str| format!("Host: {host}\r\n{}", bearer(TOKEN));
    for (head, headers, expected) in [
        ("GET /v1/calls", String::new(), 401),
        ("GET /v1/calls", bearer("a-token-for-the-test"), 401),
        ("GET /v1/calls", bearer("wrong"), 401),
        ("GET /v1/events", String::new(), 401),
        ("GET /v1/calls", basic.to_owned(), 200),
        ("GET /v1/calls", with_host("pbx.example.com:99"), 200),
        ("GET /v1/calls", with_host("evil.example"), 403),
        ("GET /v1/calls", format!("Origin: http://{api}\r\n{}", bearer(TOKEN)), 200),
        ("GET /v1/calls", format!("Origin: http://evil.example\r\n{}", bearer(TOKEN)), 403),
        ("GET /v1/calls", format!("Origin: null\r\n{}", bearer(TOKEN)), 403),
        (&post, bearer(READER), 403),
        ("POST /v1/calls/CA0/commands", bearer(TOKEN), 404),
        ("GET /v1/calls/CA0", bearer(TOKEN), 404),
        ("GET /v2/calls", bearer(TOKEN), 404),
        ("DELETE /v1/calls", bearer(TOKEN), 405),
    ] {
        let (status, body) = request(api, head, &headers, &hangup).await;
        assert_eq!(status, expected, "{head} {headers} {body}");
        if [401, 403].contains(&status) || body["error"] != Value::Null {
            assert!(body["error"]["message"].as_str().is_some_and(|m| m.len() > 10), "{body}");
        }
    }
    for body in ["", "[]", "{}", "{\"command\":\"fly\"}", "{\"command\":\"mute\",\"side\":1}"] {
        let (status, answer) = request(api, &post, &bearer(TOKEN), body).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid")), "{body}");
    }
    let late = format!("{post}?wait=1000");
    assert_eq!(request(api, &late, &bearer(TOKEN), &hangup).await.0, 400);
    // none of it touched the call
    stream.play_frames(0..5).await;
    assert_eq!(call.media.numbered(crate::stream::AGENT, 5).await.len(), 5);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn events_are_streamed() {
    let (rig, api) = rig("").await;
    let mut stream = TcpStream::connect(api).await.unwrap();
    let text = format!("GET /v1/events HTTP/1.1\r\nHost: {api}\r\n{}\r\n", bearer(READER));
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    // the response's head comes before the first event
    while !lines.next_line().await.unwrap().unwrap().is_empty() {}
    let (mut call, ai) = rig.call().await;
    ai.order(&json!({"event": "mute", "id": "7"})).await;
    ai.replied("7").await;
    call.bye().await;
    ai.stopped().await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|event: &Value| event["type"] != "call.ended") {
        let line = timeout(Duration::from_secs(5), lines.next_line()).await.expect("an event");
        let line = line.unwrap().expect("the stream continues");
        if let Some(data) = line.strip_prefix("data: ") {
            seen.push(serde_json::from_str(data).unwrap());
        }
    }
    let names: Vec<&str> = seen.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(names, ["call.started", "call.answered", "call.command", "call.ended"]);
    let command = &seen[2]["data"]["command"];
    let expected = json!({"id": "7", "command": "mute", "status": "done", "by": "ai"});
    assert_eq!(*command, expected);
    let summary = &seen[3]["data"]["summary"];
    assert_eq!((&summary["reason"], &summary["answered"]), (&json!("caller_hangup"), &json!(true)));
}
