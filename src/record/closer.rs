//! The thread that finishes recordings: hash, sidecar, their place; what the disk is asked to keep;
//! what a crash has left; what is old. Owns files and a thread's loop.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info, warn};

use crate::record::disk::{Part, Root};
use crate::record::queue::Load;
use crate::record::sidecar::{Sidecar, State};
use crate::record::writer::{Health, Settings};
use crate::record::{outbox, repair, retention};
use crate::telemetry::COUNTERS;

const RETRY: Duration = Duration::from_secs(1);
/// Interval of looking for what is old, and for what another process has left.
const TIDY: Duration = Duration::from_secs(3600);

/// What the writer hands over.
pub enum Finished {
    Recording(Box<Closing>),
    Flush(SyncSender<()>),
}

/// A recording on its way to its place.
pub struct Closing {
    pub part: Part,
    pub sidecar: Sidecar,
    /// Without ending, below the directory.
    pub path: PathBuf,
}

pub struct Closer {
    root: Root,
    settings: Arc<Settings>,
    health: Arc<Health>,
    load: Arc<Load>,
    /// Told that the outbox has something new.
    finished: Box<dyn Fn() + Send>,
    /// Those that could not be moved yet.
    waiting: Vec<Closing>,
    /// What a crash has left, one after the other: finished calls go first.
    leftovers: VecDeque<String>,
    /// Looks for what is old.
    sweeper: Option<JoinHandle<()>>,
}

impl Closer {
    pub fn new(
        root: Root,
        settings: Arc<Settings>,
        health: Arc<Health>,
        load: Arc<Load>,
        finished: impl Fn() + Send + 'static,
    ) -> Closer {
        let (waiting, leftovers, sweeper) = (Vec::new(), VecDeque::new(), None);
        let finished = Box::new(finished);
        Closer { root, settings, health, load, finished, waiting, leftovers, sweeper }
    }

    pub fn run(mut self, jobs: &Receiver<Finished>) {
        let mut next_tidy = Instant::now();
        let mut next_sync = Instant::now();
        let mut next_retry = Instant::now();
        loop {
            let now = Instant::now();
            if next_tidy <= now {
                self.tidy();
                next_tidy = Instant::now() + TIDY;
            }
            if next_sync <= now {
                self.sync();
                next_sync = Instant::now() + self.sync_every();
            }
            if next_retry <= now {
                self.close_waiting();
                next_retry = Instant::now() + RETRY;
            }
            let next = next_tidy.min(next_sync).min(next_retry);
            let wait = match self.leftovers.is_empty() {
                true => next.saturating_duration_since(Instant::now()),
                false => Duration::ZERO,
            };
            match jobs.recv_timeout(wait) {
                Ok(Finished::Recording(closing)) => self.close(*closing),
                Ok(Finished::Flush(done)) => {
                    self.close_waiting();
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => self.repair_one(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn durable(&self) -> bool {
        !self.settings.fsync.is_zero()
    }

    fn sync_every(&self) -> Duration {
        if self.durable() { self.settings.fsync } else { TIDY }
    }

    /// One call for all recordings: a file at a time would be a journal commit each.
    fn sync(&mut self) {
        if self.durable()
            && self.load.take_unsynced()
            && let Err(error) = self.root.sync()
            && error.kind() != io::ErrorKind::NotFound
        {
            COUNTERS.recording_errors.fetch_add(1, Ordering::Relaxed);
            warn!(%error, "the disk has not kept what was written");
        }
    }

    fn close(&mut self, mut closing: Closing) {
        let (root, wanted, durable) = (&self.root, self.settings.outbox, self.durable());
        let id = closing.sidecar.id.clone();
        let announce = |place: &Path| match wanted {
            true => outbox::put(root, &id, place, durable),
            false => Ok(()),
        };
        let Closing { part, sidecar, path } = &mut closing;
        match part.publish(sidecar, path, durable, announce) {
            Ok(place) => {
                tell(sidecar, &place);
                if wanted {
                    (self.finished)();
                }
            }
            Err(error) => {
                COUNTERS.recording_errors.fetch_add(1, Ordering::Relaxed);
                let first = self.waiting.is_empty();
                if first {
                    error!(
                        recording = closing.sidecar.id, %error,
                        "a recording cannot be moved to its place; tried again every second"
                    );
                }
                let directory = self.root.path().display();
                self.health.closing(Some(format!("{directory}: {error}")));
                self.waiting.push(closing);
            }
        }
    }

    fn close_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        for closing in std::mem::take(&mut self.waiting) {
            self.close(closing);
        }
        if self.waiting.is_empty() {
            self.health.closing(None);
        }
    }

    fn repair_one(&mut self) {
        let Some(id) = self.leftovers.pop_front() else { return };
        let announce = |place: &Path| match self.settings.outbox {
            true => outbox::put(&self.root, &id, place, self.durable()),
            false => Ok(()),
        };
        let layout = &self.settings.layout;
        if repair::repair(&self.root, layout, &id, self.durable(), &announce) {
            COUNTERS.recordings_repaired.fetch_add(1, Ordering::Relaxed);
            (self.finished)();
        }
    }

    fn tidy(&mut self) {
        self.leftovers = repair::leftovers(&self.root).into();
        let limits = retention::Limits { age: self.settings.keep, bytes: self.settings.keep_bytes };
        let busy = self.sweeper.as_ref().is_some_and(|sweeper| !sweeper.is_finished());
        if busy || (limits.age.is_none() && limits.bytes.is_none()) {
            return;
        }
        // a million files take seconds to look at
        let root = self.root.clone();
        let sweep = move || match retention::sweep(&root, limits, SystemTime::now()) {
            Ok(0) => {}
            Ok(deleted) => info!(deleted, "old recordings deleted"),
            Err(error) => warn!(%error, "old recordings cannot be looked for"),
        };
        let sweeper = thread::Builder::new().name("retention".to_owned()).spawn(sweep);
        self.sweeper = sweeper.map_err(|error| warn!(%error, "no thread for retention")).ok();
    }
}

fn tell(sidecar: &Sidecar, place: &Path) {
    COUNTERS.recordings.fetch_add(1, Ordering::Relaxed);
    let lost_ms: u64 = sidecar.gaps.iter().map(|gap| gap.to_ms - gap.from_ms).sum();
    let seconds = sidecar.duration_ms as f64 / 1000.0;
    let (call, state) = (&sidecar.call.id, sidecar.state.label());
    let file = place.display();
    match sidecar.state {
        State::Partial => {
            COUNTERS.recordings_partial.fetch_add(1, Ordering::Relaxed);
            warn!(call, state, %file, seconds, lost_ms, "recording finished");
        }
        _ => info!(call, state, %file, seconds, "recording finished"),
    }
}
