//! The meaning of what was found on the PBX and on this host.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::IpAddr;

pub use crate::ari::rtp_range::RtpRange;
use crate::setup::answers::{Driver, Mode};
use crate::setup::settings::PORTS;
use crate::sip::header::find_param;
use crate::sip::message::Message;

/// Ports from here to the kernel's own range, which begins at 32,768, can be used for RTP.
const FIRST_PORT: u16 = 6000;
const LAST_PORT: u16 = 32_767;
/// Ports for each call: RTP and RTCP, and as many for a call that ended within the last 30 s.
const PORTS_PER_CALL: usize = 4;
/// The first Asterisk without chan_sip.
const NO_CHAN_SIP: u32 = 21;
/// The first Asterisk with external media channels.
const FIRST_ARI: u32 = 16;

/// A response to OPTIONS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SipAnswer {
    pub port: u16,
    pub tcp: bool,
    pub driver: Option<Driver>,
    /// The PBX's own description of itself.
    pub server: String,
    /// Our address as the PBX sees it.
    pub seen_as: Option<IpAddr>,
}

impl SipAnswer {
    /// Reads a response.
    pub fn new(response: &Message, port: u16, tcp: bool) -> SipAnswer {
        let get = |name| response.get(name).unwrap_or("");
        let server = if get("Server").is_empty() { get("User-Agent") } else { get("Server") };
        let params = response.top_via().map(|via| via.params).unwrap_or_default();
        let seen_as = find_param(&params, "received").and_then(|ip| ip.parse().ok());
        // only chan_pjsip knows these; chan_sip challenges without qop
        let pjsip = get("Supported").contains("100rel")
            || get("Allow").contains("PRACK")
            || get("WWW-Authenticate").contains("qop=");
        let driver = match (pjsip, version(server)) {
            (true, _) => Some(Driver::Pjsip),
            (false, Some(_)) => Some(Driver::ChanSip),
            (false, None) => None,
        };
        SipAnswer { port, tcp, driver, server: server.to_owned(), seen_as }
    }
}

/// Returns Asterisk's major version from how it describes itself: `Asterisk PBX 16.28.0~dfsg`,
/// `Asterisk/22.10.1`, or on FreePBX `FPBX-16.0.40.7(18.20.0)`.
pub fn version(server: &str) -> Option<u32> {
    let rest = match server.split_once('(') {
        Some((name, rest)) if name.starts_with("FPBX") => rest,
        _ => server.strip_prefix("Asterisk PBX ").or_else(|| server.strip_prefix("Asterisk/"))?,
    };
    let major: String = rest.chars().take_while(char::is_ascii_digit).collect();
    major.parse().ok().filter(|major| (1..100).contains(major))
}

/// Returns what this version of Asterisk cannot do.
pub fn version_trap(version: u32, mode: Mode, driver: Driver) -> Option<String> {
    match (mode, driver) {
        (Mode::Sip, Driver::ChanSip) if version >= NO_CHAN_SIP => {
            Some(format!("Asterisk {version} has no chan_sip; choose --registrar-driver pjsip"))
        }
        (Mode::Ari, _) if version < FIRST_ARI => Some(format!(
            "Asterisk {version} has no external media channel, which came with 16.6; choose \
             --mode sip"
        )),
        _ => None,
    }
}

/// Returns the modules that Asterisk lacks for this mode, from the names of those that it runs.
pub fn missing_modules(running: &[String], mode: Mode, driver: Driver) -> Vec<&'static str> {
    let needed: &[&str] = match (mode, driver) {
        (Mode::Ari, _) => &["res_ari_channels", "res_ari_events", "app_stasis", "chan_rtp"],
        (Mode::Sip, Driver::Pjsip) => &["chan_pjsip", "res_pjsip_registrar"],
        (Mode::Sip, Driver::ChanSip) => &["chan_sip"],
    };
    let has = |name: &str| running.iter().any(|module| module.trim_end_matches(".so") == name);
    needed.iter().copied().filter(|name| !has(name)).collect()
}

/// Returns ports for RTP outside Asterisk's, preferably the usual ones. `None` if there are not
/// enough for the calls.
pub fn media_ports(asterisk: Option<RtpRange>, calls: usize) -> Option<(u16, u16)> {
    let Some(range) = asterisk.filter(|range| range.first <= PORTS.1 && PORTS.0 <= range.last)
    else {
        return Some(PORTS);
    };
    let above = range.last.checked_add(1).map(|first| (first.saturating_add(first % 2), LAST_PORT));
    let below = range.first.checked_sub(1).map(|last| (FIRST_PORT, last));
    let size = |(first, last): &(u16, u16)| usize::from(last.saturating_sub(*first));
    let enough = |ports: &(u16, u16)| size(ports) + 1 >= PORTS_PER_CALL * calls;
    let both: Vec<(u16, u16)> = above.into_iter().chain(below).collect();
    let first = both.iter().find(|ports| enough(ports)).copied();
    let largest = || both.iter().copied().max_by_key(size);
    first.or_else(|| largest().filter(|ports| size(ports) + 1 >= 2 * calls))
}

/// An answer of Asterisk's HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    pub status: u16,
    pub server: String,
    pub body: String,
}

impl HttpAnswer {
    pub fn parse(text: &str) -> Option<HttpAnswer> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/")?.split(' ').nth(1)?.parse().ok()?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("Server").then(|| value.trim().to_owned())
        };
        let server = head.lines().find_map(header).unwrap_or_default();
        Some(HttpAnswer { status, server, body: body.to_owned() })
    }

    /// The meaning of the status of a request below `/ari`, for a person.
    pub fn meaning(&self, signed_in: bool) -> String {
        match self.status {
            200 => "ARI answers".to_owned(),
            401 if signed_in => "ARI does not know this user and password yet".to_owned(),
            401 => "ARI is enabled".to_owned(),
            403 => "ARI answers, but this user may not use it".to_owned(),
            404 => "the HTTP server is enabled, ARI is not".to_owned(),
            503 => "Asterisk is still starting".to_owned(),
            status => format!("the HTTP server answers {status}"),
        }
    }
}

/// Returns the names of running modules in the body of `/ari/asterisk/modules`.
pub fn modules(body: &str) -> Vec<String> {
    let parsed: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let running = |module: &serde_json::Value| {
        let runs = module["status"].as_str() == Some("Running");
        runs.then(|| module["name"].as_str().map(str::to_owned)).flatten()
    };
    parsed.as_array().map(|all| all.iter().filter_map(running).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (server, major) in [
            ("Asterisk PBX 16.28.0~dfsg-0+deb11u4", Some(16)),
            ("Asterisk/22.10.1+dfsg", Some(22)),
            ("FPBX-16.0.40.7(18.20.0)", Some(18)),
            ("Kamailio (5.6)", None),
            ("Asterisk PBX certified/18.9", None),
            ("Asterisk PBX 99999999999", None),
            ("", None),
        ] {
            assert_eq!(version(server), major, "{server}");
        }
        assert!(version_trap(22, Mode::Sip, Driver::ChanSip).is_some());
        assert!(version_trap(13, Mode::Ari, Driver::Pjsip).is_some());
        assert_eq!(version_trap(20, Mode::Sip, Driver::ChanSip), None);
        assert_eq!(version_trap(22, Mode::Ari, Driver::Pjsip), None);
    }

    #[test]
    fn media_ports_stay_clear_of_asterisk() {
        let ports = |first, last, calls| media_ports(Some(RtpRange { first, last }), calls);
        assert_eq!(media_ports(None, 200), Some(PORTS));
        assert_eq!(ports(10_000, 20_000, 200), Some(PORTS));
        assert_eq!(ports(5000, 31_000, 200), Some((31_002, LAST_PORT)), "Asterisk's own default");
        assert_eq!(ports(10_000, 32_000, 200), Some((FIRST_PORT, 9999)));
        assert_eq!(ports(16_384, 32_767, 200), Some((FIRST_PORT, 16_383)));
        assert_eq!(ports(16_384, 65_535, 200), Some((FIRST_PORT, 16_383)));
        assert_eq!(ports(5000, 32_000, 200), Some((32_002, LAST_PORT)), "enough for the calls");
        assert_eq!(ports(5000, 32_700, 200), None);
        assert_eq!(ports(1, u16::MAX, 1), None);
        for (first, last) in [(5000, 31_000), (10_000, 32_000), (20_003, 20_009), (1, 20_001)] {
            let (ours, to) = ports(first, last, 10).unwrap();
            assert!(to < first || last < ours, "{first}-{last}: {ours}-{to}");
        }
    }

    #[test]
    fn responses_to_options_are_read() {
        let answer = |lines: &str| {
            let text = format!(
                "SIP/2.0 401 Unauthorized\r\nVia: SIP/2.0/UDP 10.0.0.2:40000;branch=z9hG4bK1;\
                 rport=41000;received=192.0.2.9\r\n{lines}From: <sip:a@b>;tag=1\r\nTo: <sip:c@d>;\
                 tag=2\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
            );
            SipAnswer::new(&Message::parse(text.as_bytes()).unwrap().0, 5060, false)
        };
        let pjsip = answer(
            "Server: Asterisk PBX 22.10.1\r\nWWW-Authenticate: Digest realm=\"asterisk\",\
             nonce=\"1\",qop=\"auth\"\r\n",
        );
        assert_eq!(pjsip.driver, Some(Driver::Pjsip));
        assert_eq!(pjsip.seen_as, Some(IpAddr::from([192, 0, 2, 9])));
        let chan_sip = answer("Server: Asterisk PBX 16.28.0\r\nSupported: replaces, timer\r\n");
        assert_eq!(chan_sip.driver, Some(Driver::ChanSip));
        assert_eq!(answer("Server: Kamailio\r\n").driver, None);
    }

    #[test]
    fn answers_of_the_http_server_are_read() {
        let answer =
            HttpAnswer::parse("HTTP/1.1 401 No\r\nserver: Asterisk/22.1\r\n\r\nx").unwrap();
        assert_eq!((answer.status, version(&answer.server)), (401, Some(22)));
        assert_eq!(HttpAnswer::parse("SSH-2.0\r\n\r\n"), None);
        let body = "[{\"name\":\"chan_sip.so\",\"status\":\"Running\"},{\"name\":\"chan_rtp.so\",\
                    \"status\":\"Not Running\"}]";
        assert_eq!(modules(body), ["chan_sip.so"]);
        assert!(modules("junk").is_empty());
        let missing = missing_modules(&modules(body), Mode::Sip, Driver::ChanSip);
        assert!(missing.is_empty());
        let missing = missing_modules(&modules(body), Mode::Ari, Driver::ChanSip);
        assert!(missing.contains(&"chan_rtp"));
    }
}
