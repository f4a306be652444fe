//! Somebody's server that is told of recordings.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::block_on;
use crate::storage::lab::{Recordings, S3, SECOND, SECRET, metric, program, tables, until};

const KEY: &[u8] = b"a key of thirty-two bytes, yes it";

/// One request.
#[derive(Debug, Clone)]
struct Told {
    id: String,
    timestamp: String,
    signature: String,
    kind: String,
    body: Bytes,
}

#[derive(Clone, Default)]
struct Server {
    /// What is answered, and then 200.
    answers: Arc<Mutex<VecDeque<u16>>>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Server {
    /// At `127.0.N.3:8000/hook`.
    async fn start(&self, n: u8) -> JoinHandle<()> {
        let router = Router::new().fallback(take).with_state(self.clone());
        let listener = tokio::net::TcpListener::bind(format!("127.0.{n}.3:8000")).await;
        let listener = listener.expect("a port");
        tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        })
    }

    fn answering(answers: &[u16]) -> Server {
        let server = Server::default();
        server.answers.lock().unwrap().extend(answers);
        server
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }
}

async fn take(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let field = |name: &str| {
        let value = headers.get(name).map(|v| v.to_str().expect("text").to_owned());
        value.unwrap_or_default()
    };
    server.told.lock().unwrap().push(Told {
        id: field("webhook-id"),
        timestamp: field("webhook-timestamp"),
        signature: field("webhook-signature"),
        kind: field("content-type"),
        body,
    });
    let next = server.answers.lock().unwrap().pop_front().unwrap_or(200);
    StatusCode::from_u16(next).expect("a status")
}

/// As <https://www.standardwebhooks.com> has it.
fn assert_signed(told: &Told) {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(KEY).unwrap();
    for piece in [told.id.as_bytes(), b".", told.timestamp.as_bytes(), b".", &told.body] {
        mac.update(piece);
    }
    let (version, signature) = told.signature.split_once(',').expect("a version");
    assert_eq!(version, "v1");
    let signature = BASE64.decode(signature).expect("base64");
    mac.verify_slice(&signature).expect("our signature");
    let sent: u64 = told.timestamp.parse().expect("seconds");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(now.abs_diff(sent) < 60, "{sent}, and it is {now}");
}

fn table(n: u8) -> String {
    let secret = format!("whsec_{}", BASE64.encode(KEY));
    format!(
        "[recording.webhook]\nurl = \"http://127.0.{n}.3:8000/hook?token=hidden\"\n\
         secret = \"{secret}\"\n"
    )
}

/// 500 twice, then 200: told three times with one id, each signed anew, and only after the upload.
#[test]
fn told_after_the_upload_and_until_it_is_taken() {
    block_on(async {
        let n = 105;
        let recordings = Recordings::new();
        recordings.make(1, 100, 1);
        let server = Server::answering(&[500, 503]);
        let _serving = server.start(n).await;
        let mut s3 = S3::new(n);
        let text = tables(n, recordings.path(), "s3://rec/calls", &s3.address(), SECRET);
        let bridge = program(n, &format!("{text}delete_after = true\n{}", table(n)));
        bridge.wait_for("cannot be sent", 10 * SECOND);
        assert_eq!(server.told().len(), 0, "not before it is uploaded");
        s3.start();
        until("it is taken", 20 * SECOND, || server.told().len() == 2);
        assert_eq!(recordings.sidecars().len(), 1, "it is here until the webhook is taken");
        let (path, sidecar) = recordings.sidecars().remove(0);
        until("it is done", 20 * SECOND, || recordings.waiting() == 0);
        assert_eq!(metric(n, "recording_webhooks_total"), 1);
        let told = server.told();
        assert_eq!(told.len(), 3);
        let id = format!("rec_{}", sidecar.id);
        for one in &told {
            assert_signed(one);
            assert_eq!((one.id.as_str(), one.kind.as_str()), (id.as_str(), "application/json"));
            let body: Value = serde_json::from_slice(&one.body).expect("JSON");
            assert_eq!(body["type"], "recording.finished");
            humantime::parse_rfc3339(body["timestamp"].as_str().unwrap()).expect("a time");
            let location = format!("s3://rec/calls/{}.wav", path.display());
            assert_eq!(body["data"]["location"], *location);
            assert_eq!(body["data"]["recording"], serde_json::to_value(&sidecar).unwrap());
            assert_eq!(body.as_object().unwrap().len(), 3);
        }
        assert_eq!(s3.keys(".wav").len(), 1);
        assert_eq!(recordings.sidecars().len(), 0, "deleted in the end");
        let log = bridge.log();
        for secret in ["hidden", "whsec_", SECRET, &BASE64.encode(KEY)] {
            assert!(!log.contains(secret), "{secret} in {log}");
        }
    });
}

/// The server is away, the program is killed, both come back; the recording stays here.
#[test]
fn told_after_a_restart() {
    block_on(async {
        let n = 106;
        let recordings = Recordings::new();
        recordings.make(2, 100, 1);
        let directory = recordings.path().display();
        let text = format!("[recording]\ndirectory = \"{directory}\"\n{}", table(n));
        let mut bridge = program(n, &text);
        bridge.wait_for("cannot be sent", 10 * SECOND);
        assert_eq!(bridge.lines("cannot be sent").len(), 1);
        assert!(!bridge.log().contains("hidden"), "{}", bridge.log());
        bridge.kill();
        let server = Server::default();
        let _serving = server.start(n).await;
        let _bridge = program(n, &text);
        until("both are taken", 10 * SECOND, || recordings.waiting() == 0);
        let told = server.told();
        assert_eq!(told.len(), 2);
        told.iter().for_each(assert_signed);
        let (path, _) = recordings.sidecars().remove(0);
        let first: Value = serde_json::from_slice(&told[0].body).unwrap();
        let file = format!("file://{directory}/{}.wav", path.display());
        assert_eq!(first["data"]["location"], *file);
    });
}

/// 410: it is not asked again.
#[test]
fn gone_is_the_end() {
    block_on(async {
        let n = 107;
        let recordings = Recordings::new();
        recordings.make(1, 100, 1);
        let server = Server::answering(&[410]);
        let _serving = server.start(n).await;
        let directory = recordings.path().display();
        let bridge = program(n, &format!("[recording]\ndirectory = \"{directory}\"\n{}", table(n)));
        until("it is over", 10 * SECOND, || recordings.waiting() == 0);
        tokio::time::sleep(3 * SECOND).await;
        assert_eq!(server.told().len(), 1);
        assert_eq!(bridge.lines("410 Gone").len(), 1);
        assert_eq!(recordings.sidecars().len(), 1, "the recording is still here");
    });
}
