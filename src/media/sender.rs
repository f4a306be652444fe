//! Outgoing RTP packets. The header is written by the crate `rtp`.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use rtp::header::Header;
use webrtc_util::marshal::Marshal;

use crate::media::dtmf;
use crate::media::frame::{FRAME_SAMPLES, Samples};

/// Size of a header without CSRCs and extensions.
const HEADER_BYTES: usize = 12;
/// Timestamp units per frame.
const STEP: u32 = 160;

/// A 20 ms frame with its RTP header.
pub type AudioPacket = [u8; HEADER_BYTES + FRAME_SAMPLES];

/// One outgoing stream: its sequence numbers, timestamps and counts.
#[derive(Debug)]
pub struct Sender {
    /// The header to be written next; its sequence number is that of the next packet.
    header: Header,
    /// Timestamp of frame 0.
    first_timestamp: u32,
    /// Packets sent, for sender reports.
    packets: u32,
    /// Payload bytes sent, for sender reports.
    octets: u32,
}

impl Sender {
    /// SSRC, first sequence number and first timestamp should be random (RFC 3550 §5.1).
    pub fn new(ssrc: u32, first_sequence: u16, first_timestamp: u32) -> Sender {
        let header =
            Header { version: 2, ssrc, sequence_number: first_sequence, ..Header::default() };
        Sender { header, first_timestamp, packets: 0, octets: 0 }
    }

    pub fn ssrc(&self) -> u32 {
        self.header.ssrc
    }

    pub fn packets(&self) -> u32 {
        self.packets
    }

    pub fn octets(&self) -> u32 {
        self.octets
    }

    /// The timestamp of frame `index` of the call.
    pub fn timestamp(&self, index: u64) -> u32 {
        self.first_timestamp.wrapping_add((index as u32).wrapping_mul(STEP))
    }

    /// Renumbers the frames so that frame `index` becomes frame 0. Timestamps continue unchanged.
    pub fn rebase(&mut self, index: u64) {
        self.first_timestamp = self.timestamp(index);
    }

    /// Builds the packet for frame `index`.
    pub fn audio(
        &mut self,
        payload_type: u8,
        index: u64,
        samples: &Samples,
        marker: bool,
    ) -> AudioPacket {
        let mut out = [0u8; HEADER_BYTES + FRAME_SAMPLES];
        self.header.timestamp = self.timestamp(index);
        out[HEADER_BYTES..].copy_from_slice(samples);
        self.write(payload_type, marker, &mut out);
        out
    }

    /// Writes the header in front of the payload already in `out`, and counts the packet.
    fn write(&mut self, payload_type: u8, marker: bool, out: &mut [u8]) {
        self.header.payload_type = payload_type;
        self.header.marker = marker;
        let payload = out.len() - HEADER_BYTES;
        let written = self.header.marshal_to(out);
        debug_assert_eq!(written.ok(), Some(HEADER_BYTES));
        self.header.sequence_number = self.header.sequence_number.wrapping_add(1);
        self.packets = self.packets.wrapping_add(1);
        self.octets = self.octets.wrapping_add(payload as u32);
    }

    /// Builds the packets of one 100 ms key press (RFC 4733 §2.5): one packet for every 20 ms, and
    /// the end packet three times.
    pub fn key_press(&mut self, payload_type: u8, digit: char, index: u64) -> Vec<Vec<u8>> {
        let durations = [(160, false), (320, false), (480, false), (640, false)];
        let ends = [(800, true); 3];
        let steps = durations.into_iter().chain(ends).enumerate();
        let packet =
            |(i, (duration, end))| self.event(payload_type, digit, index, duration, end, i == 0);
        steps.map(packet).collect()
    }

    /// Builds one packet of a key press that began with frame `index`; `duration` is in timestamp
    /// units.
    pub fn event(
        &mut self,
        payload_type: u8,
        digit: char,
        index: u64,
        duration: u16,
        end: bool,
        marker: bool,
    ) -> Vec<u8> {
        self.header.timestamp = self.timestamp(index);
        let mut out = vec![0; HEADER_BYTES];
        out.extend(dtmf::payload(digit, duration, end));
        self.write(payload_type, marker, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::rtp::Packet;

    #[test]
    fn sequence_numbers_and_timestamps_wrap() {
        let mut sender = Sender::new(9, 65535, u32::MAX - 159);
        let out = sender.audio(0, 0, &[1; 160], true);
        let first = Packet::parse(&out).unwrap();
        assert_eq!((first.sequence, first.timestamp, first.marker), (65535, u32::MAX - 159, true));
        let out = sender.audio(0, 1, &[1; 160], false);
        let second = Packet::parse(&out).unwrap();
        assert_eq!((second.sequence, second.timestamp, second.ssrc), (0, 0, 9));
        assert_eq!((sender.packets(), sender.octets()), (2, 320));
    }
}
