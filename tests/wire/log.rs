//! A log of what happened on a connection, for a test to read and to wait on.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Longer than any test has to wait; reached only by a test that fails.
const LIMIT: Duration = Duration::from_secs(10);

/// A growing list; each change wakes those who wait on it.
pub struct Log<T> {
    items: Mutex<Vec<T>>,
    changed: watch::Sender<()>,
}

impl<T> Log<T> {
    pub fn new() -> Log<T> {
        Log { items: Mutex::new(Vec::new()), changed: watch::Sender::new(()) }
    }

    pub fn push(&self, item: T) {
        self.items.lock().unwrap().push(item);
        self.changed.send_replace(());
    }

    /// Passes the items to `see`, which may take some of them out.
    pub fn look<R>(&self, see: impl FnOnce(&mut Vec<T>) -> R) -> R {
        see(&mut self.items.lock().unwrap())
    }

    /// Waits until `see` returns something; panics with `what` after `LIMIT`.
    pub async fn wait<R>(&self, what: &str, mut see: impl FnMut(&mut Vec<T>) -> Option<R>) -> R {
        self.within(LIMIT, &mut see)
            .await
            .unwrap_or_else(|| panic!("{what}: not seen within {LIMIT:?}"))
    }

    /// Like [`Log::wait`], but returns `None` after `limit`.
    pub async fn within<R>(
        &self,
        limit: Duration,
        mut see: impl FnMut(&mut Vec<T>) -> Option<R>,
    ) -> Option<R> {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                if let Some(found) = self.look(&mut see) {
                    return found;
                }
                changed.changed().await.expect("the sender is in self");
            }
        };
        timeout(limit, found).await.ok()
    }
}

/// Runs `test` until it succeeds, at most five times. For the few tests that measure milliseconds:
/// a busy machine may spoil one run, but a real fault spoils them all.
pub async fn steady(what: &str, mut test: impl AsyncFnMut() -> Result<(), String>) {
    let mut failures = Vec::new();
    for _ in 0..5 {
        match test().await {
            Ok(()) => return,
            Err(why) => failures.push(why),
        }
    }
    panic!("{what}: {failures:?}");
}

/// Waits for `time` on tokio's clock, while something must not happen.
pub async fn pass(time: Duration) {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + time, time);
    ticks.tick().await;
}
