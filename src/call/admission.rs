//! Admission of calls, whatever their source: the limit on all calls, the limits per PBX, RTP
//! ports, and the offer to the switchboard. Owns sockets and the clock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{info, warn};

use crate::call::end::EndReason;
use crate::call::ports::{PortPair, PortPool};
use crate::call::{Offer, Signal, counters};
use crate::telemetry::{Masked, Throttle};

/// At most this many callers beyond the limits are kept until their owner takes them away.
pub const MAX_BEYOND: usize = 64;
/// At most this many signals are queued for a call. Its worker normally handles them at once.
const SIGNALS: usize = 64;
/// Minimum time between log lines about refused calls, and how many there may be in a row.
const LOG_INTERVAL: (Duration, u32) = (Duration::from_secs(1), 20);
/// Maximum length of a text from a PBX, in characters, in the log and in the AI's parameters.
const MAX_TEXT: usize = 256;

/// The limits of all calls together, or of the calls of one PBX.
#[derive(Debug, Clone, Default)]
pub struct CallLimits {
    /// Calls at the same time; `None` = no limit.
    pub max: Option<usize>,
    /// New calls per second, which may all come at once; `None` = no limit.
    pub per_second: Option<u32>,
}

/// The present state of the limits.
struct Limit {
    /// The table of the limits in the configuration.
    table: String,
    permits: Option<Arc<Semaphore>>,
    rate: Option<Mutex<Throttle>>,
}

/// The permits of a call, one from each of the limits. Dropping this returns them.
pub struct Permit {
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Permit {
    /// The permit of a call that does not count any more.
    pub fn none() -> Permit {
        Permit { _permits: [None, None] }
    }
}

/// Admits the calls of one source. Clones share the limits, the ports and the switchboard.
#[derive(Clone)]
pub struct Admission {
    /// The limits of all calls together.
    all: Arc<Limit>,
    /// The limits of the PBXs that have some, by name.
    pbxs: Arc<HashMap<String, Limit>>,
    /// For callers beyond the limits who do not go to an AI: see [`Admission::admit_beyond`].
    beyond: Arc<Semaphore>,
    ports: PortPool,
    offers: mpsc::Sender<Offer>,
    /// Limits the log lines about refused calls.
    log: Throttle,
}

/// Everything that admission reserves for one call.
pub struct Admitted {
    pub permit: Permit,
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
    /// `pbxs` are the PBXs that have limits of their own, by name.
    pub fn new(
        all: &CallLimits,
        pbxs: impl IntoIterator<Item = (String, CallLimits)>,
        ports: PortPool,
        offers: mpsc::Sender<Offer>,
    ) -> Admission {
        let limit = |(name, limits): (String, CallLimits)| {
            let table = format!("[pbx.{name}.calls]");
            (name, Limit::new(table, &limits))
        };
        let log = Throttle::with_burst(LOG_INTERVAL.0, LOG_INTERVAL.1);
        let all = Arc::new(Limit::new("[calls]".to_owned(), all));
        let (pbxs, beyond) = (pbxs.into_iter().map(limit), Arc::new(Semaphore::new(MAX_BEYOND)));
        Admission { all, pbxs: Arc::new(pbxs.collect()), beyond, ports, offers, log }
    }

    /// The pool that calls get their ports from.
    pub fn ports(&self) -> &PortPool {
        &self.ports
    }

    /// Counts a call as offered.
    pub fn count(&self) {
        counters::OFFERED.add(1);
    }

    /// True if there are as many calls as there may be.
    pub fn is_full(&self) -> bool {
        self.all.permits.as_ref().is_some_and(|permits| permits.available_permits() == 0)
    }

    /// Reserves a permit and a port pair for a call of this PBX.
    ///
    /// # Errors
    /// Returns the reason for a refusal, for [`Admission::refused`].
    pub fn admit(&self, pbx: &str, now: Instant) -> Result<Admitted, String> {
        let own = self.pbxs.get(pbx);
        let permits = [self.all.permit()?, own.map(Limit::permit).transpose()?.flatten()];
        own.into_iter().chain([&*self.all]).try_for_each(|limit| limit.pace(now))?;
        self.reserve(Permit { _permits: permits }, now)
    }

    /// Reserves a port pair for a call beyond the limits. It does not go to an AI: its owner takes
    /// the caller away.
    ///
    /// # Errors
    /// Returns the reason for a refusal, for [`Admission::refused`].
    pub fn admit_beyond(&self, now: Instant) -> Result<Admitted, String> {
        let permit = self.beyond.clone().try_acquire_owned();
        let permit = permit.map_err(|_| format!("{MAX_BEYOND} callers beyond it wait already"))?;
        self.reserve(Permit { _permits: [Some(permit), None] }, now)
    }

    fn reserve(&self, permit: Permit, now: Instant) -> Result<Admitted, String> {
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
        self.log_refused(call, reason, why, caller);
    }

    /// Logs the reason why a call does not go to its AI, unless there are too many.
    pub fn log_refused(&mut self, call: &RefusedCall, reason: EndReason, why: &str, caller: &str) {
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

impl Limit {
    fn new(table: String, limits: &CallLimits) -> Limit {
        let rate = |count| Throttle::with_burst(Duration::from_secs(1) / count, count);
        Limit {
            table,
            permits: limits.max.map(|max| Arc::new(Semaphore::new(max))),
            rate: limits.per_second.filter(|count| *count > 0).map(rate).map(Mutex::new),
        }
    }

    fn permit(&self) -> Result<Option<OwnedSemaphorePermit>, String> {
        let permit = self.permits.clone().map(Semaphore::try_acquire_owned).transpose();
        permit.map_err(|_| format!("{} max is reached", self.table))
    }

    fn pace(&self, now: Instant) -> Result<(), String> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let admits = rate.lock().unwrap_or_else(PoisonError::into_inner).admits(now);
        admits.then_some(()).ok_or_else(|| format!("{} per_second is reached", self.table))
    }
}

/// Cuts a text from a PBX to the length allowed in logs and parameters.
pub fn clip(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn all_calls_and_those_of_one_pbx_have_limits() {
        let ports = PortPool::new(Ipv4Addr::LOCALHOST.into(), 40_000, 40_199);
        let limits = |max, per_second| CallLimits { max: Some(max), per_second };
        let own = [("a".to_owned(), limits(1, None)), ("b".to_owned(), limits(9, Some(2)))];
        let admission = Admission::new(&limits(4, None), own, ports, mpsc::channel(9).0);
        let begin = Instant::now();
        let admit = |pbx: &str, ms| {
            let at = begin + Duration::from_millis(ms);
            admission.admit(pbx, at).map(|admitted| admitted.permit)
        };
        let a = admit("a", 0).ok();
        assert_eq!(admit("a", 0).err().as_deref(), Some("[pbx.a.calls] max is reached"));
        let b = [admit("b", 0), admit("b", 0)];
        assert!(b.iter().all(Result::is_ok));
        assert_eq!(admit("b", 400).err().as_deref(), Some("[pbx.b.calls] per_second is reached"));
        // a refused call takes nothing away from the next
        let third = admit("b", 501);
        assert!(third.is_ok() && admission.is_full());
        assert_eq!(admit("other", 2000).err().as_deref(), Some("[calls] max is reached"));
        drop(a);
        assert!(admit("a", 2000).is_ok());
    }
}
