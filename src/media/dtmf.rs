//! Key presses sent as telephone-events (RFC 4733): one digit per press, however many packets
//! report it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::media::rtp::Packet;

const DIGITS: &[u8; 16] = b"0123456789*#ABCD";
/// At most this many presses are queued; further ones are dropped.
const MAX_WAITING: usize = 32;
/// The largest value of the duration field. A longer event continues under a new timestamp
/// (RFC 4733 §2.5.1.3).
const SEGMENT: u32 = 0xffff;

/// The event code of a key; `None` if `digit` is not a DTMF key.
pub fn event_code(digit: char) -> Option<u8> {
    DIGITS.iter().position(|d| char::from(*d) == digit.to_ascii_uppercase()).map(|i| i as u8)
}

/// The payload of an event packet, with volume −10 dBm0.
pub fn payload(digit: char, duration: u16, end: bool) -> [u8; 4] {
    let [high, low] = duration.to_be_bytes();
    [event_code(digit).unwrap_or(0), if end { 0x8a } else { 0x0a }, high, low]
}

/// A timestamp less than 10 s back belongs to an earlier press. A larger step back means that the
/// stream restarted its timestamps.
const RECENT: u32 = 80_000;

/// Extracts key presses from event packets: every new timestamp is a press.
#[derive(Debug, Default)]
pub struct EventReceiver {
    /// SSRC, timestamp and event code of the current press, or of its latest segment.
    last: Option<(u32, u32, u8)>,
    /// Presses not read yet.
    waiting: VecDeque<char>,
    /// When the last packet arrived.
    last_packet: Option<Instant>,
}

impl EventReceiver {
    pub fn on_packet(&mut self, now: Instant, packet: &Packet<'_>) {
        let Packet { ssrc, timestamp, marker, payload, .. } = *packet;
        let [code, _, _, _, ..] = *payload else { return };
        let Some(digit) = DIGITS.get(usize::from(code)) else { return };
        self.last_packet = Some(now);
        if let Some((last_ssrc, last_timestamp, last_code)) = self.last
            && last_ssrc == ssrc
        {
            let step = timestamp.wrapping_sub(last_timestamp);
            let longer = step == SEGMENT && !marker && code == last_code;
            // a packet of this press, or of an earlier one
            if step == 0 || step > u32::MAX - RECENT {
                return;
            }
            if longer {
                self.last = Some((ssrc, timestamp, code));
                return;
            }
        }
        self.last = Some((ssrc, timestamp, code));
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(char::from(*digit));
        }
    }

    pub fn poll(&mut self) -> Option<char> {
        self.waiting.pop_front()
    }

    pub fn last_packet(&self) -> Option<Instant> {
        self.last_packet
    }
}

/// How the PBX reported a press.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Rtp,
    Info,
}

/// A press that passed, until the PBX reports it by the other way.
#[derive(Debug)]
struct Press {
    digit: char,
    origin: Origin,
    /// When it was reported; if by RTP, when its last packet arrived.
    at: Instant,
}

/// Passes each press once even if the PBX reports it twice, by RTP and by INFO, and passes at most
/// 20 presses per second.
#[derive(Debug, Default)]
pub struct DigitGate {
    /// Presses reported by one way only so far, oldest first.
    unpaired: VecDeque<Press>,
    /// Times of the presses that passed within the last second.
    recent: VecDeque<Instant>,
    /// Presses that did not pass.
    pub dropped: u64,
}

impl DigitGate {
    /// The second report of a press follows within this time after its end.
    const SAME: Duration = Duration::from_secs(2);
    const PER_SECOND: usize = 20;

    /// Notes that the last press reported by RTP is still being held.
    pub fn held(&mut self, now: Instant) {
        if let Some(press) = self.unpaired.iter_mut().rfind(|press| press.origin == Origin::Rtp) {
            press.at = press.at.max(now);
        }
    }

    pub fn admits(&mut self, now: Instant, digit: char, origin: Origin) -> bool {
        self.unpaired.retain(|press| now.saturating_duration_since(press.at) < Self::SAME);
        let other = |press: &Press| press.digit == digit && press.origin != origin;
        if let Some(first) = self.unpaired.iter().position(other) {
            self.unpaired.remove(first);
            self.dropped += 1;
            return false;
        }
        while self.recent.front().is_some_and(|t| now.saturating_duration_since(*t).as_secs() >= 1)
        {
            self.recent.pop_front();
        }
        if self.recent.len() >= Self::PER_SECOND {
            self.dropped += 1;
            return false;
        }
        self.recent.push_back(now);
        self.unpaired.push_back(Press { digit, origin, at: now });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    fn event(timestamp: u32, marker: bool, payload: &[u8]) -> Packet<'_> {
        Packet { marker, payload_type: 101, sequence: 0, timestamp, ssrc: 1, payload }
    }

    fn digits(packets: &[(u32, char, u16, bool)]) -> String {
        let mut events = EventReceiver::default();
        for (i, (timestamp, digit, duration, end)) in packets.iter().enumerate() {
            let payload = payload(*digit, *duration, *end);
            events.on_packet(start(), &event(*timestamp, i == 0, &payload));
        }
        std::iter::from_fn(|| events.poll()).collect()
    }

    #[test]
    fn one_digit_per_press() {
        let press =
            |t, d| [(t, d, 160, false), (t, d, 320, false), (t, d, 480, true), (t, d, 480, true)];
        assert_eq!(digits(&[press(1000, '1'), press(3000, '1'), press(5000, '#')].concat()), "11#");
    }

    #[test]
    fn lost_ends_late_packets_and_long_presses() {
        assert_eq!(digits(&[(1000, '1', 160, false), (9000, '2', 160, false)]), "12");
        assert_eq!(digits(&[(9000, '2', 160, false), (1000, '1', 480, true)]), "2");
        let long = [(1000, '*', 65535, false), (1000 + SEGMENT, '*', 160, true)];
        assert_eq!(digits(&long), "*");
    }

    #[test]
    fn malformed_events_are_ignored_and_the_queue_is_bounded() {
        let mut events = EventReceiver::default();
        for payload in [&[][..], &[16, 0, 0, 0], &[255, 255, 255, 255, 255]] {
            events.on_packet(start(), &event(5, true, payload));
        }
        assert_eq!(events.poll(), None);
        let press = payload('9', 1, true);
        (0..1000).for_each(|t| events.on_packet(start(), &event(t * 800, true, &press)));
        assert_eq!(std::iter::from_fn(|| events.poll()).count(), MAX_WAITING);
    }

    #[test]
    fn a_press_reported_by_both_ways_passes_once() {
        use Origin::{Info, Rtp};
        let passed = |reports: &[(u64, char, Origin)]| -> String {
            let (now, mut gate) = (start(), DigitGate::default());
            let at = |ms: &u64| now + Duration::from_millis(*ms);
            let passes = reports.iter().filter(|(ms, digit, by)| gate.admits(at(ms), *digit, *by));
            passes.map(|(_, digit, _)| *digit).collect()
        };
        assert_eq!(passed(&[(0, '1', Rtp), (80, '1', Info), (300, '1', Rtp)]), "11");
        // typed quickly: the second reports come after the next press
        assert_eq!(
            passed(&[(0, '1', Rtp), (90, '2', Rtp), (95, '1', Info), (180, '2', Info)]),
            "12"
        );
        assert_eq!(
            passed(&[(0, '1', Info), (90, '1', Info), (95, '1', Rtp), (99, '1', Rtp)]),
            "11"
        );
        // one way only
        assert_eq!(passed(&[(0, '1', Info), (400, '1', Info), (800, '1', Info)]), "111");
    }

    #[test]
    fn a_key_held_for_long_passes_once() {
        let (now, mut gate) = (start(), DigitGate::default());
        assert!(gate.admits(now, '5', Origin::Rtp));
        for ms in (0..8000).step_by(20) {
            gate.held(now + Duration::from_millis(ms));
        }
        assert!(!gate.admits(now + Duration::from_millis(8010), '5', Origin::Info));
    }

    #[test]
    fn floods_of_presses_are_limited() {
        let now = start();
        let mut storm = DigitGate::default();
        let admitted = (0..500).filter(|_| storm.admits(now, '7', Origin::Rtp)).count();
        assert_eq!((admitted, storm.unpaired.len()), (20, 20));
    }
}
