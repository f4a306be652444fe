//! Parsing of received RTP packets (RFC 3550 §5.1): a bounds-checked view, without copying.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Payload type of mu-law (RFC 3551 §6).
pub const PCMU: u8 = 0;
/// Payload type of A-law (RFC 3551 §6).
pub const PCMA: u8 = 8;
/// Payload type of comfort noise (RFC 3389).
pub const COMFORT_NOISE: u8 = 13;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    pub marker: bool,
    pub payload_type: u8,
    pub sequence: u16,
    pub timestamp: u32,
    pub ssrc: u32,
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Returns `None` for anything that is not a complete RTP version 2 packet: STUN, DTLS, RTCP,
    /// junk.
    pub fn parse(data: &'a [u8]) -> Option<Packet<'a>> {
        let fixed: &[u8; 12] = data.first_chunk()?;
        let (first, second) = (fixed[0], fixed[1]);
        // RTCP packet types 192–223 look like a marker bit with payload types 64–95 (RFC 5761 §4)
        if first >> 6 != 2 || (192..224).contains(&second) {
            return None;
        }
        let mut payload = data.get(12 + 4 * usize::from(first & 0x0f)..)?;
        if first & 0x10 != 0 {
            let header: &[u8; 4] = payload.first_chunk()?;
            let words = usize::from(u16::from_be_bytes([header[2], header[3]]));
            payload = payload.get(4 + 4 * words..)?;
        }
        if first & 0x20 != 0 {
            let padding = usize::from(*payload.last()?);
            let end = payload.len().checked_sub(padding).filter(|_| padding > 0)?;
            payload = &payload[..end];
        }
        Some(Packet {
            marker: second & 0x80 != 0,
            payload_type: second & 0x7f,
            sequence: u16::from_be_bytes([fixed[2], fixed[3]]),
            timestamp: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ssrc: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use webrtc_util::marshal::Marshal;

    fn base() -> Vec<u8> {
        let mut data = vec![0x80, 0x80, 0x12, 0x34, 0, 0, 0, 160, 0xde, 0xad, 0xbe, 0xef];
        data.extend_from_slice(&[7; 160]);
        data
    }

    #[test]
    fn a_plain_packet_is_parsed() {
        let data = base();
        let packet = Packet::parse(&data).unwrap();
        assert!(packet.marker);
        assert_eq!((packet.payload_type, packet.sequence), (0, 0x1234));
        assert_eq!((packet.timestamp, packet.ssrc), (160, 0xdead_beef));
        assert_eq!(packet.payload, [7; 160]);
    }

    #[test]
    fn csrcs_extension_and_padding_are_skipped() {
        let mut data = base();
        data[0] = 0xb1;
        data.splice(12..12, [1, 2, 3, 4, 0xbe, 0xde, 0, 1, 9, 9, 9, 9]);
        data.extend_from_slice(&[0, 0, 0, 4]);
        assert_eq!(Packet::parse(&data).unwrap().payload, [7; 160]);
    }

    #[test]
    fn truncated_and_non_rtp_data_is_rejected() {
        let mut data = base();
        assert!((0..12).all(|n| Packet::parse(&data[..n]).is_none()));
        let change = |at: usize, value: u8| {
            let mut data = base();
            data[at] = value;
            Packet::parse(&data).is_none()
        };
        assert!(change(0, 0x00) && change(0, 0x40), "version");
        assert!(change(1, 200), "RTCP");
        // the last payload byte, 7, is then the padding's length
        data = base();
        data[0] = 0xa0;
        assert_eq!(Packet::parse(&data).unwrap().payload.len(), 153);
        *data.last_mut().unwrap() = 161;
        assert!(Packet::parse(&data).is_none(), "more padding than payload");
        *data.last_mut().unwrap() = 0;
        assert!(Packet::parse(&data).is_none(), "padding of no length");
        assert!(Packet::parse(&[0xbf; 12]).is_none());
        // a datagram on which the crate `rtp` 0.17.2 panics
        let killer = b"\x90\0\0\x01\0\0\0\x01\0\0\0\x01\xbe\xde\0\x01\x1f\x01\x02\x03";
        assert_eq!(Packet::parse(killer).unwrap().payload, b"");
    }

    #[test]
    fn reads_what_the_rtp_crate_writes() {
        let packet = rtp::packet::Packet {
            header: rtp::header::Header {
                version: 2,
                marker: true,
                payload_type: 8,
                sequence_number: 65535,
                timestamp: u32::MAX,
                ssrc: 1,
                csrc: vec![1, 2, 3],
                ..Default::default()
            },
            payload: bytes::Bytes::from_static(b"audio"),
        };
        let data = packet.marshal().unwrap();
        let ours = Packet::parse(&data).unwrap();
        assert_eq!((ours.sequence, ours.timestamp, ours.payload), (65535, u32::MAX, &b"audio"[..]));
    }
}
