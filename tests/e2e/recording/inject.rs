//! Writes that fail or take long, by strace's fault injection: what no filesystem does on demand.

use trunkless::record::sidecar::State;

use super::{SECOND, Scene};
use crate::block_on;

const CALLS: u32 = 20;

/// Starts the program as itself, with `strace` beside it, which stops it for these writes only.
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

/// Twenty calls write 200 times a second. From the 400th write on none succeeds, and each call
/// tries once a second: that is five seconds, and the queue holds ten.
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
    // the others of the hundred are the writer's own trials of the disk
    assert!(scene.metric("recording_errors_total") >= 80);
    let recordings = scene.end().await;
    assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
    assert!(recordings.iter().all(|r| r.sidecar.write_errors > 0));
    scene.assert_tracks(&recordings);
}

#[test]
fn writes_that_fail() {
    block_on(failing("EIO", 168));
}

#[test]
fn a_disk_that_turns_read_only() {
    block_on(failing("EROFS", 169));
}

/// Two seconds for one write in 800, four seconds' worth: nobody notices.
#[test]
fn a_slow_disk() {
    block_on(async {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut scene = scene("delay_enter=2s:when=400+800", 170, directory.path(), 600).await;
        scene.call(CALLS).await;
        scene.assert_all_is_heard().await;
        scene.until_ready(true, SECOND).await;
        assert_eq!(scene.metric("recording_lost_milliseconds_total"), 0);
        let recordings = scene.end().await;
        assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
        scene.assert_tracks(&recordings);
    });
}

/// One write that takes longer than the queue holds: told while it hangs, and what was lost is
/// silence.
#[test]
fn a_disk_that_hangs() {
    block_on(async {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut scene = scene("delay_enter=14s:when=400", 171, directory.path(), 1200).await;
        scene.call(CALLS).await;
        // two seconds until that write, and half of the queue
        scene.until_ready(false, 12 * SECOND).await;
        scene.until_ready(true, 20 * SECOND).await;
        scene.assert_all_is_heard().await;
        let lost = scene.metric("recording_lost_milliseconds_total");
        let recordings = scene.end().await;
        scene.assert_gaps(&recordings, lost);
    });
}
