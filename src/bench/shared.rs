//! State shared by the two generator threads and the measurement: a few atomics, read once per
//! round.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::bench::stamp::Scope;
use crate::bench::waiting::Clock;

/// The first part of a call, which is judged apart from the rest.
pub const FIRST_SECOND_US: u64 = 1_000_000;
/// If the end of a call is known, its frames are judged until this long before the end.
pub const TAIL_US: u64 = 1_500_000;

/// The phases of a measurement, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Waiting for the bridge to register, or to open its ARI events.
    Wait,
    /// Setting up calls, up to the requested number; with churn, continuously.
    Dial,
    /// Hanging up all calls.
    HangUp,
    /// Ending the threads.
    Stop,
}

const PHASES: [Phase; 4] = [Phase::Wait, Phase::Dial, Phase::HangUp, Phase::Stop];

#[derive(Debug)]
pub struct Shared {
    pub clock: Clock,
    /// Index of the current phase in [`PHASES`].
    phase: AtomicU8,
    /// Start and end of the measured time, in microseconds of the clock.
    pub open_us: AtomicU64,
    pub close_us: AtomicU64,
    /// Time at which the bridge first registered, or opened its ARI events; 0 before that.
    pub registered_us: AtomicU64,
    /// Calls answered so far.
    pub answered: AtomicU32,
    /// Calls that ended without an answer.
    pub failed: AtomicU32,
    /// Calls in progress, from the INVITE on.
    pub open_calls: AtomicU32,
    /// Connections that the AI has accepted so far.
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

    /// Returns the scope of a frame due at `due_us`. `up_us` is when its call was answered;
    /// `ends_us` is when it will end, if that is known. The first second of a call counts even if
    /// it is over before the measured time begins.
    pub fn scope(self, due_us: u64, up_us: u64, ends_us: Option<u64>) -> Scope {
        if ends_us.is_some_and(|ends| due_us + TAIL_US >= ends) {
            Scope::Ignored
        } else if due_us < up_us + FIRST_SECOND_US {
            Scope::FirstSecond
        } else if self.holds(due_us) {
            Scope::Measured
        } else {
            Scope::Ignored
        }
    }

    /// True if damage counts at this time in a call that was answered at `up_us`: a damaged frame
    /// does not show its own scope.
    pub fn counts_damage(self, now_us: u64, up_us: u64) -> bool {
        self.holds(now_us) || (up_us..up_us + FIRST_SECOND_US).contains(&now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_judged_in_the_window_and_in_the_first_second_of_the_call() {
        let window = Window { open_us: 10_000_000, close_us: 20_000_000 };
        let table = [
            (10_000_000, 9_000_000, None, Scope::Measured),
            (9_999_999, 0, None, Scope::Ignored),
            (20_000_000, 0, None, Scope::Ignored),
            (11_000_000, 10_000_001, None, Scope::FirstSecond),
            // long before the measured time
            (1_500_000, 1_000_000, None, Scope::FirstSecond),
            (12_000_000, 0, Some(13_500_001), Scope::Measured),
            // the call ends soon
            (12_000_000, 0, Some(13_500_000), Scope::Ignored),
        ];
        for (due_us, up_us, ends_us, scope) in table {
            assert_eq!(window.scope(due_us, up_us, ends_us), scope, "{due_us} {up_us} {ends_us:?}");
        }
        assert!(window.counts_damage(1_000_000, 500_000));
        assert!(!window.counts_damage(2_000_000, 500_000));
        assert!(window.counts_damage(12_000_000, 0));
    }
}
