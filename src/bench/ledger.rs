//! The account of frames received in one direction: which arrived, in what order, and from whom.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::bench::figures::Times;
use crate::bench::floods::{Flood, FloodEnd};
use crate::bench::network::Network;
use crate::bench::stamp::{Kind, Read, Scope, Stamp};

/// A frame later than this has missed its slot.
const LATE_US: u64 = 20_000;
/// How many frames behind the highest number a repeated frame is still recognised.
const REMEMBERED: u32 = 64;

/// Frames sent that have to arrive, by their scope. Those of floods are not among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub measured: u64,
    pub first_second: u64,
}

impl Sent {
    pub fn add(&mut self, scope: Scope) {
        self.add_many(scope, 1);
    }

    pub fn add_many(&mut self, scope: Scope, frames: u64) {
        match scope {
            Scope::Measured => self.measured += frames,
            Scope::FirstSecond => self.first_second += frames,
            Scope::Ignored => {}
        }
    }
}

/// One direction of all calls.
#[derive(Debug, Default)]
pub struct Tally {
    /// Frames that arrived, each counted once, without those of floods.
    pub arrived: Sent,
    /// Frames of floods that arrived.
    pub flood_arrived: u64,
    /// Frames missing within floods, before the last one that was played.
    pub flood_holes: u64,
    /// Frames that arrived more than 20 ms, and the allowance, after they were due.
    pub late: u64,
    /// Delay that the generator's own disturbances explain.
    pub allowance_us: u64,
    /// Frames that arrived after one with a higher number.
    pub swapped: u64,
    /// Frames that arrived again.
    pub repeated: u64,
    /// Frames that are neither intact stamps nor silence.
    pub damaged: u64,
    /// Frames of another call.
    pub misrouted: u64,
    /// Time from when a paced frame was due at its sender to its arrival.
    pub latency: Times,
}

impl Tally {
    pub fn with_allowance(allowance_us: u64) -> Tally {
        Tally { allowance_us, ..Tally::default() }
    }

    /// Returns how many frames that were `sent` in the measured time did not arrive, plus the
    /// frames missing within floods.
    pub fn lost(&self, sent: Sent) -> u64 {
        sent.measured.saturating_sub(self.arrived.measured) + self.flood_holes
    }

    /// The same for the first seconds of the calls.
    pub fn lost_in_first_second(&self, sent: Sent) -> u64 {
        sent.first_second.saturating_sub(self.arrived.first_second)
    }

    /// Counts the frame if it is late. A delay that the generator may have caused proves nothing:
    /// it sent the frame late, or it `read` what arrived only after a pause of its own.
    pub fn judge_lateness(&mut self, stamp: &Stamp, read: &Arrival) {
        let excused = stamp.sent_late || read.after_pause;
        self.late += u64::from(!excused && read.latency_us(stamp) > LATE_US + self.allowance_us);
    }
}

/// The circumstances in which a frame is read.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub now_us: u64,
    /// Number of the sender at this end, which the other end should hear.
    pub own: u32,
    /// True if damage counts.
    pub counts_damage: bool,
    /// True if this thread could not read for some time before.
    pub after_pause: bool,
}

impl Arrival {
    /// Returns the time since the frame was due.
    pub fn latency_us(&self, stamp: &Stamp) -> u64 {
        self.now_us.saturating_sub(stamp.due_us)
    }
}

/// The receiving end of one direction of one call.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Sender that the signalling named.
    expected: Option<u32>,
    /// Sender of the first frame; all others must have the same.
    sender: Option<u32>,
    /// Highest frame number so far.
    highest: Option<u32>,
    /// Bit n is set if frame `highest - n` has arrived.
    seen: u64,
    flood: Option<Flood>,
    /// The simulated network that the frames pass.
    network: Network,
    /// Frames of unknown content since the last stamp. If the network dropped frames there, the
    /// bridge has concealed them.
    unknown: u32,
}

impl Ledger {
    /// Creates the account of frames that pass a network.
    pub fn behind(network: Network) -> Ledger {
        Ledger { network, ..Ledger::default() }
    }

    /// Makes frames of any sender but this one count as those of another call.
    pub fn expect(&mut self, sender: u32) {
        self.expected = Some(sender);
    }

    /// Returns the sender that is heard.
    pub fn sender(&self) -> Option<u32> {
        self.sender
    }

    /// Accounts for a frame that arrived. Returns its stamp if it belongs to the call and is new.
    pub fn take(&mut self, tally: &mut Tally, read: Read, arrival: &Arrival) -> Option<Stamp> {
        let stamp = match read {
            Read::Ours(stamp) => stamp,
            Read::Silence => return None,
            Read::Damaged => {
                self.unknown += u32::from(arrival.counts_damage);
                if !self.network.loses_any() {
                    self.count_damage(tally, 0);
                }
                return None;
            }
        };
        let same = *self.sender.get_or_insert(stamp.sender) == stamp.sender
            && self.expected.is_none_or(|expected| expected == stamp.sender)
            && stamp.hears.is_none_or(|number| number == arrival.own);
        if !same {
            tally.misrouted += 1;
            return None;
        }
        if !self.is_new(tally, stamp) {
            return None;
        }
        match stamp.kind {
            Kind::Flood(place) => self.flooded(tally, stamp, place, arrival.now_us),
            Kind::Paced | Kind::First | Kind::Queued(_) => tally.arrived.add(stamp.scope),
        }
        Some(stamp)
    }

    fn is_new(&mut self, tally: &mut Tally, stamp: Stamp) -> bool {
        let counts = u64::from(stamp.is_judged());
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
                self.judge_unknown(tally, stamp);
                let ahead = before.map_or(REMEMBERED, |highest| stamp.number - highest);
                self.seen = if ahead >= REMEMBERED { 0 } else { self.seen << ahead };
                self.seen |= 1;
                self.highest = Some(stamp.number);
                true
            }
        }
    }

    /// Counts the unknown frames before a stamp as damaged, except for as many as the network
    /// dropped since the stamp before.
    fn judge_unknown(&mut self, tally: &mut Tally, stamp: Stamp) {
        if self.unknown > 0 {
            let missing = self.highest.map_or(0, |highest| highest + 1)..stamp.number;
            let drops = |frame: &u32| self.network.drops_frame(stamp.sender, u64::from(*frame));
            let dropped = missing.filter(drops).count();
            self.count_damage(tally, dropped as u32);
        }
    }

    fn count_damage(&mut self, tally: &mut Tally, concealed: u32) {
        tally.damaged += u64::from(self.unknown.saturating_sub(concealed));
        self.unknown = 0;
    }

    fn flooded(&mut self, tally: &mut Tally, stamp: Stamp, place: u8, now_us: u64) {
        let first = stamp.number.wrapping_sub(u32::from(place));
        if self.flood.is_none_or(|f| f.first != first) {
            // the end of the previous flood is not needed if another flood follows directly
            let _ = self.end_flood(tally);
            self.flood = Some(Flood::new(first, stamp.is_judged()));
        }
        if let Some(flood) = &mut self.flood {
            flood.add(place, now_us);
        }
    }

    /// Ends the account of the call: nothing that is unknown now can be a concealed frame.
    pub fn finish(&mut self, tally: &mut Tally) {
        self.count_damage(tally, 0);
    }

    /// Closes the flood that was being played, if any. Called when paced speech continues and at
    /// the end of the call.
    pub fn end_flood(&mut self, tally: &mut Tally) -> Option<FloodEnd> {
        let flood = self.flood.take()?;
        if flood.judged {
            tally.flood_arrived += u64::from(flood.arrived);
            tally.flood_holes += u64::from(flood.places - flood.arrived);
        }
        Some(flood.end(self.sender?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 70;

    fn arrival() -> Arrival {
        Arrival { now_us: 0, own: OWN, counts_damage: true, after_pause: false }
    }

    fn ours(number: u32) -> Stamp {
        Stamp {
            sender: 5,
            hears: Some(OWN),
            number,
            due_us: 0,
            scope: Scope::Measured,
            sent_late: false,
            kind: Kind::Paced,
        }
    }

    fn feed(numbers: &[u32]) -> Tally {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for number in numbers {
            ledger.take(&mut tally, Read::Ours(ours(*number)), &arrival());
        }
        tally
    }

    fn lost(tally: &Tally, measured: u64) -> u64 {
        tally.lost(Sent { measured, first_second: 0 })
    }

    #[test]
    fn lost_swapped_and_repeated_frames_are_counted() {
        let whole = feed(&[0, 1, 2, 3]);
        assert_eq!((lost(&whole, 4), whole.swapped, whole.repeated), (0, 0, 0));
        let gap = feed(&[0, 1, 3]);
        assert_eq!((lost(&gap, 4), gap.swapped, gap.repeated), (1, 0, 0));
        let swapped = feed(&[0, 2, 1, 3]);
        assert_eq!((lost(&swapped, 4), swapped.swapped, swapped.repeated), (0, 1, 0));
        let repeated = feed(&[0, 1, 1, 2, 0, 3]);
        assert_eq!((lost(&repeated, 4), repeated.swapped, repeated.repeated), (0, 0, 2));
        // a repeated frame does not make up for a lost one
        assert_eq!(lost(&feed(&[0, 1, 1, 3]), 4), 1);
        // a long gap, as after a clear
        let cleared = feed(&[0, 1, 300, 301, 299]);
        assert_eq!((cleared.arrived.measured, cleared.swapped), (5, 1));
    }

    #[test]
    fn damaged_and_misrouted_frames_are_counted() {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        ledger.take(&mut tally, Read::Ours(ours(0)), &arrival());
        ledger.take(&mut tally, Read::Damaged, &arrival());
        ledger.take(&mut tally, Read::Damaged, &Arrival { counts_damage: false, ..arrival() });
        ledger.take(&mut tally, Read::Silence, &arrival());
        let other = Stamp { sender: 6, ..ours(1) };
        assert_eq!(ledger.take(&mut tally, Read::Ours(other), &arrival()), None);
        assert_eq!((tally.damaged, tally.misrouted, lost(&tally, 2)), (1, 1, 1));
    }

    #[test]
    fn calls_crossed_from_their_first_frame_are_noticed_at_both_ends() {
        // the frames always come from the same sender, which hears someone else
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for number in 0..10 {
            // at first, the other end has heard nothing
            let hears = (number > 3).then_some(OWN + 1);
            ledger.take(&mut tally, Read::Ours(Stamp { hears, ..ours(number) }), &arrival());
        }
        assert_eq!((tally.misrouted, lost(&tally, 10)), (6, 6));
        // both directions are crossed, so that only the signalling knows better
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        ledger.expect(6);
        ledger.take(&mut tally, Read::Ours(ours(0)), &arrival());
        assert_eq!(tally.misrouted, 1);
        assert_eq!(ledger.sender(), Some(5), "the other end is informed of what is heard");
    }

    #[test]
    fn ignored_frames_are_not_counted_and_those_of_the_first_second_apart() {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for number in [0, 2, 1, 1] {
            let stamp = Stamp { scope: Scope::Ignored, ..ours(number) };
            ledger.take(&mut tally, Read::Ours(stamp), &arrival());
        }
        assert_eq!((tally.arrived, tally.swapped, tally.repeated), (Sent::default(), 0, 0));
        let mut sent = Sent::default();
        for number in 3..13 {
            let stamp = Stamp { scope: Scope::FirstSecond, ..ours(number) };
            sent.add(stamp.scope);
            // the first of them is lost, the next two are swapped
            let number = if number == 4 {
                5
            } else if number == 5 {
                4
            } else {
                number
            };
            if number != 3 {
                ledger.take(&mut tally, Read::Ours(Stamp { number, ..stamp }), &arrival());
            }
        }
        assert_eq!((tally.lost(sent), tally.lost_in_first_second(sent), tally.swapped), (0, 1, 1));
    }

    #[test]
    fn the_cleared_rest_of_a_flood_is_not_lost_but_a_hole_is() {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for place in [0, 1, 3, 4] {
            let stamp = Stamp { kind: Kind::Flood(place), ..ours(100 + u32::from(place)) };
            let arrival = Arrival { now_us: 1000 + u64::from(place), ..arrival() };
            ledger.take(&mut tally, Read::Ours(stamp), &arrival);
        }
        let end = ledger.end_flood(&mut tally);
        assert_eq!(end, Some(FloodEnd { sender: 5, first: 100, places: 5, last_us: 1004 }));
        assert_eq!(ledger.end_flood(&mut tally), None);
        assert_eq!((tally.flood_arrived, tally.flood_holes, lost(&tally, 0)), (4, 1, 1));
    }

    #[test]
    fn audio_queued_in_one_piece_has_to_arrive_whole() {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for place in 0..40 {
            let stamp = Stamp { kind: Kind::Queued(place), ..ours(u32::from(place)) };
            ledger.take(&mut tally, Read::Ours(stamp), &arrival());
        }
        assert_eq!(lost(&tally, 50), 10);
    }

    #[test]
    fn frames_that_the_network_dropped_may_be_concealed_but_no_others() {
        let network = Network { loss_percent: 10.0, ..Network::default() };
        let dropped = (1..).find(|frame| network.drops_frame(5, *frame)).unwrap() as u32;
        let (mut ledger, mut tally) = (Ledger::behind(network), Tally::default());
        for number in 0..=dropped + 1 {
            let read = if number == dropped { Read::Damaged } else { Read::Ours(ours(number)) };
            ledger.take(&mut tally, read, &arrival());
        }
        assert_eq!(tally.damaged, 0);
        // two frames are damaged, although none is missing
        ledger.take(&mut tally, Read::Damaged, &arrival());
        ledger.take(&mut tally, Read::Damaged, &arrival());
        ledger.take(&mut tally, Read::Ours(ours(dropped + 2)), &arrival());
        assert_eq!(tally.damaged, 2);
        // no stamp follows at all
        ledger.take(&mut tally, Read::Damaged, &arrival());
        ledger.finish(&mut tally);
        assert_eq!(tally.damaged, 3);
    }

    #[test]
    fn late_means_more_than_20_ms_after_the_due_time() {
        let mut tally = Tally::default();
        let at = |now_us| Arrival { now_us, ..arrival() };
        for now_us in [19_999, 20_000, 20_001] {
            tally.judge_lateness(&ours(0), &at(now_us));
        }
        assert_eq!(tally.late, 1);
        // delays of the generator itself
        tally.judge_lateness(&Stamp { sent_late: true, ..ours(1) }, &at(50_000));
        tally.judge_lateness(&ours(2), &Arrival { after_pause: true, ..at(50_000) });
        assert_eq!(tally.late, 1);
        let mut tally = Tally::with_allowance(30_000);
        [50_000, 50_001].iter().for_each(|us| tally.judge_lateness(&ours(0), &at(*us)));
        assert_eq!(tally.late, 1);
    }
}
