//! Writes that fail or take long, through strace's fault injection: no filesystem does that on
//! demand.

use trunkless::record::sidecar::State;

use super::{SECOND, Scene};
use crate::block_on;

const CALLS: u32 = 20;

/// The command that starts the program with `strace` as a separate process, which stops it only at
/// these writes.
fn strace(inject: &str) -> Vec<String> {
    let inject = format!("inject=pwrite64:{inject}");
    let words = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"];
    let rest = ["-e", "trace=pwrite64", "-e", &inject];
    words.iter().chain(&rest).map(|w| (*w).to_owned()).collect()
}

async fn scene(inject: &str, n: u8, directory: &std::path::Path, frames: u32) -> Scene {
    let words = strace(inject);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Scene::start_under(&words, n, directory, CALLS, "", frames).await
}

/// Twenty calls write 200 times per second. From the 400th write on, 100 writes fail. As each call
/// then retries once per second, that takes five seconds; the queue holds ten.
async fn failing(error: &str, n: u8) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let inject = format!("error={error}:when=400..500");
    let mut scene = scene(&inject, n, directory.path(), 700).await;
    scene.call(CALLS).await;
    scene.until_ready(false, 8 * SECOND).await;
    let away = scene.until_ready(true, 12 * SECOND).await;
    println!("{error} for {away:?}");
    assert!(away > SECOND, "{away:?}");
    scene.assert_all_is_heard().await;
    // the rest of the hundred are the writer's own tests of the disk
    assert!(scene.metric("recording_errors_total") >= 80);
    let recordings = scene.end().await;
    assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
    assert!(recordings.iter().all(|r| r.sidecar.write_errors > 0));
    scene.assert_tracks(&recordings);
}

#[test]
fn failing_writes_lose_nothing() {
    block_on(failing("EIO", 168));
}

#[test]
fn a_disk_that_becomes_read_only_loses_nothing() {
    block_on(failing("EROFS", 169));
}

/// One write in 800 (one every four seconds) takes two seconds.
#[test]
fn a_slow_disk_is_not_noticed() {
    block_on(async {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut scene = scene("delay_enter=2s:when=400+800", 170, directory.path(), 600).await;
        scene.call(CALLS).await;
        scene.assert_all_is_heard().await;
        scene.until_ready(true, SECOND).await;
        assert_eq!(scene.metric("recording_lost_seconds_total"), 0);
        let recordings = scene.end().await;
        assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
        scene.assert_tracks(&recordings);
    });
}

/// One write takes longer than the queue holds: this is reported while it hangs, and lost audio
/// becomes silence.
#[test]
fn a_disk_that_hangs_leaves_reported_gaps() {
    block_on(async {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut scene = scene("delay_enter=14s:when=400", 171, directory.path(), 1200).await;
        scene.call(CALLS).await;
        // two seconds until that write, plus half of the queue
        scene.until_ready(false, 12 * SECOND).await;
        scene.until_ready(true, 20 * SECOND).await;
        scene.assert_all_is_heard().await;
        let lost = scene.metric("recording_lost_seconds_total");
        let recordings = scene.end().await;
        scene.assert_gaps(&recordings, lost);
    });
}
