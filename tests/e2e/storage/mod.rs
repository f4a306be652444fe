//! Finished recordings are uploaded: a real S3 server, the program as it is shipped. The calls are
//! real here; `kills`, `damage` and `webhook` use recordings made without calls.

mod damage;
mod kills;
mod lab;
mod proxy;
mod webhook;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path as Key;
use object_store::{Attribute, ObjectStoreExt as _};

use crate::ai::{Ai, Plan};
use crate::asterisk::Asterisk;
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::{Pbx, assert_no_channels, block_on};
use lab::{Recordings, S3, SECOND, SECRET, files, metric, sha256, tables, until};

async fn call(asterisk: &Asterisk, number: u32) {
    let frames = 50;
    let mut caller = Caller::dial("127.0.9.1", asterisk.sip_addr(), "700", number, frames).await;
    caller.answered().await;
    let heard = caller.until(5 * SECOND, |c| c.heard_last(1000, 30)).await;
    assert!(heard, "the AI is heard");
    caller.until(5 * SECOND, |c| c.sent.len() == frames as usize).await;
    caller.hang_up().await;
}

/// Starts a PBX, an AI, and the program with these tables.
async fn lab(n: u8, tables: String) -> (Asterisk, Ai, Bridge) {
    let asterisk = Pbx::Pjsip22.start(n);
    let ai = Ai::start(Plan { say: 30, ..Plan::default() }).await;
    let mut setup = Pbx::Pjsip22.setup(&asterisk, n, &ai.url);
    setup.tables = tables;
    let bridge = Bridge::registered(&setup);
    (asterisk, ai, bridge)
}

/// The store is unreachable: neither calls nor recordings suffer. Once it is up, everything is
/// sent, and only then deleted here.
#[test]
fn calls_are_uploaded_and_then_deleted() {
    block_on(async {
        let n = 108;
        let recordings = Recordings::new();
        let mut s3 = S3::new(n);
        let text = tables(n, recordings.path(), "s3://rec/calls", &s3.address(), SECRET);
        let (asterisk, _ai, bridge) = lab(n, format!("{text}delete_after = true\n")).await;
        for number in 1..=3 {
            call(&asterisk, number).await;
        }
        until("three recordings", 5 * SECOND, || recordings.sidecars().len() == 3);
        bridge.wait_for("cannot be sent", 5 * SECOND);
        until("the metric counts them", SECOND, || metric(n, "recordings_waiting") == 3);
        assert!(metric(n, "recording_send_errors_total") >= 1);
        let sidecars = recordings.sidecars();
        for (path, sidecar) in &sidecars {
            assert_eq!(
                sidecar.audio.sha256,
                sha256(&recordings.path().join(path).with_extension("wav"))
            );
            assert_eq!(sidecar.end_reason, "caller_hangup");
        }
        let lines = bridge.lines("cannot be sent");
        println!("{lines:#?}");
        assert!(lines.len() <= 4, "{lines:#?}");
        s3.start();
        let took = until("all are sent", 40 * SECOND, || recordings.waiting() == 0);
        println!("sent {took:?} after the store came up");
        // as the program does: reqwest has no default provider
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", s3.address()))
            .with_allow_http(true)
            .with_bucket_name("rec")
            .with_access_key_id("test")
            .with_secret_access_key(SECRET)
            .build()
            .expect("a client");
        for (path, sidecar) in &sidecars {
            let key = |ending: &str| Key::from(format!("calls/{}.{ending}", path.display()));
            let found = store.get(&key("wav")).await.expect("the audio");
            assert_eq!(found.attributes.get(&Attribute::ContentType), Some(&"audio/wav".into()));
            let audio = found.bytes().await.expect("its bytes");
            assert_eq!(trunkless::record::disk::sha256(&audio[..]).unwrap(), sidecar.audio.sha256);
            let found = store.get(&key("json")).await.expect("the sidecar");
            let json = Some(&"application/json".into());
            assert_eq!(found.attributes.get(&Attribute::ContentType), json);
            let json: serde_json::Value =
                serde_json::from_slice(&found.bytes().await.unwrap()).expect("JSON");
            assert_eq!(json["audio"]["sha256"], *sidecar.audio.sha256);
            assert_eq!(json["upload"]["url"], *format!("s3://rec/calls/{}.wav", path.display()));
        }
        assert_eq!(s3.keys("").len(), 6);
        assert_eq!(recordings.sidecars().len(), 0, "deleted here");
        assert_eq!(files(recordings.path()), [""; 0].map(std::path::PathBuf::from));
        until("nothing waits", SECOND, || metric(n, "recordings_waiting") == 0);
        assert_eq!(metric(n, "recording_uploads_total"), 3);
        assert_no_channels(&asterisk);
    });
}

/// A wrong secret, or a bucket that the store cannot use: the log states the cause, and the
/// recording is sent once that is fixed, with a restart or without.
#[test]
fn a_store_that_refuses_harms_no_call() {
    block_on(async {
        let n = 109;
        for (url, secret, words) in [
            ("s3://rec/calls", "not-this-one", "SignatureDoesNotMatch"),
            ("s3://later/calls", SECRET, "InternalError"),
        ] {
            let recordings = Recordings::new();
            let s3 = S3::started(n);
            // this server creates a missing bucket
            std::fs::write(s3.bucket("later"), "in the way").expect("a file");
            let text = tables(n, recordings.path(), url, &s3.address(), secret);
            let (asterisk, ai, mut bridge) = lab(n, text).await;
            call(&asterisk, 1).await;
            bridge.wait_for("cannot be sent", 5 * SECOND);
            assert_eq!(bridge.ended("reason"), "caller_hangup");
            let lines = bridge.lines("cannot be sent");
            println!("{lines:#?}");
            assert!(lines[0].contains(words), "{lines:?}");
            assert!(lines.len() <= 2 && lines[0].len() < 700, "{lines:?}");
            assert!(metric(n, "recording_send_errors_total") >= 1);
            until("the metric counts it", SECOND, || metric(n, "recordings_waiting") == 1);
            assert!(!bridge.log().contains(secret), "{}", bridge.log());
            if secret == SECRET {
                std::fs::remove_file(s3.bucket("later")).expect("the file");
            } else {
                bridge.kill();
                let mut setup = Pbx::Pjsip22.setup(&asterisk, n, &ai.url);
                setup.tables = tables(n, recordings.path(), url, &s3.address(), SECRET);
                bridge = Bridge::start(&setup);
            }
            until("it is sent", 20 * SECOND, || recordings.waiting() == 0);
            let bucket = if secret == SECRET { "later" } else { "rec" };
            recordings.assert_sent(&s3.bucket(bucket).join("calls"), 1);
            drop(bridge);
        }
    });
}

/// The destination is a folder instead of a store, for small and large recordings.
#[test]
fn recordings_are_copied_to_a_folder() {
    block_on(async {
        let n = 110;
        let (recordings, there) = (Recordings::new(), tempfile::tempdir().unwrap());
        recordings.make(3, 100, 1);
        let folder = there.path().join("a b/calls");
        let text = format!(
            "[http]\nlisten = \"127.0.{n}.2:8080\"\n[recording]\ndirectory = {:?}\n\
             [recording.upload]\nurl = \"file://{}\"\n",
            recordings.path(),
            folder.display()
        );
        let mut bridge = lab::program(n, &text);
        // a disk that is not mounted: its folder must not be created
        bridge.wait_for("a b/calls: no such folder", 10 * SECOND);
        assert!(!folder.exists());
        std::fs::create_dir_all(&folder).unwrap();
        until("all are sent", 20 * SECOND, || recordings.waiting() == 0);
        bridge.kill();
        recordings.assert_sent(&folder, 3);
        let large = Recordings::new();
        large.make(1, 60_000, 2);
        let text =
            text.replace(&format!("{:?}", recordings.path()), &format!("{:?}", large.path()));
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
        let _bridge = lab::program(n, &text);
        until("it is sent", 10 * SECOND, || large.waiting() == 0);
        large.assert_sent(&folder, 1);
    });
}
