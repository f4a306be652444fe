//! The worker threads, one per core. A new call goes to the one with the fewest calls. Owns
//! threads.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use tracing::error;

use crate::call::worker::event_loop::{Live, Worker};
use crate::call::worker::inbox::{Inbox, InboxMessage};

/// Maximum number of workers. Any more would be idle, as each one handles many hundreds of calls.
const MAX_WORKERS: usize = 8;
/// Call count of a worker that has panicked. New calls avoid it, and adding one cannot overflow.
const DEAD: usize = usize::MAX / 2;

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
            let messages = Mutex::new(Some(Vec::new()));
            let inbox = Arc::new(Inbox { messages, bell, calls: AtomicUsize::new(0) });
            let worker = Worker::new(inbox.clone())?;
            let thread = thread::Builder::new().name(format!("calls-{n}"));
            let its_inbox = inbox.clone();
            let thread = thread.spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
                    error!("internal error: a worker thread panicked; its calls have ended");
                    its_inbox.calls.store(DEAD, Ordering::Relaxed);
                    let left = its_inbox.lock().take();
                    drop(left);
                }
            })?;
            workers.0.push((inbox, Some(thread)));
        }
        Ok(workers)
    }

    /// Hands a call to the worker with the fewest calls.
    pub(in crate::call) fn take(&self, call: Live) {
        let idlest = self.0.iter().min_by_key(|(inbox, _)| inbox.calls.load(Ordering::Relaxed));
        let idlest = idlest.filter(|(inbox, _)| inbox.calls.load(Ordering::Relaxed) < DEAD);
        if let Some((inbox, _)) = idlest {
            inbox.calls.fetch_add(1, Ordering::Relaxed);
            inbox.push(InboxMessage::Call(Box::new(call)));
        }
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
