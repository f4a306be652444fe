//! When each sender sends: every 20 ms, with the senders spread evenly over the 20 ms, on an
//! absolute clock.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

const FRAME_NS: u64 = 20_000_000;

/// A sender that is due, and its due time in nanoseconds since the common start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub sender: usize,
    pub at_ns: u64,
}

/// A ring of senders. Tick `k` is due at `epoch + k · 20 ms / senders`, rounded up to the time
/// resolution, whatever happened before: a delay never carries over to later ticks.
#[derive(Debug)]
pub struct Ring {
    /// The sender at each place of the ring. Senders with adjacent numbers are far apart in time,
    /// so that a few active senders are spread as evenly as all of them.
    order: Vec<usize>,
    /// Time of tick 0, in nanoseconds since the common start.
    epoch_ns: u64,
    /// Due times are multiples of this, the time resolution of the generator. Otherwise the wait
    /// for its next wake-up would count as its lateness.
    grain_ns: u64,
    /// The next tick.
    tick: u64,
}

impl Ring {
    pub fn new(senders: usize, epoch_ns: u64, grain_ns: u64) -> Ring {
        let senders = senders.max(1);
        let divides = |stride: usize| {
            let (mut a, mut b) = (senders, stride);
            while b > 0 {
                (a, b) = (b, a % b);
            }
            a == 1
        };
        let golden = (senders as f64 * 0.618) as usize;
        let stride = (golden.max(1)..).find(|s| divides(*s)).unwrap_or(1);
        let mut order = vec![0; senders];
        (0..senders).for_each(|sender| order[sender * stride % senders] = sender);
        Ring { order, epoch_ns, grain_ns, tick: 0 }
    }

    fn at_ns(&self, tick: u64) -> u64 {
        let exact = self.epoch_ns + tick * FRAME_NS / self.order.len() as u64;
        exact.next_multiple_of(self.grain_ns)
    }

    fn sender(&self, tick: u64) -> usize {
        self.order[(tick % self.order.len() as u64) as usize]
    }

    /// Takes the next tick if it is due.
    pub fn take(&mut self, now_ns: u64) -> Option<Due> {
        let due = Due { sender: self.sender(self.tick), at_ns: self.at_ns(self.tick) };
        (due.at_ns <= now_ns).then(|| {
            self.tick += 1;
            due
        })
    }

    /// Returns when the next busy sender is due.
    pub fn next_ns(&self, busy: impl Fn(usize) -> bool) -> Option<u64> {
        let all = self.tick..self.tick + self.order.len() as u64;
        all.into_iter().find(|t| busy(self.sender(*t))).map(|t| self.at_ns(t))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sender_is_due_every_20_ms_and_all_are_spread_evenly() {
        for senders in [1, 2, 7, 50, 300] {
            let mut ring = Ring::new(senders, 1000, 1);
            let mut dues = Vec::new();
            while let Some(due) = ring.take(1000 + 10 * FRAME_NS - 1) {
                dues.push(due);
            }
            assert_eq!(dues.len(), 10 * senders);
            for pair in dues.windows(2) {
                let gap = pair[1].at_ns - pair[0].at_ns;
                assert!(gap.abs_diff(FRAME_NS / senders as u64) <= 1, "{senders}: {gap}");
            }
            for sender in 0..senders {
                let own: Vec<u64> =
                    dues.iter().filter(|d| d.sender == sender).map(|d| d.at_ns).collect();
                assert_eq!(own.len(), 10);
                assert!(own.windows(2).all(|w| w[1] - w[0] == FRAME_NS));
            }
        }
    }

    #[test]
    fn due_times_are_multiples_of_the_grain() {
        let mut ring = Ring::new(7, 1000, 100_000);
        let dues: Vec<u64> = (0..21).filter_map(|_| ring.take(u64::MAX)).map(|d| d.at_ns).collect();
        assert!(dues.iter().all(|at| at.is_multiple_of(100_000)));
        assert!((0..14).all(|n| dues[n + 7] - dues[n] == FRAME_NS));
    }

    #[test]
    fn idle_senders_cause_no_wakeups() {
        let mut ring = Ring::new(4, 0, 1);
        assert_eq!(ring.next_ns(|_| false), None);
        let first = ring.take(0).unwrap().sender;
        assert_eq!(ring.next_ns(|s| s == first), Some(FRAME_NS));
    }
}
