//! A caller's outgoing RTP: frames are cut into packets of the network's length.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::bench::network::Network;
use crate::media::frame::Samples;
use crate::media::g711::Law;

const HEADER: usize = 12;
/// RTP version 2, without padding, extension or CSRCs (RFC 3550 §5.1).
const VERSION: u8 = 0x80;
const MARKER: u8 = 0x80;

/// One call's stream of packets.
#[derive(Debug)]
pub struct Outgoing {
    /// Number of the call: the source of its SSRC and its first sequence number and timestamp.
    call: u32,
    network: Network,
    pub law: Law,
    /// Samples that do not fill a packet yet.
    samples: Vec<u8>,
    /// The next packet.
    packet: u64,
}

/// A packet and its time, in microseconds after the start of the call's audio.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready {
    pub due_us: u64,
    pub data: Vec<u8>,
}

impl Outgoing {
    pub fn new(call: u32, network: Network, law: Law) -> Outgoing {
        Outgoing { call, network, law, samples: Vec::new(), packet: 0 }
    }

    /// Adds a frame. The packets that it completes are returned by [`Outgoing::next`].
    pub fn add(&mut self, frame: &Samples) {
        let start = self.samples.len();
        self.samples.extend_from_slice(frame);
        Law::Mu.convert(self.law, &mut self.samples[start..]);
    }

    /// Returns the next complete packet that the network does not lose.
    pub fn next(&mut self, payload_type: u8) -> Option<Ready> {
        let size = self.network.samples_per_packet() as usize;
        while self.samples.len() >= size {
            let packet = self.packet;
            self.packet += 1;
            let payload: Vec<u8> = self.samples.drain(..size).collect();
            if !self.network.loses(self.call, packet) {
                let due_us = self.network.due_us(self.call, packet);
                return Some(Ready { due_us, data: self.packet(packet, payload_type, &payload) });
            }
        }
        None
    }

    fn packet(&self, packet: u64, payload_type: u8, payload: &[u8]) -> Vec<u8> {
        let marker = if packet == 0 { MARKER } else { 0 };
        let sequence = (self.call as u16).wrapping_add(packet as u16);
        let samples = packet.wrapping_mul(self.network.samples_per_packet());
        let mut data = Vec::with_capacity(HEADER + payload.len());
        data.extend([VERSION, marker | payload_type]);
        data.extend(sequence.to_be_bytes());
        data.extend(self.call.wrapping_add(samples as u32).to_be_bytes());
        data.extend(self.call.wrapping_mul(0x9e37_79b9).to_be_bytes());
        data.extend_from_slice(payload);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::rtp::Packet;

    /// Returns the packets of `frames` frames, in which every byte is the number of its frame.
    fn packets(network: Network, law: Law, frames: u8) -> Vec<Ready> {
        let mut outgoing = Outgoing::new(9, network, law);
        let mut all = Vec::new();
        for frame in 0..frames {
            outgoing.add(&[frame; 160]);
            all.extend(std::iter::from_fn(|| outgoing.next(0)));
        }
        all
    }

    #[test]
    fn frames_are_cut_into_packets_of_any_length() {
        for ptime_ms in [10, 20, 30, 40, 50, 60] {
            let all = packets(Network { ptime_ms, ..Network::default() }, Law::Mu, 30);
            assert_eq!(all.len(), 600 / ptime_ms as usize);
            let mut audio = Vec::new();
            for (n, ready) in (0u32..).zip(&all) {
                let packet = Packet::parse(&ready.data).unwrap();
                assert_eq!(packet.marker, n == 0);
                assert_eq!(u32::from(packet.sequence), 9 + n);
                assert_eq!(packet.timestamp, 9 + n * ptime_ms * 8);
                assert_eq!(ready.due_us, u64::from((n + 1) * ptime_ms) * 1000);
                audio.extend_from_slice(packet.payload);
            }
            let whole: Vec<u8> = (0..30).flat_map(|frame| [frame; 160]).collect();
            assert_eq!(audio, whole, "{ptime_ms}");
        }
    }

    #[test]
    fn lost_packets_leave_a_gap_in_the_numbers() {
        let network = Network { loss_percent: 20.0, ..Network::default() };
        let all = packets(network, Law::Mu, 100);
        assert!((60..95).contains(&all.len()), "{}", all.len());
        for ready in all {
            let packet = Packet::parse(&ready.data).unwrap();
            let frame = packet.payload[0];
            assert_eq!(packet.sequence, 9 + u16::from(frame));
            assert!(!network.drops_frame(9, u64::from(frame)));
        }
    }

    #[test]
    fn stamps_survive_a_law() {
        let stamp = 0x2au8;
        let all = packets(Network::default(), Law::A, stamp + 1);
        let mut payload = Packet::parse(&all[usize::from(stamp)].data).unwrap().payload.to_vec();
        assert!(payload.iter().all(|byte| *byte != stamp));
        Law::A.convert(Law::Mu, &mut payload);
        assert!(payload.iter().all(|byte| *byte == stamp));
    }
}
