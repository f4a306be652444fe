//! The bridge's RTP as a listener hears it: each packet against a steady playout clock, and the
//! holes between two frames of speech.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::bench::stamp::{Kind, Stamp};
use crate::media::rtp::Packet;

/// Timestamp units per frame.
const FRAME: i32 = 160;
/// Packets in half of the envelope's memory: half a second.
const HALF: u32 = 25;
/// Microseconds per timestamp unit, a sample at 8 kHz.
const UNIT_US: i64 = 125;

/// Lateness of packets against their timestamps: arrival minus timestamp, above the minimum of this
/// difference over the last half to one second. That minimum is the playout clock of a listener
/// without a jitter buffer. Because the memory is short, a single early packet does not make all
/// later ones look late, and clock drift does not look like jitter.
#[derive(Debug, Default)]
pub struct Envelope {
    last_timestamp: u32,
    /// The last timestamp, unwrapped, in microseconds.
    media_us: i64,
    /// Minimum over the previous half second.
    before: Option<i64>,
    /// Minimum over the current half second so far.
    current: Option<i64>,
    /// Packets so far.
    packets: u32,
}

impl Envelope {
    /// Returns a packet's lateness in microseconds.
    pub fn take(&mut self, timestamp: u32, arrived_us: u64) -> u64 {
        let step = timestamp.wrapping_sub(self.last_timestamp) as i32;
        self.last_timestamp = timestamp;
        self.media_us += i64::from(step) * UNIT_US;
        let offset = arrived_us as i64 - self.media_us;
        self.packets += 1;
        if self.packets.is_multiple_of(HALF) {
            self.before = self.current.take();
        }
        self.current = Some(self.current.map_or(offset, |least| least.min(offset)));
        let least = self.before.into_iter().chain(self.current).min();
        least.map_or(0, |least| (offset - least) as u64)
    }
}

/// Checks that timestamps advance with the sequence numbers, silence included: otherwise a listener
/// plays packets at the wrong time, even if they arrive evenly.
#[derive(Debug, Default)]
pub struct Steps(Option<(u32, u16, u32)>);

impl Steps {
    /// Returns true if the timestamp of this packet does not follow from the packet before.
    pub fn is_out_of_step(&mut self, packet: &Packet<'_>) -> bool {
        let Packet { ssrc, sequence, timestamp, .. } = *packet;
        let Some((source, last, before)) = self.0.replace((ssrc, sequence, timestamp)) else {
            return false;
        };
        let packets = sequence.wrapping_sub(last) as i16;
        if source == ssrc && packets <= 0 {
            // swapped or repeated, which is counted elsewhere
            self.0 = Some((source, last, before));
            return false;
        }
        source == ssrc && timestamp.wrapping_sub(before) as i32 != i32::from(packets) * FRAME
    }
}

/// The latest frame of speech, to find holes between it and the next one.
#[derive(Debug, Clone, Copy)]
struct Latest {
    ssrc: u32,
    timestamp: u32,
    /// Number of the frame.
    number: u32,
}

/// Finds silence within speech. RTP timestamps are what counts: a packet that is merely late leaves
/// no hole for a listener with a jitter buffer, but silence sent in its place does.
#[derive(Debug, Default)]
pub struct Continuity(Option<Latest>);

impl Continuity {
    /// Returns the frames of silence between this frame of speech and the one before, 0 where a
    /// talkspurt begins. Frames lost between the two do not count as silence.
    pub fn take(&mut self, ssrc: u32, timestamp: u32, stamp: &Stamp) -> u32 {
        let Some(latest) = self.0.replace(Latest { ssrc, timestamp, number: stamp.number }) else {
            return 0;
        };
        if stamp.number <= latest.number {
            // swapped or repeated, which is counted elsewhere
            self.0 = Some(latest);
            return 0;
        }
        if stamp.kind == Kind::First || latest.ssrc != ssrc {
            return 0;
        }
        let frames = (stamp.number - latest.number).min(1000) as i32;
        let excess = timestamp.wrapping_sub(latest.timestamp) as i32 - frames * FRAME;
        excess.max(0).unsigned_abs().div_ceil(FRAME.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::stamp::Scope;

    #[test]
    fn lateness_is_measured_from_the_lower_envelope() {
        let mut envelope = Envelope::default();
        let mut take = |n: u32, late: u64| {
            let timestamp = (u32::MAX - 1000).wrapping_add(n * 160);
            envelope.take(timestamp, 5_000_000 + u64::from(n) * 20_000 + late)
        };
        assert_eq!(take(0, 900), 0);
        // the first was itself late: from here on the second is the reference
        assert_eq!(take(1, 0), 0);
        assert_eq!(take(2, 3000), 3000);
        // neither a lost packet nor timestamp wrap-around changes the reference
        assert_eq!(take(9, 700), 700);
        assert_eq!(take(10, 12_000), 12_000);
    }

    #[test]
    fn clock_drift_is_not_jitter() {
        let mut envelope = Envelope::default();
        let worst =
            (0..10_000u32).map(|n| envelope.take(n * 160, u64::from(n) * 20_002)).max().unwrap();
        assert!(worst <= 100 * u64::from(HALF) / 25, "{worst}");
    }

    #[test]
    fn timestamps_follow_the_sequence_numbers() {
        let mut steps = Steps::default();
        let mut take = |ssrc, sequence: u16, frames: u32| {
            let timestamp = (u32::MAX - 1000).wrapping_add(frames * 160);
            steps.is_out_of_step(&Packet {
                marker: false,
                payload_type: 0,
                sequence,
                timestamp,
                ssrc,
                payload: &[],
            })
        };
        assert!(!take(1, 65_534, 0) && !take(1, 65_535, 1) && !take(1, 0, 2));
        // a lost packet takes its time with it
        assert!(!take(1, 3, 5));
        assert!(!take(1, 2, 4) && !take(1, 3, 5), "swapped and repeated packets");
        assert!(take(1, 4, 7), "a gap");
        assert!(take(1, 5, 7), "the same time again");
        assert!(!take(2, 9, 90) && !take(2, 10, 91), "another source");
    }

    fn stamp(number: u32, kind: Kind) -> Stamp {
        Stamp {
            sender: 1,
            hears: None,
            number,
            due_us: 0,
            scope: Scope::Measured,
            sent_late: false,
            kind,
        }
    }

    /// Number, kind, timestamp in frames, and the holes expected.
    type Row = (u32, Kind, u32, u32);

    #[test]
    fn silence_within_speech_is_a_hole() {
        use Kind::{First, Flood, Paced, Queued};
        let table: [Row; 12] = [
            (0, First, 10, 0),
            (1, Paced, 11, 0),
            // one packet of silence, then three
            (2, Paced, 13, 1),
            (3, Paced, 17, 3),
            // frame 4 is lost, but its time passes
            (5, Paced, 19, 0),
            // frame 6 is lost and leaves silence behind as well
            (7, Paced, 22, 1),
            // frame 8 comes after frame 9
            (9, Paced, 24, 0),
            (8, Paced, 23, 0),
            // audio in one piece follows without a pause
            (10, Queued(0), 25, 0),
            (11, Queued(1), 27, 1),
            // after a clear, a new talkspurt begins
            (12, Flood(0), 28, 0),
            (62, First, 90, 0),
        ];
        let mut continuity = Continuity::default();
        for (number, kind, frames, holes) in table {
            let timestamp = (u32::MAX - 2000).wrapping_add(frames * 160);
            assert_eq!(continuity.take(7, timestamp, &stamp(number, kind)), holes, "{number}");
        }
        // another source begins somewhere else
        assert_eq!(continuity.take(8, 5, &stamp(63, Paced)), 0);
    }
}
