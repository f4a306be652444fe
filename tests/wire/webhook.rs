//! The events of calls at the webhook.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::bridge::Rig;
use crate::stream::Stream;

pub const KEY: &[u8] = b"a key of thirty-two bytes, yes it";

async fn server(status: u16) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(status)).mount(&server).await;
    server
}

/// Waits for this many requests.
async fn requests(server: &MockServer, count: usize) -> Vec<Request> {
    let all = async {
        loop {
            let requests = server.received_requests().await.unwrap_or_default();
            if requests.len() >= count {
                return requests;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all).await.expect("the requests")
}

fn header<'a>(request: &'a Request, name: &str) -> &'a str {
    request.headers.get(name).map_or("", |value| value.to_str().unwrap_or_default())
}

/// Checks the signature as <https://www.standardwebhooks.com> describes it.
pub fn assert_signed(request: &Request) {
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY).expect("a key");
    let head =
        format!("{}.{}.", header(request, "webhook-id"), header(request, "webhook-timestamp"));
    mac.update(head.as_bytes());
    mac.update(&request.body);
    let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    assert_eq!(header(request, "webhook-signature"), signature);
}

fn config(server: &MockServer, directory: &std::path::Path) -> String {
    let (url, secret) = (server.uri(), STANDARD.encode(KEY));
    format!(
        "[webhook]\nurl = \"{url}/calls\"\nsecret = \"whsec_{secret}\"\ndirectory = {directory:?}"
    )
}

async fn disposes(stream: &Stream) {
    let body = json!({"status": "SALE", "data": {"amount": 7}});
    let event =
        json!({"event": "disposition", "streamSid": stream.sid, "id": "d", "disposition": body});
    stream.order(&event).await;
    stream.replied("d").await;
}

#[tokio::test]
async fn each_event_arrives_once_and_signed() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = server(204).await;
    let rig = Rig::new(&config(&server, directory.path())).await;
    let (mut call, stream) = rig.call().await;
    disposes(&stream).await;
    call.bye().await;
    stream.until_stop().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    let requests = requests(&server, 3).await;
    requests.iter().for_each(assert_signed);
    let mut events: Vec<Value> = requests.iter().map(|r| r.body_json().expect("JSON")).collect();
    events.sort_by_key(|event| event["timestamp"].to_string());
    let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap_or("")).collect();
    assert_eq!(types, ["call.started", "call.answered", "call.ended"]);
    let (call, summary) = (&events[2]["data"]["call"], &events[2]["data"]["summary"]);
    assert_eq!(call["call_sid"], stream.call_sid);
    assert_eq!(summary["reason"], "caller_hangup");
    assert_eq!(summary["disposition"], json!({"status": "SALE", "data": {"amount": 7}}));
    assert_eq!(summary["commands"][0]["command"], "disposition");
    assert_eq!(summary["commands"][0]["by"], "ai");
    rig.bridge.shutdown().await;
    assert_eq!(server.received_requests().await.map(|all| all.len()), Some(3));
}

#[tokio::test]
async fn events_that_the_server_did_not_take_survive_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let down = server(503).await;
    let rig = Rig::new(&config(&down, directory.path())).await;
    let (mut call, stream) = rig.call().await;
    call.bye().await;
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    let refused = requests(&down, 1).await;
    let Rig { bridge, .. } = rig;
    bridge.shutdown().await;

    let up = server(200).await;
    let _rig = Rig::new(&config(&up, directory.path())).await;
    let requests = requests(&up, 3).await;
    let ids = |requests: &[Request]| -> Vec<String> {
        let mut ids: Vec<_> = requests.iter().map(|r| header(r, "webhook-id").to_owned()).collect();
        ids.sort();
        ids
    };
    let mut all = ids(&requests);
    assert!(refused.iter().all(|r| all.contains(&header(r, "webhook-id").to_owned())));
    all.dedup();
    assert_eq!(all.len(), 3, "{all:?}");
}

#[tokio::test]
async fn events_are_sent_although_the_disk_does_not_take_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = server(204).await;
    let rig = Rig::new(&config(&server, directory.path())).await;
    let folder = directory.path().join("outbox");
    std::fs::remove_dir_all(&folder).expect("removed");
    std::fs::write(&folder, "").expect("a file in the folder's place");
    let (mut call, stream) = rig.call().await;
    call.bye().await;
    stream.stopped().await;
    requests(&server, 3).await;
}
