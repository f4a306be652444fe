//! The quality of G.711 audio, estimated with the E-model (ITU-T G.107, with the loss robustness of
//! G.711 with concealment from G.113).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

/// The rating of a connection without impairments, with the default values of G.107.
const BEST: f64 = 93.2;
/// How much random loss G.711 with concealment tolerates (Bpl in G.113).
const ROBUSTNESS: f64 = 25.1;
/// Packets that a receiver holds, and the packet itself.
const PACKET: Duration = Duration::from_millis(20);
/// From this delay on, people begin to talk over each other.
const TALKING_OVER: f64 = 177.3;

/// The audio of one direction over some seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// The part of the packets that were lost or came too late: 0 to 1.
    pub loss: f64,
    pub jitter: Duration,
    /// Round trip to the other side, if it is known.
    pub round_trip: Option<Duration>,
}

impl Quality {
    /// Returns the mean opinion score: 1 (bad) to 4.4 (the best that G.711 can do).
    pub fn mos(&self) -> f64 {
        let one_way = self.round_trip.unwrap_or_default() / 2 + PACKET + self.jitter * 2;
        let delay = one_way.as_secs_f64() * 1000.0;
        let delayed = 0.024 * delay + 0.11 * (delay - TALKING_OVER).max(0.0);
        let percent = self.loss.clamp(0.0, 1.0) * 100.0;
        let lost = 95.0 * percent / (percent + ROBUSTNESS);
        let rating = (BEST - delayed - lost).clamp(0.0, 100.0);
        1.0 + 0.035 * rating + rating * (rating - 60.0) * (100.0 - rating) * 7e-6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mos(loss: f64, jitter_ms: u64, round_trip_ms: u64) -> f64 {
        let round_trip = Some(Duration::from_millis(round_trip_ms));
        Quality { loss, jitter: Duration::from_millis(jitter_ms), round_trip }.mos()
    }

    #[test]
    fn the_score_falls_with_loss_jitter_and_delay() {
        assert!((mos(0.0, 0, 0) - 4.4).abs() < 0.02, "{}", mos(0.0, 0, 0));
        // G.113: 2 % of random loss costs about 7 of 93 points
        assert!((mos(0.02, 0, 20) - 4.2).abs() < 0.1, "{}", mos(0.02, 0, 20));
        assert!(mos(0.1, 0, 20) < 3.5, "{}", mos(0.1, 0, 20));
        assert!(mos(0.0, 0, 600) < 3.9);
        assert!(mos(0.0, 60, 20) < mos(0.0, 0, 20));
        assert!(mos(1.0, 0, 0) >= 1.0);
    }
}
