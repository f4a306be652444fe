//! The threads that calls run on, and what other threads tell them. Owns threads.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use tracing::error;

use crate::call::token::Token;
use crate::call::worker::{Live, Worker};

/// More workers than this have nothing to do: one takes many hundred calls.
const MAX_WORKERS: usize = 8;
/// The calls of a dead worker: so many that it is never the idlest, and one more does not overflow.
const DEAD: usize = usize::MAX / 2;

pub(super) enum News {
    Call(Box<Live>),
    Woken(Token),
    Stop,
}

/// What other threads tell a worker.
pub(super) struct Inbox {
    /// `None`: the worker is dead.
    pub news: Mutex<Option<Vec<News>>>,
    pub bell: OwnedFd,
    pub calls: AtomicUsize,
}

impl Inbox {
    /// A panic elsewhere does not make the list wrong.
    pub fn lock(&self) -> MutexGuard<'_, Option<Vec<News>>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, news: News) {
        let mut all = self.lock();
        // a call that a dead worker is given ends by being dropped
        let Some(all) = &mut *all else { return };
        all.push(news);
        if all.len() == 1 {
            // it cannot overflow: it is read before there is a second one
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }
}

pub(super) struct CallWaker {
    pub inbox: Arc<Inbox>,
    pub token: Token,
}

impl Wake for CallWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.inbox.tell(News::Woken(self.token));
    }
}

/// The threads; dropping it ends them and what they still have.
pub struct Workers(Vec<(Arc<Inbox>, Option<thread::JoinHandle<()>>)>);

impl Workers {
    /// One a core.
    ///
    /// # Errors
    /// When threads or descriptors are used up.
    pub fn start() -> io::Result<Workers> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut workers = Workers(Vec::new());
        for n in 0..cores.min(MAX_WORKERS) {
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let news = Mutex::new(Some(Vec::new()));
            let inbox = Arc::new(Inbox { news, bell, calls: AtomicUsize::new(0) });
            let worker = Worker::new(inbox.clone())?;
            let thread = thread::Builder::new().name(format!("calls-{n}"));
            let of_thread = inbox.clone();
            let thread = thread.spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
                    error!("a fault of ours has ended a worker and its calls");
                    of_thread.calls.store(DEAD, Ordering::Relaxed);
                    let left = of_thread.lock().take();
                    drop(left);
                }
            })?;
            workers.0.push((inbox, Some(thread)));
        }
        Ok(workers)
    }

    /// Gives a call to the worker that has the fewest.
    pub(super) fn take(&self, call: Live) {
        let idlest = self.0.iter().min_by_key(|(inbox, _)| inbox.calls.load(Ordering::Relaxed));
        let idlest = idlest.filter(|(inbox, _)| inbox.calls.load(Ordering::Relaxed) < DEAD);
        if let Some((inbox, _)) = idlest {
            inbox.calls.fetch_add(1, Ordering::Relaxed);
            inbox.tell(News::Call(Box::new(call)));
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (inbox, _) in &self.0 {
            inbox.tell(News::Stop);
        }
        for (_, thread) in &mut self.0 {
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}
