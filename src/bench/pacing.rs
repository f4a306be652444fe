//! Timing of the bridge's RTP: each frame against its slot, each packet against its timestamp.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

const FRAME_US: u64 = 20_000;
/// Packets in half of the envelope's memory: half a second.
const HALF: u32 = 25;
/// Microseconds per timestamp unit, a sample at 8 kHz.
const UNIT_US: i64 = 125;

/// Timing of a frame of speech against its slot, which is 20 ms after the call's previous packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Played {
    /// The wait for the slot, which no bridge can avoid.
    pub wait_us: u64,
    /// The delay that the bridge added.
    pub added_us: u64,
}

/// Splits a frame's delay. `before_us` is the arrival of the previous packet, `sent_us` the time at
/// which the AI sent the frame.
pub fn played(before_us: u64, sent_us: u64, arrived_us: u64) -> Played {
    let slot = before_us + FRAME_US;
    Played {
        wait_us: slot.saturating_sub(sent_us),
        added_us: arrived_us.saturating_sub(slot.max(sent_us)),
    }
}

/// Lateness of packets against their timestamps: arrival minus timestamp, above the minimum of this
/// difference over the last half to one second. Because the memory is short, a single early packet
/// does not make all later ones look late, and clock drift does not look like jitter.
#[derive(Debug, Default)]
pub struct Envelope {
    last_timestamp: u32,
    /// The last timestamp, unwrapped, in microseconds.
    media_us: i64,
    /// Minimum over the previous half second.
    before: Option<i64>,
    /// Minimum over the current half second so far.
    current: Option<i64>,
    /// Packets since the last restart.
    packets: u32,
}

impl Envelope {
    /// Returns a packet's lateness in microseconds. `restart` is true where a talkspurt begins or
    /// ends: there the bridge may move its slots, and the packet becomes the new reference.
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
    fn the_wait_for_the_slot_is_not_charged_to_the_bridge() {
        // the previous packet arrived at 100 ms, so the slot is at 120 ms
        let table = [
            // sent early, played in its slot
            (105_000, 120_000, 15_000, 0),
            // played 3 ms late
            (105_000, 123_000, 15_000, 3_000),
            // sent after the slot: the whole delay is the bridge's
            (121_000, 122_000, 0, 1_000),
            // played before the slot: a talkspurt
            (105_000, 105_400, 15_000, 0),
        ];
        for (sent, arrived, wait_us, added_us) in table {
            assert_eq!(played(100_000, sent, arrived), Played { wait_us, added_us }, "{sent}");
        }
    }

    #[test]
    fn lateness_is_measured_from_the_lower_envelope() {
        let mut envelope = Envelope::default();
        let mut take = |n: u32, late: u64, restart| {
            let timestamp = (u32::MAX - 1000).wrapping_add(n * 160);
            envelope.take(timestamp, 5_000_000 + u64::from(n) * 20_000 + late, restart)
        };
        assert_eq!(take(0, 900, false), 0);
        // the first was itself late: from here on the second is the reference
        assert_eq!(take(1, 0, false), 0);
        assert_eq!(take(2, 3000, false), 3000);
        // neither a lost packet nor timestamp wrap-around changes the reference
        assert_eq!(take(9, 700, false), 700);
        // new slots after a marker
        assert_eq!(take(10, 12_000, true), 0);
        assert_eq!(take(11, 12_400, false), 400);
    }

    #[test]
    fn clock_drift_is_not_jitter() {
        let mut envelope = Envelope::default();
        let worst = (0..10_000u32)
            .map(|n| envelope.take(n * 160, u64::from(n) * 20_002, false))
            .max()
            .unwrap();
        assert!(worst <= 100 * u64::from(HALF) / 25, "{worst}");
    }
}
