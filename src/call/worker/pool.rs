//! The worker threads, one per core. A new call goes to the one with the fewest calls. Owns
//! threads.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use tracing::error;

use crate::call::worker::event_loop::{Live, Worker};
use crate::call::worker::inbox::{Counted, Inbox, InboxMessage};

/// Maximum number of workers. Any more would be idle, as each one handles many hundreds of calls.
const MAX_WORKERS: usize = 8;
/// Pause after a panic, so that a worker that panics repeatedly does not use a whole CPU.
const PAUSE: Duration = Duration::from_millis(1);

/// The worker threads. Dropping this ends them, and any calls that they still have.
pub struct Workers(Vec<(Arc<Inbox>, Option<thread::JoinHandle<()>>)>);

impl Workers {
    /// Starts one worker per core.
    ///
    /// # Errors
    /// Returns the kernel's error when threads or descriptors run out.
    pub fn start() -> io::Result<Workers> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut workers = Workers(Vec::new());
        for n in 0..cores.min(MAX_WORKERS) {
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let messages = Mutex::default();
            let inbox = Arc::new(Inbox { messages, bell, calls: AtomicUsize::new(0) });
            let worker = Worker::new(inbox.clone())?;
            let thread = thread::Builder::new().name(format!("calls-{n}"));
            workers.0.push((inbox, Some(thread.spawn(move || run(worker))?)));
        }
        Ok(workers)
    }

    /// Hands a call to the worker with the fewest calls.
    pub(in crate::call) fn take(&self, mut call: Live) {
        let idlest = self.0.iter().min_by_key(|(inbox, _)| inbox.calls.load(Ordering::Relaxed));
        if let Some((inbox, _)) = idlest {
            call.counted = Some(Counted::new(inbox));
            inbox.push(InboxMessage::Call(Box::new(call)));
        }
    }
}

/// Runs a worker until it has to end. A panic ends at most the call in which it occurred.
fn run(mut worker: Worker) {
    let mut go = || {
        // no effect before the first panic
        worker.recover();
        worker.run();
    };
    while catch_unwind(AssertUnwindSafe(&mut go)).is_err() {
        error!("internal error: a worker thread panicked; its other calls continue");
        thread::sleep(PAUSE);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (inbox, _) in &self.0 {
            inbox.push(InboxMessage::Stop);
        }
        for (_, thread) in &mut self.0 {
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}
