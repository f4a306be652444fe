//! Recordings by the real program: calls through real Asterisk in both modes (`pbx`), a bridge that
//! is killed (`kill`), a disk that is full, gone or read-only (`disk`), failing or slow (`inject`).

mod disk;
mod file;
mod inject;
mod kill;
mod pbx;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use trunkless::peer::phone::Heard;
use trunkless::record::sidecar::State;

use crate::ai::{Ai, Plan, Stream};
use crate::assert_all;
use crate::bridge::{Bridge, Setup};
use crate::caller::Caller;
use file::Recording;

const SECOND: Duration = Duration::from_secs(1);

/// Callers who call the bridge directly, at `127.0.N.2`, and an AI that answers each with their own
/// call number.
struct Scene {
    n: u8,
    directory: PathBuf,
    config: String,
    /// How many numbered frames each side sends.
    frames: u32,
    ai: Ai,
    bridge: Bridge,
    callers: Vec<Caller>,
}

impl Scene {
    /// `calls` is the maximum number of calls; `keys` go into `[recording]`.
    async fn start(n: u8, directory: &Path, calls: u32, keys: &str, frames: u32) -> Scene {
        Scene::start_under(&[], n, directory, calls, keys, frames).await
    }

    async fn start_under(
        program: &[&str],
        n: u8,
        directory: &Path,
        calls: u32,
        keys: &str,
        frames: u32,
    ) -> Scene {
        let (call, ahead) = (None, Some(50));
        let plan = Plan { say: frames, after_heard: 1, call, ahead, ..Plan::default() };
        let ai = Ai::start(plan).await;
        let setup = Setup {
            registrar: format!("127.0.{n}.1:5060"),
            username: "ai",
            password: "unused",
            ai: ai.url.clone(),
            listen: format!("127.0.{n}.2:5070"),
            tables: format!(
                "[calls]\nmax = {calls}\n[http]\nlisten = \"127.0.{n}.2:8090\"\n{}",
                table(directory, keys)
            ),
            sip_keys: format!("register = false\npeers = [\"127.0.{n}.3\"]"),
        };
        let (config, directory) = (setup.config(), directory.to_owned());
        let bridge = Bridge::run_under(program, &config);
        bridge.wait_for("trunkless is up", 10 * SECOND);
        Scene { n, directory, config, frames, ai, bridge, callers: Vec::new() }
    }

    /// Starts a call, which may be refused.
    async fn dial(&self, call: u32) -> Caller {
        let bridge = SocketAddr::new([127, 0, self.n, 2].into(), 5070);
        Caller::dial_direct(&format!("127.0.{}.3", self.n), bridge, call, self.frames).await
    }

    /// Adds `count` calls and waits until they are answered.
    async fn call(&mut self, count: u32) {
        let before = self.callers.len();
        for _ in 0..count {
            let call = self.callers.len() as u32 + 1;
            self.callers.push(self.dial(call).await);
            // these tests are not about many calls at once
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for caller in &mut self.callers[before..] {
            caller.answered().await;
        }
    }

    /// Waits until everything has been sent, and checks that nothing is lost, whatever the disk
    /// does.
    async fn assert_all_is_heard(&mut self) {
        let limit = Duration::from_millis(20) * self.frames + 10 * SECOND;
        let deadline = Instant::now() + limit;
        for (caller, call) in self.callers.iter_mut().zip(1..) {
            let left = deadline.saturating_duration_since(Instant::now());
            let frames = self.frames;
            let done = |c: &Caller| c.sent.len() as u32 == frames && c.heard_last(call, frames);
            caller.until(left, done).await;
        }
        self.callers[0].wait(SECOND / 5).await;
        self.print_punctual();
        for (caller, call) in self.callers.iter().zip(1..) {
            assert_all(&caller.numbers(call), self.frames, &format!("caller {call}"));
            // late audio is heard too
            let heard = self.received(call).numbers(call);
            assert_all(&heard, self.frames, &format!("the AI of call {call}"));
        }
    }

    fn print_punctual(&self) {
        let punctual = self.callers.iter().filter(|c| is_punctual(c)).count();
        println!("{punctual} of {} callers were punctual", self.callers.len());
    }

    /// Everything the AI received in a call; empty if it never received a number.
    fn received(&self, call: u32) -> Stream {
        let mut streams = self.ai.streams().into_iter();
        streams.find(|s| !s.numbers(call).is_empty()).unwrap_or_default()
    }

    /// Asserts that, gaps aside, the caller's track is what the AI received, and the AI's track
    /// what the caller received, byte for byte.
    fn assert_as_heard(&self, recording: &Recording) {
        let call = recording.call();
        let (received, caller) = (self.received(call), &self.callers[call as usize - 1]);
        let received = received.timestamps.iter().zip(&received.frames);
        let received = received.map(|(ms, frame)| (file::CALLER, *ms as usize / 20, frame));
        let first = caller.heard.first().map_or(0, |h| h.timestamp);
        let place = |h: &Heard| h.timestamp.wrapping_sub(first) as usize / 160;
        let played = caller.heard.iter().map(|h| (file::AI, place(h), &h.samples));
        for (track, place, frame) in received.chain(played) {
            let kept = recording.tracks[track].get(place).filter(|_| !recording.in_gap(place));
            let same = kept.is_none_or(|kept| kept == frame);
            assert!(same, "call {call}, track {track}: another frame at {place}");
        }
    }

    async fn hang_up(&mut self) {
        for caller in &mut self.callers {
            caller.hang_up().await;
        }
    }

    /// Hangs up all calls and ends the program cleanly; returns the recordings in order of their
    /// calls.
    async fn end(&mut self) -> Vec<Recording> {
        self.hang_up().await;
        assert_eq!(self.bridge.terminate(20 * SECOND), 0);
        assert_eq!(self.bridge.lines("internal error"), [""; 0]);
        self.finished()
    }

    /// The recordings in order of their calls: exactly one per call, and none incomplete.
    fn finished(&self) -> Vec<Recording> {
        let mut found = file::all(&self.directory);
        found.sort_by_key(Recording::call);
        let calls: Vec<u32> = found.iter().map(Recording::call).collect();
        assert_eq!(calls, (1..=self.callers.len() as u32).collect::<Vec<_>>());
        assert_eq!(incomplete(&self.directory), [""; 0]);
        found
    }

    /// Like `finished`, but while the program is running.
    async fn finished_soon(&self) -> Vec<Recording> {
        let begin = Instant::now();
        while !incomplete(&self.directory).is_empty() {
            let left = incomplete(&self.directory);
            assert!(begin.elapsed() < 5 * SECOND, "{left:?} are left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.finished()
    }

    /// Checks both tracks of each recording, gaps aside.
    fn assert_tracks(&self, recordings: &[Recording]) {
        for recording in recordings {
            let call = recording.call();
            self.assert_as_heard(recording);
            recording.assert_track(file::AI, call, self.frames);
            match is_punctual(&self.callers[call as usize - 1]) {
                true => drop(recording.assert_track(file::CALLER, call, self.frames)),
                false => recording.assert_whole(file::CALLER, call, self.frames),
            }
        }
        assert!(verify(&self.directory), "trunkless recordings verify");
    }

    /// Checks that the audio that could not be written is in the sidecars, `lost_ms` in total.
    fn assert_gaps(&self, recordings: &[Recording], lost_ms: u64) {
        for recording in recordings {
            let whole = recording.sidecar.gaps.is_empty();
            let state = if whole { State::Complete } else { State::Partial };
            assert_eq!(recording.sidecar.state, state);
        }
        let gaps: Vec<u64> = recordings.iter().map(Recording::lost_ms).collect();
        println!("lost {lost_ms} ms: {gaps:?}");
        assert!(lost_ms > 0);
        assert_eq!(gaps.iter().sum::<u64>(), lost_ms);
        self.assert_tracks(recordings);
    }

    fn get(&self, path: &str) -> (u16, String) {
        let at = SocketAddr::new([127, 0, self.n, 2].into(), 8090);
        let mut socket = TcpStream::connect(at).expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).expect("it is written");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    /// The body of `/healthz`, whose status is 200 whatever the disk does.
    fn health(&self) -> Value {
        let (status, body) = self.get("/healthz");
        assert_eq!(status, 200);
        serde_json::from_str(&body).expect("JSON")
    }

    /// A number from `/metrics`; seconds are returned as milliseconds.
    fn metric(&self, name: &str) -> u64 {
        let (_, page) = self.get("/metrics");
        let unit = if name.contains("_seconds") { 1e3 } else { 1.0 };
        let name = format!("trunkless_{name} ");
        let value = page.lines().find_map(|l| l.strip_prefix(&name)?.parse::<f64>().ok());
        let value = value.unwrap_or_else(|| panic!("no {name} in {page}"));
        (value * unit).round() as u64
    }

    /// Waits until a counter is above `count`.
    async fn until_more(&self, name: &str, count: u64, limit: Duration) {
        let begin = Instant::now();
        while self.metric(name) <= count {
            assert!(begin.elapsed() < limit, "{name} is still {}", self.metric(name));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until `/healthz` and `/metrics` both report this; returns how long it took.
    async fn until_ready(&self, ready: bool, limit: Duration) -> Duration {
        let begin = Instant::now();
        let said = |s: &Scene| {
            let json = s.health()["recording"]["ready"] == ready;
            json && s.metric("recording_ready") == u64::from(ready)
        };
        while !said(self) {
            let state = &self.health()["recording"];
            assert!(begin.elapsed() < limit, "not {ready} within {limit:?}: {state}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begin.elapsed()
    }
}

/// True if the caller sent each frame about when it was due. Otherwise the machine is too busy for
/// callers, AI and program together, and silence was heard where frames were late.
fn is_punctual(caller: &Caller) -> bool {
    let pauses = caller.sent_at.windows(2).map(|pair| pair[1] - pair[0]);
    pauses.max().is_none_or(|pause| pause < Duration::from_millis(60))
}

/// The `[recording]` table.
fn table(directory: &Path, keys: &str) -> String {
    format!("[recording]\ndirectory = \"{}\"\n{keys}\n", directory.display())
}

/// The names of the files in `incomplete/`.
fn incomplete(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory.join("incomplete")) else { return Vec::new() };
    entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Runs `trunkless recordings verify`; true for exit code 0, false for 1.
fn verify(directory: &Path) -> bool {
    let out = Command::new(env!("CARGO_BIN_EXE_trunkless"))
        .args(["recordings", "verify", "--directory"])
        .arg(directory)
        .output()
        .expect("trunkless runs");
    let code = out.status.code().expect("an exit code");
    if code != 0 {
        println!("verify: {}", String::from_utf8_lossy(&out.stdout));
    }
    assert!(code < 2, "{out:?}");
    code == 0
}
