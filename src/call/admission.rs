//! Admission of calls, the same for every source: the limit `[calls] max`, RTP ports, and the offer
//! to the switchboard. Owns sockets and the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{info, warn};

use crate::call::end::EndReason;
use crate::call::ports::{PortPair, PortPool};
use crate::call::{Offer, Signal, counters};
use crate::telemetry::{Masked, Throttle};

/// At most this many signals are queued for a call. Its worker normally handles them at once.
const SIGNALS: usize = 64;
/// Minimum time between log lines about refused calls, and how many there may be in a row.
const LOG_INTERVAL: (Duration, u32) = (Duration::from_secs(1), 20);
/// Maximum length of a text from a PBX, in characters, in the log and in the AI's parameters.
const MAX_TEXT: usize = 256;

/// Admits the calls of one source. Clones share the limit, the ports and the switchboard.
#[derive(Clone)]
pub struct Admission {
    /// One permit per call, for all PBXs together.
    permits: Arc<Semaphore>,
    ports: PortPool,
    offers: mpsc::Sender<Offer>,
    /// Limits the log lines about refused calls.
    log: Throttle,
}

/// Everything that admission reserves for one call.
pub struct Admitted {
    pub permit: OwnedSemaphorePermit,
    pub ports: PortPair,
    pub signals_tx: mpsc::Sender<Signal>,
    pub signals: mpsc::Receiver<Signal>,
}

/// A call that was refused, for the log.
#[derive(Debug)]
pub struct RefusedCall {
    pub pbx: String,
    /// The PBX's own id of the call.
    pub native_id: String,
    pub from_number: String,
}

impl Admission {
    pub fn new(max_calls: usize, ports: PortPool, offers: mpsc::Sender<Offer>) -> Admission {
        let permits = Arc::new(Semaphore::new(max_calls));
        let log = Throttle::with_burst(LOG_INTERVAL.0, LOG_INTERVAL.1);
        Admission { permits, ports, offers, log }
    }

    /// The pool that calls get their ports from.
    pub fn ports(&self) -> &PortPool {
        &self.ports
    }

    /// Counts a call as offered.
    pub fn count(&self) {
        counters::OFFERED.add(1);
    }

    /// True if no permit is left.
    pub fn is_full(&self) -> bool {
        self.permits.available_permits() == 0
    }

    /// Reserves a permit and a port pair.
    ///
    /// # Errors
    /// Returns the reason for a refusal, for [`Admission::refused`].
    pub fn admit(&self, now: Instant) -> Result<Admitted, String> {
        let permit = self.permits.clone().try_acquire_owned();
        let permit = permit.map_err(|_| "[calls] max is reached".to_owned())?;
        let ports = self.ports.lease(now).map_err(|error| error.to_string())?;
        let (signals_tx, signals) = mpsc::channel(SIGNALS);
        Ok(Admitted { permit, ports, signals_tx, signals })
    }

    /// Hands a call to the switchboard.
    ///
    /// # Errors
    /// Returns the reason if the switchboard takes no more calls.
    pub fn offer(&self, offer: Offer) -> Result<(), String> {
        let refused = |_| "trunkless is shutting down or overloaded".to_owned();
        self.offers.try_send(offer).map_err(refused)
    }

    /// Counts a refused call, and logs the reason and the caller's fate, unless there are too many.
    pub fn refused(&mut self, call: &RefusedCall, reason: EndReason, why: &str, caller: &str) {
        counters::refused(&call.pbx, reason);
        if self.log.admits(Instant::now()) {
            let RefusedCall { pbx, native_id, from_number } = call;
            let from = Masked(from_number);
            match reason {
                EndReason::Drain => info!(pbx, native_id, %from, "call refused: {why}; {caller}"),
                _ => warn!(pbx, native_id, %from, "call refused: {why}; {caller}"),
            }
        }
    }
}

/// Cuts a text from a PBX to the length allowed in logs and parameters.
pub fn clip(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
