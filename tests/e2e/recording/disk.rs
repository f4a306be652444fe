//! A disk that is full, gone or read-only while twenty calls are up: no call is touched, and the
//! recordings come back by themselves.

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
/// The disk is tried every second and looked at a second later; the third is for a busy machine.
const BACK: Duration = Duration::from_secs(3);
/// Audio that was left out counts as trouble for five seconds more.
const BACK_AFTER_LOSS: Duration = Duration::from_secs(8);

/// A filesystem of its own, which root may mount.
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
        // no panic here: it would hide the one that is under way
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().expect("it is installed");
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// All that is free, in a file.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
}

/// 1 MB holds three seconds of twenty calls. What the disk does not take is kept for ten: nothing
/// is lost when there is room again by then.
#[test]
fn a_disk_that_is_full_for_a_while() {
    block_on(async {
        let disk = Tmpfs::new("1m");
        let mut scene = Scene::start(162, &disk.recordings(), CALLS, "", 700).await;
        scene.until_ready(true, SECOND).await;
        scene.call(CALLS).await;
        scene.until_ready(false, 8 * SECOND).await;
        assert!(scene.metric("recording_errors_total") > 0);
        tokio::time::sleep(2 * SECOND).await;
        scene.until_ready(false, Duration::ZERO).await;
        disk.remount("size=64m");
        println!("room again, ready after {:?}", scene.until_ready(true, BACK).await);
        scene.assert_all_is_heard().await;
        assert_eq!(scene.metric("recording_lost_milliseconds_total"), 0);
        let recordings = scene.end().await;
        assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
        assert!(recordings.iter().any(|r| r.sidecar.write_errors > 0));
        scene.assert_tracks(&recordings);
    });
}

/// Full to the last byte, for longer than the queue holds: what is lost is silence of its length,
/// and told.
#[test]
fn a_disk_that_is_full_for_long() {
    block_on(async {
        let disk = Tmpfs::new("1m");
        let keys = "keep_free_percent = 0";
        let mut scene = Scene::start(163, &disk.recordings(), CALLS, keys, 1400).await;
        scene.call(CALLS).await;
        scene.until_ready(false, 8 * SECOND).await;
        let lost = "recording_lost_milliseconds_total";
        for _ in 0..15 {
            tokio::time::sleep(SECOND).await;
            if scene.metric(lost) > 0 {
                break;
            }
        }
        tokio::time::sleep(2 * SECOND).await;
        scene.until_ready(false, Duration::ZERO).await;
        disk.remount("size=64m");
        println!("room again, ready after {:?}", scene.until_ready(true, BACK_AFTER_LOSS).await);
        scene.assert_all_is_heard().await;
        let lost = scene.metric(lost);
        let recordings = scene.end().await;
        scene.assert_gaps(&recordings, lost);
    });
}

/// The calls end while it is full: their recordings are closed as soon as there is room.
#[test]
fn calls_that_end_while_the_disk_is_full() {
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

/// The program ends while it is full, in order and in time; what is on the disk is closed at the
/// next start.
#[test]
fn a_program_that_ends_while_the_disk_is_full() {
    block_on(async {
        let disk = Tmpfs::new("1m");
        let mut scene = Scene::start(173, &disk.recordings(), CALLS, "", 300).await;
        scene.call(CALLS).await;
        scene.assert_all_is_heard().await;
        scene.hang_up().await;
        scene.until_ready(false, Duration::ZERO).await;
        // the disk is given ten seconds
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

/// With `require` no call is taken that could not be recorded; those that are up go on.
#[test]
fn calls_that_must_be_recorded_are_refused() {
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
        assert!(scene.callers.iter().all(|c| c.ended.is_none()), "the others go on");
        std::fs::remove_file(&filler).expect("it is there");
        println!("room again, ready after {:?}", scene.until_ready(true, BACK).await);
        scene.call(1).await;
        scene.assert_all_is_heard().await;
        let recordings = scene.end().await;
        assert!(recordings.iter().all(|r| r.sidecar.state == State::Complete));
        scene.assert_tracks(&recordings);
    });
}

/// Read-only when the calls come, and no more after a while. (What is being written keeps a
/// filesystem from becoming read-only in order; `inject` does that.)
#[test]
fn a_disk_that_is_read_only() {
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

/// The directory goes away in mid-call, however: the recordings are whole in a new one.
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
fn a_directory_that_is_removed() {
    // a file that is written anew meanwhile is one more to be removed
    let remove = |path: &Path| while std::fs::remove_dir_all(path).is_err() {};
    block_on(gone(166, remove));
}

#[test]
fn a_directory_that_is_renamed() {
    let rename = |path: &Path| std::fs::rename(path, path.with_extension("old")).expect("renamed");
    block_on(gone(167, rename));
}
