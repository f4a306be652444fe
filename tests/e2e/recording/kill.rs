//! The program is killed during fifty calls: every recording exists after the next start and lacks
//! little.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trunkless::media::g711::Law;
use trunkless::peer::pattern;
use trunkless::peer::phone::PhoneCommand;
use trunkless::record::sidecar::State;

use super::file::{AI, CALLER, Recording};
use super::{SECOND, Scene, file, incomplete, is_punctual, verify};
use crate::block_on;
use crate::bridge::Bridge;

const CALLS: u32 = 50;
/// More frames than the longest of these calls sends.
const FRAMES: u32 = 300;
/// Frames, one second, that a recording may lack: up to 200 ms wait for their block to fill, the
/// rest is for a machine whose disk and cores are busy.
const MAY_LACK: usize = 50;

/// The number of frames missing in each track.
#[derive(Debug, Default, Clone, Copy)]
struct Missing([usize; 2]);

impl Missing {
    fn worst(self, other: Missing) -> Missing {
        Missing([self.0[CALLER].max(other.0[CALLER]), self.0[AI].max(other.0[AI])])
    }
}

/// When the program is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// This long after the last call was answered.
    Talking(Duration),
    /// This long after all callers hung up: recordings are being moved to their final place.
    Closing(Duration),
    /// As `Talking`, and again this long after the next start, during the repair.
    Repairing(Duration, Duration),
}

/// Kills the program at `KILLS` moments (`kills` if not set), which `moment` derives from 31 random
/// bits each. `SEED` repeats a run.
fn killed(kills: u64, moment: impl Fn(u64) -> Moment) {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse().expect("a number"));
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_micros() as u64);
    let seed: u64 = number("SEED").unwrap_or_else(clock);
    let kills = number("KILLS").unwrap_or(kills);
    println!("SEED={seed} KILLS={kills}");
    let mut state = seed;
    let mut worst = Missing::default();
    for kill in 0..kills {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let moment = moment(state >> 33);
        let missing = block_on(one_kill(moment));
        println!("{kill}: {moment:?}, missing at most {:?} frames", missing.0);
        worst = worst.worst(missing);
    }
    let [caller, ai] = worst.0.map(|frames| frames * 20);
    println!("{kills} kills of {CALLS} calls: at worst {caller} ms of a caller, {ai} ms of an AI");
}

#[test]
fn killed_at_any_moment() {
    killed(12, |chance| Moment::Talking(Duration::from_millis(200 + chance % 2800)));
}

#[test]
fn killed_while_recordings_are_closed() {
    killed(6, |chance| Moment::Closing(Duration::from_millis(chance % 600)));
}

#[test]
fn killed_again_while_it_repairs() {
    killed(6, |chance| {
        let again = Duration::from_millis(chance / 1000 % 300);
        Moment::Repairing(Duration::from_millis(200 + chance % 1000), again)
    });
}

async fn one_kill(moment: Moment) -> Missing {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let directory = directory.path();
    let mut scene = Scene::start(161, directory, CALLS, "", FRAMES).await;
    scene.call(CALLS).await;
    match moment {
        Moment::Talking(after) | Moment::Repairing(after, _) => tokio::time::sleep(after).await,
        Moment::Closing(after) => {
            tokio::time::sleep(SECOND).await;
            scene.callers.iter().for_each(|c| c.command(PhoneCommand::Hangup));
            tokio::time::sleep(after).await;
        }
    }
    let killed = Instant::now();
    scene.bridge.kill();
    for caller in &mut scene.callers {
        // process the events so far
        caller.wait(Duration::from_millis(5)).await;
    }
    assert_readable(directory);
    if let Moment::Repairing(_, again) = moment {
        let mut bridge = Bridge::run(&scene.config);
        tokio::time::sleep(again).await;
        bridge.kill();
        println!("{} files were left to be repaired", incomplete(directory).len());
        assert_readable(directory);
    }
    assert_repaired(&scene, directory);
    let recordings = file::all(directory);
    let mut calls: Vec<u32> = recordings.iter().map(Recording::call).collect();
    calls.sort_unstable();
    assert_eq!(calls, (1..=CALLS).collect::<Vec<_>>(), "one per answered call");
    for recording in &recordings {
        let (state, reason) = (recording.sidecar.state, recording.sidecar.end_reason.as_str());
        let closed = matches!(moment, Moment::Closing(_)) && state == State::Complete;
        let wanted = (State::Truncated, "internal_kill");
        assert!(closed && reason == "caller_hangup" || (state, reason) == wanted, "{state:?}");
    }
    scene.print_punctual();
    let missing = recordings.iter().map(|recording| lacks(recording, &scene, killed));
    missing.fold(Missing::default(), Missing::worst)
}

/// Asserts that the next start repairs everything.
fn assert_repaired(scene: &Scene, directory: &Path) {
    let again = Bridge::run(&scene.config);
    let begin = Instant::now();
    while !incomplete(directory).is_empty() {
        let left = incomplete(directory);
        assert!(begin.elapsed() < 20 * SECOND, "{left:?} are left:\n{}", again.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(verify(directory));
}

/// Asserts that a player can open the files even before they are repaired.
fn assert_readable(directory: &Path) {
    let files = wavs(directory);
    assert_eq!(files.len(), CALLS as usize, "{files:?}");
    for path in files {
        file::named_bytes(&std::fs::read(path).expect("it is there"), Law::Mu);
    }
}

/// All WAV files below a directory.
fn wavs(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let paths = entries.map(|e| e.expect("an entry").path());
    let of = |path: PathBuf| match path.is_dir() {
        true => wavs(&path),
        false => vec![path],
    };
    paths.flat_map(of).filter(|p| p.extension().is_some_and(|e| e == "wav")).collect()
}

/// Checks a recording of a killed program; returns how much it lacks of the audio up to the kill.
fn lacks(recording: &Recording, scene: &Scene, killed: Instant) -> Missing {
    let call = recording.call();
    let (caller, received) = (&scene.callers[call as usize - 1], scene.received(call));
    scene.assert_as_heard(recording);
    let count = |times: &[Instant]| times.iter().filter(|at| **at <= killed).count();
    let is_number = |samples: &[u8]| pattern::read(samples).is_some();
    let heard = received.frames.iter().zip(&received.heard_at).filter(|(f, _)| is_number(f));
    let heard: Vec<Instant> = heard.map(|(_, at)| *at).collect();
    let played = caller.heard.iter().filter(|h| is_number(&h.samples));
    let played: Vec<Instant> = played.map(|h| h.at).collect();
    // on an overloaded machine, frames that were sent may not have been received
    let is_punctual = is_punctual(caller);
    let sent = if is_punctual { &caller.sent_at } else { &heard };
    let lacks = |track: usize, all: usize| {
        let numbers = recording.numbers(track, call);
        let kept = numbers.last().map_or(0, |(_, number)| *number as usize + 1);
        // on an overloaded machine, a frame may be too late for the AI as well
        let received = received.numbers(call);
        if track == AI || received.iter().copied().eq(0..received.len() as u32) {
            let in_a_row = numbers.iter().map(|(_, number)| *number).eq(0..kept as u32);
            assert!(in_a_row, "call {call}, track {track}: {numbers:?}");
        }
        let lacks = all.saturating_sub(kept);
        assert!(lacks <= MAY_LACK, "call {call}, track {track}: {kept} of {all} frames");
        lacks
    };
    Missing([lacks(CALLER, count(sent)), lacks(AI, count(&played))])
}
