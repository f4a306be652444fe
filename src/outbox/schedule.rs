//! Decides when each item is sent. After each failure, an item waits longer. Each target has a
//! gate, which closes when the target does not respond: then only one item at a time tries it, and
//! the others wait.
//!
//! ```text
//!          success                failure
//!   ┌─────────────────> open ───────────────┐
//!   │                                       v
//! trying <──────── wait is over ───────── closed
//!   │                                       ^
//!   └───────────────── failure ─────────────┘
//! ```
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Maximum number of items that are sent at the same time.
pub const AT_ONCE: usize = 4;
/// Wait after the first failure, of an item or at a gate. It doubles with each failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait of an item.
const LAST_WAIT: Duration = Duration::from_secs(300);
/// Longest wait at a gate.
const LAST_GATE_WAIT: Duration = Duration::from_secs(30);

/// The destinations of an outbox, in the order in which an item goes to them.
pub trait Target: Copy + Eq + 'static {
    const ALL: &'static [Self];

    /// Its place in [`Target::ALL`].
    fn index(self) -> usize;
}

/// State of a target.
#[derive(Debug, Clone, Copy, Default)]
struct Gate {
    /// Failures since the gate was last open.
    failures: u32,
    /// When the next item may try the target; `None` while the gate is open.
    until: Option<Instant>,
}

/// An item to be sent.
#[derive(Debug)]
struct Waiting<T, E> {
    /// Failures at the current target.
    failures: u32,
    /// Not to be sent before this time.
    at: Instant,
    target: T,
    /// True while it is being sent.
    running: bool,
    /// The outbox entry as of the last attempt, which may be newer than its file.
    entry: Option<E>,
}

/// Number of failures, and the wait until the next attempt, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    pub failures: u32,
    pub wait: Duration,
}

/// The items to be sent, and the gate of each target.
#[derive(Debug)]
pub struct Schedule<T, E> {
    /// The first target of each item.
    first: T,
    /// All items to be sent, by id, including those being sent now.
    waiting: BTreeMap<String, Waiting<T, E>>,
    /// Number of items being sent now.
    running: usize,
    /// Indexed by [`Target::index`].
    gates: Vec<Gate>,
}

fn wait(failures: u32, last: Duration) -> Duration {
    (FIRST_WAIT * 2u32.pow(failures.saturating_sub(1).min(16))).min(last)
}

impl<T: Target, E> Schedule<T, E> {
    /// Creates an empty schedule. `first` is the first target of each item.
    pub fn new(first: T) -> Schedule<T, E> {
        let gates = vec![Gate::default(); T::ALL.len()];
        Schedule { first, waiting: BTreeMap::new(), running: 0, gates }
    }

    /// Adds an item to be sent. Does nothing if it is already known.
    pub fn add(&mut self, id: String, now: Instant) {
        let (target, entry) = (self.first, None);
        let new = Waiting { failures: 0, at: now, target, running: false, entry };
        self.waiting.entry(id).or_insert(new);
    }

    /// Forgets an item. Returns false if it is being sent now, or unknown.
    pub fn forget(&mut self, id: &str) -> bool {
        let idle = self.waiting.get(id).is_some_and(|one| !one.running);
        idle && self.waiting.remove(id).is_some()
    }

    /// True after a failure at the target, until it responds.
    pub fn is_closed(&self, target: T) -> bool {
        self.gates[target.index()].until.is_some()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns when a gate lets the next item through; `None` if it is closed and one
    /// item is already trying.
    fn passable(&self, target: T, now: Instant) -> Option<Instant> {
        let is_tried = || self.waiting.values().any(|w| w.running && w.target == target);
        match self.gates[target.index()].until {
            None => Some(now),
            Some(_) if is_tried() => None,
            until => until,
        }
    }

    /// When each gate lets the next item through, by [`Target::index`].
    fn gates_open_at(&self, now: Instant) -> Vec<Option<Instant>> {
        T::ALL.iter().map(|target| self.passable(*target, now)).collect()
    }

    /// Picks the item to be sent now, and returns it with its target, entry and number of
    /// failures. Those with the fewest failures come first, so that a bad one does not hold up the
    /// others.
    pub fn start(&mut self, now: Instant) -> Option<(String, T, Option<E>, u32)> {
        if self.running >= AT_ONCE {
            return None;
        }
        let open = self.gates_open_at(now);
        let open = |target: T| open[target.index()].is_some_and(|at| at <= now);
        let due = self.waiting.iter_mut();
        let due = due.filter(|(_, w)| !w.running && w.at <= now && open(w.target));
        let (id, next) = due.min_by_key(|(_, w)| w.failures)?;
        next.running = true;
        self.running += 1;
        Some((id.clone(), next.target, next.entry.take(), next.failures))
    }

    /// Returns when `start` may have an item again, if nothing happens before.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        if self.running >= AT_ONCE {
            return None;
        }
        let gates = self.gates_open_at(now);
        let idle = self.waiting.values().filter(|w| !w.running);
        idle.filter_map(|w| gates[w.target.index()].map(|gate| gate.max(w.at))).min()
    }

    /// Notes that an item was sent. It continues with the `next` target, or is done.
    pub fn sent(&mut self, id: &str, entry: Option<E>, next: Option<T>, now: Instant) {
        self.running -= 1;
        match (self.waiting.get_mut(id), next) {
            (Some(one), Some(target)) => {
                *one = Waiting { failures: 0, at: now, target, running: false, entry };
            }
            _ => {
                self.waiting.remove(id);
            }
        }
    }

    /// Opens a gate because the target responded. Returns true if the gate was closed.
    pub fn answers(&mut self, target: T) -> bool {
        std::mem::take(&mut self.gates[target.index()]).until.is_some()
    }

    /// Notes that an item could not be sent, and schedules the next attempt.
    pub fn failed(&mut self, id: &str, entry: Option<E>, now: Instant) -> Failed {
        self.running -= 1;
        let Some(one) = self.waiting.get_mut(id) else {
            return Failed { failures: 0, wait: Duration::ZERO };
        };
        one.failures += 1;
        one.running = false;
        one.entry = entry;
        let wait = wait(one.failures, LAST_WAIT);
        one.at = now + wait;
        Failed { failures: one.failures, wait }
    }

    /// Closes a gate because the target does not respond. Returns `None` if another item has
    /// just closed it.
    pub fn close(&mut self, target: T, now: Instant) -> Option<Failed> {
        let gate = &mut self.gates[target.index()];
        if gate.until.is_some_and(|until| until > now) {
            return None;
        }
        gate.failures += 1;
        let wait = wait(gate.failures, LAST_GATE_WAIT);
        gate.until = Some(now + wait);
        Some(Failed { failures: gate.failures, wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Destination {
        Store,
        Webhook,
    }

    impl Target for Destination {
        const ALL: &'static [Destination] = &[Destination::Store, Destination::Webhook];

        fn index(self) -> usize {
            self as usize
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn schedule(count: usize) -> (Schedule<Destination, ()>, Instant) {
        let (mut schedule, now) = (Schedule::new(Destination::Store), crate::testing::start());
        (0..count).for_each(|n| schedule.add(format!("{n:05}"), now));
        (schedule, now)
    }

    fn started(schedule: &mut Schedule<Destination, ()>, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| schedule.start(now)).map(|(id, ..)| id).collect()
    }

    #[test]
    fn four_are_sent_at_once_and_none_twice() {
        let (mut schedule, now) = schedule(6);
        assert_eq!(started(&mut schedule, now), ["00000", "00001", "00002", "00003"]);
        assert_eq!(schedule.next(now), None, "four are being sent");
        schedule.add("00000".to_owned(), now);
        schedule.sent("00001", None, None, now);
        schedule.sent("00002", None, Some(Destination::Webhook), now);
        assert_eq!(started(&mut schedule, now), ["00002", "00004"]);
        assert_eq!(schedule.len(), 5);
    }

    #[test]
    fn an_item_that_is_being_sent_is_not_forgotten() {
        let (mut schedule, now) = schedule(5);
        assert_eq!(started(&mut schedule, now).len(), 4);
        assert!(!schedule.forget("00000") && !schedule.forget("unknown"));
        assert!(schedule.forget("00004"));
        assert_eq!(schedule.len(), 4);
        assert!(!schedule.is_closed(Destination::Store));
        schedule.failed("00000", None, now);
        schedule.close(Destination::Store, now);
        assert!(schedule.is_closed(Destination::Store) && schedule.forget("00000"));
    }

    /// The waits grow, and a bad recording does not hold up the others.
    #[test]
    fn a_failing_recording_is_tried_at_growing_intervals() {
        let (mut schedule, mut now) = schedule(1);
        let mut waits = Vec::new();
        for _ in 0..40 {
            assert_eq!(started(&mut schedule, now), ["00000"]);
            let failed = schedule.failed("00000", None, now);
            assert_eq!(started(&mut schedule, now), [""; 0]);
            waits.push(failed.wait.as_secs());
            now += failed.wait;
        }
        assert_eq!(waits[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert!(waits[10..].iter().all(|w| *w == 300));
        (1..5).for_each(|n| schedule.add(format!("{n:05}"), now));
        assert_eq!(started(&mut schedule, now), ["00001", "00002", "00003", "00004"]);
    }

    /// Ten thousand recordings wait, and the target does not respond for an hour. One recording
    /// tries every half minute; once the target responds, all are sent.
    #[test]
    fn only_one_tries_while_the_target_does_not_respond() {
        let (mut schedule, mut now) = schedule(10_000);
        let end = now + 3600 * SECOND;
        let mut tries = 0;
        while now < end {
            let ids = started(&mut schedule, now);
            assert_eq!(ids.len(), if tries == 0 { 4 } else { 1 });
            tries += ids.len();
            // attempts that run at the same time close the gate once
            let closed = ids.iter().filter_map(|id| {
                schedule.failed(id, None, now);
                schedule.close(Destination::Store, now)
            });
            assert_eq!(closed.count(), 1, "one line in the log");
            assert_eq!(started(&mut schedule, now), [""; 0]);
            now = schedule.next(now).unwrap();
        }
        assert!((120..140).contains(&tries), "{tries}");
        assert_eq!(started(&mut schedule, now).len(), 1);
        assert!(schedule.answers(Destination::Store));
        assert!(!schedule.answers(Destination::Store), "reported once");
        assert_eq!(started(&mut schedule, now).len(), 3);
    }

    /// A webhook that hangs does not hold up the uploads.
    #[test]
    fn each_target_has_its_own_gate() {
        let (mut schedule, now) = schedule(100);
        for id in started(&mut schedule, now) {
            schedule.sent(&id, None, Some(Destination::Webhook), now);
        }
        let to_webhook = started(&mut schedule, now);
        assert_eq!(to_webhook, ["00000", "00001", "00002", "00003"]);
        for id in &to_webhook {
            schedule.failed(id, None, now);
            schedule.close(Destination::Webhook, now);
        }
        assert_eq!(started(&mut schedule, now), ["00004", "00005", "00006", "00007"]);
        for id in ["00004", "00005", "00006", "00007"] {
            schedule.sent(id, None, Some(Destination::Webhook), now);
        }
        let later = now + SECOND;
        let next = std::iter::from_fn(|| schedule.start(later)).map(|(_, target, ..)| target);
        let next: Vec<Destination> = next.collect();
        assert_eq!(next.iter().filter(|t| **t == Destination::Webhook).count(), 1, "{next:?}");
        assert_eq!(next.len(), 4);
    }
}
