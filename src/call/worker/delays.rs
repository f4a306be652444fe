//! Samples how long audio stays in a worker, and notes its standstills. Owns readings of the clock.

use std::time::{Duration, Instant};

use crate::call::counters::{STALLED_MS, STALLS, delayed_to_ai, delayed_to_caller};

/// One event in this many is measured.
const SAMPLED: u32 = 64;

/// The direction of the audio that an event moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToAi,
    ToCaller,
}

/// The delays of one worker.
#[derive(Debug, Default)]
pub(super) struct Delays {
    /// Events since the last one that was measured.
    events: u32,
    /// When the worker last stood still.
    stalled: Option<Instant>,
}

impl Delays {
    /// Returns true if this event is to be measured.
    pub fn samples(&mut self) -> bool {
        self.events = (self.events + 1) % SAMPLED;
        self.events == 0
    }

    /// Counts an event that was handled from `began` on, `late` after it was due.
    pub fn handled(direction: Direction, began: Instant, late: Duration) {
        match direction {
            Direction::ToAi => delayed_to_ai(began.elapsed()),
            Direction::ToCaller => delayed_to_caller(began.elapsed() + late),
        }
    }

    /// Counts a standstill, which all calls of the worker notice one after the other.
    pub fn stood_still(&mut self, now: Instant, time: Duration) {
        let before = self.stalled.replace(now);
        if before.is_none_or(|at| now.saturating_duration_since(at) > time) {
            STALLS.add(1);
            STALLED_MS.add(time.as_millis() as u64);
        }
    }
}
