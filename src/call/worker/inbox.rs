//! The inbox of a worker: other threads leave calls, wake-ups and the stop request here.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;

use crate::call::worker::event_loop::Live;
use crate::call::worker::token::Token;

/// A message from another thread to a worker.
pub(in crate::call) enum InboxMessage {
    Call(Box<Live>),
    Woken(Token),
    Stop,
}

/// The messages that other threads leave for a worker, and the eventfd that wakes it.
pub(in crate::call) struct Inbox {
    /// `None` once the worker has died.
    pub messages: Mutex<Option<Vec<InboxMessage>>>,
    /// An eventfd in the worker's epoll.
    pub bell: OwnedFd,
    /// Live calls of this worker, or more than any worker can have once it has died.
    pub calls: AtomicUsize,
}

impl Inbox {
    /// A panic in another thread leaves the list consistent, so poisoning is ignored.
    pub fn lock(&self) -> MutexGuard<'_, Option<Vec<InboxMessage>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, message: InboxMessage) {
        let mut all = self.lock();
        // a call given to a dead worker ends by being dropped
        let Some(all) = &mut *all else { return };
        all.push(message);
        if all.len() == 1 {
            // the eventfd cannot overflow: it is written only when the list was empty
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }
}

/// Wakes one call: puts its token into its worker's inbox.
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
