//! Counters and gauges. Each part of the program declares its own with [`counters!`], in one line
//! each; the composition root collects the parts' lists for `/metrics` and the log.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The lists of all parts.
pub type Counters = &'static [&'static [&'static Counter]];

/// A number on the metrics page.
#[derive(Debug)]
pub struct Counter {
    /// The metric's name without `trunkless_` and `_total`.
    pub name: &'static str,
    pub help: &'static str,
    /// True if the number can fall; otherwise it counts since the program started.
    pub is_gauge: bool,
    /// True if milliseconds are counted, which are shown in seconds.
    is_ms: bool,
    /// True if the log shows it with the totals.
    is_logged: bool,
    value: AtomicU64,
}

impl Counter {
    pub const fn total(name: &'static str, help: &'static str) -> Counter {
        let value = AtomicU64::new(0);
        Counter { name, help, is_gauge: false, is_ms: false, is_logged: true, value }
    }

    /// A total of seconds, counted in milliseconds.
    pub const fn seconds(name: &'static str, help: &'static str) -> Counter {
        Counter { is_ms: true, ..Counter::total(name, help) }
    }

    pub const fn gauge(name: &'static str, help: &'static str) -> Counter {
        Counter { is_gauge: true, ..Counter::total(name, help) }
    }

    /// A gauge that is not among the totals in the log.
    pub const fn state(name: &'static str, help: &'static str) -> Counter {
        Counter { is_logged: false, ..Counter::gauge(name, help) }
    }

    pub fn add(&self, count: u64) {
        self.value.fetch_add(count, Ordering::Relaxed);
    }

    /// Replaces one part of a sum: `before` by `after`.
    pub fn replace(&self, before: u64, after: u64) {
        self.value.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    pub fn set(&self, value: u64) {
        self.value.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    /// The number in its base unit, as text.
    pub fn shown(&self) -> String {
        match self.is_ms {
            true => (self.get() as f64 / 1e3).to_string(),
            false => self.get().to_string(),
        }
    }
}

/// A total for each combination of the labels' values. A combination appears once something was
/// counted for it.
#[derive(Debug)]
pub struct Labelled {
    /// Name in the metrics, without prefix and suffix.
    pub name: &'static str,
    pub help: &'static str,
    pub labels: &'static [&'static str],
    /// Values of the only label that are shown from the start, so that a first one is an increase.
    known: &'static [&'static str],
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Labelled {
    pub const fn new(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Labelled {
        Labelled { name, help, labels, known: &[], counts: Mutex::new(BTreeMap::new()) }
    }

    /// With one label, whose `known` values are shown from the start.
    pub const fn with_known(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str; 1],
        known: &'static [&'static str],
    ) -> Labelled {
        Labelled { name, help, labels, known, counts: Mutex::new(BTreeMap::new()) }
    }

    /// Counts one for these values of the labels. Only the program's own texts may be passed,
    /// because each combination is kept.
    pub fn add(&self, values: &[&str]) {
        let pairs = self.labels.iter().zip(values);
        let pairs: Vec<String> = pairs.map(|(label, v)| format!("{label}=\"{v}\"")).collect();
        let value = pairs.join(",");
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(value).or_default() += 1;
    }

    /// Every combination, as on the metrics page, with its count.
    pub fn get(&self) -> BTreeMap<String, u64> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (value, label) in self.known.iter().zip(self.labels.iter().cycle()) {
            counts.entry(format!("{label}=\"{value}\"")).or_default();
        }
        counts
    }
}

/// Declares the counters of a part and their list, `ALL`:
/// `total NAME = "metric_name", "Help text.";`
macro_rules! counters {
    ($($kind:ident $counter:ident = $name:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $counter: $crate::telemetry::counter::Counter =
                $crate::telemetry::counter::Counter::$kind($name, $help);
        )*
        /// All counters of this part.
        pub static ALL: &[&$crate::telemetry::counter::Counter] = &[$(&$counter),*];
    };
}

pub(crate) use counters;

/// The counters that are not 0, for the log: `calls_offered=3 calls_answered=2`.
pub fn text(counters: Counters) -> String {
    let mut out = String::new();
    let all = counters.iter().flat_map(|part| part.iter());
    for counter in all.filter(|counter| counter.is_logged && counter.get() != 0) {
        let space = if out.is_empty() { "" } else { " " };
        let _ = write!(out, "{space}{}={}", counter.name, counter.shown());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    counters! {
        total HEARD = "heard", "Things heard.";
        seconds LOST = "lost_seconds", "Time lost.";
        gauge WAITING = "waiting", "Things waiting.";
        state SINCE = "since", "A time.";
    }

    #[test]
    fn counters_declare_themselves() {
        HEARD.add(2);
        HEARD.add(3);
        static PARTS: &[&[&Counter]] = &[ALL];
        assert_eq!(text(PARTS), "heard=5");
        SINCE.set(9);
        WAITING.set(7);
        WAITING.set(1);
        assert_eq!(text(PARTS), "heard=5 waiting=1");
        LOST.add(1520);
        assert_eq!(text(PARTS), "heard=5 lost_seconds=1.52 waiting=1");
        assert_eq!(ALL.iter().map(|c| c.is_gauge).collect::<Vec<_>>(), [false, false, true, true]);
    }
}
