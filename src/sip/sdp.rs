//! SDP offer and answer for one audio stream (RFC 8866, RFC 3264): PCMU, PCMA and telephone-event.
//! Only the lines that we need are read; see [`crate::sip::description`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};

use crate::sip::description::{Description, Media};

/// An offer with more media lines is refused.
const MAX_MEDIAS: usize = 64;
/// The payload type of telephone-event in our offers, unless another one was negotiated.
const DTMF: u8 = 101;

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
    const ALL: [Direction; 4] =
        [Direction::SendRecv, Direction::SendOnly, Direction::RecvOnly, Direction::Inactive];

    /// Reads an attribute's name. Some devices write it in capitals.
    fn parse(text: &str) -> Option<Direction> {
        Direction::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(text))
    }

    fn name(self) -> &'static str {
        match self {
            Direction::SendRecv => "sendrecv",
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
            Direction::Inactive => "inactive",
        }
    }

    fn sends(self) -> bool {
        matches!(self, Direction::SendRecv | Direction::SendOnly)
    }

    fn receives(self) -> bool {
        matches!(self, Direction::SendRecv | Direction::RecvOnly)
    }

    /// Returns what both directions allow.
    fn and(self, other: Direction) -> Direction {
        match (self.sends() && other.sends(), self.receives() && other.receives()) {
            (true, true) => Direction::SendRecv,
            (true, false) => Direction::SendOnly,
            (false, true) => Direction::RecvOnly,
            (false, false) => Direction::Inactive,
        }
    }

    /// Returns the direction as seen from the other side.
    pub fn reversed(self) -> Direction {
        match self {
            Direction::SendOnly => Direction::RecvOnly,
            Direction::RecvOnly => Direction::SendOnly,
            same => same,
        }
    }
}

/// The peer's side of the audio stream, from its SDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Destination of our RTP.
    pub rtp: SocketAddr,
    /// Destination of our RTCP.
    pub rtcp: SocketAddr,
    pub codec: Codec,
    pub payload_type: u8,
    /// Payload type of telephone-event/8000, if offered (RFC 4733).
    pub dtmf_payload_type: Option<u8>,
    /// Direction from the peer's point of view; `Inactive` also for `c=0.0.0.0` (RFC 2543 hold).
    pub direction: Direction,
    /// Index of the audio stream in `lines`.
    index: usize,
    /// Media, protocol and formats of each m= line, which the answer repeats.
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
    #[error("the media address is of another IP version")]
    Family,
}

/// Our side of the audio stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    pub rtp: SocketAddr,
    pub session_id: u64,
    pub version: u64,
    /// The direction that we want; the answer to an offer is limited by the offer.
    pub direction: Direction,
}

impl Remote {
    /// Parses an offer or an answer.
    ///
    /// # Errors
    /// Returns an [`SdpError`], which is answered with 488.
    pub fn parse(body: &[u8]) -> Result<Remote, SdpError> {
        Remote::choose(body, None)
    }

    /// Parses an offer or an answer of a peer at `signalling`. Of several audio streams, the first
    /// one that we can use is taken: a dual-stack peer offers one for each IP version.
    ///
    /// # Errors
    /// Returns an [`SdpError`], which is answered with 488.
    pub fn parse_from(body: &[u8], signalling: IpAddr) -> Result<Remote, SdpError> {
        Remote::choose(body, Some(signalling.to_canonical()))
    }

    fn choose(body: &[u8], signalling: Option<IpAddr>) -> Result<Remote, SdpError> {
        let description = Description::parse(body).ok_or(SdpError::Syntax)?;
        // the answer repeats each of them
        if description.medias.len() > MAX_MEDIAS {
            return Err(SdpError::Syntax);
        }
        let lines = description.medias.iter();
        let lines = lines.map(|m| (m.media.clone(), m.protocol.clone(), m.formats.clone()));
        let lines: Vec<_> = lines.collect();
        let profiles = ["RTP/AVP", "RTP/AVPF"];
        let usable = |m: &&Media| {
            m.media.eq_ignore_ascii_case("audio")
                && profiles.iter().any(|p| m.protocol.eq_ignore_ascii_case(p))
                && m.port != 0
        };
        let mut error = SdpError::NoCommonCodec;
        for (index, media) in description.medias.iter().enumerate().filter(|(_, m)| usable(m)) {
            match audio(&description, media, signalling) {
                Ok(found) => return Ok(Remote { index, lines, ..found }),
                Err(found) => error = found,
            }
        }
        Err(error)
    }

    /// True if RTP may be sent to this address. Multicast, broadcast and link-local addresses are
    /// refused, and loopback unless the PBX itself is on loopback (otherwise an SDP could aim our
    /// RTP at services on this host). An unspecified address is accepted only on hold.
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

    /// True if we can expect RTP from the peer.
    pub fn sends_audio(&self) -> bool {
        self.direction.sends()
    }

    /// True if the peer accepts audio from us.
    pub fn wants_audio(&self) -> bool {
        self.direction.receives()
    }

    /// Returns the answer to this offer: the same m= lines, all rejected except the audio stream
    /// (RFC 3264 §6).
    pub fn answer(&self, local: &Local) -> String {
        let direction = self.direction.reversed().and(local.direction);
        let codecs = [(self.codec, self.payload_type)];
        self.describe(local, &codecs, self.dtmf_payload_type, direction)
    }

    /// Returns an offer of all our codecs to the peer of this offer: no m= line may be left out,
    /// and no payload type may change its meaning (RFC 3264 §8).
    pub fn offer(&self, local: &Local) -> String {
        let taken = self.lines.get(self.index).map_or("", |(_, _, formats)| formats);
        let free = |pt: u8| taken.split(' ').all(|format| format.parse() != Ok(pt));
        let types = Codec::ALL.into_iter().filter_map(|codec| match codec == self.codec {
            true => Some((codec, self.payload_type)),
            false => {
                let pt = codec.payload_type();
                (Some(pt) != self.dtmf_payload_type && pt != self.payload_type)
                    .then_some((codec, pt))
            }
        });
        let dtmf = self.dtmf_payload_type.or_else(|| free(DTMF).then_some(DTMF));
        self.describe(local, &types.collect::<Vec<_>>(), dtmf, local.direction)
    }

    /// Returns an SDP with the m= lines of this one, all rejected except the audio stream.
    fn describe(
        &self,
        local: &Local,
        codecs: &[(Codec, u8)],
        dtmf: Option<u8>,
        direction: Direction,
    ) -> String {
        let mut out = session_part(local);
        for (i, (media, proto, fmt)) in self.lines.iter().enumerate() {
            if i != self.index {
                // some devices reject a stream with a line that has only its first words, but the
                // grammar requires all
                let or = |text: &'_ str, default: &'static str| match text {
                    "" => default.to_owned(),
                    text => text.to_owned(),
                };
                let (media, proto, fmt) = (or(media, "audio"), or(proto, "RTP/AVP"), or(fmt, "0"));
                out += &format!("m={media} 0 {proto} {fmt}\r\n");
                continue;
            }
            out += &audio_part(local, proto, codecs, dtmf, direction);
        }
        out
    }
}

/// Returns our offer, for INVITEs and re-INVITEs that arrive without SDP and for outgoing calls.
/// `codecs` are in order of preference.
pub fn offer(local: &Local, codecs: &[Codec]) -> String {
    let codecs: Vec<(Codec, u8)> = codecs.iter().map(|c| (*c, c.payload_type())).collect();
    session_part(local) + &audio_part(local, "RTP/AVP", &codecs, Some(DTMF), local.direction)
}

/// Returns our SDP with the version and direction of `local`; everything else is unchanged.
pub fn redirect(sdp: &str, local: &Local) -> String {
    let line = |line: &str| match line.strip_prefix("a=").and_then(Direction::parse) {
        Some(_) => format!("a={}\r\n", local.direction.name()),
        None if line.starts_with("o=") => origin(local),
        None => format!("{line}\r\n"),
    };
    sdp.lines().map(line).collect()
}

/// All codecs we support, in our order of preference.
pub fn all_codecs() -> &'static [Codec] {
    &Codec::ALL
}

fn session_part(local: &Local) -> String {
    let ip = local.rtp.ip();
    let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
    let origin = origin(local);
    format!("v=0\r\n{origin}s=trunkless\r\nc=IN {family} {ip}\r\nt=0 0\r\n")
}

fn origin(local: &Local) -> String {
    let Local { rtp, session_id, version, .. } = local;
    let family = if rtp.is_ipv4() { "IP4" } else { "IP6" };
    format!("o=trunkless {session_id} {version} IN {family} {}\r\n", rtp.ip())
}

fn audio_part(
    local: &Local,
    profile: &str,
    codecs: &[(Codec, u8)],
    dtmf: Option<u8>,
    direction: Direction,
) -> String {
    let types = codecs.iter().map(|(_, pt)| *pt).chain(dtmf);
    let types = types.map(|pt| pt.to_string()).collect::<Vec<_>>().join(" ");
    let mut out = format!("m=audio {} {profile} {types}\r\n", local.rtp.port());
    for (codec, pt) in codecs {
        out += &format!("a=rtpmap:{pt} {}/8000\r\n", codec.name());
    }
    if let Some(pt) = dtmf {
        out += &format!("a=rtpmap:{pt} telephone-event/8000\r\na=fmtp:{pt} 0-16\r\n");
    }
    out + &format!("a=ptime:20\r\na={}\r\n", direction.name())
}

/// Reads one audio m= section; the caller fills in `index` and `lines`.
fn audio(
    description: &Description,
    media: &Media,
    signalling: Option<IpAddr>,
) -> Result<Remote, SdpError> {
    let address = media.address.as_ref().or(description.address.as_ref());
    let ip = address.and_then(|a| media_ip(a, signalling)).ok_or(SdpError::Address)?;
    let types: Vec<u8> = media.formats.split(' ').filter_map(|t| t.parse().ok()).collect();
    let maps = Maps(media);
    // our order of preference, not the offer's, because mu-law passes through unchanged
    let pick =
        |codec: Codec| types.iter().find(|pt| maps.is_codec(**pt, codec)).map(|pt| (codec, *pt));
    let (codec, payload_type) =
        Codec::ALL.into_iter().find_map(pick).ok_or(SdpError::NoCommonCodec)?;
    // RTP leaves from the address at which the PBX reaches us
    let over_ipv4 = signalling.is_some_and(|s| s.is_ipv4());
    if over_ipv4 && ip.is_ipv6() && !ip.is_unspecified() {
        return Err(SdpError::Family);
    }
    let named = types.iter().find(|pt| maps.is_events(**pt));
    let events = named.or_else(|| types.iter().find(|pt| maps.is_unnamed_events(**pt)));
    let direction = |attributes: &[(String, String)]| {
        attributes.iter().find_map(|(name, _)| Direction::parse(name))
    };
    let stated = direction(&media.attributes).or_else(|| direction(&description.attributes));
    let held = ip.is_unspecified();
    let rtp = SocketAddr::new(ip, media.port);
    Ok(Remote {
        rtp,
        rtcp: rtcp_address(media, rtp),
        codec,
        payload_type,
        dtmf_payload_type: events.copied(),
        direction: if held { Direction::Inactive } else { stated.unwrap_or(Direction::SendRecv) },
        index: 0,
        lines: Vec::new(),
    })
}

/// Reads the address of a c= line. An IPv4-mapped address is checked and used as the IPv4 address
/// in it. A name is not looked up: the media of nearly every PBX are at its own address.
fn media_ip(text: &str, signalling: Option<IpAddr>) -> Option<IpAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    // numbers with leading zeros, which are decimal here
    let numbers: Vec<&str> = text.split('.').collect();
    if numbers.iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
        let bytes: Vec<u8> = numbers.iter().map_while(|n| n.parse().ok()).collect();
        return <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    signalling.filter(|_| text.chars().all(good))
}

/// The payload types of an m= section and their names.
struct Maps<'a>(&'a Media);

impl Maps<'_> {
    /// Returns the name and the rate in the rtpmap of a payload type, in capitals and without
    /// blanks. The rate may be empty.
    fn get(&self, pt: u8) -> Option<(String, String)> {
        let mut maps = self.0.values("rtpmap").filter_map(|v| v.split_once([' ', '\t']));
        let (_, text) = maps.find(|(number, _)| number.parse() == Ok(pt))?;
        let text: String = text.split_ascii_whitespace().collect();
        let text = text.to_ascii_uppercase();
        let (name, rate) = text.split_once('/').unwrap_or((&text, ""));
        let rate = rate.strip_suffix("/1").or(rate.strip_suffix("/0")).unwrap_or(rate);
        Some((name.to_owned(), rate.to_owned()))
    }

    /// True if a payload type is this codec at 8000 Hz. A static type is what RFC 3551 says, unless
    /// its rtpmap names another codec that is known to exist.
    fn is_codec(&self, pt: u8, codec: Codec) -> bool {
        const OTHERS: [&str; 10] =
            ["OPUS", "SPEEX", "GSM", "ILBC", "AMR", "L16", "SILK", "DVI4", "EVS", "LPC"];
        let Some((name, rate)) = self.get(pt) else { return pt == codec.payload_type() };
        let own = name == codec.name() && matches!(rate.as_str(), "" | "8000");
        let another = Codec::ALL.iter().any(|c| *c != codec && name == c.name())
            || OTHERS.iter().any(|other| name.starts_with(other))
            || name.starts_with("G72")
            || matches!(name.as_str(), "TELEPHONE-EVENT" | "CN" | "RED");
        own || (pt == codec.payload_type() && !another)
    }

    /// True if a payload type is mapped to telephone-event at 8000 Hz.
    fn is_events(&self, pt: u8) -> bool {
        let is = |(name, rate): (String, String)| {
            name == "TELEPHONE-EVENT" && matches!(rate.as_str(), "" | "8000")
        };
        self.get(pt).is_some_and(is)
    }

    /// True if a payload type without a rtpmap must be telephone-event: 101, or a dynamic one with
    /// a list of events in its fmtp.
    fn is_unnamed_events(&self, pt: u8) -> bool {
        let mut formats = self.0.values("fmtp").filter_map(|v| v.split_once([' ', '\t']));
        let is_list = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_digit())
                && text.chars().all(|c| c.is_ascii_digit() || " ,-".contains(c))
        };
        let listed = formats.any(|(number, text)| number.parse() == Ok(pt) && is_list(text.trim()));
        self.get(pt).is_none() && (pt == 101 || ((96..128).contains(&pt) && listed))
    }
}

/// Returns the port of `a=rtcp:PORT [IN IP4 ADDRESS]` (RFC 3605), or else the port after RTP's,
/// at RTP's address.
fn rtcp_address(media: &Media, rtp: SocketAddr) -> SocketAddr {
    let default = SocketAddr::new(rtp.ip(), rtp.port().saturating_add(1));
    let Some(value) = media.values("rtcp").next() else { return default };
    let mut words = value.split_ascii_whitespace();
    let port = words.next().and_then(|p| p.parse().ok()).unwrap_or(default.port());
    // an RTCP address other than RTP's is ignored, because it would need the same checks
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
        let rtp = "10.0.0.1:20002".parse().unwrap();
        Local { rtp, session_id: 5, version: 1, direction: Direction::SendRecv }
    }

    #[test]
    fn answers_an_offer_from_asterisk() {
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
        let held = [
            ("sendonly", "recvonly"),
            ("inactive", "inactive"),
            ("sendonly ", "recvonly"),
            ("Inactive\t", "inactive"),
        ];
        for (theirs, ours) in held {
            let remote = parse(&ASTERISK.replace("a=sendrecv", &format!("a={theirs}"))).unwrap();
            assert!(remote.answer(&local()).contains(&format!("a={ours}\r\n")));
            assert!(!remote.wants_audio());
        }
        let old = parse(&ASTERISK.replace("c=IN IP4 10.0.0.2", "c=IN IP4 0.0.0.0")).unwrap();
        assert_eq!(old.direction, Direction::Inactive);
        assert!(old.is_acceptable("10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn other_media_lines_are_rejected_in_place() {
        let video = "m=video 4000 RTP/AVP 97\r\na=rtpmap:97 H264/90000\r\n";
        let (head, audio) = ASTERISK.split_once("m=audio").unwrap();
        let remote = parse(&format!("{head}{video}m=audio{audio}")).unwrap();
        let answer = remote.answer(&local());
        let (v, a) =
            (answer.find("m=video 0 RTP/AVP 97").unwrap(), answer.find("m=audio").unwrap());
        assert!(v < a);
    }

    /// Unusual offers, with the error for those that are not acceptable.
    #[test]
    fn unusual_offers() {
        let table: [(&str, &str, Option<SdpError>); 22] = [
            ("8 0 101", "8 101", None),
            ("8 0 101", "0", None),
            ("a=rtpmap:0 PCMU/8000\r\n", "", None),
            ("RTP/AVP 8 0 101", "RTP/AVP 18 9", Some(SdpError::NoCommonCodec)),
            ("RTP/AVP", "RTP/SAVP", Some(SdpError::NoCommonCodec)),
            ("m=audio 11698", "m=audio 0", Some(SdpError::NoCommonCodec)),
            ("m=audio", "m=image", Some(SdpError::NoCommonCodec)),
            ("c=IN IP4 10.0.0.2", "c=IN IP4 pbx.local", Some(SdpError::Address)),
            ("c=IN IP4 10.0.0.2", "c=IN IP4 10.0.0.256", Some(SdpError::Address)),
            ("c=IN IP4 10.0.0.2\r\n", "", None),
            ("c=IN IP4 10.0.0.2", "c=IN IP4 010.000.000.002", None),
            ("v=0", "v=x", Some(SdpError::Syntax)),
            ("RTP/AVP 8 0 101", "RTP/AVPF 0", None),
            ("8 PCMA/8000\r\na=rtpmap:0 PCMU/8000", "0 PCMU", None),
            ("8 PCMA/8000\r\na=rtpmap:0 PCMU/8000", "0 PCMU / 8000", None),
            ("8 PCMA/8000\r\na=rtpmap:0 PCMU/8000", "0 G711U/8000", None),
            ("8 PCMA/8000\r\na=rtpmap:0 PCMU/8000", "0 PCMU/8000/0", None),
            ("a=rtpmap:101 telephone-event/8000\r\n", "", None),
            ("telephone-event/8000", "telephone-event", None),
            ("101\r\na=rtpmap:8", "97\r\na=fmtp:97 0-11,16\r\na=rtpmap:8", None),
            ("PCMU/8000", "PCMU/16000", None),
            ("a=ptime:20", "a=ptime:60", None),
        ];
        for (old, new, expected) in table {
            assert_eq!(parse(&ASTERISK.replacen(old, new, 1)).err(), expected, "{new}");
        }
        for (old, new, expected) in table {
            let Ok(found) = parse(&ASTERISK.replacen(old, new, 1)) else { continue };
            assert_eq!(found.rtp.to_string(), "10.0.0.2:11698", "{new}");
            let plain = (Codec::Pcmu, Some(if new.contains("97") { 97 } else { 101 }));
            if (new.contains("PCMU")
                || new.contains("97")
                || new.contains("event")
                || new.is_empty())
                && expected.is_none()
            {
                assert_eq!((found.codec, found.dtmf_payload_type), plain, "{new}");
            }
        }
        let other = ASTERISK.replace("0 PCMU/8000", "0 G729/8000");
        assert_eq!(parse(&other).unwrap().codec, Codec::Pcma);
        let avpf = parse(&ASTERISK.replace("RTP/AVP", "RTP/AVPF")).unwrap();
        assert!(avpf.answer(&local()).contains("m=audio 20002 RTP/AVPF 0 101\r\n"));
        let bare = parse(&ASTERISK.replace("m=audio", "m=video\r\nm=\r\nm=audio")).unwrap();
        let answer = bare.answer(&local());
        assert!(
            answer.contains("m=video 0 RTP/AVP 0\r\nm=audio 0 RTP/AVP 0\r\nm=audio 2"),
            "{answer}"
        );
        let alaw = parse(&ASTERISK.replacen("8 0 101", "8 101", 1)).unwrap();
        assert!(alaw.answer(&local()).contains("RTP/AVP 8 101"));
        assert_eq!(parse(""), Err(SdpError::Syntax));
    }

    #[test]
    fn the_audio_stream_of_our_ip_version_is_taken() {
        let pbx = "10.0.0.2".parse().unwrap();
        let from = |text: &str| Remote::parse_from(text.as_bytes(), pbx);
        let v6 = ASTERISK.replace("c=IN IP4 10.0.0.2", "c=IN IP6 2001:db8::5");
        assert_eq!(from(&v6).err(), Some(SdpError::Family));
        assert!(Remote::parse_from(v6.as_bytes(), "2001:db8::1".parse().unwrap()).is_ok());
        let both = "m=audio 5000 RTP/AVP 0\r\nc=IN IP6 2001:db8::5\r\nm=audio";
        let found = from(&ASTERISK.replace("m=audio", both)).unwrap();
        assert_eq!(found.rtp.to_string(), "10.0.0.2:11698");
        assert!(found.answer(&local()).contains("m=audio 0 RTP/AVP 0\r\nm=audio 20002 "));
        let held = from(&ASTERISK.replace("IP4 10.0.0.2", "IP6 ::")).unwrap();
        assert_eq!(held.direction, Direction::Inactive);
        let named = from(&ASTERISK.replace("c=IN IP4 10.0.0.2", "c=IN IP4 pbx.local")).unwrap();
        assert_eq!(named.rtp.ip(), pbx);
    }

    #[test]
    fn unsafe_media_addresses_are_not_acceptable() {
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
    fn our_own_offer_can_be_parsed() {
        let text = offer(&local(), all_codecs());
        assert_eq!(parse(&text).unwrap().rtp, local().rtp);
        let v6 = Local { rtp: "[::1]:20002".parse().unwrap(), ..local() };
        let text = offer(&v6, &[Codec::Pcma]);
        assert!(text.contains("c=IN IP6 ::1"));
        assert_eq!(parse(&text).unwrap().codec, Codec::Pcma);
    }
}
