//! The account of frames received in one direction: which arrived, in what order, and from whom.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::bench::figures::Times;
use crate::bench::stamp::{Kind, Read, Stamp};

/// A frame later than this has missed its slot.
const LATE_US: u64 = 20_000;
/// How many frames behind the highest number a repeated frame is still recognised.
const REMEMBERED: u32 = 64;

/// One direction of all calls.
#[derive(Debug, Default)]
pub struct Tally {
    /// Judged frames that arrived, each counted once, without those of floods.
    pub arrived: u64,
    /// Judged frames of floods that arrived.
    pub flood_arrived: u64,
    /// Judged floods of which at least one frame arrived.
    pub floods: u64,
    /// Frames missing within floods, before the last one that was played.
    pub flood_holes: u64,
    /// Frames more than 20 ms late.
    pub late: u64,
    /// Frames that arrived after one with a higher number.
    pub swapped: u64,
    /// Frames that arrived again.
    pub repeated: u64,
    /// Frames that are neither intact stamps nor silence.
    pub damaged: u64,
    /// Frames of another call.
    pub misrouted: u64,
    /// Time from the send stamp to arrival; towards the caller, without the wait for the slot.
    pub added: Times,
}

impl Tally {
    /// Returns how many of `sent` judged frames were lost, plus the frames missing within floods. A
    /// flood that did not arrive at all counts as one frame.
    pub fn lost(&self, sent: u64, floods: u64) -> u64 {
        sent.saturating_sub(self.arrived) + self.flood_holes + floods.saturating_sub(self.floods)
    }

    /// Records the latency of a frame.
    pub fn time(&mut self, added_us: u64) {
        self.added.add_us(added_us);
        self.late += u64::from(added_us > LATE_US);
    }
}

/// A flood that is being played.
#[derive(Debug, Clone, Copy)]
struct Flood {
    /// Number of the first frame.
    first: u32,
    /// Frames that arrived.
    arrived: u32,
    /// Position of the last frame that arrived, plus one.
    places: u32,
    judged: bool,
    /// Arrival of the latest frame.
    last_us: u64,
}

/// The end of a flood: when its last frame arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodEnd {
    pub sender: u32,
    /// Number of its first frame; identifies the flood together with the sender.
    pub first: u32,
    pub last_us: u64,
}

/// The receiving end of one direction of one call.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Sender of the first frame; all others must have the same.
    sender: Option<u32>,
    /// Highest frame number so far.
    highest: Option<u32>,
    /// Bit n is set if frame `highest - n` has arrived.
    seen: u64,
    flood: Option<Flood>,
}

impl Ledger {
    /// Accounts for a frame that arrived. Returns its stamp if it belongs to the call and is new.
    /// Damage is counted only if `counting`, because a damaged frame does not show whether it is
    /// judged.
    pub fn take(
        &mut self,
        tally: &mut Tally,
        read: Read,
        now_us: u64,
        counting: bool,
    ) -> Option<Stamp> {
        let stamp = match read {
            Read::Ours(stamp) => stamp,
            Read::Silence => return None,
            Read::Damaged => {
                tally.damaged += u64::from(counting);
                return None;
            }
        };
        if *self.sender.get_or_insert(stamp.sender) != stamp.sender {
            tally.misrouted += 1;
            return None;
        }
        if !self.is_new(tally, stamp) {
            return None;
        }
        match stamp.kind {
            Kind::Flood(place) => self.flooded(tally, stamp, place, now_us),
            Kind::Paced | Kind::First => tally.arrived += u64::from(stamp.judged),
        }
        Some(stamp)
    }

    fn is_new(&mut self, tally: &mut Tally, stamp: Stamp) -> bool {
        let counts = u64::from(stamp.judged);
        match self.highest {
            Some(highest) if stamp.number <= highest => {
                let back = highest - stamp.number;
                if back >= REMEMBERED {
                    tally.swapped += counts;
                    return true;
                }
                let bit = 1 << back;
                if self.seen & bit != 0 {
                    tally.repeated += counts;
                    return false;
                }
                self.seen |= bit;
                tally.swapped += counts;
                true
            }
            before => {
                let ahead = before.map_or(REMEMBERED, |highest| stamp.number - highest);
                self.seen = if ahead >= REMEMBERED { 0 } else { self.seen << ahead };
                self.seen |= 1;
                self.highest = Some(stamp.number);
                true
            }
        }
    }

    fn flooded(&mut self, tally: &mut Tally, stamp: Stamp, place: u8, now_us: u64) {
        let first = stamp.number.wrapping_sub(u32::from(place));
        if self.flood.is_none_or(|f| f.first != first) {
            // the end of the previous flood is not needed if another flood follows directly
            let _ = self.end_flood(tally);
            let judged = stamp.judged;
            self.flood = Some(Flood { first, arrived: 0, places: 0, judged, last_us: 0 });
            tally.floods += u64::from(judged);
        }
        if let Some(flood) = &mut self.flood {
            flood.arrived += 1;
            flood.places = flood.places.max(u32::from(place) + 1);
            flood.last_us = now_us;
        }
    }

    /// Closes the flood that was being played, if any. Called when paced speech continues and at
    /// the end of the call.
    pub fn end_flood(&mut self, tally: &mut Tally) -> Option<FloodEnd> {
        let flood = self.flood.take()?;
        if flood.judged {
            tally.flood_arrived += u64::from(flood.arrived);
            tally.flood_holes += u64::from(flood.places - flood.arrived);
        }
        Some(FloodEnd { sender: self.sender?, first: flood.first, last_us: flood.last_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(number: u32) -> Stamp {
        Stamp { sender: 5, number, sent_us: 0, judged: true, kind: Kind::Paced }
    }

    fn feed(numbers: &[u32]) -> Tally {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for number in numbers {
            ledger.take(&mut tally, Read::Ours(ours(*number)), 0, true);
        }
        tally
    }

    #[test]
    fn lost_swapped_and_repeated_frames_are_counted() {
        let whole = feed(&[0, 1, 2, 3]);
        assert_eq!((whole.lost(4, 0), whole.swapped, whole.repeated), (0, 0, 0));
        let lost = feed(&[0, 1, 3]);
        assert_eq!((lost.lost(4, 0), lost.swapped, lost.repeated), (1, 0, 0));
        let swapped = feed(&[0, 2, 1, 3]);
        assert_eq!((swapped.lost(4, 0), swapped.swapped, swapped.repeated), (0, 1, 0));
        let repeated = feed(&[0, 1, 1, 2, 0, 3]);
        assert_eq!((repeated.lost(4, 0), repeated.swapped, repeated.repeated), (0, 0, 2));
        // a repeated frame does not make up for a lost one
        assert_eq!(feed(&[0, 1, 1, 3]).lost(4, 0), 1);
        // a long gap, as after a clear
        let cleared = feed(&[0, 1, 300, 301, 299]);
        assert_eq!((cleared.arrived, cleared.swapped), (5, 1));
    }

    #[test]
    fn damaged_and_misrouted_frames_are_counted() {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        ledger.take(&mut tally, Read::Ours(ours(0)), 0, true);
        ledger.take(&mut tally, Read::Damaged, 0, true);
        ledger.take(&mut tally, Read::Damaged, 0, false);
        ledger.take(&mut tally, Read::Silence, 0, true);
        let other = Stamp { sender: 6, ..ours(1) };
        assert_eq!(ledger.take(&mut tally, Read::Ours(other), 0, true), None);
        assert_eq!((tally.damaged, tally.misrouted, tally.lost(2, 0)), (1, 1, 1));
    }

    #[test]
    fn unjudged_frames_are_not_counted() {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for number in [0, 2, 1, 1] {
            let stamp = Stamp { judged: false, ..ours(number) };
            ledger.take(&mut tally, Read::Ours(stamp), 0, true);
        }
        assert_eq!((tally.arrived, tally.swapped, tally.repeated), (0, 0, 0));
    }

    #[test]
    fn the_cleared_rest_of_a_flood_is_not_lost_but_a_hole_is() {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        let flood = |place: u8| {
            Read::Ours(Stamp { kind: Kind::Flood(place), ..ours(100 + u32::from(place)) })
        };
        for place in [0, 1, 3, 4] {
            ledger.take(&mut tally, flood(place), 1000 + u64::from(place), true);
        }
        let end = ledger.end_flood(&mut tally);
        assert_eq!(end, Some(FloodEnd { sender: 5, first: 100, last_us: 1004 }));
        assert_eq!(ledger.end_flood(&mut tally), None);
        assert_eq!((tally.flood_arrived, tally.flood_holes), (4, 1));
        assert_eq!(tally.lost(0, 1), 1);
        // nothing of the second flood arrived
        assert_eq!(tally.lost(0, 2), 2);
    }

    #[test]
    fn late_means_more_than_20_ms() {
        let mut tally = Tally::default();
        [19_999, 20_000, 20_001].iter().for_each(|us| tally.time(*us));
        assert_eq!(tally.late, 1);
    }
}
