//! The figures of a live call: its worker publishes them once a second, and the control API reads
//! them without asking the worker.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

/// Interval at which a worker publishes the figures of each of its calls.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// The state of the AI in a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AiState {
    /// It is dialled, or its stream has not started.
    #[default]
    Dialling,
    Listening,
    Speaking,
    /// It has failed, and the next step of `on_ai_failure` is being tried.
    Failed,
    /// Its stream is over, and the call is about to end.
    Gone,
}

impl AiState {
    pub const ALL: [AiState; 5] =
        [AiState::Dialling, AiState::Listening, AiState::Speaking, AiState::Failed, AiState::Gone];

    pub fn word(self) -> &'static str {
        match self {
            AiState::Dialling => "dialling",
            AiState::Listening => "listening",
            AiState::Speaking => "speaking",
            AiState::Failed => "failed",
            AiState::Gone => "gone",
        }
    }
}

/// The loudest samples of both directions, as magnitudes from 0 to 32,767.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peaks {
    pub caller: u16,
    pub ai: u16,
}

/// The figures of a live call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub ai: AiState,
    /// The levels of the last second.
    pub peaks: Peaks,
    pub packets_in: u64,
    pub packets_out: u32,
    pub lost: u64,
    /// Audio made up for lost packets.
    pub concealed_ms: u64,
    /// The jitter of the caller's packets; `None` before the first.
    pub jitter_ms: Option<u64>,
    /// The way to the PBX and back, by its RTCP reports.
    pub round_trip: Option<Duration>,
    /// The AI's audio that stayed queued throughout its last two seconds.
    pub playout_floor_ms: u64,
}

impl Figures {
    /// A level in dBFS, from -90 to 0.
    pub fn dbfs(peak: u16) -> i32 {
        let level = 20.0 * (f64::from(peak.max(1)) / 32_768.0).log10();
        level.round() as i32
    }
}

/// The figures that were published last.
#[derive(Debug, Default)]
pub struct Vitals(Mutex<Figures>);

impl Vitals {
    /// Publishes figures. Never waits: while someone reads, these figures are left out.
    pub fn publish(&self, figures: Figures) {
        match self.0.try_lock() {
            Ok(mut place) => *place = figures,
            Err(TryLockError::Poisoned(place)) => *place.into_inner() = figures,
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// A panic in another thread leaves the figures consistent, so poisoning is ignored.
    pub fn get(&self) -> Figures {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_in_dbfs() {
        assert_eq!([0, 1, 3277, 32_767].map(Figures::dbfs), [-90, -90, -20, 0]);
    }

    #[test]
    fn a_reader_does_not_hold_up_the_worker() {
        let vitals = Vitals::default();
        let reading = vitals.0.lock().unwrap();
        vitals.publish(Figures { lost: 1, ..Figures::default() });
        drop(reading);
        assert_eq!(vitals.get().lost, 0);
        vitals.publish(Figures { lost: 2, ..Figures::default() });
        assert_eq!(vitals.get().lost, 2);
    }
}
