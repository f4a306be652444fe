//! Puts RTP packets in order. Waits a bounded time for a missing packet, longer on a network that
//! reorders by more, and drops duplicates and packets that are later still. Follows a change of
//! stream (a new SSRC, or a jump in the sequence numbers) after two consecutive packets, without
//! losing the first.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::media::rtp::Packet;

/// At most this many packets are held behind a gap; then the gap is given up.
const MAX_HELD: usize = 50;
/// At most this many packets of another stream are held until enough arrive in a row.
const MAX_PENDING: usize = 8;
/// The longest wait for a missing packet.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// The wait exceeds the longest one that was of use by this.
const MARGIN: Duration = Duration::from_millis(20);
/// The wait becomes shorter if the network has not needed it for this long.
const SHORTEN_AFTER: Duration = Duration::from_secs(10);
/// Gaps that are remembered after they were given up.
const MAX_GAPS: usize = 16;
/// Packets in a row that begin another stream.
const RUN: u32 = 2;
/// The same for numbers just behind the current ones, which are usually late or repeated packets.
const RUN_BEHIND: u32 = 8;
/// Such a run must also have taken this long: a burst of repeated packets is shorter.
const RUN_BEHIND_TIME: Duration = Duration::from_millis(70);
/// The largest gap, in packets, that a PBX leaves when it removes a key press from the stream.
const MAX_TAKEN_OUT: i64 = 200;
/// A larger step forward in the sequence numbers means another stream, not loss (RFC 3550 A.1 uses
/// 3000).
const MAX_JUMP: i64 = 1000;
/// A larger step back means another stream, not reordering (`MAX_MISORDER` in RFC 3550 A.1).
const MAX_BACK: i64 = 100;

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
    /// The newest timestamp delivered.
    timestamp: u32,
}

impl Stream {
    /// Returns how far a packet is ahead of the next one; `None` if it belongs to another stream.
    fn delta(&self, packet: &Packet<'_>) -> Option<i64> {
        let delta = i64::from(packet.sequence.wrapping_sub(self.next as u16) as i16);
        (packet.ssrc == self.ssrc && (-MAX_BACK..=MAX_JUMP).contains(&delta)).then_some(delta)
    }
}

/// How long to wait for a missing packet: the configured time, or what the network has needed.
#[derive(Debug)]
struct Wait {
    /// The configured time; zero = never wait.
    base: Duration,
    now: Duration,
    /// The longest wait that was, or would have been, of use since `since`.
    needed: Duration,
    since: Option<Instant>,
    /// Gaps that were given up: the number after each, and when it was noticed.
    gaps: VecDeque<(i64, Instant)>,
}

impl Wait {
    fn new(base: Duration) -> Wait {
        Wait { base, now: base, needed: Duration::ZERO, since: None, gaps: VecDeque::new() }
    }

    /// Notes that a missing packet arrived this long after its gap was noticed.
    fn useful(&mut self, waited: Duration) {
        if !self.base.is_zero() && waited + MARGIN <= MAX_WAIT {
            self.needed = self.needed.max(waited);
            self.now = self.now.max(waited + MARGIN);
        }
    }

    /// Notes that a packet of a gap that was given up has arrived after all.
    fn too_short(&mut self, now: Instant, number: i64) {
        let gap = self.gaps.iter().find(|(after, _)| number < *after);
        if let Some((_, noticed)) = gap {
            self.useful(now.saturating_duration_since(*noticed));
        }
    }

    fn gave_up(&mut self, after: i64, noticed: Instant) {
        if self.gaps.len() == MAX_GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back((after, noticed));
    }

    /// Shortens the wait if the network has not needed it for a while.
    fn review(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= SHORTEN_AFTER {
            self.now = self.base.max(self.needed + MARGIN).min(self.base.max(MAX_WAIT));
            (self.needed, self.since) = (Duration::ZERO, Some(now));
        }
    }
}

/// The reordering buffer of one call.
#[derive(Debug)]
pub struct Sequencer {
    wait: Wait,
    /// The current stream; `None` before the first packet.
    stream: Option<Stream>,
    /// Packets held behind a gap, by extended sequence number.
    held: BTreeMap<i64, Held>,
    /// Packets that may begin another stream, which becomes the current one when enough arrive in a
    /// row.
    pending: Vec<Held>,
    /// Packets in a row at the end of `pending`.
    run: u32,
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
            wait: Wait::new(wait),
            stream: None,
            held: BTreeMap::new(),
            pending: Vec::new(),
            run: 0,
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

    /// Returns true if a packet belongs to the current stream by its SSRC and its number.
    pub fn continues(&self, packet: &Packet<'_>) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.delta(packet).is_some())
    }

    /// Processes a packet; `sink` receives every packet that is now in order.
    pub fn push(&mut self, now: Instant, packet: &Packet<'_>, sink: &mut impl FnMut(Delivery<'_>)) {
        self.counts.received += 1;
        let Some(stream) = &mut self.stream else {
            self.begin(packet.ssrc, packet.sequence, packet.sequence, packet.timestamp);
            sink(Held::new(now, packet).delivery(0, true));
            return;
        };
        let Some(delta) = stream.delta(packet) else {
            return self.push_foreign(now, packet, RUN, sink);
        };
        let number = stream.next + delta;
        let skipped = std::mem::take(&mut self.taken_out) && self.held.is_empty();
        let in_order = delta == 0 || (skipped && (1..=MAX_TAKEN_OUT).contains(&delta));
        if delta < 0 {
            let newer = packet.timestamp.wrapping_sub(stream.timestamp) as i32 > 0;
            let bit = 1u64.checked_shl((-delta - 1) as u32).unwrap_or(0);
            if newer {
                // an old number with a new timestamp: the sender has restarted its numbers
                return self.push_foreign(now, packet, RUN, sink);
            } else if stream.seen & bit != 0 {
                self.counts.duplicates += 1;
            } else {
                stream.seen |= bit;
                self.counts.late += 1;
                self.wait.too_short(now, number);
            }
            self.push_foreign(now, packet, RUN_BEHIND, sink);
        } else if in_order {
            self.interrupted = true;
            self.wait.review(now);
            if let Some(held) = self.held.values().next() {
                self.wait.useful(now.saturating_duration_since(held.arrival));
            }
            self.advance(number, packet.timestamp);
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
            if self.held.len() > MAX_HELD || self.wait.base.is_zero() {
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
                self.advance(number, held.timestamp);
                sink(held.delivery(0, false));
                self.release(sink);
            }
        }
    }

    /// When the first gap is to be given up.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.held.values().next().map(|h| h.arrival + self.wait.now)
    }

    pub fn on_timeout(&mut self, now: Instant, sink: &mut impl FnMut(Delivery<'_>)) {
        while self.next_timeout().is_some_and(|at| at <= now) {
            self.give_up(sink);
        }
    }

    /// Processes a packet that may begin another stream, once `run` have arrived in a row.
    fn push_foreign(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        run: u32,
        sink: &mut impl FnMut(Delivery<'_>),
    ) {
        let follows = self.pending.last().is_some_and(|last| {
            last.ssrc == packet.ssrc
                && packet.sequence.wrapping_sub(last.sequence) == 1
                && !self.interrupted
        });
        let same = self.pending.last().is_none_or(|last| last.ssrc == packet.ssrc);
        if run != RUN && !same {
            return;
        }
        let interrupted = std::mem::take(&mut self.interrupted);
        // late and repeated packets were counted as such
        let foreign = if run == RUN { self.pending.len() as u64 } else { 0 };
        if !same || (interrupted && run != RUN) {
            self.counts.foreign += foreign;
            self.pending.clear();
        } else if self.pending.len() == MAX_PENDING {
            self.counts.foreign += u64::from(run == RUN);
            self.pending.remove(0);
        }
        self.pending.push(Held::new(now, packet));
        self.run = if follows { self.run + 1 } else { 1 };
        let first = self.pending.len().saturating_sub(self.run as usize);
        let took = now.saturating_duration_since(self.pending[first].arrival);
        if self.run < run || (run != RUN && took < RUN_BEHIND_TIME) {
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
        self.run = 0;
        self.begin(packet.ssrc, pending[0].sequence, packet.sequence, packet.timestamp);
        let mut before = None;
        for held in &pending {
            let gap = before.map_or(0, |b: u16| held.sequence.wrapping_sub(b).wrapping_sub(1));
            self.counts.lost += u64::from(gap);
            sink(held.delivery(u32::from(gap), before.is_none()));
            before = Some(held.sequence);
        }
    }

    fn begin(&mut self, ssrc: u32, first: u16, last: u16, timestamp: u32) {
        // start one cycle up, so that numbers just before the first are not negative
        let first = i64::from(first) + 0x1_0000;
        let span = i64::from(last.wrapping_sub(first as u16));
        self.stream = Some(Stream { ssrc, next: first + span + 1, first, seen: 1, timestamp });
        self.held.clear();
        self.pending.clear();
        self.wait.gaps.clear();
    }

    /// Marks `number` as received; the number after it is expected next.
    fn advance(&mut self, number: i64, timestamp: u32) {
        if let Some(stream) = &mut self.stream {
            if timestamp.wrapping_sub(stream.timestamp) as i32 > 0 {
                stream.timestamp = timestamp;
            }
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
            self.advance(number, held.timestamp);
            sink(held.delivery(0, false));
        }
    }

    /// Gives up the first gap and counts its packets as lost.
    fn give_up(&mut self, sink: &mut impl FnMut(Delivery<'_>)) {
        let Some((number, held)) = self.held.pop_first() else { return };
        let expected = self.stream.as_ref().map_or(number, |s| s.next);
        let lost = (number - expected).max(0) as u32;
        self.wait.gave_up(number, held.arrival);
        self.counts.lost += u64::from(lost);
        self.advance(number, held.timestamp);
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
    fn a_network_that_reorders_by_more_is_waited_for() {
        let mut rig = Rig::new();
        // every fifth packet comes 200 ms late
        let order = |n: u64| (n * 20 + if n % 5 == 3 { 200 } else { 0 }, n as u16);
        let mut arrivals: Vec<(u64, u16)> = (0..1500).map(order).collect();
        arrivals.sort();
        let t0 = rig.now;
        let mut ms = 0;
        for (at, n) in arrivals {
            while ms < at {
                ms += 1;
                rig.now = t0 + Duration::from_millis(ms);
                rig.wait(0);
            }
            rig.push(1, n);
        }
        let heard = rig.out.len();
        assert!(heard >= 1495, "{heard}");
        assert!(rig.out.windows(2).all(|w| w[0].0 != w[1].0));
        // without reordering, the wait returns to the configured one
        for n in 1500..3100 {
            rig.now += Duration::from_millis(19);
            rig.push(1, n);
        }
        assert_eq!(rig.sequencer.wait.now, WAIT);
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

    /// Sends 100 numbers from 5000 on, then as many from `again` on, 20 ms apart. Timestamps
    /// continue, or begin again as well. Returns how many of the second hundred are delivered.
    fn restart(again: u16, timestamps_continue: bool) -> usize {
        let (mut sequencer, now) = (Sequencer::new(WAIT), start());
        let mut heard = 0;
        for n in 0..200u16 {
            let second = n >= 100;
            let sequence = if second { again + n - 100 } else { 5000 + n };
            let step = if second && !timestamps_continue { n - 100 } else { n };
            let packet = Packet {
                marker: false,
                payload_type: 0,
                sequence,
                timestamp: u32::from(step) * 160,
                ssrc: 1,
                payload: &[u8::from(second)],
            };
            let at = now + Duration::from_millis(20 * u64::from(n));
            let mut sink = |d: Delivery<'_>| heard += usize::from(d.payload == [1]);
            sequencer.on_timeout(at, &mut sink);
            sequencer.push(at, &packet, &mut sink);
        }
        heard
    }

    #[test]
    fn restarted_numbers_are_heard_at_once() {
        for again in [1, 3000, 4500, 4950, 5010, 5080, 5099, 5101, 5200, 5900, 9000, 40_000] {
            assert!(restart(again, true) >= 99, "{again}: {}", restart(again, true));
            assert!(restart(again, false) >= 99, "{again}: {}", restart(again, false));
        }
    }

    #[test]
    fn repeated_packets_restart_nothing() {
        let mut rig = Rig::new();
        for n in 0..50 {
            rig.push(1, n);
            // the last ten again, in a burst and one by one
            if n % 20 == 19 {
                (n - 9..=n).for_each(|n| {
                    rig.push(1, n);
                });
            }
        }
        assert_eq!(rig.numbers(), (0..50).collect::<Vec<u8>>());
        assert_eq!((rig.sequencer.counts.duplicates, rig.sequencer.counts.stream_changes), (20, 0));
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
