//! Webhooks for recordings, received by a server.

use std::collections::{BTreeSet, VecDeque};
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

/// One webhook request.
#[derive(Debug, Clone)]
struct Delivery {
    id: String,
    timestamp: String,
    signature: String,
    kind: String,
    body: Bytes,
}

#[derive(Clone, Default)]
struct Server {
    /// The statuses to answer with; after them, 200.
    answers: Arc<Mutex<VecDeque<u16>>>,
    deliveries: Arc<Mutex<Vec<Delivery>>>,
}

impl Server {
    /// Starts serving at `127.0.N.3:8000/hook`.
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

    fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().unwrap().clone()
    }
}

async fn take(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let field = |name: &str| {
        let value = headers.get(name).map(|v| v.to_str().expect("text").to_owned());
        value.unwrap_or_default()
    };
    server.deliveries.lock().unwrap().push(Delivery {
        id: field("webhook-id"),
        timestamp: field("webhook-timestamp"),
        signature: field("webhook-signature"),
        kind: field("content-type"),
        body,
    });
    let next = server.answers.lock().unwrap().pop_front().unwrap_or(200);
    StatusCode::from_u16(next).expect("a status")
}

/// Checks the signature as specified at <https://www.standardwebhooks.com>.
fn assert_signed(delivery: &Delivery) {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(KEY).unwrap();
    for piece in [delivery.id.as_bytes(), b".", delivery.timestamp.as_bytes(), b".", &delivery.body]
    {
        mac.update(piece);
    }
    let (version, signature) = delivery.signature.split_once(',').expect("a version");
    assert_eq!(version, "v1");
    let signature = BASE64.decode(signature).expect("base64");
    mac.verify_slice(&signature).expect("a valid signature");
    let sent: u64 = delivery.timestamp.parse().expect("seconds");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(now.abs_diff(sent) < 60, "sent at {sent}, now {now}");
}

fn table(n: u8) -> String {
    let secret = format!("whsec_{}", BASE64.encode(KEY));
    format!(
        "[recording.webhook]\nurl = \"http://127.0.{n}.3:8000/hook?token=hidden\"\n\
         secret = \"{secret}\"\n"
    )
}

/// 500, 503, then 200: sent three times with the same id, signed each time, and only after the
/// upload.
#[test]
fn webhooks_are_sent_after_the_upload_until_accepted() {
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
        assert_eq!(server.deliveries().len(), 0, "not before it is uploaded");
        s3.start();
        until("two refused attempts", 20 * SECOND, || server.deliveries().len() == 2);
        assert_eq!(
            recordings.sidecars().len(),
            1,
            "the recording is kept until the webhook is accepted"
        );
        let (path, sidecar) = recordings.sidecars().remove(0);
        until("the webhook is accepted", 20 * SECOND, || recordings.waiting() == 0);
        assert_eq!(metric(n, "recording_webhooks_total"), 1);
        let deliveries = server.deliveries();
        assert_eq!(deliveries.len(), 3);
        let id = format!("rec_{}", sidecar.id);
        for one in &deliveries {
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

/// The server is down and the program is killed; both return, and the recordings are kept.
#[test]
fn webhooks_are_sent_after_a_restart() {
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
        until("both are accepted", 10 * SECOND, || recordings.waiting() == 0);
        let deliveries = server.deliveries();
        assert_eq!(deliveries.len(), 2);
        deliveries.iter().for_each(assert_signed);
        // both are sent at once, in any order
        let location = |delivery: &Delivery| {
            let body: Value = serde_json::from_slice(&delivery.body).expect("JSON");
            body["data"]["location"].as_str().expect("a location").to_owned()
        };
        let locations: BTreeSet<String> = deliveries.iter().map(location).collect();
        let sidecars = recordings.sidecars();
        let files = sidecars.iter().map(|(path, _)| path.display());
        let files = files.map(|path| format!("file://{directory}/{path}.wav"));
        assert_eq!(locations, files.collect::<BTreeSet<String>>());
    });
}

/// After a 410 the webhook is not sent again.
#[test]
fn a_410_ends_the_attempts() {
    block_on(async {
        let n = 107;
        let recordings = Recordings::new();
        recordings.make(1, 100, 1);
        let server = Server::answering(&[410]);
        let _serving = server.start(n).await;
        let directory = recordings.path().display();
        let bridge = program(n, &format!("[recording]\ndirectory = \"{directory}\"\n{}", table(n)));
        until("the outbox is empty", 10 * SECOND, || recordings.waiting() == 0);
        tokio::time::sleep(3 * SECOND).await;
        assert_eq!(server.deliveries().len(), 1);
        assert_eq!(bridge.lines("410 Gone").len(), 1);
        assert_eq!(recordings.sidecars().len(), 1, "the recording is still here");
    });
}
