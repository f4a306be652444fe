//! A disk that is full, gone or read-only during twenty calls: no call is affected, and recording
//! recovers by itself.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use trunkless::record::sidecar::State;
use trunkless::sip::agent::CallEnd;

use super::file::{AI, CALLER};
use super::{SECOND, Scene};
use crate::block_on;
use crate::bridge::Bridge;

const CALLS: u32 = 20;
/// The disk is tried every second and checked a second later; the third second is for a busy
/// machine.
const BACK: Duration = Duration::from_secs(3);
/// Lost audio counts as trouble for another five seconds.
const BACK_AFTER_LOSS: Duration = Duration::from_secs(8);

/// A separate filesystem; mounting it needs root.
struct Tmpfs {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Tmpfs {
    fn new(size: &str) -> Tmpfs {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("disk");
        std::fs::create_dir(&path).expect("a folder");
        let options = format!("size={size},mode=755");
        run("mount", &["-t", "tmpfs", "-o", &options, "none", &path.to_string_lossy()]);
        Tmpfs { path, _directory: directory }
    }

    fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), &self.path.to_string_lossy()]);
    }

    fn recordings(&self) -> PathBuf {
        self.path.join("recordings")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // must not panic: that would hide the panic in progress
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().expect("it is installed");
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Fills the free space with one file.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
}

/// 1 MB holds three seconds of twenty calls. Audio that the disk does not accept is queued for ten
/// seconds: nothing is lost if there is space again by then.
#[test]
fn a_disk_that_is_full_for_a_while_loses_nothing() {
    block_on(async {
        let disk = Tmpfs::new("1m");
        let mut scene = Scene::start(162, &disk.recordings(), CALLS, "", 700).await;
        scene.until_ready(true, SECOND).await;
        scene.call(CALLS).await;
        scene.until_ready(false, 8 * SECOND).await;
        // not ready means that too little is free: the first failed write follows
        scene.until_more("recording_errors_total", 0, 5 * SECOND).await;
        tokio::time::sleep(2 * SECOND).await;
        scene.until_ready(false, Duration::ZERO).await;
        disk.remount("size=64m");
        println!("space again, ready after {:?}", scene.until_ready(true, BACK).await);
        scene.assert_all_is_heard().await;
        assert_eq!(scene.metric("recording_lost_seconds_total"), 0);
        let recordings = scene.end().await;
        assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
        assert!(recordings.iter().any(|r| r.sidecar.write_errors > 0));
        scene.assert_tracks(&recordings);
    });
}

/// Full to the last byte, for longer than the queue holds: lost audio becomes silence of the same
/// length, and is reported.
#[test]
fn a_disk_that_is_full_for_long_leaves_reported_gaps() {
    block_on(async {
        let disk = Tmpfs::new("1m");
        let keys = "keep_free_percent = 0";
        let mut scene = Scene::start(163, &disk.recordings(), CALLS, keys, 1400).await;
        scene.call(CALLS).await;
        scene.until_ready(false, 8 * SECOND).await;
        let lost = "recording_lost_seconds_total";
        scene.until_more(lost, 0, 15 * SECOND).await;
        tokio::time::sleep(2 * SECOND).await;
        scene.until_ready(false, Duration::ZERO).await;
        disk.remount("size=64m");
        println!("space again, ready after {:?}", scene.until_ready(true, BACK_AFTER_LOSS).await);
        scene.assert_all_is_heard().await;
        let lost = scene.metric(lost);
        let recordings = scene.end().await;
        scene.assert_gaps(&recordings, lost);
    });
}

/// The recordings are completed as soon as there is space.
#[test]
fn calls_that_end_while_the_disk_is_full_are_recorded_completely() {
    block_on(async {
        let disk = Tmpfs::new("1m");
        let mut scene = Scene::start(172, &disk.recordings(), CALLS, "", 300).await;
        scene.call(CALLS).await;
        scene.assert_all_is_heard().await;
        scene.hang_up().await;
        scene.until_ready(false, Duration::ZERO).await;
        assert_eq!(scene.metric("recordings_total"), 0);
        disk.remount("size=64m");
        scene.until_ready(true, BACK).await;
        let recordings = scene.finished_soon().await;
        assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
        scene.assert_tracks(&recordings);
    });
}

/// The program ends cleanly and in time while the disk is full; the recordings on the disk are
/// completed at the next start.
#[test]
fn a_full_disk_does_not_hold_up_the_end_of_the_program() {
    block_on(async {
        let disk = Tmpfs::new("1m");
        let mut scene = Scene::start(173, &disk.recordings(), CALLS, "", 300).await;
        scene.call(CALLS).await;
        scene.assert_all_is_heard().await;
        scene.hang_up().await;
        scene.until_ready(false, Duration::ZERO).await;
        // the program gives the disk ten seconds
        assert_eq!(scene.bridge.terminate(15 * SECOND), 0);
        disk.remount("size=64m");
        scene.bridge = Bridge::run(&scene.config);
        for recording in scene.finished_soon().await {
            assert_eq!(recording.sidecar.state, State::Truncated);
            for track in [CALLER, AI] {
                let kept = recording.numbers(track, recording.call()).len();
                assert!(kept > 50, "{kept} frames");
            }
            scene.assert_as_heard(&recording);
        }
    });
}

/// With `require`, a call that could not be recorded is refused; live calls continue.
#[test]
fn calls_are_refused_while_required_recordings_are_impossible() {
    block_on(async {
        let disk = Tmpfs::new("16m");
        let keys = "require = true";
        let mut scene = Scene::start(164, &disk.recordings(), CALLS + 2, keys, 500).await;
        scene.call(CALLS).await;
        assert_eq!(scene.get("/readyz").0, 200);
        let filler = disk.path.join("filler");
        fill(&filler);
        scene.until_ready(false, BACK).await;
        assert_eq!(scene.get("/readyz").0, 503);
        let mut refused = scene.dial(99).await;
        refused.until(5 * SECOND, |c| c.ended.is_some()).await;
        let end = &refused.ended;
        assert!(matches!(end, Some(CallEnd::Refused { code: 503, .. })), "{end:?}");
        assert_eq!(scene.metric("calls_ended_total{reason=\"not_recorded\"}"), 1);
        assert_eq!(scene.bridge.lines("could not be recorded").len(), 1);
        assert!(scene.callers.iter().all(|c| c.ended.is_none()), "the others continue");
        std::fs::remove_file(&filler).expect("it is there");
        println!("space again, ready after {:?}", scene.until_ready(true, BACK).await);
        scene.call(1).await;
        scene.assert_all_is_heard().await;
        let recordings = scene.end().await;
        assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
        scene.assert_tracks(&recordings);
    });
}

/// The disk is read-only when the calls start and writable again after a while. (With files open
/// for writing, a filesystem cannot be made read-only cleanly; `inject` covers that case.)
#[test]
fn a_disk_that_is_read_only_for_a_while_loses_nothing() {
    block_on(async {
        let disk = Tmpfs::new("64m");
        let mut scene = Scene::start(165, &disk.recordings(), CALLS, "", 500).await;
        disk.remount("ro");
        scene.call(CALLS).await;
        scene.until_ready(false, BACK).await;
        tokio::time::sleep(2 * SECOND).await;
        disk.remount("rw");
        println!("writable again, ready after {:?}", scene.until_ready(true, BACK).await);
        scene.assert_all_is_heard().await;
        let recordings = scene.end().await;
        assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
        assert!(recordings.iter().all(|r| r.sidecar.write_errors > 0));
        scene.assert_tracks(&recordings);
    });
}

/// The directory disappears in mid-call, in the way `how` says: the recordings are complete in a
/// new one.
async fn gone(n: u8, how: impl FnOnce(&Path)) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let recordings = directory.path().join("recordings");
    let mut scene = Scene::start(n, &recordings, CALLS, "", 400).await;
    scene.call(CALLS).await;
    tokio::time::sleep(3 * SECOND).await;
    how(&recordings);
    scene.assert_all_is_heard().await;
    let found = scene.end().await;
    assert!(found.iter().all(|r| r.sidecar.state == State::Complete));
    scene.assert_tracks(&found);
}

#[test]
fn a_removed_directory_is_created_again_without_loss() {
    // a file that is written in the meantime has to be removed as well
    let remove = |path: &Path| while std::fs::remove_dir_all(path).is_err() {};
    block_on(gone(166, remove));
}

#[test]
fn a_renamed_directory_is_created_again_without_loss() {
    let rename = |path: &Path| std::fs::rename(path, path.with_extension("old")).expect("renamed");
    block_on(gone(167, rename));
}
