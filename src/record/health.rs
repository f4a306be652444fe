//! The state of recording, for admission and the HTTP interface: current trouble, and which
//! recordings are in progress. Owns a reading of the clock.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::error;

/// Interval at which a log line is repeated while the trouble lasts.
const REMIND: Duration = Duration::from_secs(60);

/// Trouble with recordings, and the recordings in progress.
#[derive(Debug)]
pub struct Health {
    /// Why audio cannot be written.
    writing: Mutex<Option<String>>,
    /// Why finished recordings cannot be moved to their place.
    closing: Mutex<Option<String>>,
    /// Set once a recording thread has panicked.
    fault: Mutex<Option<String>>,
    /// Ids of the recordings that this process is writing or moving.
    live: Mutex<HashSet<String>>,
}

/// Locks a mutex, poisoned or not: a panic elsewhere does not invalidate the value.
fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Health {
    fn default() -> Health {
        Health {
            // until the writer's first check
            writing: Mutex::new(Some("the disk has not been checked yet".to_owned())),
            closing: Mutex::default(),
            fault: Mutex::default(),
            live: Mutex::default(),
        }
    }
}

impl Health {
    /// Sets or clears the trouble with writing audio.
    pub fn writing(&self, trouble: Option<String>) {
        *lock(&self.writing) = trouble;
    }

    /// Sets or clears the trouble with moving finished recordings.
    pub fn closing(&self, trouble: Option<String>) {
        *lock(&self.closing) = trouble;
    }

    /// Returns why recordings are failing, or `None` if they are not.
    pub fn trouble(&self) -> Option<String> {
        let of = |place: &Mutex<Option<String>>| lock(place).clone();
        of(&self.fault).or_else(|| of(&self.writing)).or_else(|| of(&self.closing))
    }

    /// Marks a recording as in progress.
    pub fn begun(&self, id: &str) {
        lock(&self.live).insert(id.to_owned());
    }

    /// Marks a recording as no longer in progress.
    pub fn over(&self, id: &str) {
        lock(&self.live).remove(id);
    }

    pub fn is_live(&self, id: &str) -> bool {
        lock(&self.live).contains(id)
    }
}

/// Guard held by a recording thread; reports the thread's panic.
pub struct Alive(pub Arc<Health>);

impl Drop for Alive {
    fn drop(&mut self) {
        if thread::panicking() {
            error!(
                "internal error: a recording thread panicked; restart trunkless to record again"
            );
            *lock(&self.0.fault) = Some("internal error: a recording thread panicked".to_owned());
        }
    }
}

/// Runs one step of a recording thread. Returns `None` if it panicked, which is counted; the thread
/// continues.
pub fn guarded<T>(step: impl FnOnce() -> T) -> Option<T> {
    // a step that panics leaves no lock and at most its own recording in a half-changed state
    catch_unwind(AssertUnwindSafe(step)).ok()
}

/// Limits a log line to one per minute. Holds the time of the last one.
#[derive(Debug, Default)]
pub struct Reminder(Option<Instant>);

impl Reminder {
    /// Returns true if the line is due: the first time, and then a minute after the last.
    pub fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|at| at.elapsed() > REMIND);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}
