//! Helpers of the tests in this folder: an S3 server as a separate process, recordings made without
//! calls, and the program with a configuration for them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use trunkless::folder::Root;
use trunkless::media::g711::Law;
use trunkless::record::disk::{self, with_ending};
use trunkless::record::layout::Layout;
use trunkless::record::library;
use trunkless::record::recorder::Recorder;
use trunkless::record::recording::{Ending, Tap};
use trunkless::record::settings::RecordSettings;
use trunkless::record::sidecar::{CallInfo, Sidecar};

use crate::asterisk::cache;
use crate::bridge::Bridge;

pub const SECOND: Duration = Duration::from_secs(1);
pub const SECRET: &str = "testsecret";

/// Waits until `done` returns true; returns how long it took.
pub fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    begin.elapsed()
}

/// `s3s-fs` at `127.0.N.3:9000`, with one bucket, `rec`; dropping it kills it.
pub struct S3 {
    child: Option<Child>,
    ip: String,
    root: tempfile::TempDir,
}

impl S3 {
    /// Prepares a server without starting it.
    pub fn new(n: u8) -> S3 {
        let root = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(root.path().join("rec")).expect("a bucket");
        S3 { child: None, ip: format!("127.0.{n}.3"), root }
    }

    pub fn started(n: u8) -> S3 {
        let mut s3 = S3::new(n);
        s3.start();
        s3
    }

    pub fn start(&mut self) {
        let program = cache().join("s3s/bin/s3s-fs");
        assert!(program.exists(), "no S3 server: run tests/run.sh once, it fetches one");
        let child = Command::new(program)
            .args(["--host", &self.ip, "--port", "9000"])
            .args(["--access-key", "test", "--secret-key", SECRET])
            .arg(self.root.path())
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the S3 server starts"));
        let address = self.address();
        until("the S3 server listens", 5 * SECOND, || TcpStream::connect(&address).is_ok());
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it can be killed");
            let _ = child.wait();
        }
    }

    pub fn address(&self) -> String {
        format!("{}:9000", self.ip)
    }

    pub fn bucket(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The number of unfinished uploads, and of their parts.
    pub fn unfinished(&self) -> (usize, usize) {
        let entries = std::fs::read_dir(self.root.path()).expect("the server's root");
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
        let names: Vec<String> = names.collect();
        let count = |start: &str| names.iter().filter(|n| n.starts_with(start)).count();
        (count(".upload-"), count(".upload_id-"))
    }

    /// The keys in the bucket that end with `ending`.
    pub fn keys(&self, ending: &str) -> Vec<String> {
        let bucket = self.bucket("rec");
        let mut found = files(&bucket);
        found.retain(|f| f.to_string_lossy().ends_with(ending));
        let below = |f: &PathBuf| f.strip_prefix(&bucket).unwrap().to_string_lossy().into_owned();
        found.iter().map(below).collect()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All files below a folder, except hidden ones.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|e| e.path());
    let seen = paths.filter(|p| !p.file_name().unwrap().to_string_lossy().starts_with('.'));
    seen.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

/// A directory of recordings.
pub struct Recordings {
    pub directory: tempfile::TempDir,
}

impl Recordings {
    pub fn new() -> Recordings {
        Recordings { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn root(&self) -> Root {
        Root::new(self.path().to_owned())
    }

    /// Makes finished recordings of `frames` frames each, with noise from a seed; they wait in the
    /// outbox.
    pub fn make(&self, count: u32, frames: u64, seed: u64) {
        let recorder = Recorder::new(self.settings(), || {}).expect("the threads start");
        let mut state = seed | 1;
        for n in 0..count {
            let id = format!("made-{seed}-{n}");
            let call = CallInfo { id, pbx: "main".to_owned(), ..CallInfo::default() };
            let mut recording = recorder.start(&call, 1, Law::Mu, 0);
            for index in 0..frames {
                let mut samples = [0u8; 160];
                for bytes in samples.chunks_mut(8) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    bytes.copy_from_slice(&state.to_le_bytes());
                }
                recording.tap(Tap::Ai { index, samples });
                recording.tap(Tap::Caller { index, law: Law::Mu, samples, heard_at: None });
            }
            recording.finish(Ending::new("caller_hangup"));
            recorder.flush();
        }
        assert_eq!(self.waiting(), count as usize);
    }

    fn settings(&self) -> RecordSettings {
        RecordSettings {
            directory: self.path().to_owned(),
            layout: Layout::default(),
            encoding: None,
            fsync: Duration::ZERO,
            keep_free_percent: 0.0,
            keep: None,
            keep_bytes: None,
            require: false,
            require_mount: false,
            outbox: true,
            // this limits the queue
            max_calls: 10_000,
        }
    }

    /// The number of entries in the outbox.
    pub fn waiting(&self) -> usize {
        files(&self.path().join("outbox")).len()
    }

    /// The sidecars of all finished recordings, with their paths without ending.
    pub fn sidecars(&self) -> Vec<(PathBuf, Sidecar)> {
        let root = self.root();
        let mut paths = Vec::new();
        library::walk(&root, &mut |path, _| paths.push(path.to_owned())).expect("a directory");
        let read = |path: PathBuf| {
            let sidecar = library::read(&root, &path).expect("a sidecar");
            (path, sidecar)
        };
        paths.into_iter().map(read).collect()
    }

    /// Asserts that the files here match their sidecars, that the bucket's folder has the same
    /// files, and that nothing is waiting or exists twice.
    pub fn assert_sent(&self, folder: &Path, count: usize) {
        let sidecars = self.sidecars();
        assert_eq!(sidecars.len(), count, "recordings here");
        for (path, sidecar) in &sidecars {
            for place in [self.path(), folder] {
                let file = place.join(with_ending(path, "wav"));
                assert_eq!(sha256(&file), sidecar.audio.sha256, "{}", file.display());
                let json = std::fs::read_to_string(place.join(with_ending(path, "json")));
                assert_eq!(json.unwrap(), sidecar.text());
            }
            assert!(sidecar.upload.is_some());
        }
        assert_eq!(self.waiting(), 0, "the outbox is empty");
        assert_eq!(files(folder).len(), 2 * count, "a WAV and a sidecar each: {folder:?}");
    }
}

pub fn sha256(file: &Path) -> String {
    let opened = std::fs::File::open(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    disk::sha256(opened).expect("it can be read")
}

/// The configuration tables for recording and uploading to an endpoint; `/metrics` is at
/// `127.0.N.2:8080`.
pub fn tables(n: u8, directory: &Path, url: &str, endpoint: &str, secret: &str) -> String {
    format!(
        "[http]\nlisten = \"127.0.{n}.2:8080\"\n[recording]\ndirectory = {directory:?}\n\
         [recording.upload]\nurl = \"{url}\"\nendpoint = \"http://{endpoint}\"\n\
         access_key_id = \"test\"\nsecret_access_key = \"{secret}\"\n"
    )
}

/// Starts the program with these tables, and a PBX that does not exist.
pub fn program(n: u8, tables: &str) -> Bridge {
    Bridge::run(&format!(
        "[ai]\nurl = \"ws://127.0.0.1:9\"\n[sip]\nlisten = \"127.0.{n}.2:5070\"\n{tables}\n\
         [pbx.main]\nmode = \"sip\"\n[pbx.main.sip]\nregistrar = \"127.0.{n}.9:5060\"\n\
         username = \"ai\"\npassword = \"x\"\n"
    ))
}

/// A number from `/metrics`; `name` is without `trunkless_`.
pub fn metric(n: u8, name: &str) -> u64 {
    let mut socket = TcpStream::connect(format!("127.0.{n}.2:8080")).expect("it listens");
    socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("a request");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("a page");
    let line = text.lines().find_map(|l| l.strip_prefix(&format!("trunkless_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}
