//! Measures the time that the host takes away: when a thread that sleeps briefly over and over
//! sleeps for too long, when a thread of the bridge could run but has to wait for a CPU, and the
//! CPU time that the hypervisor stole. Owns its thread, and reads files below /proc.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::judge::Stall;

const STEP: Duration = Duration::from_millis(1);
/// A longer step is a stall. The kernel's timers and a busy CPU explain less than this.
const LATE: Duration = Duration::from_millis(2);
/// How often stolen time is read; the kernel counts it in units of 10 ms.
const STEAL_EVERY: Duration = Duration::from_millis(20);

/// Shorter waits of the bridge for a CPU are not noted.
const WAIT: Duration = Duration::from_micros(500);

/// A thread of the bridge: its file of scheduling statistics, and how long it has waited so far.
type Watched = (File, Duration);

/// A running measurement; dropping it ends the thread.
pub struct Canary {
    stalls: Arc<Mutex<Vec<Stall>>>,
    bridge: Arc<Mutex<Vec<Watched>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Canary {
    pub fn start() -> Canary {
        let stalls = Arc::<Mutex<Vec<Stall>>>::default();
        let bridge = Arc::<Mutex<Vec<Watched>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let watch = Watch { stalls: stalls.clone(), bridge: bridge.clone() };
        let ended = stop.clone();
        let thread = std::thread::spawn(move || watch.run(&ended));
        Canary { stalls, bridge, stop, thread: Some(thread) }
    }

    /// Watches the threads that a process has now.
    pub fn watch_process(&self, id: u32) {
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).expect("the process runs");
        let files = tasks.flatten().filter_map(|t| File::open(t.path().join("schedstat")).ok());
        let files = files.map(|file| (waited(&file), file));
        let watched = files.map(|(waited, file)| (file, waited)).collect();
        *self.bridge.lock().expect("no panic elsewhere") = watched;
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
    bridge: Arc<Mutex<Vec<Watched>>>,
}

impl Watch {
    fn run(&self, stop: &AtomicBool) {
        let (mut read, mut stolen) = (Instant::now(), steal());
        while !stop.load(Ordering::Relaxed) {
            let due = Instant::now() + STEP;
            std::thread::park_timeout(STEP);
            note(&self.stalls, due);
            self.note_waits(due - STEP);
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

    /// Notes how long the bridge's threads waited for a CPU. The kernel adds a wait when it ends,
    /// which was at some time since `before`.
    fn note_waits(&self, before: Instant) {
        for (file, last) in self.bridge.lock().expect("no panic elsewhere").iter_mut() {
            let (now, begin) = (waited(file), *last);
            *last = now;
            let waited = now.saturating_sub(begin);
            if waited > WAIT {
                self.push(before - waited..Instant::now());
            }
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
