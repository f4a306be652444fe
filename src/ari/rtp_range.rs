//! The PBX's RTP port range. When it is used up, the next external media channel crashes Asterisk
//! (16.28 and 22.10, asterisk/asterisk#1757). The callers' own legs take ports from it too.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The port range in rtp.conf's `[general]`. Each stream takes an even port and the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtpRange {
    pub first: u16,
    pub last: u16,
}

/// Asterisk's default without settings in rtp.conf (`DEFAULT_RTP_START`, `DEFAULT_RTP_END`).
const BUILT_IN: RtpRange = RtpRange { first: 5000, last: 31_000 };

impl RtpRange {
    /// Parses `rtpstart` and `rtpend` in the text of rtp.conf. Returns `None` if they are not a
    /// valid range. If a key occurs more than once, the narrowest range counts, because which value
    /// Asterisk takes depends on the section and its templates.
    pub fn parse(text: &str) -> Option<RtpRange> {
        let (mut first, mut last) = (None, None);
        let mut general = false;
        for line in text.lines() {
            let line = line.split(';').next().unwrap_or_default().trim();
            if let Some((name, after)) = line.strip_prefix('[').and_then(|l| l.split_once(']')) {
                // a template may belong to [general]
                general = name.eq_ignore_ascii_case("general") || after.contains('!');
            }
            let Some((name, value)) = line.split_once('=').filter(|_| general) else { continue };
            let port = value.trim_start_matches('>').trim().parse::<u16>();
            match name.trim().to_ascii_lowercase().as_str() {
                "rtpstart" => first = first.max(Some(port.ok()?)),
                "rtpend" => last = Some(port.ok()?.min(last.unwrap_or(u16::MAX))),
                _ => {}
            }
        }
        let first = first.unwrap_or(BUILT_IN.first);
        let last = last.unwrap_or(BUILT_IN.last);
        (first < last).then_some(RtpRange { first, last })
    }

    /// Number of streams in the range.
    pub fn pairs(&self) -> usize {
        let (first, last) = (usize::from(self.first), usize::from(self.last));
        (last + 1).saturating_sub(first + first % 2) / 2
    }

    /// Number of streams to keep free for callers who arrive in the meantime.
    pub fn reserve(&self) -> usize {
        (self.pairs() / 50).max(1)
    }

    /// Counts the pairs of the range that are bound on this host. `tables` are the texts of
    /// `/proc/net/udp` and `udp6` (`sl local_address rem_address …`, hexadecimal).
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
    fn rtp_conf_is_parsed() {
        let text = "; rtp\n[general]\nrtpstart=10000 ; first\nrtpend => 10007\n[other]\nrtpend=9\n";
        let range = RtpRange::parse(text).unwrap();
        assert_eq!(range, RtpRange { first: 10_000, last: 10_007 });
        assert_eq!((range.pairs(), range.reserve()), (4, 1));
        assert_eq!(RtpRange::parse("[general]\n").unwrap().pairs(), 13_000);
        assert_eq!(RtpRange::parse("[general]\nrtpstart=abc\n"), None);
        assert_eq!(RtpRange::parse("[general]\nrtpstart=9000\nrtpend=8000\n"), None);
    }

    #[test]
    fn each_bound_pair_is_counted_once() {
        let table = "  sl  local_address rem_address   st\n\
                      1: 0100007F:2710 00000000:0000 07\n\
                      2: 0100007F:2711 00000000:0000 07\n\
                      3: 00000000:2714 00000000:0000 07\n\
                      4: 00000000:13C4 00000000:0000 07\n";
        let range = RtpRange { first: 10_000, last: 10_007 };
        assert_eq!(range.pairs_in_use([table, ""]), 2);
    }
}
