//! The thread that finishes recordings: computes the hash, writes the sidecar and moves both files
//! to their place. It also syncs the disk, repairs what a crash left behind, and has old recordings
//! deleted. Owns files and a thread's loop.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info, warn};

use crate::folder::Root;
use crate::record::disk::Part;
use crate::record::fault_point::fault_point;
use crate::record::health::{Alive, Health, Reminder, guarded};
use crate::record::queue::Load;
use crate::record::settings::CurrentSettings;
use crate::record::sidecar::{Sidecar, State};
use crate::record::{counters, outbox, repair, retention};

/// First wait before moving a recording is tried again; doubled each time, up to the last.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(8);
/// Interval of looking for old recordings, and for those that another process left unfinished.
const TIDY: Duration = Duration::from_secs(3600);
/// Time from the start to the first look for old recordings: until then, the clock may be set.
const SETTLE: Duration = Duration::from_secs(600);
/// A clock that has not been set for this long is believed, even if all recordings seem old by it.
const SETTLED: Duration = Duration::from_secs(86_400);
/// Time to the next look once more than `MAX_WAITING` recordings could not be moved.
const TIDY_SOON: Duration = Duration::from_secs(60);
/// Recordings that may wait to be moved, with their files open.
const MAX_WAITING: usize = 100;
/// After the clock was changed by more than this, it is not used to judge the age of recordings.
const CLOCK_STEP: Duration = Duration::from_secs(86_400);

/// A message from the writer.
pub enum Finished {
    Recording(Box<Closing>),
    /// The id of a recording that the writer gave up. What is on disk is finished by the repair.
    GivenUp(String),
    /// Answered once everything sent before has been moved to its place, or has failed.
    Flush(SyncSender<()>),
}

/// A recording that is fully written, and is to be moved to its place.
pub struct Closing {
    pub part: Part,
    pub sidecar: Sidecar,
    /// Final path below the directory, without extension.
    pub path: PathBuf,
}

/// State of the thread.
pub struct Closer {
    root: Root,
    settings: CurrentSettings,
    health: Arc<Health>,
    load: Arc<Load>,
    /// Called when the outbox has a new entry.
    finished: Box<dyn Fn() + Send>,
    /// Recordings that could not be moved yet.
    waiting: Vec<Closing>,
    /// Ids of recordings left by a crash. They are repaired one by one while no finished recording
    /// is queued.
    leftovers: VecDeque<String>,
    /// The thread that deletes old recordings, if it was started.
    sweeper: Option<JoinHandle<()>>,
    next_tidy: Instant,
    /// Current wait between two attempts to move the recordings in `waiting`.
    retry: Duration,
    move_reminder: Reminder,
    sync_reminder: Reminder,
    /// Both clocks when `tidy` last ran; `None` before the first time.
    last_tidy: Option<(Instant, SystemTime)>,
    /// Both clocks at the start, or when the system clock was last found to have been set.
    clock_since: (Instant, SystemTime),
}

impl Closer {
    pub fn new(
        root: Root,
        settings: CurrentSettings,
        health: Arc<Health>,
        load: Arc<Load>,
        finished: impl Fn() + Send + 'static,
    ) -> Closer {
        let (waiting, leftovers, sweeper) = (Vec::new(), VecDeque::new(), None);
        let finished = Box::new(finished);
        let (next_tidy, clock_since) = (Instant::now(), (Instant::now(), SystemTime::now()));
        let (move_reminder, sync_reminder) = (Reminder::default(), Reminder::default());
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
            move_reminder,
            sync_reminder,
            last_tidy: None,
            clock_since,
        }
    }

    pub fn run(mut self, jobs: &Receiver<Finished>) {
        let _alive = Alive(self.health.clone());
        while guarded(|| self.serve(jobs)).is_none() {
            error!("internal error: a recording thread panicked; it continues");
            thread::sleep(RETRY);
        }
    }

    /// Returns when the writer has ended.
    fn serve(&mut self, jobs: &Receiver<Finished>) {
        let mut next_sync = Instant::now();
        let mut next_retry = Instant::now();
        loop {
            let now = Instant::now();
            if self.next_tidy <= now {
                self.next_tidy = now + if self.last_tidy.is_none() { SETTLE } else { TIDY };
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
                Ok(Finished::GivenUp(id)) => self.leftovers.push_back(id),
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
        !self.settings.get().fsync.is_zero()
    }

    fn sync_every(&self) -> Duration {
        if self.durable() { self.settings.get().fsync } else { TIDY }
    }

    /// Syncs the whole filesystem at once: syncing each file would cost a journal commit per file.
    fn sync(&mut self) {
        if self.durable()
            && self.load.take_unsynced()
            && let Err(error) = self.root.sync()
            && error.kind() != io::ErrorKind::NotFound
        {
            counters::WRITE_ERRORS.add(1);
            self.load.wrote(); // so that the next sync tries again
            if self.sync_reminder.is_due() {
                error!(%error, "recordings not synced to disk; retrying");
            }
        }
    }

    /// Moves a recording to its place. One that panics here is left to the repair.
    fn close(&mut self, closing: Closing) {
        let id = closing.sidecar.id.clone();
        if guarded(|| self.publish(closing)).is_none() {
            error!(recording = id, "internal error: recording given up after a panic");
            counters::FAILED.add(1);
            self.health.over(&id);
            self.leftovers.push_back(id);
        }
    }

    fn publish(&mut self, mut closing: Closing) {
        fault_point("close", &closing.sidecar.call);
        let (root, wanted, durable) = (&self.root, self.settings.get().outbox, self.durable());
        let id = closing.sidecar.id.clone();
        let announce = |place: &Path| match wanted {
            true => outbox::put(root, &id, place, durable),
            false => Ok(()),
        };
        let Closing { part, sidecar, path } = &mut closing;
        match part.publish(sidecar, path, durable, announce) {
            Ok(place) => {
                self.health.over(&id);
                log_finished(sidecar, &place);
                if wanted {
                    (self.finished)();
                }
            }
            Err(error) => {
                counters::WRITE_ERRORS.add(1);
                if self.move_reminder.is_due() {
                    error!(
                        recording = id, %error, waiting = self.waiting.len() + 1,
                        "recording not moved to its place; retrying"
                    );
                }
                self.health.closing(Some(error.to_string()));
                if self.waiting.len() < MAX_WAITING {
                    self.waiting.push(closing);
                } else {
                    // the next look finds it on disk and repairs it
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
                (self.retry, self.move_reminder) = (RETRY, Reminder::default());
            }
            false => self.retry = (self.retry * 2).min(MAX_RETRY),
        }
    }

    fn repair_one(&mut self) {
        let Some(id) = self.leftovers.pop_front().filter(|id| !self.health.is_live(id)) else {
            return;
        };
        let settings = self.settings.get();
        let announce = |place: &Path| match settings.outbox {
            true => outbox::put(&self.root, &id, place, self.durable()),
            false => Ok(()),
        };
        if repair::repair(&self.root, &settings.layout, &id, self.durable(), &announce) {
            counters::REPAIRED.add(1);
            (self.finished)();
        }
    }

    fn tidy(&mut self) {
        repair::clear(&self.root);
        self.leftovers = repair::leftovers(&self.root).into();
        let settings = self.settings.get();
        let limits = retention::Limits { age: settings.keep, bytes: settings.keep_bytes };
        // by a wrong clock, all recordings might seem old
        let (now, wall) = (Instant::now(), SystemTime::now());
        // at the start, the clock may not have been set yet
        let Some((before, wall_before)) = self.last_tidy.replace((now, wall)) else { return };
        let expected = wall_before + (now - before);
        let apart = wall.duration_since(expected).unwrap_or_else(|error| error.duration());
        if apart > CLOCK_STEP {
            self.clock_since = (now, wall);
            warn!("system clock changed: no recordings are deleted until the next hourly check");
            return;
        }
        let busy = self.sweeper.as_ref().is_some_and(|sweeper| !sweeper.is_finished());
        if busy || (limits.age.is_none() && limits.bytes.is_none()) {
            return;
        }
        // in its own thread, because scanning a million files takes seconds
        let root = self.root.clone();
        let (since, since_wall) = self.clock_since;
        let settled = now - since > SETTLED;
        let clock = retention::Clock { now: wall, since: since_wall, settled };
        let sweep = move || log_swept(retention::sweep(&root, limits, clock));
        let sweeper = thread::Builder::new().name("retention".to_owned()).spawn(sweep);
        self.sweeper = sweeper.map_err(|error| warn!(%error, "retention thread not started")).ok();
    }
}

fn log_swept(result: io::Result<retention::Swept>) {
    match result {
        Ok(swept) => {
            if swept.deleted > 0 {
                info!(deleted = swept.deleted, "old recordings deleted");
            }
            if let Some(age) = swept.doubted {
                let newest_days = age.as_secs() / 86_400;
                warn!(
                    newest_days,
                    "recordings not deleted by age: by the system clock, even the newest is old; \
                     the clock is believed once it has run for a day"
                );
            }
        }
        Err(error) => warn!(%error, "old recordings not deleted: cannot read the directory"),
    }
}

fn log_finished(sidecar: &Sidecar, place: &Path) {
    counters::FINISHED.add(1);
    let lost_ms: u64 = sidecar.gaps.iter().map(|gap| gap.to_ms - gap.from_ms).sum();
    let seconds = sidecar.duration_ms as f64 / 1000.0;
    let (call, state) = (&sidecar.call.id, sidecar.state.label());
    let file = place.display();
    match sidecar.state {
        State::Partial => {
            counters::PARTIAL.add(1);
            warn!(call, state, %file, seconds, lost_ms, "recording finished");
        }
        _ => info!(call, state, %file, seconds, "recording finished"),
    }
}
