//! The program under measurement, in a separate process group. Owns the process, its folder and its
//! log.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Log lines shown when something goes wrong.
const LOG_LINES: usize = 15;
/// Interval at which the end of the process is checked for.
const POLL: Duration = Duration::from_millis(2);

/// A folder for one bridge's files, removed on drop.
pub struct Folder(PathBuf);

impl Folder {
    /// # Errors
    /// Returns an error if the folder cannot be created.
    pub fn make() -> io::Result<Folder> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("trunkless-bench-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Folder(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running bridge. Dropping it kills the process and everything it started.
pub struct Bridge {
    child: Child,
    /// File with the output of the process.
    log: PathBuf,
    pub started: Instant,
    /// True once the exit status has been collected.
    ended: bool,
}

impl Bridge {
    /// Starts the bridge with its output in `log`.
    ///
    /// # Errors
    /// Returns an error if the log cannot be created or the process cannot be started.
    pub fn start(command: &mut Command, log: PathBuf) -> io::Result<Bridge> {
        let output = File::create(&log)?;
        let started = Instant::now();
        // in a separate group, so that Ctrl-C reaches only the bench, which then ends the bridge
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(Bridge { child, log, started, ended: false })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status if the process is no longer running.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten();
        self.ended |= status.is_some();
        status
    }

    pub fn log_holds(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).is_ok_and(|log| log.contains(text))
    }

    /// Returns the last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Sends SIGTERM and returns the exit code; `None` if the process was still running after
    /// `limit` or was ended by a signal.
    pub fn terminate(&mut self, limit: Duration) -> Option<i32> {
        self.signal(Signal::TERM);
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if let Some(status) = self.has_ended() {
                return status.code().filter(|_| status.signal().is_none());
            }
            std::thread::sleep(POLL);
        }
        None
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // also kills what is left of the process group
        self.signal(Signal::KILL);
        if !self.ended {
            let _ = self.child.wait();
        }
    }
}
