//! The inbox of a worker, for new calls, wake-ups and the stop request from other threads.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;

use crate::call::worker::event_loop::Live;
use crate::call::worker::token::Token;

/// A message from another thread to a worker.
pub(in crate::call) enum InboxMessage {
    /// A new call to run.
    Call(Box<Live>),
    /// A call's waker has fired.
    Woken(Token),
    /// The worker has to end.
    Stop,
}

/// The messages from other threads to a worker, and the eventfd that wakes it.
pub(in crate::call) struct Inbox {
    pub messages: Mutex<Vec<InboxMessage>>,
    /// An eventfd in the worker's epoll.
    pub bell: OwnedFd,
    /// Number of live calls on this worker.
    pub calls: AtomicUsize,
}

impl Inbox {
    /// A panic in another thread leaves the list consistent, so poisoning is ignored.
    pub fn lock(&self) -> MutexGuard<'_, Vec<InboxMessage>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, message: InboxMessage) {
        let mut all = self.lock();
        all.push(message);
        if all.len() == 1 {
            self.ring();
        }
    }

    /// Wakes the worker. The eventfd cannot overflow: it is written only when the list was empty,
    /// or after a panic.
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// One of the calls of a worker. Dropping this ends its part of the count.
pub(in crate::call) struct Counted(Arc<Inbox>);

impl Counted {
    pub fn new(inbox: &Arc<Inbox>) -> Counted {
        inbox.calls.fetch_add(1, Ordering::Relaxed);
        Counted(inbox.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Wakes one call by putting its token into its worker's inbox.
pub(in crate::call) struct CallWaker {
    pub inbox: Arc<Inbox>,
    pub token: Token,
}

impl Wake for CallWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.inbox.push(InboxMessage::Woken(self.token));
    }
}
