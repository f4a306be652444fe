//! The thread that finishes recordings: hash, sidecar, their place; what the disk is asked to keep;
//! what a crash has left; what is old. Owns files and a thread's loop.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
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
}

impl Closer {
    pub fn new(
        root: Root,
        settings: Arc<Settings>,
        health: Arc<Health>,
        load: Arc<Load>,
        finished: impl Fn() + Send + 'static,
    ) -> Closer {
        Closer { root, settings, health, load, finished: Box::new(finished), waiting: Vec::new() }
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
            match jobs.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Finished::Recording(closing)) => self.close(*closing),
                Ok(Finished::Flush(done)) => {
                    self.close_waiting();
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
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

    fn tidy(&mut self) {
        let announce = |id: &str, place: &Path| match self.settings.outbox {
            true => outbox::put(&self.root, id, place, self.durable()),
            false => Ok(()),
        };
        let layout = &self.settings.layout;
        let repaired = repair::repair(&self.root, layout, self.durable(), &announce);
        COUNTERS.recordings_repaired.fetch_add(repaired, Ordering::Relaxed);
        if repaired > 0 {
            (self.finished)();
        }
        let settings = &self.settings;
        if settings.keep.is_some() || settings.keep_bytes.is_some() {
            let limits = retention::Limits { age: settings.keep, bytes: settings.keep_bytes };
            match retention::sweep(&self.root, limits, SystemTime::now()) {
                Ok(0) => {}
                Ok(deleted) => info!(deleted, "old recordings deleted"),
                Err(error) => warn!(%error, "old recordings cannot be looked for"),
            }
        }
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
