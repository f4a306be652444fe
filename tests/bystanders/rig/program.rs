//! The bridge as a separate process, and what it holds: descriptors, ports, threads and memory.
//! Owns the process and its files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use super::wait::until;

/// Bound of the growth of memory, in per cent of the RSS.
const GROWTH: u64 = 2;
/// The state of a listening socket in /proc/net/tcp.
const LISTENS: &str = "0A";

/// A running `trunkless run`; dropping it kills it.
pub struct Program {
    child: Child,
    log: PathBuf,
    /// True while the pipe with the program's log is read.
    reads_log: Arc<(Mutex<bool>, Condvar)>,
    directory: tempfile::TempDir,
}

/// Everything of a process that must not pile up: a name per kind, with its count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings(BTreeMap<String, usize>);

impl Holdings {
    fn add(&mut self, name: String) {
        *self.0.entry(name).or_default() += 1;
    }

    /// The kinds of which there is more now than `before`, or which are missing now.
    pub fn changes_since(&self, before: &Holdings) -> Vec<String> {
        let mut names: Vec<&String> = self.0.keys().chain(before.0.keys()).collect();
        names.sort();
        names.dedup();
        let count = |of: &Holdings, name: &str| of.0.get(name).copied().unwrap_or(0);
        let counts = names.iter().map(|name| (name, count(before, name), count(self, name)));
        let changed = counts.filter(|(_, before, now)| before != now);
        changed.map(|(name, before, now)| format!("{name}: {now} instead of {before}")).collect()
    }
}

/// Copies the log from the program's pipe, whenever `reads` is true.
fn copy_log(mut pipe: ChildStderr, mut file: File, (reads, change): &(Mutex<bool>, Condvar)) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let on = reads.lock().expect("no panic elsewhere");
        drop(change.wait_while(on, |on| !*on).expect("no panic elsewhere"));
        match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) => file.write_all(&buffer[..n]).expect("the log is written"),
        }
    }
}

impl Program {
    /// Starts the program with this configuration and waits until its log contains `ready`.
    /// With `log_limit`, the log is a file that cannot grow beyond this many bytes from then on, as
    /// on a full disk; otherwise it is a pipe.
    pub async fn start(config: &str, ready: &str, log_limit: Option<u64>) -> Program {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (file, log) = (directory.path().join("trunkless.toml"), directory.path().join("log"));
        std::fs::write(&file, config).expect("the configuration is written");
        let output = File::create(&log).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
        // a variable of this name would override the configuration
        let ours =
            |(name, _): &(std::ffi::OsString, _)| name.to_string_lossy().starts_with("TRUNKLESS_");
        for (name, _) in std::env::vars_os().filter(ours) {
            command.env_remove(name);
        }
        let mut child = command
            .args(["run", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(match log_limit {
                Some(_) => Stdio::from(output.try_clone().expect("a third handle")),
                None => Stdio::piped(),
            })
            .spawn()
            .expect("trunkless starts");
        let reads_log = Arc::new((Mutex::new(true), Condvar::new()));
        if let Some(pipe) = child.stderr.take() {
            let reads = reads_log.clone();
            std::thread::spawn(move || copy_log(pipe, output, &reads));
        }
        let program = Program { child, log, reads_log, directory };
        let up = until(Duration::from_secs(15), || program.log().contains(ready)).await;
        assert!(up, "no \"{ready}\" in:\n{}", program.log());
        if let Some(limit) = log_limit {
            let limit = Rlimit { current: Some(limit), maximum: None };
            let limited = prlimit(Some(program.pid()), Resource::Fsize, limit);
            limited.expect("a limit can be lowered");
        }
        program
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        // a full disk may cut it off within a character
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Stops or continues reading the log. A pipe that is not read is soon full.
    pub fn read_log(&self, on: bool) {
        *self.reads_log.0.lock().expect("no panic elsewhere") = on;
        self.reads_log.1.notify_one();
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A folder for files of the test, removed with the program.
    pub fn folder(&self) -> &std::path::Path {
        self.directory.path()
    }

    fn pid(&self) -> Pid {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        id.expect("a process id")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process runs");
    }

    /// True while the process runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.id()))
    }

    /// Descriptors by kind, ports by protocol and address, connections by protocol and peer, and
    /// threads by name. Connections to `pool` are left out.
    pub fn holdings(&self, pool: Option<SocketAddr>) -> Holdings {
        let pool = pool.map(|at| format!("tcp to {at}"));
        let sockets = self.sockets();
        let mut held = Holdings::default();
        for entry in std::fs::read_dir(self.proc("fd")).expect("the process runs").flatten() {
            // a descriptor may be closed while the folder is read
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let inode = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']'));
            let Some(inode) = inode else {
                held.add(format!("descriptor of {}", target.split(":[").next().unwrap_or("")));
                continue;
            };
            let name = sockets.get(inode).map_or("another socket", String::as_str);
            if pool.as_deref() != Some(name) {
                held.add(name.to_owned());
            }
        }
        for task in std::fs::read_dir(self.proc("task")).expect("the process runs").flatten() {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            held.add(format!("thread {}", name.trim()));
        }
        held
    }

    /// The IP sockets of this network namespace: inode, and protocol with local address.
    fn sockets(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for protocol in ["udp", "udp6", "tcp", "tcp6"] {
            let table = std::fs::read_to_string(self.proc("net").join(protocol));
            for line in table.unwrap_or_default().lines().skip(1) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [_, local, remote, state, _, _, _, _, _, inode, ..] = words[..] else {
                    continue;
                };
                let connected = protocol.starts_with("tcp") && state != LISTENS;
                // the local port of a connection means nothing
                let name = match connected {
                    true => format!("{protocol} to {}", address(remote)),
                    false => format!("{protocol} {}", address(local)),
                };
                found.insert(inode.to_owned(), name);
            }
        }
        found
    }

    /// The ports of the UDP sockets, SIP's among them.
    pub fn udp_ports(&self) -> Vec<u16> {
        let held = self.holdings(None);
        let udp = held.0.keys().filter_map(|name| name.strip_prefix("udp "));
        udp.filter_map(|address| address.rsplit_once(':')?.1.parse().ok()).collect()
    }

    /// The RSS in kilobytes, and the part of it that is not file content. The rest is code, which
    /// is loaded on its first use and stays.
    pub fn memory(&self) -> Memory {
        let rollup = std::fs::read_to_string(self.proc("smaps_rollup")).unwrap_or_default();
        let field = |name: &str| {
            let line = rollup.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Memory { rss_kb: field("Rss:"), anonymous_kb: field("Anonymous:") }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Memory {
    rss_kb: u64,
    anonymous_kb: u64,
}

impl Memory {
    /// `allowed_kb`: growth that is allowed in any case.
    pub fn has_grown(&self, since: &Memory, allowed_kb: u64) -> bool {
        let bound = allowed_kb.max(since.rss_kb * GROWTH / 100);
        self.anonymous_kb > since.anonymous_kb + bound
    }
}

/// Turns `0100007F:13C4` into `127.0.0.1:5060`; addresses of other lengths stay hexadecimal.
fn address(hex: &str) -> String {
    let Some((ip, port)) = hex.rsplit_once(':') else { return hex.to_owned() };
    let port = u16::from_str_radix(port, 16).unwrap_or(0);
    let mut out = String::new();
    match u32::from_str_radix(ip, 16) {
        Ok(ip) => {
            let [a, b, c, d] = ip.to_le_bytes();
            let _ = write!(out, "{a}.{b}.{c}.{d}:{port}");
        }
        Err(_) => {
            let _ = write!(out, "{ip}:{port}");
        }
    }
    out
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
