//! Puts RTP packets in order. Waits a bounded time for a missing packet, drops duplicates and late
//! packets, and follows a change of stream (a new SSRC, or a jump in the sequence numbers) after
//! two consecutive packets, without losing the first.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::media::rtp::Packet;

/// At most this many packets are held behind a gap; then the gap is given up.
const MAX_HELD: usize = 50;
/// At most this many packets of another stream are held until two arrive in a row.
const MAX_PENDING: usize = 4;
/// The largest gap, in packets, that a PBX leaves when it removes a key press from the stream.
const MAX_TAKEN_OUT: i64 = 200;
/// A larger step in the sequence numbers means another stream, not loss or reordering (RFC 3550
/// A.1 uses 3000 and 100).
const MAX_JUMP: i64 = 1000;

/// A packet delivered in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery<'a> {
    pub marker: bool,
    pub payload_type: u8,
    pub ssrc: u32,
    pub timestamp: u32,
    pub payload: &'a [u8],
    /// Packets missing directly before this one.
    pub lost: u32,
    /// True for the first packet of a stream, whose timestamps are unrelated to earlier ones.
    pub restarted: bool,
}

/// A copy of a packet that cannot be delivered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    arrival: Instant,
    marker: bool,
    payload_type: u8,
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
    payload: Vec<u8>,
}

impl Held {
    fn new(now: Instant, packet: &Packet<'_>) -> Held {
        Held {
            arrival: now,
            marker: packet.marker,
            payload_type: packet.payload_type,
            sequence: packet.sequence,
            timestamp: packet.timestamp,
            ssrc: packet.ssrc,
            payload: packet.payload.to_vec(),
        }
    }

    fn delivery(&self, lost: u32, restarted: bool) -> Delivery<'_> {
        Delivery {
            marker: self.marker,
            payload_type: self.payload_type,
            ssrc: self.ssrc,
            timestamp: self.timestamp,
            payload: &self.payload,
            lost,
            restarted,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub received: u64,
    pub lost: u64,
    pub late: u64,
    pub duplicates: u64,
    pub stream_changes: u64,
    /// Packets of another stream that never became the current one.
    pub foreign: u64,
}

/// The sequence numbers received of the current stream, for receiver reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub ssrc: u32,
    /// The highest number, extended by the count of wraps (RFC 3550 §6.4.1).
    pub highest: u32,
    /// The first number, extended likewise.
    pub first: u32,
}

/// The stream being received. Its sequence numbers are extended so that they do not wrap.
#[derive(Debug)]
struct Stream {
    ssrc: u32,
    /// The next number to be delivered.
    next: i64,
    /// The number of the first packet.
    first: i64,
    /// Bit n is set if number `next - 1 - n` was received.
    seen: u64,
}

/// The reordering buffer of one call.
#[derive(Debug)]
pub struct Sequencer {
    /// How long to wait for a missing packet.
    wait: Duration,
    /// The current stream; `None` before the first packet.
    stream: Option<Stream>,
    /// Packets held behind a gap, by extended sequence number.
    held: BTreeMap<i64, Held>,
    /// Packets of another stream, which becomes the current one when two arrive in a row.
    pending: Vec<Held>,
    /// True if a packet of the current stream has arrived since the last pending one.
    interrupted: bool,
    /// True if a gap before the next packet is a removed key press, not a loss.
    taken_out: bool,
    pub counts: Counts,
}

impl Sequencer {
    /// `wait`: how long to wait for a missing packet.
    pub fn new(wait: Duration) -> Sequencer {
        Sequencer {
            wait,
            stream: None,
            held: BTreeMap::new(),
            pending: Vec::new(),
            interrupted: false,
            taken_out: false,
            counts: Counts::default(),
        }
    }

    pub fn extent(&self) -> Option<Extent> {
        let stream = self.stream.as_ref()?;
        let last = self.held.keys().next_back().copied().unwrap_or(stream.next - 1);
        Some(Extent { ssrc: stream.ssrc, highest: last as u32, first: stream.first as u32 })
    }

    /// Processes a packet; `sink` receives every packet that is now in order.
    pub fn push(&mut self, now: Instant, packet: &Packet<'_>, sink: &mut impl FnMut(Delivery<'_>)) {
        self.counts.received += 1;
        let Some(stream) = &mut self.stream else {
            self.begin(packet.ssrc, packet.sequence, packet.sequence);
            sink(Held::new(now, packet).delivery(0, true));
            return;
        };
        let delta = i64::from(packet.sequence.wrapping_sub(stream.next as u16) as i16);
        if packet.ssrc != stream.ssrc || delta.abs() > MAX_JUMP {
            return self.push_foreign(now, packet, sink);
        }
        let number = stream.next + delta;
        let skipped = std::mem::take(&mut self.taken_out) && self.held.is_empty();
        let in_order = delta == 0 || (skipped && (1..=MAX_TAKEN_OUT).contains(&delta));
        if delta < 0 {
            let bit = 1u64.checked_shl((-delta - 1) as u32).unwrap_or(0);
            if stream.seen & bit != 0 {
                self.counts.duplicates += 1;
            } else {
                stream.seen |= bit;
                self.counts.late += 1;
            }
        } else if in_order {
            self.interrupted = true;
            self.advance(number);
            sink(Delivery {
                marker: packet.marker,
                payload_type: packet.payload_type,
                ssrc: packet.ssrc,
                timestamp: packet.timestamp,
                payload: packet.payload,
                lost: 0,
                restarted: false,
            });
            self.release(sink);
        } else if self.held.contains_key(&number) {
            self.counts.duplicates += 1;
        } else {
            self.interrupted = true;
            self.held.insert(number, Held::new(now, packet));
            if self.held.len() > MAX_HELD || self.wait.is_zero() {
                self.give_up(sink);
            }
        }
    }

    /// Excuses one gap, because the PBX removed the packets of a key press from the stream. The
    /// present gap, or else the one before the next packet, is not waited for and is not a loss.
    pub fn key_taken_out(&mut self, sink: &mut impl FnMut(Delivery<'_>)) {
        match self.held.pop_first() {
            None => self.taken_out = true,
            Some((number, held)) => {
                self.advance(number);
                sink(held.delivery(0, false));
                self.release(sink);
            }
        }
    }

    /// When the first gap is to be given up.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.held.values().next().map(|h| h.arrival + self.wait)
    }

    pub fn on_timeout(&mut self, now: Instant, sink: &mut impl FnMut(Delivery<'_>)) {
        while self.next_timeout().is_some_and(|at| at <= now) {
            self.give_up(sink);
        }
    }

    /// Processes a packet that does not belong to the current stream.
    fn push_foreign(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        sink: &mut impl FnMut(Delivery<'_>),
    ) {
        let follows = self.pending.last().is_some_and(|last| {
            last.ssrc == packet.ssrc
                && packet.sequence.wrapping_sub(last.sequence) == 1
                && !self.interrupted
        });
        self.interrupted = false;
        let same = self.pending.last().is_none_or(|last| last.ssrc == packet.ssrc);
        if !same || self.pending.len() == MAX_PENDING {
            self.counts.foreign += self.pending.len() as u64;
            self.pending.clear();
        }
        self.pending.push(Held::new(now, packet));
        if !follows {
            return;
        }
        // deliver what is still held of the old stream before leaving it
        while !self.held.is_empty() {
            self.give_up(sink);
        }
        let mut pending = std::mem::take(&mut self.pending);
        let behind = |h: &Held| packet.sequence.wrapping_sub(h.sequence);
        pending.retain(|h| behind(h) < 2 * MAX_PENDING as u16);
        pending.sort_by_key(|h| std::cmp::Reverse(behind(h)));
        pending.dedup_by_key(|h| h.sequence);
        self.counts.stream_changes += 1;
        self.begin(packet.ssrc, pending[0].sequence, packet.sequence);
        let mut before = None;
        for held in &pending {
            let gap = before.map_or(0, |b: u16| held.sequence.wrapping_sub(b).wrapping_sub(1));
            self.counts.lost += u64::from(gap);
            sink(held.delivery(u32::from(gap), before.is_none()));
            before = Some(held.sequence);
        }
    }

    fn begin(&mut self, ssrc: u32, first: u16, last: u16) {
        // start one cycle up, so that numbers just before the first are not negative
        let first = i64::from(first) + 0x1_0000;
        let span = i64::from(last.wrapping_sub(first as u16));
        self.stream = Some(Stream { ssrc, next: first + span + 1, first, seen: 1 });
        self.held.clear();
        self.pending.clear();
    }

    /// Marks `number` as received; the number after it is expected next.
    fn advance(&mut self, number: i64) {
        if let Some(stream) = &mut self.stream {
            let step = number + 1 - stream.next;
            stream.seen = stream.seen.checked_shl(step as u32).unwrap_or(0) | 1;
            stream.next = number + 1;
        }
    }

    /// Delivers the held packets that are now in order.
    fn release(&mut self, sink: &mut impl FnMut(Delivery<'_>)) {
        while let Some(entry) = self.held.first_entry() {
            if self.stream.as_ref().is_none_or(|s| s.next != *entry.key()) {
                break;
            }
            let (number, held) = entry.remove_entry();
            self.advance(number);
            sink(held.delivery(0, false));
        }
    }

    /// Gives up the first gap and counts its packets as lost.
    fn give_up(&mut self, sink: &mut impl FnMut(Delivery<'_>)) {
        let Some((number, held)) = self.held.pop_first() else { return };
        let expected = self.stream.as_ref().map_or(number, |s| s.next);
        let lost = (number - expected).max(0) as u32;
        self.counts.lost += u64::from(lost);
        self.advance(number);
        sink(held.delivery(lost, false));
        self.release(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    const WAIT: Duration = Duration::from_millis(40);

    struct Rig {
        sequencer: Sequencer,
        now: Instant,
        /// Payload byte, `lost` and `restarted` of each delivery.
        out: Vec<(u8, u32, bool)>,
    }

    impl Rig {
        fn new() -> Rig {
            Rig { sequencer: Sequencer::new(WAIT), now: start(), out: Vec::new() }
        }

        fn push(&mut self, ssrc: u32, sequence: u16) -> &mut Rig {
            let payload = [sequence as u8];
            let packet = Packet {
                marker: false,
                payload_type: 0,
                sequence,
                timestamp: u32::from(sequence) * 160,
                ssrc,
                payload: &payload,
            };
            let out = &mut self.out;
            self.sequencer.push(self.now, &packet, &mut |d| {
                out.push((d.payload[0], d.lost, d.restarted));
            });
            self.now += Duration::from_millis(1);
            self
        }

        fn wait(&mut self, ms: u64) {
            self.now += Duration::from_millis(ms);
            let out = &mut self.out;
            self.sequencer
                .on_timeout(self.now, &mut |d| out.push((d.payload[0], d.lost, d.restarted)));
        }

        fn numbers(&self) -> Vec<u8> {
            self.out.iter().map(|(n, ..)| *n).collect()
        }
    }

    #[test]
    fn packets_in_order_pass_and_numbers_wrap() {
        let mut rig = Rig::new();
        for n in [65534, 65535, 0, 1] {
            rig.push(1, n);
        }
        assert_eq!(rig.numbers(), [254, 255, 0, 1]);
        assert_eq!(rig.sequencer.extent().unwrap().highest, 0x2_0001);
    }

    #[test]
    fn packets_are_reordered_and_duplicates_dropped() {
        let mut rig = Rig::new();
        rig.push(1, 1).push(1, 3).push(1, 4).push(1, 3).push(1, 2).push(1, 2).push(1, 5);
        assert_eq!(rig.numbers(), [1, 2, 3, 4, 5]);
        assert_eq!(rig.sequencer.counts.duplicates, 2);
        assert_eq!(rig.sequencer.next_timeout(), None);
    }

    #[test]
    fn a_gap_is_given_up_after_the_wait() {
        let mut rig = Rig::new();
        rig.push(1, 1).push(1, 4);
        rig.wait(38);
        assert_eq!(rig.numbers(), [1]);
        rig.wait(1);
        assert_eq!(rig.out[1], (4, 2, false));
        rig.push(1, 3);
        assert_eq!((rig.sequencer.counts.late, rig.sequencer.counts.lost), (1, 2));
    }

    #[test]
    fn a_change_of_stream_loses_nothing() {
        let mut rig = Rig::new();
        rig.push(1, 1).push(2, 100).push(2, 101).push(2, 102);
        assert_eq!(rig.out, [(1, 0, true), (100, 0, true), (101, 0, false), (102, 0, false)]);
        // with a late packet of the old stream in between
        let mut rig = Rig::new();
        rig.push(1, 1).push(2, 100).push(1, 2).push(2, 101).push(2, 102);
        assert_eq!(rig.numbers(), [1, 2, 100, 101, 102]);
        // and back to the first stream
        rig.push(1, 3).push(1, 4);
        assert_eq!(rig.numbers()[5..], [3, 4]);
    }

    #[test]
    fn two_concurrent_streams_do_not_alternate() {
        let mut rig = Rig::new();
        for n in 0..100 {
            rig.push(1, n).push(2, 500 + n);
        }
        assert_eq!(rig.numbers(), (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn a_jump_needs_two_packets() {
        let mut rig = Rig::new();
        rig.push(1, 1).push(1, 30_000).push(1, 2).push(1, 3);
        assert_eq!(rig.numbers(), [1, 2, 3]);
        rig.push(1, 20_000).push(1, 20_001);
        assert_eq!(rig.numbers()[3..], [32, 33]);
    }

    #[test]
    fn ten_thousand_ssrcs_are_not_held() {
        let mut rig = Rig::new();
        for ssrc in 0..10_000 {
            rig.push(ssrc, 7);
        }
        assert!(rig.sequencer.pending.len() <= MAX_PENDING && rig.sequencer.held.is_empty());
    }

    #[test]
    fn a_removed_key_press_is_not_a_loss() {
        let mut rig = Rig::new();
        rig.push(1, 10);
        rig.sequencer.key_taken_out(&mut |_| panic!("nothing is held"));
        rig.push(1, 18).push(1, 19).push(1, 22);
        let mut out = Vec::new();
        rig.sequencer.key_taken_out(&mut |d| out.push((d.payload[0], d.lost, d.restarted)));
        assert_eq!(rig.out, [(10, 0, true), (18, 0, false), (19, 0, false)]);
        assert_eq!((out, rig.sequencer.counts.lost), (vec![(22, 0, false)], 0));
        // the gap after that is waited for again
        rig.push(1, 23).push(1, 25);
        assert_eq!(rig.out.len(), 4);
    }
}
