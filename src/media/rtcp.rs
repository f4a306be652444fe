//! RTCP sender and receiver reports (RFC 3550 §6.4): one compound packet every five seconds.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use rtcp_types::{
    Compound, Packet, ReportBlock, ReportBlockBuilder, RtcpPacketWriterExt, Sdes, SdesChunk,
    SdesItem, SenderReport,
};

use crate::media::sender::Sender;
use crate::media::sequencer::Extent;

/// Interval of our reports.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Seconds from 1900 (NTP) to 1970 (Unix).
const NTP_OFFSET: u64 = 2_208_988_800;

/// The quality of our stream as the peer last reported it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PeerReport {
    /// Packets lost since the start of the stream.
    pub lost: u32,
    /// In timestamp units.
    pub jitter: u32,
    pub round_trip: Option<Duration>,
}

/// The RTCP state of one call.
#[derive(Debug)]
pub struct Rtcp {
    /// Our canonical name, sent in every report.
    cname: String,
    /// When the next report is due; `None` before the start.
    next: Option<Instant>,
    /// Middle 32 bits of the NTP time in the peer's last sender report, and when it arrived.
    last_sr: Option<(u32, Instant)>,
    /// Packets expected and packets lost, as of our last report.
    prior: (u64, u64),
    /// The peer's latest report on our stream.
    pub peer: Option<PeerReport>,
}

/// Converts the time since 1970 to NTP's 32.32 fixed-point format.
pub fn ntp(unix: Duration) -> u64 {
    let fraction = (u64::from(unix.subsec_nanos()) << 32) / 1_000_000_000;
    ((unix.as_secs() + NTP_OFFSET) << 32) | fraction
}

impl Rtcp {
    pub fn new(cname: String) -> Rtcp {
        Rtcp { cname, next: None, last_sr: None, prior: (0, 0), peer: None }
    }

    pub fn start(&mut self, now: Instant) {
        self.next = Some(now + INTERVAL / 2);
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Builds the report that is due, and schedules the next. `index`: the frame being played now;
    /// `unix`: the wall clock; `reception` and `lost`: the receiver's figures.
    pub fn report(
        &mut self,
        now: Instant,
        unix: Duration,
        sender: &Sender,
        index: u64,
        reception: Option<(Extent, u32)>,
        lost: u64,
    ) -> Option<Vec<u8>> {
        self.next = Some(now + INTERVAL);
        let mut report = SenderReport::builder(sender.ssrc())
            .ntp_timestamp(ntp(unix))
            .rtp_timestamp(sender.timestamp(index))
            .packet_count(sender.packets())
            .octet_count(sender.octets());
        if let Some((extent, jitter)) = reception {
            report = report.add_report_block(self.block(now, extent, jitter, lost));
        }
        let item = SdesItem::builder(SdesItem::CNAME, &self.cname);
        let sdes = Sdes::builder().add_chunk(SdesChunk::builder(sender.ssrc()).add_item(item));
        let compound = Compound::builder().add_packet(report).add_packet(sdes);
        let mut out = vec![0; 256];
        let written = compound.write_into(&mut out).ok()?;
        out.truncate(written);
        Some(out)
    }

    fn block(
        &mut self,
        now: Instant,
        extent: Extent,
        jitter: u32,
        lost: u64,
    ) -> ReportBlockBuilder {
        let expected = u64::from(extent.highest.wrapping_sub(extent.first)) + 1;
        let since = (expected.saturating_sub(self.prior.0), lost.saturating_sub(self.prior.1));
        self.prior = (expected, lost);
        let fraction = (since.1 * 256).checked_div(since.0).unwrap_or(0).min(255) as u8;
        let (lsr, dlsr) = self.last_sr.map_or((0, 0), |(lsr, at)| {
            let delay = now.saturating_duration_since(at);
            (lsr, (delay.as_micros() * 65_536 / 1_000_000) as u32)
        });
        ReportBlock::builder(extent.ssrc)
            .fraction_lost(fraction)
            .cumulative_lost(lost.min(0x7f_ffff) as u32)
            .extended_sequence_number(extent.highest)
            .interarrival_jitter(jitter)
            .last_sender_report_timestamp(lsr)
            .delay_since_last_sender_report_timestamp(dlsr)
    }

    /// Processes a compound packet from the peer and ignores anything else. `unix`: the wall clock.
    pub fn on_packet(&mut self, now: Instant, unix: Duration, data: &[u8], our_ssrc: u32) {
        let Ok(compound) = Compound::parse(data) else { return };
        for packet in compound.flatten() {
            match packet {
                Packet::Sr(sr) => {
                    self.last_sr = Some(((sr.ntp_timestamp() >> 16) as u32, now));
                    sr.report_blocks().for_each(|b| self.on_block(unix, &b, our_ssrc));
                }
                Packet::Rr(rr) => {
                    rr.report_blocks().for_each(|b| self.on_block(unix, &b, our_ssrc))
                }
                _ => {}
            }
        }
    }

    fn on_block(&mut self, unix: Duration, block: &ReportBlock<'_>, our_ssrc: u32) {
        if block.ssrc() != our_ssrc {
            return;
        }
        let lsr = block.last_sender_report_timestamp();
        let now = (ntp(unix) >> 16) as u32;
        let units =
            now.wrapping_sub(lsr).wrapping_sub(block.delay_since_last_sender_report_timestamp());
        // in 1/65536 s; more than 10 s is not a round trip but a wrong clock at the peer
        let round_trip = (lsr != 0 && units < 10 << 16)
            .then(|| Duration::from_micros(u64::from(units) * 1_000_000 / 65_536));
        let lost = block.cumulative_lost();
        self.peer = Some(PeerReport { lost, jitter: block.interarrival_jitter(), round_trip });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    const UNIX: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn two_reports_give_loss_jitter_and_round_trip() {
        let now = start();
        let (mut a, mut b) = (Rtcp::new("a".into()), Rtcp::new("b".into()));
        let (sender_a, sender_b) = (Sender::new(1, 0, 0), Sender::new(2, 0, 0));
        let extent = Extent { ssrc: 1, highest: 99, first: 0 };
        let from_a = a.report(now, UNIX, &sender_a, 0, None, 0).unwrap();
        b.on_packet(now, UNIX, &from_a, 2);
        let later = Duration::from_millis(500);
        let from_b = b.report(now + later, UNIX + later, &sender_b, 25, Some((extent, 7)), 10);
        let arrives = later + Duration::from_millis(30);
        a.on_packet(now + arrives, UNIX + arrives, &from_b.unwrap(), 1);
        let peer = a.peer.unwrap();
        assert_eq!((peer.lost, peer.jitter), (10, 7));
        let ms = peer.round_trip.unwrap().as_secs_f64() * 1000.0;
        assert!((29.0..31.0).contains(&ms), "{ms}");
    }

    #[test]
    fn junk_is_ignored() {
        let mut rtcp = Rtcp::new("x".into());
        // eight bytes on which the crate `rtcp` 0.17.2 panics
        for junk in [&b"\x84\xce\0\x01\xd0\xa3\x0e\0"[..], b"", b"\x80", &[0xff; 1500]] {
            rtcp.on_packet(start(), UNIX, junk, 1);
        }
        assert_eq!(rtcp.peer, None);
    }
}
