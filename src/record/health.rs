//! Whether recordings can be made, for admission and whoever asks over HTTP; which are being made.
//! Owns a reading of the clock.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::error;

use crate::telemetry::COUNTERS;

/// Interval of a line that says that nothing has changed.
const REMIND: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Health {
    writing: Mutex<Option<String>>,
    closing: Mutex<Option<String>>,
    /// A thread has ended by a fault of ours.
    fault: Mutex<Option<String>>,
    /// Ids that this process is making or moving.
    live: Mutex<HashSet<String>>,
}

/// A panic elsewhere does not make a word wrong.
fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Health {
    fn default() -> Health {
        Health {
            // until the writer has looked
            writing: Mutex::new(Some("the disk has not answered yet".to_owned())),
            closing: Mutex::default(),
            fault: Mutex::default(),
            live: Mutex::default(),
        }
    }
}

impl Health {
    pub fn writing(&self, trouble: Option<String>) {
        *lock(&self.writing) = trouble;
    }

    pub fn closing(&self, trouble: Option<String>) {
        *lock(&self.closing) = trouble;
    }

    /// Why recordings are in trouble.
    pub fn trouble(&self) -> Option<String> {
        let of = |place: &Mutex<Option<String>>| lock(place).clone();
        of(&self.fault).or_else(|| of(&self.writing)).or_else(|| of(&self.closing))
    }

    pub fn begun(&self, id: &str) {
        lock(&self.live).insert(id.to_owned());
    }

    pub fn over(&self, id: &str) {
        lock(&self.live).remove(id);
    }

    pub fn is_live(&self, id: &str) -> bool {
        lock(&self.live).contains(id)
    }
}

/// Held by a thread: should it panic, that is told.
pub struct Alive(pub Arc<Health>);

impl Drop for Alive {
    fn drop(&mut self) {
        if thread::panicking() {
            COUNTERS.panics.fetch_add(1, Ordering::Relaxed);
            error!("a fault of ours has ended the recorder: nothing is recorded until a restart");
            *lock(&self.0.fault) = Some("a fault of ours has ended the recorder".to_owned());
        }
    }
}

/// Says now and then what would otherwise be said every second.
#[derive(Debug, Default)]
pub struct Reminder(Option<Instant>);

impl Reminder {
    /// True the first time, and when a minute has passed since.
    pub fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|at| at.elapsed() > REMIND);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}
