//! The webhook for the events of calls, which a reload may replace. Owns tasks.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::call::live::{EventKind, LiveCall};
use crate::notices::{Notices, NoticesSettings};

/// Takes the events, and stops the thread when the second value is dropped.
type Running = (Notices, oneshot::Sender<()>);

/// The parts prepared for a configuration, which cannot fail any more.
pub(super) struct Prepared(Option<Running>);

/// The webhook, if there is one. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Hook(Arc<Mutex<Option<Running>>>);

impl Hook {
    /// A panic in another thread leaves it consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes an event on.
    pub(super) fn send(&self, call: &LiveCall, event: &EventKind<'_>) {
        if let Some((notices, _)) = &*self.lock() {
            notices.send(call, event);
        }
    }

    /// Starts a webhook, which waits for the lock of one with the same directory.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be created, or the thread not be started.
    pub(super) fn prepare(&self, settings: Option<NoticesSettings>) -> io::Result<Prepared> {
        settings.map(Notices::start).transpose().map(Prepared)
    }

    /// Uses what has been prepared. The one from before ends once its events are on disk.
    pub(super) fn apply(&self, prepared: Prepared) {
        let before = std::mem::replace(&mut *self.lock(), prepared.0);
        tokio::spawn(end(before));
    }

    pub(super) async fn close(&self) {
        let last = self.lock().take();
        end(last).await;
    }
}

async fn end(running: Option<Running>) {
    if let Some((notices, _stop)) = running {
        notices.flush().await;
    }
}
