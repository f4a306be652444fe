//! Logs and counters. Modules that do I/O add to counters, pure modules return counts.

pub mod counter;
pub mod histogram;
mod log_writer;
pub mod process;
mod terminal;

use std::fmt;
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::error;
use tracing_subscriber::EnvFilter;

use crate::telemetry::counter::counters;
use crate::telemetry::log_writer::LogWriter;
use crate::telemetry::terminal::Terminal;

counters! {
    total PANICS = "panics", "Internal errors (panics).";
    total CONTROL_REFUSED = "control_requests_refused",
        "Requests to the control API without a valid token, scope, Host or Origin, or too long.";
    total LINES_DROPPED = "log_lines_dropped",
        "Log lines dropped because nothing read the log, or its disk was full.";
}

/// The state of one PBX, as the HTTP server reports it.
#[derive(Debug)]
pub struct PbxStatus {
    pub name: String,
    /// `sip` or `ari`.
    pub mode: &'static str,
    /// True if calls can be taken, and the state in words.
    state: Mutex<(bool, String)>,
}

impl PbxStatus {
    pub fn new(name: &str, mode: &'static str) -> PbxStatus {
        let state = Mutex::new((false, "starting".to_owned()));
        PbxStatus { name: name.to_owned(), mode, state }
    }

    /// Sets the state. `ready`: calls from this PBX can be taken.
    pub fn set(&self, ready: bool, state: impl Into<String>) {
        *self.lock() = (ready, state.into());
    }

    pub fn get(&self) -> (bool, String) {
        self.lock().clone()
    }

    /// Locks the state. A panic elsewhere does not make it wrong, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, (bool, String)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The states of all PBXs. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct PbxStatuses(Arc<Mutex<Vec<Arc<PbxStatus>>>>);

impl PbxStatuses {
    pub fn all(&self) -> Vec<Arc<PbxStatus>> {
        self.lock().clone()
    }

    /// Adds a PBX, in the place of one of the same name.
    pub fn add(&self, name: &str, mode: &'static str) -> Arc<PbxStatus> {
        let status = Arc::new(PbxStatus::new(name, mode));
        let mut all = self.lock();
        match all.iter_mut().find(|other| other.name == name) {
            Some(other) => other.clone_from(&status),
            None => all.push(status.clone()),
        }
        status
    }

    /// Shows only these PBXs.
    pub fn retain(&self, keep: impl Fn(&PbxStatus) -> bool) {
        self.lock().retain(|status| keep(status));
    }

    /// A panic in another thread leaves the list consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<PbxStatus>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Limits a repeated log line to one per interval, so that a flood cannot fill the log.
#[derive(Debug, Clone)]
pub struct Throttle {
    interval: Duration,
    /// How much of the following time may be used up at once.
    ahead: Duration,
    /// The end of the time that the lines so far have used up.
    used_until: Option<Instant>,
}

impl Throttle {
    pub const fn new(interval: Duration) -> Throttle {
        Throttle { interval, ahead: Duration::ZERO, used_until: None }
    }

    /// Admits `burst` lines at once, for lines that differ, and then one per interval.
    pub const fn with_burst(interval: Duration, burst: u32) -> Throttle {
        let ahead = interval.saturating_mul(burst.saturating_sub(1));
        Throttle { interval, ahead, used_until: None }
    }

    /// Returns true if the line may be written at `now`. The next one is then held back until the
    /// interval has passed.
    pub fn admits(&mut self, now: Instant) -> bool {
        let from = self.used_until.map_or(now, |until| until.max(now));
        let admits = from <= now + self.ahead;
        if admits {
            self.used_until = Some(from + self.interval);
        }
        admits
    }
}

/// A caller's number with all but its last two digits hidden.
pub struct Masked<'a>(pub &'a str);

impl fmt::Display for Masked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.chars().count();
        let hidden = count.saturating_sub(2);
        (0..hidden.min(16)).try_for_each(|_| f.write_str("*"))?;
        self.0.chars().skip(hidden).filter(|c| !c.is_control()).try_for_each(|c| write!(f, "{c}"))
    }
}

pub use log_writer::flush;

/// Counts every panic from now on, wherever it is caught. Only the first call has an effect.
pub fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.add(1);
            report(info);
        }));
    });
}

/// Starts logging to standard error, on a thread of its own. `level`: a level name or a tracing
/// filter; `json`: one object per line. On a terminal, lines are wrapped.
///
/// # Errors
/// Returns an error if the filter cannot be parsed, or the thread cannot be started.
pub fn init(level: &str, json: bool) -> Result<(), String> {
    let filter = parse(level)?;
    let builder = tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(|| LogWriter);
    LogWriter::start().map_err(|e| format!("cannot start the log thread: {e}"))?;
    // the default hook would write to standard error itself, and wait for its reader
    std::panic::set_hook(Box::new(|info| error!("internal error (panic): {info}")));
    let (set, result): (SetFilter, _) = match json {
        true => {
            let builder = builder.json().flatten_event(true);
            let builder = builder.with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            (Box::new(move |filter| drop(handle.reload(filter))), builder.try_init())
        }
        false if std::io::stderr().is_terminal() => {
            let builder = builder.event_format(Terminal);
            let builder = builder.with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            (Box::new(move |filter| drop(handle.reload(filter))), builder.try_init())
        }
        false => {
            let builder = builder.with_target(false);
            let builder = builder.with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            (Box::new(move |filter| drop(handle.reload(filter))), builder.try_init())
        }
    };
    // fails if logging is already set up, as in tests
    if result.is_ok() {
        let _ = FILTER.set(set);
    }
    Ok(())
}

type SetFilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// Changes the filter of the log.
static FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Changes the level of the log; see [`init`].
///
/// # Errors
/// Returns an error if the filter cannot be parsed.
pub fn set_level(level: &str) -> Result<(), String> {
    let filter = parse(level)?;
    if let Some(set) = FILTER.get() {
        set(filter);
    }
    Ok(())
}

fn parse(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter(level)).map_err(|e| format!("[log] level \"{level}\": {e}"))
}

/// Applies a level without a target to our own lines only: below INFO, libraries log requests with
/// their passwords and tokens. A level for a library's own target is kept.
fn filter(level: &str) -> String {
    let ours = |part: &str| match part.trim().to_ascii_lowercase().as_str() {
        part @ ("debug" | "trace") => format!("info,trunkless={part}"),
        _ => part.to_owned(),
    };
    let parts: Vec<String> = level.split(',').map(ours).collect();
    // object_store logs every attempt; we log a failure once
    format!("object_store=warn,{}", parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_admits_one_line_per_interval() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Duration::from_secs(1));
        assert!(throttle.admits(start));
        assert!(!throttle.admits(start + Duration::from_millis(999)));
        assert!(throttle.admits(start + Duration::from_secs(1)));
        assert!(!throttle.admits(start + Duration::from_millis(1999)));
    }

    #[test]
    fn a_throttle_admits_a_burst_after_a_pause() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut throttle = Throttle::with_burst(Duration::from_secs(1), 3);
        let mut admitted = |now| (0..9).filter(|_| throttle.admits(now)).count();
        assert_eq!([0, 0, 1, 3, 60].map(|s| admitted(at(s))), [3, 0, 1, 2, 3]);
    }

    #[test]
    fn levels_below_info_are_for_our_own_lines() {
        for (level, wanted) in [
            ("warn", "warn"),
            ("trace", "info,trunkless=trace"),
            ("info, Debug", "info,info,trunkless=debug"),
            ("trace,hyper=warn", "info,trunkless=trace,hyper=warn"),
            ("info,trunkless::sip=debug,hyper=trace", "info,trunkless::sip=debug,hyper=trace"),
        ] {
            assert_eq!(filter(level), format!("object_store=warn,{wanted}"));
            assert!(EnvFilter::try_new(filter(level)).is_ok());
        }
    }

    #[test]
    fn numbers_are_masked() {
        assert_eq!(Masked("7275551234").to_string(), "********34");
        assert_eq!(Masked("7").to_string(), "7");
        assert_eq!(Masked("\u{1b}[2J5\n6").to_string(), "*****6");
    }
}
