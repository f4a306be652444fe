//! The circuit breaker of an AI: after several failures in a row, calls are not offered to it until
//! a handshake succeeds again. Owns a task while it is open.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tracing::{info, warn};

use crate::stream::connect::Target;
use crate::stream::unreachable::ConnectError;
use crate::telemetry::counter::counters;

/// Calls in a row that could not reach the AI, before the breaker opens.
const FAILURES: u32 = 3;
/// Interval between two probes, and the time limit of each one.
const PROBE: Duration = Duration::from_secs(5);

counters! {
    gauge OPEN = "ai_breakers_open", "AIs that get no calls, because they cannot be reached.";
    total SPARED = "ai_breaker_calls", "Calls not offered to an AI because its breaker was open.";
}

/// Watches the breakers of several AIs.
pub struct Watch {
    breakers: Vec<watch::Receiver<bool>>,
    /// The state last returned.
    down: Option<bool>,
}

impl Watch {
    pub fn new(breakers: &[Arc<Breaker>]) -> Watch {
        let breakers = breakers.iter().map(|breaker| breaker.open.subscribe());
        Watch { breakers: breakers.collect(), down: None }
    }

    /// Returns the present state at first: true if all breakers are open. Then it returns true once
    /// all have opened, and false once one of them has closed. Returns `None` when there are no
    /// more calls.
    pub async fn changed(&mut self) -> Option<bool> {
        loop {
            let down = self.breakers.iter_mut().all(|open| *open.borrow_and_update());
            if self.down.replace(down) != Some(down) {
                return Some(down);
            }
            let changes = self.breakers.iter_mut().map(|open| Box::pin(open.changed()));
            select_all(changes).await.0.ok()?;
        }
    }
}

/// The state of one AI. All its calls share it.
#[derive(Debug, Default)]
pub struct Breaker {
    /// Failures since the last success.
    failures: AtomicU32,
    open: watch::Sender<bool>,
}

impl Breaker {
    /// True while calls are not offered to the AI.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Makes an attempt to connect a call with the AI, unless the breaker is open.
    ///
    /// # Errors
    /// Returns the [`ConnectError`]; [`ConnectError::Open`] at once while the breaker is open.
    pub async fn attempt<T>(
        self: &Arc<Self>,
        target: &Target,
        attempt: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        if self.is_open() {
            SPARED.add(1);
            return Err(ConnectError::Open);
        }
        let result = attempt.await;
        match &result {
            // its session may still be refused
            Ok(_) if target.dialect.has_session() => {}
            Ok(_) => self.ready(),
            Err(error) => self.failed(target, error),
        }
        result
    }

    /// Notes that the AI takes a call.
    pub fn ready(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Notes that a call could not be connected with the AI. Must be called within a runtime.
    pub fn failed(self: &Arc<Self>, target: &Target, error: &ConnectError) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < FAILURES || self.open.send_replace(true) {
            return;
        }
        OPEN.add(1);
        let ai = target.shown();
        warn!(ai, %error, failures, "AI unreachable: it gets no calls until a probe succeeds");
        tokio::spawn(Breaker::probe(Arc::downgrade(self), target.clone()));
    }

    /// Makes a handshake at intervals, until one succeeds, or no call can be offered to the AI any
    /// more because the configuration has changed. Where a request has to come before the socket,
    /// which may be charged for, the next call is the probe.
    async fn probe(breaker: Weak<Self>, target: Target) {
        let since = Instant::now();
        loop {
            sleep(PROBE).await;
            if breaker.strong_count() == 0 {
                OPEN.replace(1, 0);
                return;
            }
            if target.varies() {
                return Breaker::half_open(&breaker);
            }
            let Ok(mut socket) = target.connect(PROBE).await else { continue };
            // the AI may not wait for the end of the closing handshake, and neither do we
            let _ = socket.close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }));
            let _ = socket.flush();
            break;
        }
        OPEN.replace(1, 0);
        let Some(breaker) = breaker.upgrade() else { return };
        // whether it accepts a session is only known from the next call
        let failures = if target.dialect.has_session() { FAILURES - 1 } else { 0 };
        breaker.failures.store(failures, Ordering::Relaxed);
        breaker.open.send_replace(false);
        info!(ai = target.shown(), down_s = since.elapsed().as_secs(), "AI reachable again");
    }

    /// Offers calls to the AI again, until the first one fails.
    fn half_open(breaker: &Weak<Self>) {
        OPEN.replace(1, 0);
        let Some(breaker) = breaker.upgrade() else { return };
        breaker.failures.store(FAILURES - 1, Ordering::Relaxed);
        breaker.open.send_replace(false);
    }
}
