//! The send schedule: when each frame to the caller is due.
//!
//! Silence keeps to the grid of the call: frame n at time 0 + n · 20 ms. Speech starts immediately,
//! even between two ticks, and then keeps 20 ms between frames. The silence after it is not sent
//! until the grid has caught up, so packets are never more than one frame ahead of the clock.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::media::frame::FRAME_TIME;

/// A frame later than this means that the process was stalled: continue from now, do not catch up.
const STALL: Duration = Duration::from_millis(200);

/// The send schedule of one call.
#[derive(Debug)]
pub struct Pacer {
    /// Time 0 of the call.
    start: Instant,
    /// Number of the next frame; its RTP timestamp follows from it.
    index: u64,
    /// The scheduled time of the last frame, and whether it was speech.
    last: Option<(Instant, bool)>,
}

/// The slot for one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub index: u64,
    /// First frame of a talkspurt: set RTP's marker (RFC 3551 §4.1).
    pub marker: bool,
}

impl Pacer {
    /// `start`: time 0 of the call, when the first frame is due.
    pub fn new(start: Instant) -> Pacer {
        Pacer { start, index: 0, last: None }
    }

    /// Number of the next frame.
    pub fn index(&self) -> u64 {
        self.index
    }

    fn grid(&self) -> Instant {
        self.start + FRAME_TIME * u32::try_from(self.index).unwrap_or(u32::MAX)
    }

    /// When the next frame is due. `audio_waits`: there is speech to send, not silence.
    pub fn deadline(&self, audio_waits: bool) -> Instant {
        match self.last {
            Some((at, true)) if audio_waits => at + FRAME_TIME,
            Some((at, false)) if audio_waits => at,
            _ => self.grid(),
        }
    }

    /// Takes the slot that is due now. A frame must then be sent in it.
    pub fn take(&mut self, now: Instant, audio: bool) -> Slot {
        let due = self.deadline(audio);
        let talkspurt = audio && !matches!(self.last, Some((_, true)));
        let at = if talkspurt || now.saturating_duration_since(due) > STALL { now } else { due };
        if now.saturating_duration_since(self.grid()) > STALL {
            let passed = now.saturating_duration_since(self.start).as_micros();
            self.index = (passed / FRAME_TIME.as_micros()) as u64;
        }
        let slot = Slot { index: self.index, marker: talkspurt };
        self.index += 1;
        self.last = Some((at, audio));
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    /// Runs to `until` ms; `audio_from` has the times at which frames are queued, and how many.
    /// Returns (ms, index, audio) for each slot.
    fn run(audio_from: &[(u64, usize)], until: u64) -> Vec<(u64, u64, bool)> {
        let t0 = start();
        let mut pacer = Pacer::new(t0);
        let mut out = Vec::new();
        let mut waiting = 0;
        for ms in 0..until {
            let now = t0 + Duration::from_millis(ms);
            waiting += audio_from.iter().filter(|(at, _)| *at == ms).map(|(_, n)| n).sum::<usize>();
            while pacer.deadline(waiting > 0) <= now {
                let slot = pacer.take(now, waiting > 0);
                out.push((ms, slot.index, waiting > 0));
                waiting = waiting.saturating_sub(1);
            }
        }
        out
    }

    #[test]
    fn silence_keeps_to_the_grid() {
        let times: Vec<u64> = run(&[], 100).iter().map(|(t, ..)| *t).collect();
        assert_eq!(times, [0, 20, 40, 60, 80]);
    }

    #[test]
    fn speech_starts_at_once_and_silence_waits_for_the_grid() {
        let out = run(&[(47, 3)], 160);
        let times: Vec<(u64, bool)> = out.iter().map(|(t, _, a)| (*t, *a)).collect();
        assert_eq!(
            times[2..],
            [(40, false), (47, true), (67, true), (87, true), (120, false), (140, false)]
        );
        assert!(out.windows(2).all(|w| w[1].1 == w[0].1 + 1), "no timestamp is skipped");
    }

    #[test]
    fn many_short_bursts_never_run_ahead() {
        let bursts: Vec<(u64, usize)> = (0..100).map(|n| (n * 93 + 7, 1)).collect();
        for (ms, index, _) in run(&bursts, 9400) {
            assert!(index * 20 <= ms + 20, "{index} at {ms}");
        }
    }

    #[test]
    fn a_stall_is_not_caught_up() {
        let t0 = start();
        let mut pacer = Pacer::new(t0);
        pacer.take(t0, true);
        let later = t0 + Duration::from_secs(2);
        assert_eq!(pacer.take(later, true).index, 100);
        assert_eq!(pacer.deadline(true), later + FRAME_TIME);
    }
}
