//! A simulated network between the callers and the bridge: packet length, loss, jitter and bursts.
//!
//! Everything is a function of the call's number and of the packet's, so that both ends of the
//! generator know which frames were left out, and when each packet was due.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::RangeInclusive;

/// Samples per frame, and per millisecond.
const FRAME: u64 = 160;
const SAMPLES_PER_MS: u64 = 8;
/// A bridge may wait this long for a packet that is missing, and forwards those behind it later.
const GAP_WAIT_US: u64 = 60_000;

/// The network between the callers and the bridge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Network {
    /// Share of the packets that are lost, in percent.
    pub loss_percent: f64,
    /// Longest random delay. Packets stay in order.
    pub jitter_ms: u32,
    /// Packets arrive in groups of this size.
    pub burst: u32,
    /// Length of a packet.
    pub ptime_ms: u32,
}

impl Default for Network {
    fn default() -> Network {
        Network { loss_percent: 0.0, jitter_ms: 0, burst: 1, ptime_ms: 20 }
    }
}

/// Returns a number that looks random but depends only on its arguments (splitmix64).
pub fn hash(call: u32, number: u64) -> u64 {
    let seed = (u64::from(call) << 40).wrapping_add(number);
    let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Network {
    /// True if frames simply leave as packets when they are due.
    pub fn is_plain(&self) -> bool {
        *self == Network::default()
    }

    pub fn loses_any(&self) -> bool {
        self.loss_percent > 0.0
    }

    pub fn samples_per_packet(&self) -> u64 {
        u64::from(self.ptime_ms) * SAMPLES_PER_MS
    }

    /// Returns the packets that contain samples of a frame.
    fn packets_of(&self, frame: u64) -> RangeInclusive<u64> {
        let size = self.samples_per_packet();
        frame * FRAME / size..=(frame * FRAME + FRAME - 1) / size
    }

    /// True if a packet is lost. The first never is: the AI's frames begin with the first packet
    /// that arrives, and if that were in the middle of a frame, none of them would be intact.
    pub fn loses(&self, call: u32, packet: u64) -> bool {
        let share = hash(call, packet << 1) as f64 / u64::MAX as f64;
        packet > 0 && share * 100.0 < self.loss_percent
    }

    /// True if a part of this frame is lost.
    pub fn drops_frame(&self, call: u32, frame: u64) -> bool {
        self.loses_any() && self.packets_of(frame).any(|packet| self.loses(call, packet))
    }

    /// Returns when a packet reaches the bridge, in microseconds after the start of the call's
    /// audio. A packet leaves the phone when its last sample is recorded.
    pub fn due_us(&self, call: u32, packet: u64) -> u64 {
        let group = packet / u64::from(self.burst);
        let jitter_us = u64::from(self.jitter_ms) * 1000;
        let group_us = u64::from(self.burst * self.ptime_ms) * 1000;
        let delayed = |group: u64| {
            let delay_us = hash(call, group << 1 | 1) % (jitter_us + 1);
            (group + 1) * group_us + delay_us
        };
        // no packet overtakes another: an earlier one may hold this one up
        let earlier = jitter_us / group_us.max(1);
        (group.saturating_sub(earlier)..=group).map(delayed).max().unwrap_or(0)
    }

    /// Returns when the last part of a frame reaches the bridge.
    pub fn frame_due_us(&self, call: u32, frame: u64) -> u64 {
        self.due_us(call, *self.packets_of(frame).end())
    }

    /// Returns how much later than 20 ms a frame may reach the AI because others before it are
    /// lost.
    pub fn allowance_us(&self) -> u64 {
        match self.loses_any() {
            true => GAP_WAIT_US + u64::from(self.ptime_ms) * 1000,
            false => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Network = Network { loss_percent: 0.0, jitter_ms: 0, burst: 1, ptime_ms: 20 };

    #[test]
    fn frames_are_due_with_the_packet_of_their_last_sample() {
        let due = |ptime_ms, frame| Network { ptime_ms, ..PLAIN }.frame_due_us(1, frame) / 1000;
        assert_eq!([0, 1, 2].map(|frame| due(20, frame)), [20, 40, 60]);
        assert_eq!([0, 1, 2].map(|frame| due(10, frame)), [20, 40, 60]);
        // frame 1 is in two packets
        assert_eq!([0, 1, 2, 3].map(|frame| due(30, frame)), [30, 60, 60, 90]);
        assert_eq!([0, 1, 2, 3].map(|frame| due(60, frame)), [60, 60, 60, 120]);
    }

    #[test]
    fn bursts_wait_for_their_last_packet() {
        let network = Network { burst: 3, ..PLAIN };
        let due: Vec<u64> = (0..6).map(|packet| network.due_us(1, packet) / 1000).collect();
        assert_eq!(due, [60, 60, 60, 120, 120, 120]);
    }

    #[test]
    fn jitter_delays_packets_but_keeps_their_order() {
        let network = Network { jitter_ms: 90, ..PLAIN };
        let due: Vec<u64> = (0..1000).map(|packet| network.due_us(7, packet)).collect();
        assert!(due.is_sorted());
        let delays = due.iter().zip(1..).map(|(at, n)| at - n * 20_000);
        let (least, most) = (delays.clone().min().unwrap(), delays.max().unwrap());
        assert!(least < 40_000 && (80_000..=90_000).contains(&most), "{least} {most}");
    }

    #[test]
    fn loss_is_a_share_of_the_packets_and_takes_all_their_frames() {
        let network = Network { loss_percent: 5.0, ptime_ms: 60, ..PLAIN };
        let lost: Vec<u64> = (0..10_000).filter(|packet| network.loses(3, *packet)).collect();
        assert!((400..600).contains(&lost.len()), "{}", lost.len());
        let frames = (lost[0] * 3..lost[0] * 3 + 3).filter(|f| network.drops_frame(3, *f));
        assert_eq!(frames.count(), 3);
        let all = Network { loss_percent: 100.0, ..PLAIN };
        assert!(!all.loses(3, 0) && all.loses(3, 1), "the first packet arrives");
        let none = Network { ptime_ms: 60, ..PLAIN };
        assert!((0..10_000).all(|frame| !none.drops_frame(3, frame)));
    }
}
