//! How many RTP streams the PBX has room for. When its range is used up, the next external media
//! channel kills Asterisk (16.28 and 22.10, asterisk/asterisk#1757); callers' own legs use it up
//! too.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Ports of rtp.conf's `[general]`; Asterisk takes an even one and the next for each stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtpRange {
    pub first: u16,
    pub last: u16,
}

/// Asterisk's own, where rtp.conf says nothing (`DEFAULT_RTP_START`, `DEFAULT_RTP_END`).
const BUILT_IN: RtpRange = RtpRange { first: 5000, last: 31_000 };

impl RtpRange {
    /// Reads `rtpstart` and `rtpend` out of rtp.conf's text. None when they make no range.
    pub fn parse(text: &str) -> Option<RtpRange> {
        let mut range = BUILT_IN;
        let mut general = false;
        for line in text.lines() {
            let line = line.split(';').next().unwrap_or_default().trim();
            if line.starts_with('[') {
                general = line.starts_with("[general]");
            }
            let Some((name, value)) = line.split_once('=').filter(|_| general) else { continue };
            let port = value.trim_start_matches('>').trim().parse::<u16>();
            match name.trim() {
                "rtpstart" => range.first = port.ok()?,
                "rtpend" => range.last = port.ok()?,
                _ => {}
            }
        }
        (range.first < range.last).then_some(range)
    }

    /// Streams that fit.
    pub fn pairs(&self) -> usize {
        let (first, last) = (usize::from(self.first), usize::from(self.last));
        (last + 1).saturating_sub(first + first % 2) / 2
    }

    /// Left free for callers who come in the meantime.
    pub fn reserve(&self) -> usize {
        (self.pairs() / 50).max(1)
    }

    /// Pairs of the range that are bound on this host, by the text of `/proc/net/udp` or `udp6`
    /// (`sl local_address rem_address …`, hexadecimal).
    pub fn pairs_in_use<'a>(&self, tables: impl IntoIterator<Item = &'a str>) -> usize {
        let mut used = std::collections::HashSet::new();
        for table in tables {
            let local = table.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1));
            let ports = local.filter_map(|a| u16::from_str_radix(a.rsplit(':').next()?, 16).ok());
            used.extend(ports.filter(|p| (self.first..=self.last).contains(p)).map(|p| p / 2));
        }
        used.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_rtp_conf() {
        let text = "; rtp\n[general]\nrtpstart=10000 ; first\nrtpend => 10007\n[other]\nrtpend=9\n";
        let range = RtpRange::parse(text).unwrap();
        assert_eq!(range, RtpRange { first: 10_000, last: 10_007 });
        assert_eq!((range.pairs(), range.reserve()), (4, 1));
        assert_eq!(RtpRange::parse("[general]\n").unwrap().pairs(), 13_000);
        assert_eq!(RtpRange::parse("[general]\nrtpstart=abc\n"), None);
        assert_eq!(RtpRange::parse("[general]\nrtpstart=9000\nrtpend=8000\n"), None);
    }

    #[test]
    fn bound_ports_are_counted_once_a_pair() {
        let table = "  sl  local_address rem_address   st\n\
                      1: 0100007F:2710 00000000:0000 07\n\
                      2: 0100007F:2711 00000000:0000 07\n\
                      3: 00000000:2714 00000000:0000 07\n\
                      4: 00000000:13C4 00000000:0000 07\n";
        let range = RtpRange { first: 10_000, last: 10_007 };
        assert_eq!(range.pairs_in_use([table, ""]), 2);
    }
}
