//! What has happened on a wire, for a test to look at and to wait for.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Longer than anything that a test waits for: reached only when the test has failed.
const LIMIT: Duration = Duration::from_secs(10);

/// A list that grows; whoever waits is woken by each change.
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

    /// Looks at what there is, and may take some of it out.
    pub fn look<R>(&self, see: impl FnOnce(&mut Vec<T>) -> R) -> R {
        see(&mut self.items.lock().unwrap())
    }

    /// Waits until `see` finds what it looks for; panics with `what` when that does not come.
    pub async fn wait<R>(&self, what: &str, mut see: impl FnMut(&mut Vec<T>) -> Option<R>) -> R {
        self.within(LIMIT, &mut see).await.unwrap_or_else(|| panic!("{what}: nothing of the kind"))
    }

    /// Like [`Log::wait`], but what does not come in time is `None`.
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
                changed.changed().await.expect("the sender lives in self");
            }
        };
        timeout(limit, found).await.ok()
    }
}

/// Runs `test` until it succeeds, up to five times: for the few tests that look at milliseconds,
/// which a busy machine may spoil but a fault of ours spoils each time.
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

/// Waits for `time` on the clock of the tests, for what must not happen meanwhile.
pub async fn pass(time: Duration) {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + time, time);
    ticks.tick().await;
}
