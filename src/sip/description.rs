//! Reads a session description (RFC 8866) leniently: the m=, c= and a= lines, and no others.
//!
//! Devices send many invalid lines that a call does not need: numbers of any length in o=, s= in
//! Latin-1, blanks at the ends of lines, m= lines without formats. None of them is a reason to
//! refuse a call.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The lines of a session description that we need.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Address in the c= line for the whole session, without a TTL; or else that of the o= line.
    pub address: Option<String>,
    /// Names and values of the attributes for the whole session. Values may be empty.
    pub attributes: Vec<(String, String)>,
    pub medias: Vec<Media>,
}

/// An m= line and the lines after it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Media {
    /// `audio`, `video` …
    pub media: String,
    /// 0 if the stream is not used, or if the port is invalid.
    pub port: u16,
    /// `RTP/AVP` …
    pub protocol: String,
    /// Separated by one space; may be empty.
    pub formats: String,
    pub address: Option<String>,
    pub attributes: Vec<(String, String)>,
}

impl Description {
    /// Returns `None` if this is not a session description: it does not begin with `v=0` or, for
    /// want of that, with another line that may come first, or no media follow.
    pub fn parse(body: &[u8]) -> Option<Description> {
        let text = String::from_utf8_lossy(body);
        let blank = |c: char| c.is_ascii_whitespace() || c == '\0' || c == '\u{feff}';
        let lines = text.split(['\r', '\n']).map(|l| l.trim_matches(blank));
        let mut lines = lines.filter(|line| !line.is_empty()).peekable();
        let (kind, version) = lines.peek()?.split_once('=')?;
        match (kind.trim(), version.trim()) {
            ("v" | "V", "0") | ("o" | "s" | "c" | "m", _) => {}
            _ => return None,
        }
        let mut all = Description::default();
        let mut origin = None;
        for (kind, value) in lines.filter_map(|line| line.split_once('=')) {
            let (address, attributes) = match all.medias.last_mut() {
                Some(media) => (&mut media.address, &mut media.attributes),
                None => (&mut all.address, &mut all.attributes),
            };
            match kind.trim().to_ascii_lowercase().as_str() {
                "m" => all.medias.push(Media::parse(value)),
                // of several c= lines, the first counts
                "c" if address.is_none() => *address = connection(value),
                "o" if origin.is_none() => origin = connection(value),
                "a" => {
                    let (name, value) = value.split_once(':').unwrap_or((value, ""));
                    attributes.push((name.trim().to_owned(), value.trim().to_owned()));
                }
                _ => {}
            }
        }
        all.address = all.address.or(origin);
        (!all.medias.is_empty()).then_some(all)
    }
}

impl Media {
    fn parse(text: &str) -> Media {
        // some devices put commas between the formats
        let mut words = text.split([' ', '\t', ',']).filter(|word| !word.is_empty());
        let mut word = || words.next().unwrap_or_default();
        let (media, port, protocol) = (word(), word(), word());
        // a number of ports may follow the port: `49170/2`
        let port = port.split('/').next().and_then(|p| p.parse().ok()).unwrap_or(0);
        Media {
            media: media.to_owned(),
            port,
            protocol: protocol.to_owned(),
            formats: words.collect::<Vec<_>>().join(" "),
            ..Media::default()
        }
    }

    /// The values of all attributes with this name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.attributes.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str())
    }
}

/// Returns the address of `IN IP4 224.2.1.1/127`, with or without `IN`.
fn connection(text: &str) -> Option<String> {
    let mut words = text.split_ascii_whitespace();
    words.find(|w| w.eq_ignore_ascii_case("IP4") || w.eq_ignore_ascii_case("IP6"))?;
    words.next()?.split('/').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_not_needed_may_be_anything() {
        let plain = "v=0\r\no=- 1 1 IN IP4 10.0.0.2\r\ns=Asterisk\r\nc=IN IP4 10.0.0.2\r\nt=0 0\r\n\
            m=audio 11698 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=sendrecv\r\n";
        let expected = Description::parse(plain.as_bytes()).unwrap();
        let table: [(&str, &[u8]); 28] = [
            ("o=- 1 1", b"o=- 1 19599440071187478912"),
            ("o=- 1 1", b"o=- -1 -1"),
            ("o=- 1 1", b"o=- 0x1f one"),
            ("o=- 1 1 IN IP4 10.0.0.2\r\n", b"o=\r\n"),
            ("o=- 1 1 IN IP4 10.0.0.2\r\n", b""),
            ("s=Asterisk\r\n", b""),
            ("s=Asterisk", b"s="),
            ("s=Asterisk", b"s=T\xe9l"),
            ("t=0 0\r\n", b""),
            ("t=0 0", b"t=-1 x"),
            ("v=0", b"v=0 "),
            ("v=0", b"\r\nv = 0\t"),
            ("v=0", b"V=0"),
            ("v=0", b"\xef\xbb\xbfv=0"),
            ("v=0\r\n", b""),
            ("m=audio", b"M=audio"),
            ("8 0 101", b"8, 0,101"),
            ("c=IN IP4", b"c=IP4"),
            ("c=IN IP4 10.0.0.2\r\n", b""),
            ("RTP/AVP 8 0 101", b"RTP/AVP  8 0\t101 "),
            ("c=IN IP4 10.0.0.2", b"c=IN  IP4 10.0.0.2 "),
            ("c=IN IP4 10.0.0.2", b"c=in ip4 10.0.0.2/127"),
            ("a=rtpmap:8 PCMA/8000", b"a=rtpmap: 8 PCMA/8000 "),
            ("a=sendrecv", b" a=sendrecv "),
            ("t=0 0\r\n", b"t=0 0\r\n \r\n\r\nno equals sign\r\n=\r\nX-new=1\r\n"),
            ("a=sendrecv\r\n", b"a=sendrecv"),
            ("a=sendrecv\r\n", b"a=sendrecv\r\n\0\0"),
            ("t=0 0\r\n", b"e=\xff\xfe\r\nb=AS:-1\r\nz=\r\nk=?\r\nr=x\r\n"),
        ];
        for (old, new) in table {
            let at = plain.find(old).unwrap();
            let parts = [&plain.as_bytes()[..at], new, &plain.as_bytes()[at + old.len()..]];
            let found = Description::parse(&parts.concat());
            assert_eq!(found.as_ref(), Some(&expected), "{}", String::from_utf8_lossy(new));
        }
        for ends in ["\n", "\r", "\n\r"] {
            assert_eq!(
                Description::parse(plain.replace("\r\n", ends).as_bytes()).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn lines_belong_to_the_media_before_them() {
        let text = "v=0\nc=IN IP4 10.0.0.2\na=inactive\nm=video 0 RTP/AVP\na=x:1\n\
            m=audio 4000/2 RTP/AVP 0\nc=IN IP6 ::1\na=ptime:20\nm=\nm=audio 99999 udp x\n";
        let found = Description::parse(text.as_bytes()).unwrap();
        assert_eq!(found.address.as_deref(), Some("10.0.0.2"));
        assert_eq!(found.attributes, [("inactive".to_owned(), String::new())]);
        let ports: Vec<u16> = found.medias.iter().map(|m| m.port).collect();
        assert_eq!(ports, [0, 4000, 0, 0]);
        assert_eq!((&*found.medias[0].formats, &*found.medias[1].formats), ("", "0"));
        assert_eq!(found.medias[1].address.as_deref(), Some("::1"));
        assert_eq!(found.medias[1].values("PTIME").collect::<Vec<_>>(), ["20"]);
    }

    #[test]
    fn other_texts_are_not_session_descriptions() {
        for text in ["", "v=0", "v=1\nm=audio 1 RTP/AVP 0", "x=0\nm=audio 1", "s=x", "<xml/>"] {
            assert_eq!(Description::parse(text.as_bytes()), None, "{text}");
        }
    }
}
