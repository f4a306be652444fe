//! What became of the frames of one direction: which arrived, in which order, and whose they were.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::bench::figures::Times;
use crate::bench::stamp::{Kind, Read, Stamp};

/// Over this a frame has missed its slot.
const LATE_US: u64 = 20_000;
/// How far back a frame may come and still be told from one that was there already.
const REMEMBERED: u32 = 64;

/// One direction of all calls.
#[derive(Debug, Default)]
pub struct Tally {
    /// Judged frames that arrived, each once; those of floods apart.
    pub arrived: u64,
    pub flood_arrived: u64,
    /// Judged floods of which something arrived.
    pub floods: u64,
    /// Frames missing between the first of a flood and the last of it that was played.
    pub flood_holes: u64,
    /// By more than 20 ms.
    pub late: u64,
    /// After one with a higher number.
    pub swapped: u64,
    /// The same one again.
    pub repeated: u64,
    /// Neither ours to the last byte nor silence.
    pub damaged: u64,
    /// Of another call.
    pub misrouted: u64,
    /// Send stamp to arrival; towards the caller: less the wait for the slot.
    pub added: Times,
}

impl Tally {
    /// Of `sent` judged frames; those that are missing in floods too. A flood of which nothing
    /// came counts as one frame.
    pub fn lost(&self, sent: u64, floods: u64) -> u64 {
        sent.saturating_sub(self.arrived) + self.flood_holes + floods.saturating_sub(self.floods)
    }

    /// A frame's time against its slot.
    pub fn time(&mut self, added_us: u64) {
        self.added.add_us(added_us);
        self.late += u64::from(added_us > LATE_US);
    }
}

/// A flood that is being played.
#[derive(Debug, Clone, Copy)]
struct Flood {
    first: u32,
    arrived: u32,
    places: u32,
    judged: bool,
    last_us: u64,
}

/// When the last frame of a flood arrived that was then cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodEnd {
    pub sender: u32,
    /// Number of its first frame: with the sender it says which flood.
    pub first: u32,
    pub last_us: u64,
}

/// One direction of one call, where it arrives.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Who the first frame was of; every other must be of the same.
    sender: Option<u32>,
    highest: Option<u32>,
    /// Bit n: `highest - n` has arrived.
    seen: u64,
    flood: Option<Flood>,
}

impl Ledger {
    /// Takes a frame that arrived. `counting`: damage counts, for a damaged frame cannot say
    /// whether it is judged. Returns our frame when it is the call's and new.
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
            // one that was never asked for ended without anybody's interest
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

    /// The flood that was played, when there was one: call it when speech goes on, and at the end.
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
    fn what_is_lost_swapped_or_repeated_is_seen() {
        let whole = feed(&[0, 1, 2, 3]);
        assert_eq!((whole.lost(4, 0), whole.swapped, whole.repeated), (0, 0, 0));
        let lost = feed(&[0, 1, 3]);
        assert_eq!((lost.lost(4, 0), lost.swapped, lost.repeated), (1, 0, 0));
        let swapped = feed(&[0, 2, 1, 3]);
        assert_eq!((swapped.lost(4, 0), swapped.swapped, swapped.repeated), (0, 1, 0));
        let repeated = feed(&[0, 1, 1, 2, 0, 3]);
        assert_eq!((repeated.lost(4, 0), repeated.swapped, repeated.repeated), (0, 0, 2));
        // one that is repeated does not stand in for one that is lost
        assert_eq!(feed(&[0, 1, 1, 3]).lost(4, 0), 1);
        // a long gap, as after a clear
        let cleared = feed(&[0, 1, 300, 301, 299]);
        assert_eq!((cleared.arrived, cleared.swapped), (5, 1));
    }

    #[test]
    fn damage_and_other_calls_frames_are_seen() {
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
    fn frames_that_are_not_judged_are_not_counted() {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for number in [0, 2, 1, 1] {
            let stamp = Stamp { judged: false, ..ours(number) };
            ledger.take(&mut tally, Read::Ours(stamp), 0, true);
        }
        assert_eq!((tally.arrived, tally.swapped, tally.repeated), (0, 0, 0));
    }

    #[test]
    fn a_cleared_flood_is_not_lost_and_a_hole_in_it_is() {
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
        // of the second nothing came
        assert_eq!(tally.lost(0, 2), 2);
    }

    #[test]
    fn late_is_over_20_ms() {
        let mut tally = Tally::default();
        [19_999, 20_000, 20_001].iter().for_each(|us| tally.time(*us));
        assert_eq!(tally.late, 1);
    }
}
