//! When which recording is sent. Each one that fails waits, ever longer. What it is sent to has a
//! gate: while that is closed, because nobody answers there, one recording at a time asks, and the
//! others wait.
//!
//! ```text
//!          success                failure
//!   ┌─────────────────> open ───────────────┐
//!   │                                       v
//! asking <──────── wait is over ───────── closed
//!   │                                       ^
//!   └───────────────── failure ─────────────┘
//! ```
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::record::outbox::Entry;

/// Recordings that are sent at the same time.
pub const AT_ONCE: usize = 4;
/// Waits between a recording's tries, and between asking at a closed gate: doubled from the first
/// to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(300);
const LAST_GATE_WAIT: Duration = Duration::from_secs(30);

/// Where a recording is sent to, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Store,
    Webhook,
}

#[derive(Debug, Clone, Copy, Default)]
struct Gate {
    /// None: it is open.
    failures: u32,
    until: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    failures: u32,
    at: Instant,
    target: Target,
    running: bool,
    /// What is known of it that its file may not hold.
    entry: Option<Entry>,
}

/// How often it has failed, and when it is tried again; for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    pub failures: u32,
    pub wait: Duration,
}

#[derive(Debug)]
pub struct Schedule {
    first: Target,
    waiting: BTreeMap<String, Waiting>,
    running: usize,
    gates: [Gate; 2],
}

fn wait(failures: u32, last: Duration) -> Duration {
    (FIRST_WAIT * 2u32.pow(failures.saturating_sub(1).min(16))).min(last)
}

impl Schedule {
    /// `first`: where each recording goes first.
    pub fn new(first: Target) -> Schedule {
        Schedule { first, waiting: BTreeMap::new(), running: 0, gates: Default::default() }
    }

    /// One that waits; nothing when it is known.
    pub fn add(&mut self, id: String, now: Instant) {
        let (target, entry) = (self.first, None);
        let new = Waiting { failures: 0, at: now, target, running: false, entry };
        self.waiting.entry(id).or_insert(new);
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the gate lets somebody through; `None`: it is closed, and somebody asks already.
    fn passable(&self, target: Target, now: Instant) -> Option<Instant> {
        let asks = || self.waiting.values().any(|w| w.running && w.target == target);
        match self.gates[target as usize].until {
            None => Some(now),
            Some(_) if asks() => None,
            until => until,
        }
    }

    /// The recording to be sent now, and how often it has failed; it is running then. Those that
    /// have never failed come first, so that a bad one is in nobody's way.
    pub fn start(&mut self, now: Instant) -> Option<(String, Target, Option<Entry>, u32)> {
        if self.running >= AT_ONCE {
            return None;
        }
        let targets = [Target::Store, Target::Webhook];
        let open = targets.map(|t| self.passable(t, now).is_some_and(|at| at <= now));
        let due = self.waiting.iter_mut();
        let due = due.filter(|(_, w)| !w.running && w.at <= now && open[w.target as usize]);
        let (id, next) = due.min_by_key(|(_, w)| w.failures)?;
        next.running = true;
        self.running += 1;
        Some((id.clone(), next.target, next.entry.take(), next.failures))
    }

    /// When `start` may have something again, if nothing happens before.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        if self.running >= AT_ONCE {
            return None;
        }
        let gates = [Target::Store, Target::Webhook].map(|t| self.passable(t, now));
        let idle = self.waiting.values().filter(|w| !w.running);
        idle.filter_map(|w| gates[w.target as usize].map(|gate| gate.max(w.at))).min()
    }

    /// It was sent there, and goes to the next target, or there is none.
    pub fn sent(&mut self, id: &str, entry: Option<Entry>, next: Option<Target>, now: Instant) {
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

    /// Somebody answers there; true when nobody did before.
    pub fn answers(&mut self, target: Target) -> bool {
        std::mem::take(&mut self.gates[target as usize]).until.is_some()
    }

    /// It could not be sent.
    pub fn failed(&mut self, id: &str, entry: Option<Entry>, now: Instant) -> Failed {
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

    /// Nobody answers there; nothing when others have found that out at the same time.
    pub fn close(&mut self, target: Target, now: Instant) -> Option<Failed> {
        let gate = &mut self.gates[target as usize];
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

    const SECOND: Duration = Duration::from_secs(1);

    fn schedule(count: usize) -> (Schedule, Instant) {
        let (mut schedule, now) = (Schedule::new(Target::Store), crate::testing::start());
        (0..count).for_each(|n| schedule.add(format!("{n:05}"), now));
        (schedule, now)
    }

    fn started(schedule: &mut Schedule, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| schedule.start(now)).map(|(id, ..)| id).collect()
    }

    #[test]
    fn a_few_at_once_and_none_twice() {
        let (mut schedule, now) = schedule(6);
        assert_eq!(started(&mut schedule, now), ["00000", "00001", "00002", "00003"]);
        assert_eq!(schedule.next(now), None, "four are on their way");
        schedule.add("00000".to_owned(), now);
        schedule.sent("00001", None, None, now);
        schedule.sent("00002", None, Some(Target::Webhook), now);
        assert_eq!(started(&mut schedule, now), ["00002", "00004"]);
        assert_eq!(schedule.len(), 5);
    }

    /// Waits grow, but a bad recording is in nobody's way.
    #[test]
    fn a_bad_one_is_tried_ever_more_seldom() {
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

    /// Ten thousand wait, and nobody answers for an hour: one asks every half minute, and all go
    /// when there is an answer.
    #[test]
    fn one_asks_while_nobody_answers() {
        let (mut schedule, mut now) = schedule(10_000);
        let end = now + 3600 * SECOND;
        let mut tries = 0;
        while now < end {
            let ids = started(&mut schedule, now);
            assert_eq!(ids.len(), if tries == 0 { 4 } else { 1 });
            tries += ids.len();
            // they end together, or while a new one waits
            let closed = ids.iter().filter_map(|id| {
                schedule.failed(id, None, now);
                schedule.close(Target::Store, now)
            });
            assert_eq!(closed.count(), 1, "one line in the log");
            assert_eq!(started(&mut schedule, now), [""; 0]);
            now = schedule.next(now).unwrap();
        }
        assert!((120..140).contains(&tries), "{tries}");
        assert_eq!(started(&mut schedule, now).len(), 1);
        assert!(schedule.answers(Target::Store));
        assert!(!schedule.answers(Target::Store), "said once");
        assert_eq!(started(&mut schedule, now).len(), 3);
    }

    /// A webhook that hangs holds up no upload.
    #[test]
    fn each_target_has_its_own_gate() {
        let (mut schedule, now) = schedule(100);
        for id in started(&mut schedule, now) {
            schedule.sent(&id, None, Some(Target::Webhook), now);
        }
        let to_webhook = started(&mut schedule, now);
        assert_eq!(to_webhook, ["00000", "00001", "00002", "00003"]);
        for id in &to_webhook {
            schedule.failed(id, None, now);
            schedule.close(Target::Webhook, now);
        }
        assert_eq!(started(&mut schedule, now), ["00004", "00005", "00006", "00007"]);
        for id in ["00004", "00005", "00006", "00007"] {
            schedule.sent(id, None, Some(Target::Webhook), now);
        }
        let later = now + SECOND;
        let next = std::iter::from_fn(|| schedule.start(later)).map(|(_, target, ..)| target);
        let next: Vec<Target> = next.collect();
        assert_eq!(next.iter().filter(|t| **t == Target::Webhook).count(), 1, "{next:?}");
        assert_eq!(next.len(), 4);
    }
}
