//! The thread that writes recordings while their calls are up. Owns files and a thread.
//!
//! A disk that is slow, full, read-only or gone never affects a call. Blocks that cannot be written
//! wait here and are tried again every second. Once the queue is full of them, calls drop new
//! blocks, and the files have silence of the same length there.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::folder::Root;
use crate::record::closer::{Closing, Finished};
use crate::record::counters;
use crate::record::disk::Part;
use crate::record::fault_point::fault_point;
use crate::record::health::{Alive, Health, Reminder, guarded};
use crate::record::layout::INCOMPLETE;
use crate::record::queue::{Begin, Block, End, Job, Load};
use crate::record::settings::CurrentSettings;
use crate::record::sidecar::{Interval, Sidecar, State};
use crate::record::wav::Encoding;

/// Wait after the first block, so that those that follow soon are written in one go.
const GATHER: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_secs(1);
/// How long a queue that overflowed counts as trouble.
const OVERFLOW_TROUBLE: Duration = Duration::from_secs(5);
/// Interval of checking the disk while it works.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// Blocks of one recording that may wait: 30 s, so that one bad file leaves room for the others.
const MAX_WAITING: usize = 150;
/// Give up a recording that could not be written for this long and whose call is over.
const GIVE_UP: Duration = Duration::from_secs(600);
/// With more of them than this, the oldest are given up earlier.
const MAX_ENDED: usize = 1000;
const FRAME_SAMPLES: u64 = crate::media::frame::FRAME_SAMPLES as u64;

/// A recording whose call is up, or whose last blocks are waiting for the disk.
struct Open {
    begin: Box<Begin>,
    encoding: Encoding,
    /// The files, once they could be created.
    part: Option<Part>,
    /// Blocks not written yet.
    waiting: VecDeque<Block>,
    /// Set once the call has sent the recording's end.
    end: Option<Box<End>>,
    /// Audio dropped because too many blocks were waiting.
    gaps: Vec<Interval>,
    /// After a failure: time of the next attempt.
    retry_at: Option<Instant>,
    /// Time of the first failure since the last success.
    failing_since: Option<Instant>,
    /// Failed attempts so far.
    errors: u64,
}

impl Open {
    /// Adds a block, or a gap if too many blocks are waiting.
    fn push(&mut self, block: Block, load: &Load) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(block);
            return self.note_unwritten();
        }
        load.done();
        counters::LOST_MS.add(block.frames * 20);
        let (from_ms, to_ms) = (block.first * 20, (block.first + block.frames) * 20);
        match self.gaps.last_mut().filter(|gap| gap.to_ms == from_ms) {
            Some(gap) => gap.to_ms = to_ms,
            None => self.gaps.push(Interval { from_ms, to_ms }),
        }
        self.note_unwritten();
    }

    /// Milliseconds of audio in the blocks not written yet.
    fn waiting_ms(&self) -> u64 {
        self.waiting.iter().map(|block| block.frames * 20).sum()
    }

    /// Updates the call's figure of audio that is missing from the file.
    fn note_unwritten(&self) {
        let dropped: u64 = self.gaps.iter().map(|gap| gap.to_ms - gap.from_ms).sum();
        let waiting = if self.failing_since.is_some() { self.waiting_ms() } else { 0 };
        self.begin.unwritten_ms.store(dropped + waiting, Ordering::Relaxed);
    }

    /// Returns the sidecar, once all blocks have been written.
    fn finished(&mut self, end: End) -> Sidecar {
        let mut sidecar = end.sidecar;
        sidecar.write_errors = self.errors;
        sidecar.gaps.append(&mut self.gaps);
        sidecar.gaps.sort_by_key(|gap| gap.from_ms);
        if !sidecar.gaps.is_empty() {
            sidecar.state = State::Partial;
        }
        sidecar
    }

    /// Writes the waiting blocks.
    fn write(&mut self, root: &Root, load: &Load) -> io::Result<()> {
        let part = match &mut self.part {
            Some(part) => part,
            none => {
                let sidecar = &self.begin.sidecar;
                none.insert(Part::create(root, &sidecar.id, sidecar.text(), self.encoding)?)
            }
        };
        fault_point("write", &self.begin.sidecar.call);
        while let Some(block) = self.waiting.front() {
            if self.encoding == self.begin.law.into() {
                write_block(part, block, &block.samples)?;
            } else {
                let samples = block.samples.clone();
                write_block(part, block, &self.encoding.from_law(self.begin.law, samples))?;
            }
            self.waiting.pop_front();
            load.done();
        }
        match &self.end {
            Some(end) => part.write(end.frames * FRAME_SAMPLES, &[]),
            None => Ok(()),
        }
    }
}

fn write_block(part: &mut Part, block: &Block, bytes: &[u8]) -> io::Result<()> {
    match bytes {
        [] => part.write((block.first + block.frames) * FRAME_SAMPLES, &[]),
        bytes => part.write(block.first * FRAME_SAMPLES, bytes),
    }
}

/// Trouble with the disk as a whole.
#[derive(Default)]
struct Trouble {
    /// When it began; `None` while the disk works.
    since: Option<Instant>,
    reminder: Reminder,
    /// When the queue last overflowed.
    overflowed: Option<Instant>,
}

/// State of the thread.
pub struct Writer {
    root: Root,
    settings: CurrentSettings,
    health: Arc<Health>,
    load: Arc<Load>,
    /// Unfinished recordings, by key.
    open: HashMap<u64, Open>,
    /// Figures of missing audio of the recordings that were given up while their calls are up.
    given_up: HashMap<u64, Arc<AtomicU64>>,
    /// Channel to the closer.
    closing: Sender<Finished>,
    trouble: Trouble,
    /// Limits the log line about a file that fails while the disk works.
    bad_file: Reminder,
    /// Overflows of the queue seen so far.
    seen_overflows: u64,
    /// Time of the next check while the disk works.
    next_probe: Instant,
    /// Earliest time at which another failed write leads to a check of the disk.
    next_check: Instant,
}

impl Writer {
    pub fn new(
        root: Root,
        settings: CurrentSettings,
        health: Arc<Health>,
        load: Arc<Load>,
        closing: Sender<Finished>,
    ) -> Writer {
        let now = Instant::now();
        Writer {
            root,
            settings,
            health,
            load,
            open: HashMap::new(),
            given_up: HashMap::new(),
            closing,
            trouble: Trouble::default(),
            bad_file: Reminder::default(),
            seen_overflows: 0,
            next_probe: now,
            next_check: now,
        }
    }

    pub fn run(mut self, jobs: &Receiver<Job>) {
        let _alive = Alive(self.health.clone());
        while guarded(|| self.serve(jobs)).is_none() {
            error!("internal error: a recording thread panicked; it continues");
            thread::sleep(TICK);
        }
    }

    /// Returns when all calls and recorders are gone.
    fn serve(&mut self, jobs: &Receiver<Job>) {
        match self.check() {
            Ok(()) => self.health.writing(None),
            Err(error) => self.report(&error),
        }
        let mut next_tick = Instant::now() + TICK;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            match jobs.recv_timeout(wait) {
                Ok(job) => {
                    self.take(job);
                    thread::sleep(GATHER);
                    while let Ok(job) = jobs.try_recv() {
                        self.take(job);
                    }
                    self.write_all(false);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if next_tick <= Instant::now() {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Begin { key, begin } => {
                let open = Open {
                    encoding: begin.encoding,
                    begin,
                    part: None,
                    waiting: VecDeque::new(),
                    end: None,
                    gaps: Vec::new(),
                    retry_at: None,
                    failing_since: None,
                    errors: 0,
                };
                self.open.insert(key, open);
            }
            Job::Block { key, block } => match self.open.get_mut(&key) {
                Some(open) => open.push(block, &self.load),
                None => {
                    counters::LOST_MS.add(block.frames * 20);
                    self.load.done();
                    if let Some(missing) = self.given_up.get(&key) {
                        missing.fetch_add(block.frames * 20, Ordering::Relaxed);
                    }
                }
            },
            Job::End { key, end } => {
                self.given_up.remove(&key);
                if let Some(open) = self.open.get_mut(&key) {
                    open.end = Some(end);
                }
            }
            Job::Flush { done, last } => {
                self.write_all(true);
                if last {
                    self.count_lost();
                }
                let _ = self.closing.send(Finished::Flush(done));
            }
        }
    }

    /// Writes the waiting blocks of all recordings. Those that failed less than a second ago are
    /// left out, unless `everywhere` is true.
    fn write_all(&mut self, everywhere: bool) {
        let now = Instant::now();
        let blocked = self.blocked();
        let mut worst = None;
        let (mut done, mut panicked) = (Vec::new(), Vec::new());
        for (key, open) in &mut self.open {
            let idle = open.waiting.is_empty() && open.end.is_none() && open.part.is_some();
            if idle || (!everywhere && open.retry_at.is_some_and(|at| at > now)) {
                continue;
            }
            let result = match &blocked {
                Some(_) => Err(None),
                None => match guarded(|| open.write(&self.root, &self.load)) {
                    Some(result) => result.map_err(Some),
                    None => {
                        panicked.push(*key);
                        continue;
                    }
                },
            };
            match result {
                Ok(()) => {
                    self.load.wrote();
                    (open.retry_at, open.failing_since) = (None, None);
                    if open.end.is_some() {
                        done.push(*key);
                    }
                }
                Err(error) => {
                    open.errors += 1;
                    open.retry_at = Some(Instant::now() + TICK);
                    open.failing_since.get_or_insert(now);
                    counters::WRITE_ERRORS.add(1);
                    worst = error.map(|error| (open.begin.sidecar.id.clone(), error)).or(worst);
                }
            }
            open.note_unwritten();
        }
        let failing = self.open.values().filter(|open| open.failing_since.is_some());
        counters::UNWRITTEN.set(failing.count() as u64);
        done.into_iter().for_each(|key| self.close(key));
        panicked.into_iter().for_each(|key| self.give_up_faulty(key));
        match (blocked, worst) {
            (Some(why), _) => self.report(&io::Error::new(io::ErrorKind::StorageFull, why)),
            (None, Some((id, error))) => self.failed(&id, &error),
            (None, None) => {}
        }
    }

    fn close(&mut self, key: u64) {
        let Some(mut open) = self.open.remove(&key) else { return };
        if let (Some(part), Some(end)) = (open.part.take(), open.end.take()) {
            let sidecar = open.finished(*end);
            let closing = Closing { part, sidecar, path: open.begin.path };
            let _ = self.closing.send(Finished::Recording(Box::new(closing)));
        }
    }

    /// Gives up a recording that panicked, so that the others are written. The closer finishes the
    /// part of it that is on disk.
    fn give_up_faulty(&mut self, key: u64) {
        let Some(open) = self.open.remove(&key) else { return };
        open.waiting.iter().for_each(|_| self.load.done());
        counters::FAILED.add(1);
        counters::LOST_MS.add(open.waiting_ms());
        let missing = open.begin.unwritten_ms.clone();
        missing.fetch_add(open.waiting_ms(), Ordering::Relaxed);
        if open.end.is_none() {
            self.given_up.insert(key, missing);
        }
        let id = open.begin.sidecar.id.clone();
        drop(open); // unlocks the file
        self.health.over(&id);
        error!(recording = id, "internal error: recording given up after a panic");
        let _ = self.closing.send(Finished::GivenUp(id));
    }

    fn tick(&mut self) {
        self.write_all(false);
        self.give_up();
        let overflows = self.load.overflows();
        if overflows > std::mem::replace(&mut self.seen_overflows, overflows) {
            self.trouble.overflowed = Some(Instant::now());
        }
        let overflowed = self.trouble.overflowed.is_some_and(|at| at.elapsed() < OVERFLOW_TROUBLE);
        match self.trouble.since {
            None if overflowed => self.report(&io::Error::other("the disk is too slow")),
            // otherwise checks the disk now and then, so that trouble shows before the next call
            None if self.next_probe > Instant::now() => {}
            Some(_) if overflowed => {}
            _ => {
                self.next_probe = Instant::now() + PROBE_EVERY;
                match self.check() {
                    Ok(()) => self.recovered(),
                    Err(error) => self.report(&error),
                }
            }
        }
    }

    /// Gives up ended recordings that could not be written for too long, or of which there are too
    /// many. The repair later finishes what is on disk.
    fn give_up(&mut self) {
        let ended = |open: &Open| open.end.as_ref().and(open.failing_since);
        let mut all: Vec<(Instant, u64)> =
            self.open.iter().filter_map(|(key, open)| Some((ended(open)?, *key))).collect();
        all.sort_unstable();
        let too_many = all.len().saturating_sub(MAX_ENDED);
        let old = all.iter().take_while(|(since, _)| since.elapsed() > GIVE_UP).count();
        for (_, key) in &all[..too_many.max(old)] {
            let Some(open) = self.open.remove(key) else { continue };
            open.waiting.iter().for_each(|_| self.load.done());
            counters::FAILED.add(1);
            counters::LOST_MS.add(open.waiting_ms());
            let id = &open.begin.sidecar.id;
            self.health.over(id);
            error!(recording = id, "recording given up: its last audio could not be written");
        }
    }

    /// Counts what could not be written by the program's end. Files that exist are repaired at the
    /// next start, with the audio that they have; a recording without a file is lost.
    fn count_lost(&mut self) {
        let (mut recordings, mut lost_ms) = (0, 0);
        for open in self.open.values_mut() {
            lost_ms += open.waiting_ms();
            recordings += u64::from(open.part.is_none());
            open.waiting.drain(..).for_each(|_| self.load.done());
        }
        counters::LOST_MS.add(lost_ms);
        counters::FAILED.add(recordings);
        if lost_ms > 0 || recordings > 0 {
            error!(
                recordings,
                lost_ms, "recordings lost: they could not be written before the exit"
            );
        }
    }

    /// Checks that audio can be written.
    fn check(&self) -> io::Result<()> {
        self.root.probe(Path::new(INCOMPLETE))?;
        match self.blocked() {
            Some(why) => Err(io::Error::new(io::ErrorKind::StorageFull, why)),
            None => Ok(()),
        }
    }

    /// Returns why nothing may be written: the last of the disk is left to other programs.
    fn blocked(&self) -> Option<String> {
        let floor = self.settings.get().keep_free_percent;
        let (free, size) = self.root.space()?;
        counters::DISK_FREE.set(free);
        counters::DISK_SIZE.set(size);
        let free = self.root.free_percent().filter(|free| *free < floor)?;
        Some(format!("only {free:.1} % of the disk is free, and keep_free_percent is {floor}"))
    }

    /// Finds out whether a failed write is due to the file or to the whole disk.
    fn failed(&mut self, id: &str, error: &io::Error) {
        if self.trouble.since.is_some() || self.next_check > Instant::now() {
            return;
        }
        self.next_check = Instant::now() + TICK;
        match self.check() {
            Err(error) => self.report(&error),
            Ok(()) if self.bad_file.is_due() => {
                error!(recording = id, %error, "recording cannot be written, but the disk works");
            }
            Ok(()) => {}
        }
    }

    /// Logs trouble with the disk, at most once a minute, and reports it to `health`.
    fn report(&mut self, error: &io::Error) {
        let (directory, why) = (self.root.path().display().to_string(), error.to_string());
        if self.trouble.reminder.is_due() {
            let effect = match self.settings.get().require {
                true => "new calls are refused ([recording] require)",
                false => "calls continue",
            };
            let lost_ms = counters::LOST_MS.get();
            error!(
                directory,
                why, lost_ms, "recordings cannot be written; {effect}; retrying every second"
            );
        }
        self.trouble.since.get_or_insert_with(Instant::now);
        self.health.writing(Some(format!("{directory}: {why}")));
    }

    /// Reports the end of the trouble, if there was any.
    fn recovered(&mut self) {
        if let Some(since) = self.trouble.since {
            info!(trouble_s = since.elapsed().as_secs(), "recordings can be written again");
            self.trouble = Trouble::default();
        }
        self.health.writing(None);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let left = self.open.len();
        if left > 0 {
            warn!(left, "recordings not finished; they are repaired at the next start");
        }
    }
}
