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
use crate::record::health::{Alive, Health, Reminder};
use crate::record::queue::Load;
use crate::record::recorder::Settings;
use crate::record::sidecar::{Sidecar, State};
use crate::record::{outbox, repair, retention};
use crate::telemetry::COUNTERS;

const RETRY: Duration = Duration::from_secs(1);
/// Between two tries at most.
const MAX_RETRY: Duration = Duration::from_secs(8);
/// Interval of looking for what is old, and for what another process has left.
const TIDY: Duration = Duration::from_secs(3600);
/// The same, when there are more that cannot be moved than may hold their files open.
const TIDY_SOON: Duration = Duration::from_secs(60);
const MAX_WAITING: usize = 100;
/// A clock that has been set by more is not asked how old things are.
const CLOCK_STEP: Duration = Duration::from_secs(86_400);

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
    next_tidy: Instant,
    retry: Duration,
    told: Reminder,
    told_sync: Reminder,
    /// Both clocks at the last look.
    looked: (Instant, SystemTime),
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
        let (next_tidy, looked) = (Instant::now(), (Instant::now(), SystemTime::now()));
        let (told, told_sync) = (Reminder::default(), Reminder::default());
        Closer {
            root,
            settings,
            health,
            load,
            finished,
            waiting,
            leftovers,
            sweeper,
            next_tidy,
            retry: RETRY,
            told,
            told_sync,
            looked,
        }
    }

    pub fn run(mut self, jobs: &Receiver<Finished>) {
        let _alive = Alive(self.health.clone());
        let mut next_sync = Instant::now();
        let mut next_retry = Instant::now();
        loop {
            let now = Instant::now();
            if self.next_tidy <= now {
                self.next_tidy = now + TIDY;
                self.tidy();
            }
            if next_sync <= now {
                self.sync();
                next_sync = Instant::now() + self.sync_every();
            }
            if next_retry <= now {
                self.close_waiting();
                next_retry = Instant::now() + self.retry;
            }
            let next = self.next_tidy.min(next_sync).min(next_retry);
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
            self.load.wrote(); // it is asked for again
            if self.told_sync.is_due() {
                error!(%error, "the disk has not kept what was written");
            }
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
                self.health.over(&id);
                tell(sidecar, &place);
                if wanted {
                    (self.finished)();
                }
            }
            Err(error) => {
                COUNTERS.recording_errors.fetch_add(1, Ordering::Relaxed);
                if self.told.is_due() {
                    error!(
                        recording = id, %error, waiting = self.waiting.len() + 1,
                        "a recording cannot be moved to its place yet; tried again"
                    );
                }
                self.health.closing(Some(error.to_string()));
                if self.waiting.len() < MAX_WAITING {
                    self.waiting.push(closing);
                } else {
                    // it is on the disk, and found there again
                    self.health.over(&id);
                    self.next_tidy = self.next_tidy.min(Instant::now() + TIDY_SOON);
                }
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
        match self.waiting.is_empty() {
            true => {
                self.health.closing(None);
                (self.retry, self.told) = (RETRY, Reminder::default());
            }
            false => self.retry = (self.retry * 2).min(MAX_RETRY),
        }
    }

    fn repair_one(&mut self) {
        let Some(id) = self.leftovers.pop_front().filter(|id| !self.health.is_live(id)) else {
            return;
        };
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
        repair::clear(&self.root);
        self.leftovers = repair::leftovers(&self.root).into();
        let limits = retention::Limits { age: self.settings.keep, bytes: self.settings.keep_bytes };
        // a wrong clock would make everything old
        let (now, wall) = (Instant::now(), SystemTime::now());
        let (before, wall_before) = std::mem::replace(&mut self.looked, (now, wall));
        let expected = wall_before + (now - before);
        let apart = wall.duration_since(expected).unwrap_or_else(|error| error.duration());
        if apart > CLOCK_STEP {
            warn!("the clock has been set: old recordings are looked for in an hour");
            return;
        }
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
