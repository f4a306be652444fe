//! Measures the time that the host takes away: when a thread that sleeps briefly over and over
//! sleeps for too long, when a thread of bridge or PBX could run but has to wait for a CPU, and the
//! CPU time that the hypervisor stole. Owns its thread, and reads files below /proc.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An interval in which the host ran neither the tests nor, presumably, the bridge.
pub type Stall = Range<Instant>;

/// The part of the stalls that lies between two times.
pub fn overlap(stalls: &[Stall], from: Instant, to: Instant) -> Duration {
    let part = |s: &Stall| s.end.min(to).saturating_duration_since(s.start.max(from));
    stalls.iter().map(part).sum()
}

const STEP: Duration = Duration::from_millis(1);
/// A longer step is a stall. The kernel's timers and a busy CPU explain less than this.
const LATE: Duration = Duration::from_millis(2);
/// How often stolen time is read; the kernel counts it in units of 10 ms.
const STEAL_EVERY: Duration = Duration::from_millis(20);

/// Shorter waits for a CPU are not noted.
const WAIT: Duration = Duration::from_micros(500);
/// How often the waits of a PBX are read. It has a thread per call leg.
const PBX_EVERY: Duration = Duration::from_millis(5);
/// How often the PBX's threads are listed.
const PBX_THREADS_EVERY: Duration = Duration::from_millis(100);

/// Threads, by their files of scheduling statistics, and how long each has waited so far.
type Threads = HashMap<PathBuf, (File, Duration)>;

/// A running measurement; dropping it ends the thread.
pub struct Canary {
    stalls: Arc<Mutex<Vec<Stall>>>,
    bridge: Arc<Mutex<Threads>>,
    pbx: Arc<Mutex<Option<u32>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Canary {
    pub fn start() -> Canary {
        let stalls = Arc::<Mutex<Vec<Stall>>>::default();
        let bridge = Arc::<Mutex<Threads>>::default();
        let pbx = Arc::<Mutex<Option<u32>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let watch = Watch { stalls: stalls.clone(), bridge: bridge.clone(), pbx: pbx.clone() };
        let ended = stop.clone();
        let thread = std::thread::spawn(move || watch.run(&ended));
        Canary { stalls, bridge, pbx, stop, thread: Some(thread) }
    }

    /// Watches the threads that the bridge has now.
    pub fn watch_bridge(&self, id: u32) {
        list(&mut self.bridge.lock().expect("no panic elsewhere"), id);
    }

    /// Watches all threads of the PBX, including later ones.
    pub fn watch_pbx(&self, id: u32) {
        *self.pbx.lock().expect("no panic elsewhere") = Some(id);
    }

    /// The stalls so far, in order and without overlaps.
    pub fn stalls(&self) -> Vec<Stall> {
        merged(self.stalls.lock().expect("no panic elsewhere").clone())
    }

    /// Watches the runtime of one of the rig's threads too: while it is held up, arrivals are
    /// stamped too late.
    pub fn watch_this_runtime(&self) {
        let stalls = self.stalls.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(STEP);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let begin = Instant::now();
                ticks.tick().await;
                note(&stalls, begin + STEP);
            }
        });
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn note(stalls: &Mutex<Vec<Stall>>, due: Instant) {
    let now = Instant::now();
    if now.saturating_duration_since(due) > LATE {
        stalls.lock().expect("no panic elsewhere").push(due..now);
    }
}

/// The work of the thread.
struct Watch {
    stalls: Arc<Mutex<Vec<Stall>>>,
    bridge: Arc<Mutex<Threads>>,
    pbx: Arc<Mutex<Option<u32>>>,
}

impl Watch {
    fn run(&self, stop: &AtomicBool) {
        let (mut read, mut stolen) = (Instant::now(), steal());
        let (mut threads, mut listed, mut looked) = (Threads::new(), read, read);
        while !stop.load(Ordering::Relaxed) {
            let due = Instant::now() + STEP;
            std::thread::park_timeout(STEP);
            note(&self.stalls, due);
            self.note_waits(&mut self.bridge.lock().expect("no panic elsewhere"), due - STEP);
            let pbx = *self.pbx.lock().expect("no panic elsewhere");
            if let Some(id) = pbx.filter(|_| looked.elapsed() > PBX_EVERY) {
                self.note_waits(&mut threads, looked);
                looked = Instant::now();
                if listed.elapsed() > PBX_THREADS_EVERY {
                    listed = looked;
                    list(&mut threads, id);
                }
            }
            if read.elapsed() > STEAL_EVERY {
                let (now, before) = (steal(), read);
                read = Instant::now();
                if now > stolen {
                    self.push(before..read);
                }
                stolen = now;
            }
        }
    }

    fn push(&self, stall: Stall) {
        self.stalls.lock().expect("no panic elsewhere").push(stall);
    }

    /// Notes how long threads waited for a CPU. The kernel adds a wait when it ends, which was at
    /// some time since `before`.
    fn note_waits(&self, threads: &mut Threads, before: Instant) {
        for (file, last) in threads.values_mut() {
            let (now, begin) = (waited(file), *last);
            *last = now;
            let waited = now.saturating_sub(begin);
            if waited > WAIT {
                self.push(before - waited..Instant::now());
            }
        }
    }
}

/// Adds the threads that a process has now, and removes those that it had.
fn list(threads: &mut Threads, process: u32) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return };
    let now: Vec<PathBuf> = tasks.flatten().map(|task| task.path().join("schedstat")).collect();
    threads.retain(|path, _| now.contains(path));
    for path in now {
        if !threads.contains_key(&path)
            && let Ok(file) = File::open(&path)
        {
            let begin = waited(&file);
            threads.insert(path, (file, begin));
        }
    }
}

/// The time for which a thread could have run but had no CPU: the second number in schedstat, in
/// nanoseconds. Zero once the thread has ended.
fn waited(file: &File) -> Duration {
    let mut buffer = [0u8; 80];
    let n = file.read_at(&mut buffer, 0).unwrap_or(0);
    let text = std::str::from_utf8(&buffer[..n]).unwrap_or_default();
    let second = text.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    Duration::from_nanos(second.unwrap_or(0))
}

/// The CPU time stolen by the hypervisor so far, in ticks.
fn steal() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    first.split_whitespace().nth(8).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn merged(mut stalls: Vec<Stall>) -> Vec<Stall> {
    stalls.sort_by_key(|s| s.start);
    let mut out: Vec<Stall> = Vec::new();
    for stall in stalls {
        match out.last_mut() {
            Some(last) if stall.start <= last.end => last.end = last.end.max(stall.end),
            _ => out.push(stall),
        }
    }
    out
}
