//! Admission of calls, whatever their source: the limit on all calls, the limits per PBX, RTP
//! ports, and the offer to the switchboard. Owns sockets and the clock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallLimits {
    /// Calls at the same time; `None` = no limit.
    pub max: Option<usize>,
    /// New calls per second, which may all come at once; `None` = no limit.
    pub per_second: Option<u32>,
}

/// The present state of the limits.
pub struct Limit {
    /// The table of the limits in the configuration.
    table: String,
    /// The calls that count.
    calls: Arc<AtomicUsize>,
    /// At most this many; the largest number for no limit.
    max: AtomicUsize,
    rate: Mutex<Rate>,
}

/// The limit of new calls per second.
#[derive(Default)]
struct Rate {
    per_second: Option<u32>,
    throttle: Option<Throttle>,
}

/// One call that counts towards a limit until this is dropped.
pub struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The permits of a call, one from each of the limits. Dropping this returns them.
#[derive(Default)]
pub struct Permit {
    _counted: Vec<Counted>,
    _beyond: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// The permit of a call that does not count any more.
    pub fn none() -> Permit {
        Permit::default()
    }

    /// Counts the call towards another limit, too.
    pub fn add(&mut self, counted: Counted) {
        self._counted.push(counted);
    }
}

/// Admits the calls of one source. Clones share the limits, the ports and the switchboard.
#[derive(Clone)]
pub struct Admission {
    /// The limits of all calls together.
    all: Arc<Limit>,
    /// The limits of the PBXs, by name.
    pbxs: Arc<Mutex<HashMap<String, Arc<Limit>>>>,
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
    /// `pbxs` are the limits of the PBXs, by name.
    pub fn new(
        all: &CallLimits,
        pbxs: impl IntoIterator<Item = (String, CallLimits)>,
        ports: PortPool,
        offers: mpsc::Sender<Offer>,
    ) -> Admission {
        let log = Throttle::with_burst(LOG_INTERVAL.0, LOG_INTERVAL.1);
        let limit = Arc::new(Limit::new("[calls]".to_owned()));
        let beyond = Arc::new(Semaphore::new(MAX_BEYOND));
        let admission = Admission { all: limit, pbxs: Arc::default(), beyond, ports, offers, log };
        admission.set_limits(all, pbxs);
        admission
    }

    /// Takes other limits for new calls. The calls that are up count as before, and none is ended.
    pub fn set_limits(
        &self,
        all: &CallLimits,
        pbxs: impl IntoIterator<Item = (String, CallLimits)>,
    ) {
        self.all.set(all);
        let mut known = self.pbxs();
        for (name, limits) in pbxs {
            let limit = known.entry(name);
            let table = |name: &String| Arc::new(Limit::new(format!("[pbx.{name}.calls]")));
            limit.or_insert_with_key(table).set(&limits);
        }
    }

    /// A panic in another thread leaves the table consistent, so poisoning is ignored.
    fn pbxs(&self) -> MutexGuard<'_, HashMap<String, Arc<Limit>>> {
        self.pbxs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool that calls get their ports from.
    pub fn ports(&self) -> &PortPool {
        &self.ports
    }

    /// At most this many calls at the same time, those of all PBXs together.
    pub fn max(&self) -> usize {
        self.all.max.load(Ordering::Relaxed)
    }

    /// Counts a call as offered.
    pub fn count(&self) {
        counters::OFFERED.add(1);
    }

    /// True if there are as many calls as there may be.
    pub fn is_full(&self) -> bool {
        self.all.calls.load(Ordering::Relaxed) >= self.all.max.load(Ordering::Relaxed)
    }

    /// Reserves a permit and a port pair for a call of this PBX.
    ///
    /// # Errors
    /// Returns the reason for a refusal, for [`Admission::refused`].
    pub fn admit(&self, pbx: &str, now: Instant) -> Result<Admitted, String> {
        let own = self.pbxs().get(pbx).cloned();
        let limits = [Some(self.all.clone()), own];
        let counted = limits.iter().flatten().map(|limit| limit.count());
        let permit = Permit { _counted: counted.collect::<Result<_, _>>()?, _beyond: None };
        limits.iter().flatten().rev().try_for_each(|limit| limit.pace(now))?;
        self.reserve(permit, now)
    }

    /// Reserves a port pair for a call beyond the limits. It does not go to an AI: its owner takes
    /// the caller away.
    ///
    /// # Errors
    /// Returns the reason for a refusal, for [`Admission::refused`].
    pub fn admit_beyond(&self, now: Instant) -> Result<Admitted, String> {
        let permit = self.beyond.clone().try_acquire_owned();
        let permit = permit.map_err(|_| format!("{MAX_BEYOND} callers beyond it wait already"))?;
        self.reserve(Permit { _counted: Vec::new(), _beyond: Some(permit) }, now)
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
    /// A limit that admits every call. `table`: its table in the configuration.
    pub fn new(table: String) -> Limit {
        Limit {
            table,
            calls: Arc::default(),
            max: AtomicUsize::new(usize::MAX),
            rate: Mutex::default(),
        }
    }

    pub fn set(&self, limits: &CallLimits) {
        self.max.store(limits.max.unwrap_or(usize::MAX), Ordering::Release);
        let mut rate = self.rate();
        if rate.per_second != limits.per_second {
            let new = |count| Throttle::with_burst(Duration::from_secs(1) / count, count);
            let throttle = limits.per_second.filter(|count| *count > 0).map(new);
            *rate = Rate { per_second: limits.per_second, throttle };
        }
    }

    /// A panic in another thread leaves it consistent, so poisoning is ignored.
    fn rate(&self) -> MutexGuard<'_, Rate> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a call.
    ///
    /// # Errors
    /// Returns the limit that is reached.
    pub fn admit(&self, now: Instant) -> Result<Counted, String> {
        let counted = self.count()?;
        self.pace(now)?;
        Ok(counted)
    }

    fn count(&self) -> Result<Counted, String> {
        let max = self.max.load(Ordering::Acquire);
        let one_more = |calls| (calls < max).then_some(calls + 1);
        let counted = self.calls.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        let counted = counted.map(|_| Counted(self.calls.clone()));
        counted.map_err(|_| format!("{} max is reached", self.table))
    }

    fn pace(&self, now: Instant) -> Result<(), String> {
        let mut rate = self.rate();
        let admits = rate.throttle.as_mut().is_none_or(|throttle| throttle.admits(now));
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

    #[test]
    fn limits_change_while_calls_are_up() {
        let ports = PortPool::new(Ipv4Addr::LOCALHOST.into(), 40_200, 40_399);
        let max = |max| CallLimits { max, per_second: None };
        let admission = Admission::new(&max(Some(3)), [], ports, mpsc::channel(9).0);
        let now = Instant::now();
        let admit = |pbx| admission.admit(pbx, now).map(|admitted| admitted.permit);
        let mut calls: Vec<Permit> = (0..3).map(|_| admit("a").unwrap()).collect();
        // below the number of calls: they stay, and none is taken until there are fewer
        admission.set_limits(&max(Some(2)), [("a".to_owned(), max(Some(9)))]);
        assert!(admission.is_full());
        calls.pop();
        assert!(admit("a").is_err() && admission.is_full());
        calls.pop();
        calls.push(admit("a").unwrap());
        // one call of this PBX counts towards its own limit, the other was there before it
        admission.set_limits(&max(Some(9)), [("a".to_owned(), max(Some(1)))]);
        assert!(!admission.is_full());
        assert_eq!(admit("a").err().as_deref(), Some("[pbx.a.calls] max is reached"));
        admission.set_limits(&max(None), [("a".to_owned(), CallLimits::default())]);
        calls.extend((0..20).map(|_| admit("a").unwrap()));
        assert!(!admission.is_full());
    }
}
