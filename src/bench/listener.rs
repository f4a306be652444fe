//! The receiving end of a call: what its caller hears of the AI.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::bench::figures::Times;
use crate::bench::floods::FloodEnd;
use crate::bench::ledger::{Arrival, Ledger, Tally};
use crate::bench::pacing::{Continuity, Envelope, Steps};
use crate::bench::stamp::{Kind, Scope, Stamp};
use crate::media::rtp::Packet;

/// The account of all callers.
#[derive(Debug, Default)]
pub struct Heard {
    pub tally: Tally,
    /// From the due time of a message to RTP, for the first frame of a talkspurt.
    pub talkspurt: Times,
    /// From the time at which a frame of a longer piece was due to be played, to RTP.
    pub queued: Times,
    /// Lateness of speech against a steady playout clock.
    pub lateness: Times,
    /// Times that silence interrupted speech …
    pub holes: u64,
    /// … and the frames of silence in total.
    pub hole_frames: u64,
    /// Packets whose timestamp does not follow from the packet before.
    pub timestamp_jumps: u64,
    pub flood_ends: Vec<FloodEnd>,
}

/// The frames as one caller hears them.
#[derive(Debug, Default)]
pub struct Listener {
    ledger: Ledger,
    envelope: Envelope,
    steps: Steps,
    continuity: Continuity,
}

impl Listener {
    /// Returns the number of the stream that is heard.
    pub fn hears(&self) -> Option<u32> {
        self.ledger.sender()
    }

    /// Accounts for a packet. Returns true if it contains a frame of the AI.
    pub fn take(&mut self, heard: &mut Heard, packet: &Packet<'_>, arrival: &Arrival) -> bool {
        let jump = self.steps.is_out_of_step(packet) && arrival.counts_damage;
        heard.timestamp_jumps += u64::from(jump);
        let read = Stamp::read(packet.payload);
        let Some(stamp) = self.ledger.take(&mut heard.tally, read, arrival) else { return false };
        let holes = self.continuity.take(packet.ssrc, packet.timestamp, &stamp);
        let late_us = self.envelope.take(packet.timestamp, arrival.now_us);
        if !matches!(stamp.kind, Kind::Flood(_)) {
            heard.flood_ends.extend(self.ledger.end_flood(&mut heard.tally));
        }
        // speech that the AI itself interrupted is not a hole that the bridge made
        if holes > 0 && stamp.is_judged() && !stamp.sent_late {
            heard.holes += 1;
            heard.hole_frames += u64::from(holes);
        }
        if stamp.scope == Scope::Measured {
            heard.lateness.add_us(late_us);
            heard.tally.judge_lateness(&stamp, arrival);
            let times = match stamp.kind {
                Kind::Paced => &mut heard.tally.latency,
                Kind::First => &mut heard.talkspurt,
                Kind::Queued(_) | Kind::Flood(_) => &mut heard.queued,
            };
            times.add_us(arrival.latency_us(&stamp));
        }
        true
    }

    /// Ends the account of the call.
    pub fn finish(&mut self, heard: &mut Heard) {
        self.ledger.finish(&mut heard.tally);
        heard.flood_ends.extend(self.ledger.end_flood(&mut heard.tally));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of a frame and its kind, or `None` for silence; RTP timestamp in frames; delay in
    /// milliseconds.
    type Row = (Option<(u32, Kind)>, u32, u64);

    /// Plays frames to a caller.
    fn play(rows: &[Row], sent_late: bool) -> Heard {
        let (mut listener, mut heard) = (Listener::default(), Heard::default());
        for (frame, slot, delay_ms) in rows {
            let mut payload = [0xff; 160];
            let due_us = u64::from(*slot) * 20_000;
            if let Some((number, kind)) = *frame {
                let scope = Scope::Measured;
                let hears = Some(3);
                Stamp { sender: 9, hears, number, due_us, scope, sent_late, kind }
                    .write(&mut payload);
            }
            let packet = Packet {
                marker: false,
                payload_type: 0,
                sequence: *slot as u16,
                timestamp: slot * 160,
                ssrc: 1,
                payload: &payload,
            };
            let now_us = due_us + delay_ms * 1000;
            let arrival = Arrival { now_us, own: 3, counts_damage: true, after_pause: false };
            assert_eq!(listener.take(&mut heard, &packet, &arrival), frame.is_some());
        }
        listener.finish(&mut heard);
        heard
    }

    #[test]
    fn a_hole_in_speech_is_counted_with_its_length() {
        let rows = [
            (Some((0, Kind::First)), 0, 0),
            (Some((1, Kind::Paced)), 1, 0),
            (None, 2, 0),
            (None, 3, 0),
            (Some((2, Kind::Paced)), 4, 0),
            // the pause before the next talkspurt
            (None, 5, 0),
            (Some((3, Kind::First)), 6, 0),
        ];
        let heard = play(&rows, false);
        assert_eq!((heard.holes, heard.hole_frames), (1, 2));
        // the AI paused, and reports it
        assert_eq!(play(&rows, true).holes, 0);
    }

    #[test]
    fn a_standing_queue_shows_in_the_latency_and_is_late() {
        let rows: Vec<_> = (0..100)
            .map(|n| (Some((n, if n == 0 { Kind::First } else { Kind::Paced })), n, 60))
            .collect();
        let heard = play(&rows, false);
        // RTP itself is perfectly steady
        assert_eq!(heard.lateness.spread().unwrap().max_ms, 0.0);
        assert!(heard.tally.latency.spread().unwrap().p50_ms > 59.0);
        assert_eq!((heard.tally.late, heard.holes), (100, 0));
    }

    #[test]
    fn each_kind_of_frame_has_its_own_times() {
        let rows = [
            (Some((0, Kind::First)), 0, 1),
            (Some((1, Kind::Paced)), 1, 2),
            (Some((2, Kind::Queued(0))), 2, 3),
            (Some((3, Kind::Queued(1))), 3, 4),
            (Some((4, Kind::Flood(0))), 4, 5),
        ];
        let heard = play(&rows, false);
        let times = [&heard.talkspurt, &heard.tally.latency, &heard.queued];
        assert_eq!(times.map(Times::count), [1, 1, 3]);
        assert_eq!((heard.flood_ends.len(), heard.tally.arrived.measured), (1, 4));
    }
}
