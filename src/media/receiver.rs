//! The receiving side of a call: turns RTP from the PBX into the caller's frames and key presses.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::media::Settings;
use crate::media::dtmf::EventReceiver;
use crate::media::frame::{FRAME_SAMPLES, Frame, RATE};
use crate::media::g711::Law;
use crate::media::rtp::{COMFORT_NOISE, PCMA, PCMU, Packet};
use crate::media::sequencer::{self, Delivery, Extent, Sequencer};
use crate::media::source::SourceLock;
use crate::media::timeline::{self, Audio, Timeline};

/// The payload types in use, from the last accepted SDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub law: Law,
    pub payload_type: u8,
    pub dtmf_payload_type: Option<u8>,
}

impl Format {
    /// Returns the law of a payload type: the agreed one, or one of the two static ones
    /// (RFC 3551 §6), which some PBXs send whatever was agreed.
    fn law_of(&self, payload_type: u8) -> Option<Law> {
        match payload_type {
            agreed if agreed == self.payload_type => Some(self.law),
            PCMU => Some(Law::Mu),
            PCMA => Some(Law::A),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets from an address that the PBX has not named.
    pub wrong_source: u64,
    /// Packets that are not RTP or have a payload type that was not negotiated.
    pub not_audio: u64,
    pub sequence: sequencer::Counts,
    pub timeline: timeline::Counts,
}

impl Counts {
    /// Frames that arrived too late and were dropped: behind their gap, or beyond the bound.
    pub fn late(&self) -> u64 {
        self.sequence.late + self.timeline.dropped_samples / FRAME_SAMPLES as u64
    }

    /// Frames that arrived late and were kept.
    pub fn late_kept(&self) -> u64 {
        self.timeline.late_samples / FRAME_SAMPLES as u64
    }
}

/// The receiving side of one call.
#[derive(Debug)]
pub struct Receiver {
    pub source: SourceLock,
    /// `None` until an SDP has been accepted.
    format: Option<Format>,
    sequencer: Sequencer,
    core: Core,
    /// See [`Counts`].
    wrong_source: u64,
    /// See [`Counts`].
    not_audio: u64,
    jitter: Jitter,
    /// The first static payload type that arrived although another was agreed.
    unagreed: Option<u8>,
    /// When RTP of any negotiated type last arrived, comfort noise included.
    alive: Option<Instant>,
}

/// The consumers of ordered packets.
#[derive(Debug)]
struct Core {
    timeline: Timeline,
    events: EventReceiver,
}

impl Receiver {
    /// `signalling`: the PBX's signalling address, from which RTP is expected at first.
    pub fn new(signalling: IpAddr, settings: &Settings) -> Receiver {
        Receiver {
            source: SourceLock::new(signalling),
            format: None,
            sequencer: Sequencer::new(settings.reorder_wait),
            core: Core {
                timeline: Timeline::new(settings.max_lead),
                events: EventReceiver::default(),
            },
            wrong_source: 0,
            not_audio: 0,
            jitter: Jitter::default(),
            unagreed: None,
            alive: None,
        }
    }

    /// Sets the peer's media address and formats, from an accepted SDP.
    pub fn set_remote(&mut self, address: SocketAddr, format: Format) {
        if !address.ip().is_unspecified() {
            self.source.name(address);
        }
        self.format = Some(format);
        self.core.timeline.set_law(format.law);
    }

    /// Starts the source filter and the timeline at time 0 of the call.
    pub fn start(&mut self, now: Instant) {
        self.source.start(now);
        self.core.timeline.start(now);
    }

    pub fn on_packet(&mut self, now: Instant, source: SocketAddr, data: &[u8]) {
        if !self.source.accepts(now, source) {
            self.wrong_source += 1;
            return;
        }
        let packet = Packet::parse(data).filter(|p| p.payload.len() <= 1600);
        let (Some(packet), Some(format)) = (packet, self.format) else {
            self.not_audio += 1;
            return;
        };
        let event = Some(packet.payload_type) == format.dtmf_payload_type;
        let law = format.law_of(packet.payload_type);
        if !event && law.is_none() && packet.payload_type != COMFORT_NOISE {
            self.not_audio += 1;
            return;
        }
        self.alive = Some(now);
        self.source.heard(now, source);
        if law.is_some() {
            self.jitter.on_packet(now, &packet);
            if packet.payload_type != format.payload_type {
                self.unagreed.get_or_insert(packet.payload_type);
            }
        }
        if event {
            self.core.events.on_packet(now, &packet);
            // some gateways number their events apart from the audio
            if !self.sequencer.continues(&packet) {
                return;
            }
        }
        let core = &mut self.core;
        self.sequencer.push(now, &packet, &mut |d| core.deliver(now, &format, d));
    }

    /// The first static payload type that arrived although another was agreed.
    pub fn unagreed(&self) -> Option<u8> {
        self.unagreed
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        // packets held behind a gap were received, so their time must not be filled
        self.sequencer.next_timeout().or_else(|| self.core.timeline.next_timeout())
    }

    pub fn on_timeout(&mut self, now: Instant) {
        if let Some(format) = self.format {
            let core = &mut self.core;
            self.sequencer.on_timeout(now, &mut |d| core.deliver(now, &format, d));
        }
        if self.sequencer.next_timeout().is_none() {
            self.core.timeline.on_timeout(now);
        }
    }

    pub fn next_frame(&mut self) -> Option<Frame> {
        self.core.timeline.pop()
    }

    /// When the last packet of a key press arrived.
    pub fn last_event(&self) -> Option<Instant> {
        self.core.events.last_packet()
    }

    /// The next key press.
    pub fn next_digit(&mut self) -> Option<char> {
        self.core.events.poll()
    }

    /// Handles a key press reported by signalling, from a PBX that removes its packets from the
    /// stream.
    pub fn key_taken_out(&mut self, now: Instant) {
        if let Some(format) = self.format {
            let core = &mut self.core;
            self.sequencer.key_taken_out(&mut |d| core.deliver(now, &format, d));
        }
    }

    /// When RTP last arrived, or time 0 if none has.
    pub fn last_heard(&self) -> Option<Instant> {
        self.alive.max(self.core.timeline.last_heard())
    }

    pub fn counts(&self) -> Counts {
        Counts {
            wrong_source: self.wrong_source,
            not_audio: self.not_audio,
            sequence: self.sequencer.counts,
            timeline: self.core.timeline.counts,
        }
    }

    /// The stream's sequence numbers and its jitter in timestamp units, for receiver reports.
    pub fn reception(&self) -> Option<(Extent, u32)> {
        Some((self.sequencer.extent()?, self.jitter.value as u32))
    }
}

impl Core {
    fn deliver(&mut self, now: Instant, format: &Format, delivery: Delivery<'_>) {
        // Key presses have been handled on arrival. Comfort noise means that the caller is silent,
        // so our clock fills. Events and comfort noise have timestamps, but only audio moves the
        // timeline: a phone may send audio beside its events.
        let Some(law) = format.law_of(delivery.payload_type) else { return };
        if delivery.payload.is_empty() {
            return;
        }
        self.timeline.set_law(law);
        let audio = Audio {
            marker: delivery.marker,
            timestamp: delivery.timestamp,
            samples: delivery.payload,
            lost: delivery.lost,
            restarted: delivery.restarted,
        };
        self.timeline.push(now, audio);
    }
}

/// Interarrival jitter (RFC 3550 §6.4.1), in timestamp units.
#[derive(Debug, Default)]
struct Jitter {
    /// SSRC, arrival and timestamp of the last packet.
    last: Option<(u32, Instant, u32)>,
    /// The current estimate.
    value: f64,
}

impl Jitter {
    fn on_packet(&mut self, now: Instant, packet: &Packet<'_>) {
        if let Some((ssrc, at, timestamp)) = self.last
            && ssrc == packet.ssrc
        {
            let passed = now.saturating_duration_since(at).as_secs_f64() * RATE as f64;
            let sent = f64::from(packet.timestamp.wrapping_sub(timestamp) as i32);
            let difference = (passed - sent).abs();
            // a jump in the timestamps is not jitter
            if difference < RATE as f64 {
                self.value += (difference - self.value) / 16.0;
            }
        }
        self.last = Some((packet.ssrc, now, packet.timestamp));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::g711;
    use crate::media::sender::Sender;
    use crate::testing::start;

    const FORMAT: Format = Format { law: Law::Mu, payload_type: 0, dtmf_payload_type: Some(101) };

    fn pbx() -> SocketAddr {
        "10.0.0.2:4000".parse().unwrap()
    }

    fn receiver(format: Format) -> Receiver {
        let mut receiver = Receiver::new(pbx().ip(), &Settings::default());
        receiver.set_remote(pbx(), format);
        receiver
    }

    #[test]
    fn only_the_named_source_is_heard() {
        let now = start();
        let mut receiver = receiver(FORMAT);
        receiver.start(now);
        let mut sender = Sender::new(7, 0, 0);
        let out = sender.audio(0, 0, &[1; 160], true);
        receiver.on_packet(now, "10.6.6.6:4000".parse().unwrap(), &out);
        assert_eq!(receiver.next_frame(), None);
        receiver.on_packet(now, pbx(), &out);
        assert_eq!(receiver.next_frame().unwrap().samples, [1; 160]);
        receiver.on_packet(now, pbx(), b"\0\x01\0\0not rtp, STUN perhaps");
        assert_eq!((receiver.counts().wrong_source, receiver.counts().not_audio), (1, 1));
    }

    #[test]
    fn a_law_is_kept_until_mu_law_is_requested() {
        let now = start();
        let mut receiver = receiver(Format { law: Law::A, payload_type: 8, ..FORMAT });
        let mut payload = [0x10; 160];
        g711::mu_to_a(&mut payload);
        let out = Sender::new(7, 0, 0).audio(8, 0, &payload, true);
        receiver.on_packet(now, pbx(), &out);
        let frame = receiver.next_frame().unwrap();
        assert_eq!((frame.samples, frame.law), (payload, Law::A));
        assert!(g711::decode(frame.mu_law()[0]).abs_diff(g711::decode(0x10)) < 600);
    }

    #[test]
    fn key_presses_are_not_audio() {
        let now = start();
        let mut receiver = receiver(FORMAT);
        let mut sender = Sender::new(7, 0, 0);
        for packet in sender.key_press(101, '5', 0) {
            receiver.on_packet(now, pbx(), &packet);
        }
        assert_eq!(receiver.next_digit(), Some('5'));
        assert_eq!((receiver.next_digit(), receiver.next_frame()), (None, None));
    }
}
