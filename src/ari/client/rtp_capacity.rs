//! Counts the RTP streams that the PBX can still open. This works if the PBX runs on this host and
//! its rtp.conf is readable. Owns the reading of files.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::ari::client::rtp_conf;
use crate::ari::rtp_range::RtpRange;

/// External media channels allowed when the PBX's RTP range is unknown.
pub const SAFE_MEDIA: usize = 200;
/// Default path of the file with Asterisk's RTP range.
pub const RTP_CONF: &str = "/etc/asterisk/rtp.conf";
/// A count is reused for this long while many ports are free.
const FRESH: Duration = Duration::from_secs(1);

pub struct RtpCapacity {
    /// `None` if unknown.
    range: Option<RtpRange>,
    /// When the free streams were last counted.
    counted: Option<Instant>,
    /// Free streams at the last count, less those admitted since.
    free: usize,
}

impl RtpCapacity {
    /// Reads rtp.conf and the files that it includes. The second value is the number of external
    /// media channels allowed.
    pub fn new(
        pbx: &str,
        rtp_conf: Option<&Path>,
        max_media: Option<usize>,
    ) -> (RtpCapacity, usize) {
        let asked_for = rtp_conf.is_some();
        let rtp_conf = rtp_conf.unwrap_or(Path::new(RTP_CONF));
        let name = rtp_conf.display();
        let range = rtp_conf::read(rtp_conf).and_then(|text| {
            RtpRange::parse(&text).ok_or_else(|| format!("{name}: no valid RTP range"))
        });
        let (range, cap) = match range {
            Ok(range) => {
                let pairs = range.pairs();
                // each call uses two streams: the caller's and the external media channel's
                let fits = (pairs / 2).max(1);
                let cap = max_media.unwrap_or(SAFE_MEDIA.min(fits));
                if cap > fits {
                    warn!(
                        pbx,
                        max_media = cap,
                        fits,
                        "max_media is too high: {name} allows {pairs} RTP streams, each call needs \
                         two, and Asterisk crashes when they run out; lower max_media or widen \
                         rtpstart and rtpend"
                    );
                }
                (Some(range), cap.min(pairs.saturating_sub(range.reserve()).max(1)))
            }
            Err(why) => {
                let cap = max_media.unwrap_or(SAFE_MEDIA);
                match max_media {
                    Some(_) if !asked_for => {
                        info!(pbx, max_media = cap, "RTP range of the PBX not used: {why}")
                    }
                    _ => warn!(
                        pbx,
                        max_media = cap,
                        "the PBX's RTP range is unknown ({why}), and Asterisk crashes when \
                         it is used up: set max_media to at most half of its streams, or make the \
                         file readable"
                    ),
                }
                (None, cap)
            }
        };
        (RtpCapacity { range, counted: None, free: 0 }, cap)
    }

    /// True if one more stream may be requested, and always where the range is unknown. `starting`
    /// counts streams that were requested and may not be bound yet.
    pub fn admits(&mut self, pbx: IpAddr, starting: usize) -> bool {
        let Some(range) = self.range else { return true };
        let now = Instant::now();
        let plenty = self.free > range.pairs() / 4 + starting;
        if !(plenty && self.counted.is_some_and(|at| now - at < FRESH)) {
            let Some(used) = count(range, pbx) else { return true };
            self.free = range.pairs().saturating_sub(used);
            self.counted = Some(now);
        }
        let admits = self.free > range.reserve() + starting;
        self.free = self.free.saturating_sub(usize::from(admits));
        admits
    }
}

/// Returns the stream pairs in use, or `None` if the PBX is not on this host.
pub fn count(range: RtpRange, pbx: IpAddr) -> Option<usize> {
    UdpSocket::bind((pbx, 0)).ok()?;
    let read = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    let tables = [read("/proc/net/udp"), read("/proc/net/udp6")];
    Some(range.pairs_in_use(tables.iter().map(String::as_str)))
}
