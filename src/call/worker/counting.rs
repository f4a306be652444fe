//! The share of one call in the metrics, counted while it lasts.

use std::time::Instant;

use crate::call::counters;
use crate::call::ended::Dialled;
use crate::call::live::EventKind;
use crate::call::turns::Turn;
use crate::call::worker::task::Running;

/// Attempts to connect with an AI that are kept for the record of the call.
const MAX_DIALLED: usize = 32;

impl Running {
    pub(super) fn note_dialled(
        &mut self,
        now: Instant,
        began: Instant,
        failure: Option<&'static str>,
    ) {
        let took = now.saturating_duration_since(began);
        counters::ai_dialled(took, failure);
        self.attempts += 1;
        if self.dialled.len() < MAX_DIALLED {
            let at = began.saturating_duration_since(self.begun);
            self.dialled.push(Dialled { at, took, failure });
        }
    }

    pub(super) fn answered(&mut self, now: Instant) {
        self.lines.answered(&self.call.summary(now));
        self.observed.event(&EventKind::Answered);
    }

    pub(super) fn count_traffic(&mut self, now: Instant) {
        let dropped = self.ai_counts.dropped_audio;
        self.traffic.report(&self.call.summary(now), dropped);
    }

    pub(super) fn count_turn(&mut self, now: Instant, turn: &Turn) {
        counters::turn(turn);
        let latency = self.call.summary(now).turn_latency;
        self.observed.call.update(|state| state.turn_latency = latency);
    }
}
