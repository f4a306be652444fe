//! Offer and answer for one audio stream (RFC 4566, RFC 3264): PCMU, PCMA and telephone-event.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};

use sdp_types::{Media, Session};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Pcmu,
    Pcma,
}

impl Codec {
    const ALL: [Codec; 2] = [Codec::Pcmu, Codec::Pcma];

    fn name(self) -> &'static str {
        match self {
            Codec::Pcmu => "PCMU",
            Codec::Pcma => "PCMA",
        }
    }

    /// The static payload type (RFC 3551 §6).
    pub fn payload_type(self) -> u8 {
        match self {
            Codec::Pcmu => 0,
            Codec::Pcma => 8,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    SendRecv,
    SendOnly,
    RecvOnly,
    Inactive,
}

impl Direction {
    fn parse(text: &str) -> Option<Direction> {
        Some(match text {
            "sendrecv" => Direction::SendRecv,
            "sendonly" => Direction::SendOnly,
            "recvonly" => Direction::RecvOnly,
            "inactive" => Direction::Inactive,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Direction::SendRecv => "sendrecv",
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
            Direction::Inactive => "inactive",
        }
    }

    /// The same stream from the other side.
    pub fn reversed(self) -> Direction {
        match self {
            Direction::SendOnly => Direction::RecvOnly,
            Direction::RecvOnly => Direction::SendOnly,
            same => same,
        }
    }
}

/// What the peer's SDP says about the one audio stream that we take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where our RTP goes.
    pub rtp: SocketAddr,
    pub rtcp: SocketAddr,
    pub codec: Codec,
    pub payload_type: u8,
    /// telephone-event/8000, where offered (RFC 4733).
    pub dtmf_payload_type: Option<u8>,
    /// As the peer sees it; `Inactive` also for `c=0.0.0.0` (RFC 2543 hold).
    pub direction: Direction,
    /// Which of the m= lines it is, and how many there are with their own text for the answer.
    index: usize,
    lines: Vec<(String, String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SdpError {
    #[error("the session description cannot be parsed")]
    Syntax,
    #[error("no RTP/AVP audio with PCMU or PCMA at 8000 Hz")]
    NoCommonCodec,
    #[error("the media address cannot be used")]
    Address,
}

/// Our side of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    pub rtp: SocketAddr,
    pub session_id: u64,
    pub version: u64,
}

impl Remote {
    /// Reads an offer or an answer.
    ///
    /// # Errors
    /// [`SdpError`]; all are answered with 488.
    pub fn parse(body: &[u8]) -> Result<Remote, SdpError> {
        let session = Session::parse(body).map_err(|_| SdpError::Syntax)?;
        let lines: Vec<(String, String, String)> = session
            .medias
            .iter()
            .map(|m| (m.media.clone(), m.proto.clone(), m.fmt.clone()))
            .collect();
        let usable = |m: &&Media| m.media == "audio" && m.proto == "RTP/AVP" && m.port != 0;
        let mut error = SdpError::NoCommonCodec;
        for (index, media) in session.medias.iter().enumerate().filter(|(_, m)| usable(m)) {
            match audio(&session, media) {
                Ok(found) => return Ok(Remote { index, lines, ..found }),
                Err(found) => error = found,
            }
        }
        Err(error)
    }

    /// Whether RTP may be sent there: nothing unspecified, multicast or link-local, and loopback
    /// only when the PBX itself is on loopback (else an SDP could aim our RTP at this host's
    /// services).
    pub fn is_acceptable(&self, signalling: IpAddr) -> bool {
        let ip = self.rtp.ip();
        if ip.is_unspecified() {
            return self.direction == Direction::Inactive;
        }
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !link_local && !ip.is_multicast() && (!ip.is_loopback() || signalling.is_loopback())
    }

    /// Whether RTP of the peer's is to be expected.
    pub fn sends_audio(&self) -> bool {
        matches!(self.direction, Direction::SendRecv | Direction::SendOnly)
    }

    /// Whether the peer wants to hear us.
    pub fn wants_audio(&self) -> bool {
        matches!(self.direction, Direction::SendRecv | Direction::RecvOnly)
    }

    /// The answer to this offer: the same m= lines, all but ours refused (RFC 3264 §6).
    pub fn answer(&self, local: &Local) -> String {
        let mut out = session_part(local);
        for (i, (media, proto, fmt)) in self.lines.iter().enumerate() {
            if i != self.index {
                out += &format!("m={media} 0 {proto} {fmt}\r\n");
                continue;
            }
            let codecs = [(self.codec, self.payload_type)];
            out += &audio_part(local, &codecs, self.dtmf_payload_type, self.direction.reversed());
        }
        out
    }
}

/// Our offer: both codecs, PCMU first (for INVITEs and re-INVITEs without SDP, and for calls we
/// make).
pub fn offer(local: &Local, codecs: &[Codec]) -> String {
    let codecs: Vec<(Codec, u8)> = codecs.iter().map(|c| (*c, c.payload_type())).collect();
    session_part(local) + &audio_part(local, &codecs, Some(101), Direction::SendRecv)
}

/// All codecs that we speak, in our order of preference.
pub fn all_codecs() -> &'static [Codec] {
    &Codec::ALL
}

fn session_part(local: &Local) -> String {
    let ip = local.rtp.ip();
    let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
    format!(
        "v=0\r\no=trunkless {} {} IN {family} {ip}\r\ns=trunkless\r\n\
         c=IN {family} {ip}\r\nt=0 0\r\n",
        local.session_id, local.version
    )
}

fn audio_part(
    local: &Local,
    codecs: &[(Codec, u8)],
    dtmf: Option<u8>,
    direction: Direction,
) -> String {
    let types = codecs.iter().map(|(_, pt)| *pt).chain(dtmf);
    let types = types.map(|pt| pt.to_string()).collect::<Vec<_>>().join(" ");
    let mut out = format!("m=audio {} RTP/AVP {types}\r\n", local.rtp.port());
    for (codec, pt) in codecs {
        out += &format!("a=rtpmap:{pt} {}/8000\r\n", codec.name());
    }
    if let Some(pt) = dtmf {
        out += &format!("a=rtpmap:{pt} telephone-event/8000\r\na=fmtp:{pt} 0-16\r\n");
    }
    out + &format!("a=ptime:20\r\na={}\r\n", direction.name())
}

/// What one audio m= section says; `index` and `lines` are the caller's to fill.
fn audio(session: &Session, media: &Media) -> Result<Remote, SdpError> {
    let connection = media.connections.first().or(session.connection.as_ref());
    let address = connection.ok_or(SdpError::Address)?.connection_address.as_str();
    let ip: IpAddr =
        address.split('/').next().unwrap_or("").parse().map_err(|_| SdpError::Address)?;
    // an IPv4-mapped address is judged, and sent to, as what it stands for
    let ip = ip.to_canonical();
    let types: Vec<u8> =
        media.fmt.split_ascii_whitespace().filter_map(|t| t.parse().ok()).collect();
    let mapped = |pt: u8| -> Option<String> {
        let maps = media.attributes.iter().filter(|a| a.attribute == "rtpmap");
        maps.filter_map(|a| a.value.as_deref()?.split_once(' ')).find_map(|(number, name)| {
            (number.parse() == Ok(pt)).then(|| name.trim().to_ascii_uppercase())
        })
    };
    let is_codec = |pt: u8, codec: Codec| match mapped(pt) {
        Some(name) => matches!(name.strip_prefix(codec.name()), Some("/8000" | "/8000/1")),
        None => pt == codec.payload_type(),
    };
    // our order of preference, not the offer's: mu-law passes through untouched
    let pick = |codec: Codec| types.iter().find(|pt| is_codec(**pt, codec)).map(|pt| (codec, *pt));
    let (codec, payload_type) =
        Codec::ALL.into_iter().find_map(pick).ok_or(SdpError::NoCommonCodec)?;
    let events = |pt: &&u8| mapped(**pt).is_some_and(|n| n.starts_with("TELEPHONE-EVENT/8000"));
    let direction = |attributes: &[sdp_types::Attribute]| {
        attributes.iter().find_map(|a| Direction::parse(&a.attribute))
    };
    let stated = direction(&media.attributes).or_else(|| direction(&session.attributes));
    let held = ip.is_unspecified();
    let rtp = SocketAddr::new(ip, media.port);
    Ok(Remote {
        rtp,
        rtcp: rtcp_address(media, rtp),
        codec,
        payload_type,
        dtmf_payload_type: types.iter().find(events).copied(),
        direction: if held { Direction::Inactive } else { stated.unwrap_or(Direction::SendRecv) },
        index: 0,
        lines: Vec::new(),
    })
}

/// `a=rtcp:PORT [IN IP4 ADDRESS]` (RFC 3605), else the port after RTP's.
fn rtcp_address(media: &Media, rtp: SocketAddr) -> SocketAddr {
    let default = SocketAddr::new(rtp.ip(), rtp.port().saturating_add(1));
    let attribute = media.attributes.iter().find(|a| a.attribute == "rtcp");
    let Some(value) = attribute.and_then(|a| a.value.as_deref()) else { return default };
    let mut words = value.split_ascii_whitespace();
    let port = words.next().and_then(|p| p.parse().ok()).unwrap_or(default.port());
    // RTCP elsewhere than RTP is not followed: an address needs the same checks as RTP's
    SocketAddr::new(rtp.ip(), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASTERISK: &str = "v=0\r\no=- 1 1 IN IP4 10.0.0.2\r\ns=Asterisk\r\nc=IN IP4 10.0.0.2\r\n\
        t=0 0\r\nm=audio 11698 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\n\
        a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=ptime:20\r\na=maxptime:150\r\n\
        a=sendrecv\r\n";

    fn parse(text: &str) -> Result<Remote, SdpError> {
        Remote::parse(text.as_bytes())
    }

    fn local() -> Local {
        Local { rtp: "10.0.0.1:20002".parse().unwrap(), session_id: 5, version: 1 }
    }

    #[test]
    fn answers_asterisk() {
        let remote = parse(ASTERISK).unwrap();
        assert_eq!((remote.codec, remote.payload_type), (Codec::Pcmu, 0));
        assert_eq!(remote.dtmf_payload_type, Some(101));
        assert_eq!(remote.rtcp.port(), 11699);
        let answer = remote.answer(&local());
        assert!(answer.contains("m=audio 20002 RTP/AVP 0 101\r\n"), "{answer}");
        assert!(answer.contains("c=IN IP4 10.0.0.1\r\n") && answer.contains("a=sendrecv"));
        assert_eq!(parse(&answer).unwrap().codec, Codec::Pcmu);
    }

    #[test]
    fn directions_are_mirrored() {
        for (theirs, ours) in [("sendonly", "recvonly"), ("inactive", "inactive")] {
            let remote = parse(&ASTERISK.replace("a=sendrecv", &format!("a={theirs}"))).unwrap();
            assert!(remote.answer(&local()).contains(&format!("a={ours}\r\n")));
            assert!(!remote.wants_audio());
        }
        let old = parse(&ASTERISK.replace("c=IN IP4 10.0.0.2", "c=IN IP4 0.0.0.0")).unwrap();
        assert_eq!(old.direction, Direction::Inactive);
        assert!(old.is_acceptable("10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn other_lines_are_refused_in_place() {
        let video = "m=video 4000 RTP/AVP 97\r\na=rtpmap:97 H264/90000\r\n";
        let (head, audio) = ASTERISK.split_once("m=audio").unwrap();
        let remote = parse(&format!("{head}{video}m=audio{audio}")).unwrap();
        let answer = remote.answer(&local());
        let (v, a) =
            (answer.find("m=video 0 RTP/AVP 97").unwrap(), answer.find("m=audio").unwrap());
        assert!(v < a);
    }

    /// Offers that are unusual but fine, and those that are not.
    #[test]
    fn offers() {
        let table: [(&str, &str, Option<SdpError>); 12] = [
            ("8 0 101", "8 101", None),
            ("8 0 101", "0", None),
            ("a=rtpmap:0 PCMU/8000\r\n", "", None),
            ("RTP/AVP 8 0 101", "RTP/AVP 18 9", Some(SdpError::NoCommonCodec)),
            ("RTP/AVP", "RTP/SAVP", Some(SdpError::NoCommonCodec)),
            ("m=audio 11698", "m=audio 0", Some(SdpError::NoCommonCodec)),
            ("m=audio", "m=image", Some(SdpError::NoCommonCodec)),
            ("c=IN IP4 10.0.0.2", "c=IN IP4 pbx.local", Some(SdpError::Address)),
            ("c=IN IP4 10.0.0.2\r\n", "", Some(SdpError::Address)),
            ("v=0", "v=x", Some(SdpError::Syntax)),
            ("PCMU/8000", "PCMU/16000", None),
            ("a=ptime:20", "a=ptime:60", None),
        ];
        for (old, new, expected) in table {
            assert_eq!(parse(&ASTERISK.replacen(old, new, 1)).err(), expected, "{new}");
        }
        let alaw = parse(&ASTERISK.replacen("8 0 101", "8 101", 1)).unwrap();
        assert!(alaw.answer(&local()).contains("RTP/AVP 8 101"));
        assert_eq!(parse(""), Err(SdpError::Syntax));
    }

    #[test]
    fn bad_addresses() {
        let pbx = "10.0.0.2".parse().unwrap();
        for ip in ["224.1.1.1", "127.0.0.1", "169.254.1.1", "255.255.255.255"] {
            let remote = parse(&ASTERISK.replace("c=IN IP4 10.0.0.2", &format!("c=IN IP4 {ip}")));
            assert!(!remote.unwrap().is_acceptable(pbx), "{ip}");
        }
        let mapped = ASTERISK.replace("c=IN IP4 10.0.0.2", "c=IN IP6 ::ffff:127.0.0.1");
        assert!(!parse(&mapped).unwrap().is_acceptable(pbx));
        assert!(parse(ASTERISK).unwrap().is_acceptable(pbx));
    }

    #[test]
    fn own_offer_can_be_read_back() {
        let text = offer(&local(), all_codecs());
        assert_eq!(parse(&text).unwrap().rtp, local().rtp);
        let v6 = Local { rtp: "[::1]:20002".parse().unwrap(), ..local() };
        let text = offer(&v6, &[Codec::Pcma]);
        assert!(text.contains("c=IN IP6 ::1"));
        assert_eq!(parse(&text).unwrap().codec, Codec::Pcma);
    }
}
