//! A queue of delayed items, such as packets on their way through the simulated network.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

/// Items by their due time. Items due at the same time stay in order.
#[derive(Debug)]
pub struct Delays<T> {
    /// By due time in nanoseconds, and then by the number of the item.
    items: BTreeMap<(u64, u64), T>,
    pushed: u64,
}

impl<T> Default for Delays<T> {
    fn default() -> Delays<T> {
        Delays { items: BTreeMap::new(), pushed: 0 }
    }
}

impl<T> Delays<T> {
    pub fn push(&mut self, at_ns: u64, item: T) {
        self.pushed += 1;
        self.items.insert((at_ns, self.pushed), item);
    }

    /// Takes the next item that is due, with its due time.
    pub fn take(&mut self, now_ns: u64) -> Option<(u64, T)> {
        self.next_ns().filter(|at_ns| *at_ns <= now_ns)?;
        self.items.pop_first().map(|((at_ns, _), item)| (at_ns, item))
    }

    pub fn next_ns(&self) -> Option<u64> {
        self.items.first_key_value().map(|((at_ns, _), _)| *at_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_out_when_they_are_due_and_in_order() {
        let mut delays = Delays::default();
        for (at, item) in [(30, 'c'), (10, 'a'), (30, 'd'), (20, 'b')] {
            delays.push(at, item);
        }
        assert_eq!(delays.take(9), None);
        assert_eq!(delays.next_ns(), Some(10));
        let mut all = Vec::new();
        while let Some((_, item)) = delays.take(30) {
            all.push(item);
        }
        assert_eq!((all, delays.next_ns()), (vec!['a', 'b', 'c', 'd'], None));
    }
}
