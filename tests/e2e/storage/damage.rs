//! A damaged recording does not count as delivered.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use crate::block_on;
use crate::storage::lab::{Recordings, S3, SECOND, SECRET, metric, program, tables, until};
use crate::storage::proxy::Proxy;

/// A bit changes in transit, in a whole object and in a part.
#[test]
fn a_damaged_body_is_refused_and_sent_again() {
    block_on(async {
        let n = 102;
        let s3 = S3::started(n);
        let proxy = Proxy::start(n, s3.address(), Duration::ZERO).await;
        let folder = s3.bucket("rec").join("calls");
        let url = "s3://rec/calls";
        // more than the client itself retries
        for (frames, bodies) in [(100, 4), (60_000, 5)] {
            let recordings = Recordings::new();
            recordings.make(1, frames, 1);
            proxy.damage.store(bodies, Ordering::Relaxed);
            let text = tables(n, recordings.path(), url, &Proxy::address(n), SECRET);
            let bridge = program(n, &text);
            until("it is sent", 20 * SECOND, || recordings.waiting() == 0);
            assert_eq!(proxy.damage.load(Ordering::Relaxed), 0, "the bodies were damaged");
            assert!(metric(n, "recording_send_errors_total") >= 1);
            println!("{:?}", bridge.lines("cannot be sent"));
            recordings.assert_sent(&folder, 1);
            assert_eq!(s3.unfinished(), (0, 0));
            std::fs::remove_dir_all(&folder).expect("the folder can be removed");
        }
    });
}

/// The store has the object, but its answer is lost: the object is not sent again.
#[test]
fn a_lost_answer_causes_no_second_upload() {
    block_on(async {
        let n = 103;
        let recordings = Recordings::new();
        recordings.make(1, 60_000, 1);
        let s3 = S3::started(n);
        let proxy = Proxy::start(n, s3.address(), Duration::ZERO).await;
        proxy.swallow.store(10, Ordering::Relaxed);
        let url = "s3://rec/calls";
        let _bridge = program(n, &tables(n, recordings.path(), url, &Proxy::address(n), SECRET));
        until("it is sent", 20 * SECOND, || recordings.waiting() == 0);
        recordings.assert_sent(&s3.bucket("rec").join("calls"), 1);
        assert!(proxy.swallow.load(Ordering::Relaxed) < 10, "an answer was lost");
        assert_eq!(proxy.count("?uploads"), 1);
        assert_eq!(s3.unfinished(), (0, 0));
    });
}

/// A store that checks nothing, and changes a bit in the first two audio objects it receives.
#[derive(Default)]
struct Careless {
    objects: HashMap<String, Vec<u8>>,
    /// Audio objects received so far.
    puts: u32,
}

type Shared = Arc<Mutex<Careless>>;

async fn careless(
    State(store): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut store = store.lock().expect("no panic elsewhere");
    if method == Method::PUT {
        let mut body = body.to_vec();
        let audio = uri.path().ends_with(".wav");
        store.puts += u32::from(audio);
        if audio && store.puts <= 2 {
            body[1000] ^= 1;
        }
        store.objects.insert(uri.path().to_owned(), body);
        return ([("etag", "\"any\"")], ()).into_response();
    }
    let Some(object) = store.objects.get(uri.path()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let common = [("etag", "\"any\""), ("last-modified", "Tue, 24 Nov 2026 15:00:00 GMT")];
    let range = headers.get("range").and_then(|r| r.to_str().ok()?.strip_prefix("bytes="));
    match range.and_then(|r| r.split_once('-')) {
        None => (common, object.clone()).into_response(),
        Some((from, to)) => {
            let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
            let range = format!("bytes {from}-{to}/{}", object.len());
            let piece = object[from..=to].to_vec();
            (StatusCode::PARTIAL_CONTENT, common, [("content-range", range)], piece).into_response()
        }
    }
}

/// Even if the store itself checks nothing and its ETags are not MD5 hashes.
#[test]
fn damage_by_the_store_is_detected() {
    block_on(async {
        let n = 104;
        let recordings = Recordings::new();
        recordings.make(1, 100, 1);
        let store = Shared::default();
        let router = Router::new().fallback(careless).with_state(store.clone());
        let address = format!("127.0.{n}.3:9000");
        let listener = tokio::net::TcpListener::bind(&address).await.expect("a port");
        tokio::spawn(async move { axum::serve(listener, router).await });
        let text = tables(n, recordings.path(), "s3://rec/calls", &address, SECRET);
        let bridge = program(n, &format!("{text}delete_after = true\n"));
        let (_, sidecar) = recordings.sidecars().remove(0);
        until("the first upload", 10 * SECOND, || store.lock().unwrap().puts == 1);
        bridge.wait_for("its SHA-256 differs", 5 * SECOND);
        assert_eq!(recordings.sidecars().len(), 1, "the recording is kept");
        until("it is sent", 20 * SECOND, || recordings.waiting() == 0);
        let store = store.lock().unwrap();
        assert_eq!(store.puts, 3, "two were damaged");
        let audio = store.objects.iter().find(|(key, _)| key.ends_with(".wav")).expect("audio").1;
        let hash = trunkless::record::disk::sha256(&audio[..]).unwrap();
        assert_eq!(hash, sidecar.audio.sha256);
        assert_eq!(recordings.sidecars().len(), 0, "deleted here after that");
    });
}
