//! The bridge's RTP against the clock: each frame against its slot, each packet against its
//! timestamp.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

const FRAME_US: u64 = 20_000;
/// Packets of each half of the envelope's memory: half a second.
const HALF: u32 = 25;
/// Timestamp units, samples at 8 kHz, in microseconds.
const UNIT_US: i64 = 125;

/// A frame of speech against its slot: 20 ms after the call's packet before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Played {
    /// The wait for the slot, which no bridge can avoid.
    pub wait_us: u64,
    /// What the bridge added to it.
    pub added_us: u64,
}

/// `before_us`: arrival of the packet before; `sent_us`: when the AI sent the frame.
pub fn played(before_us: u64, sent_us: u64, arrived_us: u64) -> Played {
    let slot = before_us + FRAME_US;
    Played {
        wait_us: slot.saturating_sub(sent_us),
        added_us: arrived_us.saturating_sub(slot.max(sent_us)),
    }
}

/// Lateness of packets by their timestamps: arrival less timestamp, over the least of these in the
/// last half to whole second. So no packet early in a row makes all behind it late, and drift
/// between two clocks is no jitter.
#[derive(Debug, Default)]
pub struct Envelope {
    last_timestamp: u32,
    /// Timestamps unwrapped, in microseconds.
    media_us: i64,
    /// The least of the half second before, and of this one so far.
    before: Option<i64>,
    current: Option<i64>,
    packets: u32,
}

impl Envelope {
    /// The packet's lateness in microseconds. `restart`: a talkspurt begins or ends here, where the
    /// bridge may move its slots; the packet is the new measure.
    pub fn take(&mut self, timestamp: u32, arrived_us: u64, restart: bool) -> u64 {
        let step = timestamp.wrapping_sub(self.last_timestamp) as i32;
        self.last_timestamp = timestamp;
        self.media_us += i64::from(step) * UNIT_US;
        let offset = arrived_us as i64 - self.media_us;
        if restart || self.packets == 0 {
            (self.before, self.current, self.packets) = (None, None, 0);
        }
        self.packets += 1;
        if self.packets.is_multiple_of(HALF) {
            self.before = self.current.take();
        }
        self.current = Some(self.current.map_or(offset, |least| least.min(offset)));
        let least = self.before.into_iter().chain(self.current).min();
        least.map_or(0, |least| (offset - least) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_for_the_slot_is_not_the_bridges() {
        // the packet before came at 100 ms, so the slot is 120 ms
        let table = [
            // sent early, played in its slot
            (105_000, 120_000, 15_000, 0),
            // played 3 ms late
            (105_000, 123_000, 15_000, 3_000),
            // sent after the slot: all of its way is the bridge's
            (121_000, 122_000, 0, 1_000),
            // played before the slot: a talkspurt
            (105_000, 105_400, 15_000, 0),
        ];
        for (sent, arrived, wait_us, added_us) in table {
            assert_eq!(played(100_000, sent, arrived), Played { wait_us, added_us }, "{sent}");
        }
    }

    #[test]
    fn lateness_is_against_the_lower_envelope() {
        let mut envelope = Envelope::default();
        let mut take = |n: u32, late: u64, restart| {
            let timestamp = (u32::MAX - 1000).wrapping_add(n * 160);
            envelope.take(timestamp, 5_000_000 + u64::from(n) * 20_000 + late, restart)
        };
        assert_eq!(take(0, 900, false), 0);
        // the first was itself late: from here on the second is the measure
        assert_eq!(take(1, 0, false), 0);
        assert_eq!(take(2, 3000, false), 3000);
        // a lost packet moves nothing, nor does the wrap of the timestamp
        assert_eq!(take(9, 700, false), 700);
        // new slots after a marker
        assert_eq!(take(10, 12_000, true), 0);
        assert_eq!(take(11, 12_400, false), 400);
    }

    #[test]
    fn drift_is_no_jitter() {
        let mut envelope = Envelope::default();
        let worst = (0..10_000u32)
            .map(|n| envelope.take(n * 160, u64::from(n) * 20_002, false))
            .max()
            .unwrap();
        assert!(worst <= 100 * u64::from(HALF) / 25, "{worst}");
    }
}
