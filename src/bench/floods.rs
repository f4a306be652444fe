//! Floods: a second of audio that the AI sends in one piece and cuts short with a `clear`. The
//! callers' end and the AI's end each know one half of a flood; here they are put together.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;

use crate::bench::figures::Times;
use crate::bench::speech::PIECE_FRAMES;

const FRAME_US: u64 = 20_000;
/// Frames that may be missing before the `clear`: one waits for its slot, one is on its way.
const SLACK: u64 = 2;

/// A flood that is being played.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// Number of the first frame.
    pub first: u32,
    /// Frames that arrived.
    pub arrived: u32,
    /// Position of the last frame that arrived, plus one.
    pub places: u32,
    pub judged: bool,
    /// Arrival of the latest frame.
    last_us: u64,
}

impl Flood {
    pub fn new(first: u32, judged: bool) -> Flood {
        Flood { first, arrived: 0, places: 0, judged, last_us: 0 }
    }

    pub fn add(&mut self, place: u8, now_us: u64) {
        self.arrived += 1;
        self.places = self.places.max(u32::from(place) + 1);
        self.last_us = now_us;
    }

    pub fn end(&self, sender: u32) -> FloodEnd {
        FloodEnd { sender, first: self.first, places: self.places, last_us: self.last_us }
    }
}

/// A flood as its caller heard it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodEnd {
    pub sender: u32,
    /// Number of its first frame; identifies the flood together with the sender.
    pub first: u32,
    /// Position of the last frame that arrived, plus one.
    pub places: u32,
    /// Arrival of the last frame.
    pub last_us: u64,
}

/// A `clear` that was sent: the stream, the first frame of the flood, and the times at which the
/// two were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleared {
    pub sender: u32,
    pub first: u32,
    pub flood_us: u64,
    pub at_us: u64,
}

/// Results for all floods that were cleared.
#[derive(Debug, Default)]
pub struct Floods {
    /// From sending `clear` to the arrival of the last frame of the flood; 0 if no frame arrived
    /// after it. Floods of which no frame arrived are left out.
    pub clear_to_silence: Times,
    /// Frames that should have been played before the `clear` but did not arrive: the lost tails.
    pub lost_tails: u64,
}

impl Floods {
    /// Compares what was heard of each flood with what there was time to play.
    /// `jitter_us` is the longest delay of messages from the AI: audio before the flood may still
    /// be queued.
    pub fn compare(clears: &[Cleared], ends: &[FloodEnd], jitter_us: u64) -> Floods {
        let ends: HashMap<(u32, u32), &FloodEnd> =
            ends.iter().map(|end| ((end.sender, end.first), end)).collect();
        let mut floods = Floods::default();
        for clear in clears {
            let end = ends.get(&(clear.sender, clear.first));
            if let Some(end) = end {
                floods.clear_to_silence.add_us(end.last_us.saturating_sub(clear.at_us));
            }
            let played = end.map_or(0, |end| u64::from(end.places));
            floods.lost_tails += time_for(clear, jitter_us).saturating_sub(played);
        }
        floods
    }
}

/// Returns the number of frames that must have been played before the `clear`.
fn time_for(clear: &Cleared, jitter_us: u64) -> u64 {
    let frames = clear.at_us.saturating_sub(clear.flood_us + jitter_us) / FRAME_US;
    frames.saturating_sub(SLACK).min(u64::from(PIECE_FRAMES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clear(sender: u32, first: u32, at_us: u64) -> Cleared {
        Cleared { sender, first, flood_us: at_us - 300_000, at_us }
    }

    #[test]
    fn clears_are_measured_to_the_last_frame_of_their_flood() {
        let end = |sender, first, last_us| FloodEnd { sender, first, places: 15, last_us };
        let clears = [clear(1, 400, 1_000_000), clear(2, 400, 1_000_000)];
        let ends = [end(1, 400, 1_012_000), end(2, 400, 990_000), end(1, 800, 5_000_000)];
        let floods = Floods::compare(&clears, &ends, 0);
        let spread = floods.clear_to_silence.spread().unwrap();
        assert_eq!((spread.count, floods.lost_tails), (2, 0));
        assert!((spread.max_ms - 12.0).abs() < 0.1);
        assert!(spread.p50_ms < 0.01);
    }

    #[test]
    fn a_lost_tail_is_noticed() {
        let end = |places| FloodEnd { sender: 1, first: 400, places, last_us: 0 };
        // 15 frames fit before the clear, of which two may be missing
        for (places, lost) in [(15, 0), (13, 0), (12, 1), (1, 12)] {
            let floods = Floods::compare(&[clear(1, 400, 1_000_000)], &[end(places)], 0);
            assert_eq!(floods.lost_tails, lost, "{places}");
        }
        // no frame of it arrived
        assert_eq!(Floods::compare(&[clear(1, 400, 1_000_000)], &[], 0).lost_tails, 13);
        // a late clear does not ask for more than there was
        let late = Cleared { flood_us: 0, ..clear(1, 400, 9_000_000) };
        assert_eq!(Floods::compare(&[late], &[end(50)], 0).lost_tails, 0);
        // with jitter, audio before the flood may take up some of the time
        let floods = Floods::compare(&[clear(1, 400, 1_000_000)], &[end(11)], 40_000);
        assert_eq!(floods.lost_tails, 0);
    }
}
