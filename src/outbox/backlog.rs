//! The items that wait in an outbox, and the bounds on them: age, number and bytes. Beyond them,
//! the oldest items are given up.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub items: usize,
    pub bytes: u64,
    pub age: Duration,
    /// No item is too old before this process has known it for this long, so that a clock which
    /// is set forward loses nothing, and a start after a long time tries each item.
    pub known: Duration,
}

#[derive(Debug)]
struct Item {
    /// Its time since 1970.
    since: Duration,
    bytes: u64,
    /// When this process first saw it.
    known: Instant,
}

#[derive(Debug)]
pub struct Backlog {
    bounds: Bounds,
    items: BTreeMap<String, Item>,
    /// The items by age, oldest first.
    by_age: BTreeSet<(Duration, String)>,
    bytes: u64,
}

impl Backlog {
    pub fn new(bounds: Bounds) -> Backlog {
        Backlog { bounds, items: BTreeMap::new(), by_age: BTreeSet::new(), bytes: 0 }
    }

    /// Adds an item. Does nothing if it is already known.
    pub fn add(&mut self, id: &str, since: Duration, bytes: u64, now: Instant) {
        if !self.items.contains_key(id) {
            self.items.insert(id.to_owned(), Item { since, bytes, known: now });
            self.by_age.insert((since, id.to_owned()));
            self.bytes += bytes;
        }
    }

    pub fn remove(&mut self, id: &str) {
        if let Some(item) = self.items.remove(id) {
            self.by_age.remove(&(item.since, id.to_owned()));
            self.bytes -= item.bytes;
        }
    }

    pub fn ids(&self) -> impl Iterator<Item = &String> {
        self.items.keys()
    }

    /// True if an item is too old. `unix` is the time since 1970.
    pub fn is_old(&self, id: &str, unix: Duration, now: Instant) -> bool {
        self.items.get(id).is_some_and(|item| {
            item.since + self.bounds.age < unix && item.known + self.bounds.known <= now
        })
    }

    /// The items that are too old.
    pub fn old(&self, unix: Duration, now: Instant) -> Vec<String> {
        let aged = self.by_age.iter().take_while(|(since, _)| *since + self.bounds.age < unix);
        let ids = aged.map(|(_, id)| id);
        ids.filter(|id| self.is_old(id, unix, now)).cloned().collect()
    }

    /// The oldest items, as many as are beyond the bounds.
    pub fn excess(&self) -> Vec<String> {
        let (mut items, mut bytes) = (self.items.len(), self.bytes);
        let mut ids = Vec::new();
        for (_, id) in &self.by_age {
            if items <= self.bounds.items && bytes <= self.bounds.bytes {
                break;
            }
            items -= 1;
            bytes -= self.items.get(id).map_or(0, |item| item.bytes);
            ids.push(id.clone());
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const BOUNDS: Bounds =
        Bounds { items: 3, bytes: 100, age: DAY, known: Duration::from_secs(900) };

    #[test]
    fn the_oldest_are_beyond_the_bounds() {
        let (mut backlog, now) = (Backlog::new(BOUNDS), crate::testing::start());
        for (id, since, bytes) in [("c", 1, 10), ("a", 2, 10), ("b", 3, 10)] {
            backlog.add(id, since * DAY, bytes, now);
            backlog.add(id, 9 * DAY, 99, now);
        }
        assert!(backlog.excess().is_empty());
        backlog.add("d", 4 * DAY, 10, now);
        assert_eq!(backlog.excess(), ["c"], "four items");
        backlog.remove("c");
        backlog.remove("c");
        assert!(backlog.excess().is_empty());
        backlog.remove("d");
        backlog.add("e", 5 * DAY, 95, now);
        assert_eq!(backlog.excess(), ["a", "b"], "115 bytes");
    }

    #[test]
    fn items_are_old_after_a_day_and_a_quarter_of_an_hour() {
        let (mut backlog, now) = (Backlog::new(BOUNDS), crate::testing::start());
        backlog.add("old", DAY, 1, now);
        backlog.add("new", 2 * DAY, 1, now);
        backlog.add("later than now", u32::MAX * DAY, 1, now);
        let unix = 2 * DAY + Duration::from_secs(1);
        assert!(backlog.old(unix, now).is_empty(), "just found");
        let later = now + BOUNDS.known;
        assert_eq!(backlog.old(unix, later), ["old"]);
        assert!(backlog.is_old("old", unix, later) && !backlog.is_old("new", unix, later));
        assert_eq!(backlog.ids().count(), 3);
    }
}
