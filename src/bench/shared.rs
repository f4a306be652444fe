//! What the two threads and the measurement tell each other: a few atomics, read once a round.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::bench::waiting::Clock;

/// A call is judged from so long after its answer on …
pub const SETTLE_US: u64 = 1_000_000;
/// … and, when its end is known, until so long before it.
pub const TAIL_US: u64 = 1_500_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Registrations are taken.
    Wait,
    /// Calls are set up, up to their number; in churn again and again.
    Dial,
    /// All calls are hung up.
    HangUp,
    /// The threads end.
    Stop,
}

const PHASES: [Phase; 4] = [Phase::Wait, Phase::Dial, Phase::HangUp, Phase::Stop];

#[derive(Debug)]
pub struct Shared {
    pub clock: Clock,
    phase: AtomicU8,
    /// The measured time, in microseconds of the clock.
    pub open_us: AtomicU64,
    pub close_us: AtomicU64,
    /// When somebody first registered; 0 = nobody has.
    pub registered_us: AtomicU64,
    pub answered: AtomicU32,
    /// Not answered.
    pub failed: AtomicU32,
    /// Calls now, from the INVITE on.
    pub open_calls: AtomicU32,
    pub streams: AtomicU32,
}

impl Shared {
    pub fn new(clock: Clock) -> Shared {
        Shared {
            clock,
            phase: AtomicU8::new(0),
            open_us: AtomicU64::new(u64::MAX),
            close_us: AtomicU64::new(u64::MAX),
            registered_us: AtomicU64::new(0),
            answered: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            open_calls: AtomicU32::new(0),
            streams: AtomicU32::new(0),
        }
    }

    pub fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    pub fn enter(&self, phase: Phase) {
        let index = PHASES.iter().position(|p| *p == phase).unwrap_or(0);
        self.phase.store(index as u8, Ordering::Relaxed);
    }

    pub fn window(&self) -> Window {
        let [open_us, close_us] =
            [&self.open_us, &self.close_us].map(|edge| edge.load(Ordering::Relaxed));
        Window { open_us, close_us }
    }
}

/// The measured time.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub open_us: u64,
    pub close_us: u64,
}

impl Window {
    pub fn holds(self, now_us: u64) -> bool {
        (self.open_us..self.close_us).contains(&now_us)
    }

    /// Whether a frame sent now is judged, in a call that came up and perhaps ends at these times.
    pub fn judges(self, now_us: u64, up_us: u64, ends_us: Option<u64>) -> bool {
        self.holds(now_us)
            && now_us >= up_us + SETTLE_US
            && ends_us.is_none_or(|ends| now_us + TAIL_US < ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_judged_in_the_window_and_away_from_the_calls_ends() {
        let window = Window { open_us: 10_000_000, close_us: 20_000_000 };
        assert!(window.judges(10_000_000, 9_000_000, None));
        assert!(!window.judges(9_999_999, 0, None));
        assert!(!window.judges(20_000_000, 0, None));
        assert!(!window.judges(11_000_000, 10_000_001, None), "it has not settled");
        assert!(window.judges(12_000_000, 0, Some(13_500_001)));
        assert!(!window.judges(12_000_000, 0, Some(13_500_000)), "it ends soon");
    }
}
