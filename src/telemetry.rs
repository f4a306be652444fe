//! Logs and counters. Counters are plain atomics: modules that do I/O add to them, pure modules
//! return counts.

use std::fmt;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::call::end::EndReason;
use crate::call::words::Summary;

/// Counts since the program started.
#[derive(Debug, Default)]
pub struct Counters {
    pub offered: AtomicU64,
    pub answered: AtomicU64,
    ended: [AtomicU64; EndReason::ALL.len()],
    pub strangers: AtomicU64,
    pub unreadable: AtomicU64,
    pub frames_lost: AtomicU64,
    pub frames_late: AtomicU64,
    pub rtp_wrong_source: AtomicU64,
    pub ai_frames_dropped: AtomicU64,
    /// Recordings finished.
    pub recordings: AtomicU64,
    /// Recordings finished with gaps.
    pub recordings_partial: AtomicU64,
    /// Recordings that a crash left and the next start finished.
    pub recordings_repaired: AtomicU64,
    /// Recordings given up.
    pub recordings_failed: AtomicU64,
    /// Writes to the disk that failed.
    pub recording_errors: AtomicU64,
    /// Audio that was not recorded because the disk failed or was too slow.
    pub recording_lost_ms: AtomicU64,
    pub uploads: AtomicU64,
    pub webhooks: AtomicU64,
    /// Failed attempts at an upload or a webhook.
    pub outbox_errors: AtomicU64,
    /// Recordings waiting for an upload or a webhook.
    pub outbox_waiting: AtomicU64,
    /// Panics in a call, a source of calls or the recorder.
    pub panics: AtomicU64,
}

pub static COUNTERS: Counters = Counters {
    offered: AtomicU64::new(0),
    answered: AtomicU64::new(0),
    ended: [const { AtomicU64::new(0) }; EndReason::ALL.len()],
    strangers: AtomicU64::new(0),
    unreadable: AtomicU64::new(0),
    frames_lost: AtomicU64::new(0),
    frames_late: AtomicU64::new(0),
    rtp_wrong_source: AtomicU64::new(0),
    ai_frames_dropped: AtomicU64::new(0),
    recordings: AtomicU64::new(0),
    recordings_partial: AtomicU64::new(0),
    recordings_repaired: AtomicU64::new(0),
    recordings_failed: AtomicU64::new(0),
    recording_errors: AtomicU64::new(0),
    recording_lost_ms: AtomicU64::new(0),
    uploads: AtomicU64::new(0),
    webhooks: AtomicU64::new(0),
    outbox_errors: AtomicU64::new(0),
    outbox_waiting: AtomicU64::new(0),
    panics: AtomicU64::new(0),
};

impl Counters {
    pub fn ended(&self, reason: EndReason) {
        if let Some(at) = EndReason::ALL.iter().position(|r| *r == reason) {
            self.ended[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn ended_by(&self, reason: EndReason) -> u64 {
        let at = EndReason::ALL.iter().position(|r| *r == reason);
        at.map_or(0, |at| self.ended[at].load(Ordering::Relaxed))
    }

    pub fn media(&self, summary: &Summary, ai_dropped: u64) {
        self.answered.fetch_add(u64::from(summary.answered), Ordering::Relaxed);
        self.frames_lost.fetch_add(summary.received.sequence.lost, Ordering::Relaxed);
        self.frames_late.fetch_add(summary.received.late(), Ordering::Relaxed);
        self.rtp_wrong_source.fetch_add(summary.received.wrong_source, Ordering::Relaxed);
        self.ai_frames_dropped.fetch_add(ai_dropped, Ordering::Relaxed);
    }

    /// The end reasons that have occurred and their counts: `caller_hangup=3 ai_hangup=1`.
    pub fn ended_text(&self) -> String {
        let counts = EndReason::ALL.iter().zip(&self.ended);
        let seen =
            counts.map(|(r, n)| (r.label(), n.load(Ordering::Relaxed))).filter(|(_, n)| *n > 0);
        seen.map(|(label, n)| format!("{label}={n}")).collect::<Vec<_>>().join(" ")
    }

    /// A text that changes whenever the totals are worth logging again: after an ended call or a
    /// dropped request.
    pub fn summary(&self) -> String {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!("{} {} {}", self.ended_text(), get(&self.strangers), get(&self.unreadable))
    }

    /// Logs the totals in one line.
    pub fn log(&self) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        tracing::info!(
            offered = get(&self.offered),
            answered = get(&self.answered),
            ended = self.ended_text(),
            strangers = get(&self.strangers),
            unreadable = get(&self.unreadable),
            frames_lost = get(&self.frames_lost),
            frames_late = get(&self.frames_late),
            rtp_wrong_source = get(&self.rtp_wrong_source),
            ai_frames_dropped = get(&self.ai_frames_dropped),
            recordings = get(&self.recordings),
            recordings_partial = get(&self.recordings_partial),
            recordings_failed = get(&self.recordings_failed),
            recording_errors = get(&self.recording_errors),
            recording_lost_ms = get(&self.recording_lost_ms),
            uploads = get(&self.uploads),
            outbox_waiting = get(&self.outbox_waiting),
            panics = get(&self.panics),
            "totals"
        );
    }
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

/// Limits a repeated log line to one per interval, so that a flood cannot fill the log.
#[derive(Debug, Clone)]
pub struct Throttle {
    interval: Duration,
    /// When the line was last written.
    last: Option<Instant>,
}

impl Throttle {
    pub const fn new(interval: Duration) -> Throttle {
        Throttle { interval, last: None }
    }

    /// Returns true if the line may be written at `now`. The next one is then held back until the
    /// interval has passed.
    pub fn admits(&mut self, now: Instant) -> bool {
        let admits = self.last.is_none_or(|at| now - at >= self.interval);
        if admits {
            self.last = Some(now);
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

/// Starts logging to standard error. `level`: a level name or a tracing filter; `json`: one object
/// per line.
///
/// # Errors
/// Returns an error if the filter cannot be parsed.
pub fn init(level: &str, json: bool) -> Result<(), String> {
    // object_store logs every attempt; we log a failure once
    let filter = EnvFilter::try_new(format!("object_store=warn,{level}"));
    let filter = filter.map_err(|e| format!("[log] level \"{level}\": {e}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let result = match json {
        true => builder.json().flatten_event(true).try_init(),
        false => builder.with_target(false).try_init(),
    };
    // fails if logging is already set up, as in tests
    drop(result);
    Ok(())
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
    fn numbers_are_masked() {
        assert_eq!(Masked("7275551234").to_string(), "********34");
        assert_eq!(Masked("7").to_string(), "7");
        assert_eq!(Masked("\u{1b}[2J5\n6").to_string(), "*****6");
    }
}
