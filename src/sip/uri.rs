//! SIP URIs (RFC 3261 §19.1). Parsing is strict wherever leniency would let two parties read the
//! same URI differently.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::sip::bytes::readable;

/// The reason a URI was rejected. `Scheme` is answered with 416, `Syntax` with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("URI scheme is not sip or sips")]
    Scheme,
    #[error("malformed SIP URI")]
    Syntax,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Name(String),
    Ip(IpAddr),
}

impl Host {
    /// Parses `example.com`, `192.0.2.1` or `[2001:db8::1]`.
    pub fn parse(text: &str) -> Option<Host> {
        if let Some(inner) = text.strip_prefix('[') {
            let ip: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
            return Some(Host::Ip(IpAddr::V6(ip)));
        }
        if let Ok(ip) = text.parse() {
            return match ip {
                IpAddr::V4(_) => Some(Host::Ip(ip)),
                // RFC 5118 §4.1: an IPv6 reference must be in brackets
                IpAddr::V6(_) => None,
            };
        }
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        (!text.is_empty() && text.chars().all(good)).then(|| Host::Name(text.to_ascii_lowercase()))
    }

    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Host::Ip(ip) => Some(*ip),
            Host::Name(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Host::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

/// Parses `host[:port]`, with IPv6 addresses in brackets.
pub fn parse_host_port(text: &str) -> Option<(Host, Option<u16>)> {
    let split = match text.rfind(']') {
        Some(end) => text[end..].find(':').map(|i| end + i),
        None => text.find(':'),
    };
    let Some(colon) = split else { return Some((Host::parse(text)?, None)) };
    let port = &text[colon + 1..];
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((Host::parse(&text[..colon])?, Some(port.parse().ok()?)))
}

pub type Param = (String, Option<String>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    pub secure: bool,
    /// The user as written, with its %-escapes; [`Uri::user_text`] decodes them.
    pub user: Option<String>,
    pub host: Host,
    pub port: Option<u16>,
    pub params: Vec<Param>,
    /// The header fields after `?`, if any.
    pub headers: Option<String>,
}

impl Uri {
    pub fn parse(text: &str) -> Result<Uri, UriError> {
        let (scheme, rest) = text.split_once(':').ok_or(UriError::Syntax)?;
        let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        if !scheme_ok {
            return Err(UriError::Syntax);
        }
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "sip" => false,
            "sips" => true,
            _ => return Err(UriError::Scheme),
        };
        if rest.chars().any(|c| c.is_ascii_control() || " \t<>\"".contains(c)) {
            return Err(UriError::Syntax);
        }
        // userinfo may contain ';' and '?', so split at the '@' first
        let (user, rest) = match rest.rsplit_once('@') {
            Some(("", _)) => return Err(UriError::Syntax),
            Some((user, rest)) if !user.contains('@') => (Some(user), rest),
            Some(_) => return Err(UriError::Syntax),
            None => (None, rest),
        };
        let (rest, headers) = match rest.split_once('?') {
            Some((rest, headers)) => (rest, Some(headers.to_owned())),
            None => (rest, None),
        };
        let mut parts = rest.split(';');
        let host_port = parts.next().ok_or(UriError::Syntax)?;
        let host_port = host_port.strip_suffix(':').unwrap_or(host_port); // an empty port
        let (host, port) = parse_host_port(host_port).ok_or(UriError::Syntax)?;
        // some devices end a URI with ';'
        let params = parts.filter(|part| !part.is_empty()).map(parse_param);
        let params = params.collect::<Option<Vec<_>>>().ok_or(UriError::Syntax)?;
        let user = user.map(|u| u.split_once(':').map_or(u, |(name, _)| name).to_owned());
        Ok(Uri { secure, user, host, port, params, headers })
    }

    /// Returns the user part with its %-escapes decoded (lossily if they are not UTF-8).
    pub fn user_text(&self) -> Option<String> {
        self.user.as_deref().map(unescape)
    }

    pub fn param(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secure { "sips:" } else { "sip:" })?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        write!(f, "{}", self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        for (name, value) in &self.params {
            write!(f, ";{name}")?;
            if let Some(value) = value {
                write!(f, "={value}")?;
            }
        }
        match &self.headers {
            Some(headers) => write!(f, "?{headers}"),
            None => Ok(()),
        }
    }
}

/// Returns the number that a SIP or tel URI is about (RFC 3966), or the user of a SIP URI, with its
/// %-escapes decoded. Parameters of the user, such as `;cpc=ordinary`, are not part of it, except
/// for the global phone-context of a local number. `None` if there is no user, or for another
/// scheme. Of a SIP URI that cannot be parsed, it is the text before the first `@`.
pub fn number(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(':')?;
    let is_tel = scheme.eq_ignore_ascii_case("tel");
    let (user, named_phone) = if is_tel {
        let good = |c: char| !c.is_ascii_control() && !"\"<>@".contains(c);
        rest.chars().all(good).then(|| (rest.to_owned(), true))?
    } else {
        match Uri::parse(text) {
            Ok(uri) => {
                let kind = uri.param("user").and_then(|(_, value)| value.as_deref());
                let is_phone = kind.is_some_and(|kind| kind.eq_ignore_ascii_case("phone"));
                (uri.user?, is_phone)
            }
            Err(UriError::Syntax) => {
                let known = ["sip", "sips"].iter().any(|s| s.eq_ignore_ascii_case(scheme));
                let (user, _) = rest.split_once('@').filter(|_| known)?;
                (user.replace('"', ""), user.contains(' '))
            }
            Err(UriError::Scheme) => return None,
        }
    };
    let mut parts = user.split(';');
    let user = readable(&unescape(parts.next()?.trim()));
    let is_phone = named_phone || user.starts_with('+');
    // a pause and the digits after it are dialled once the call is up
    let dialled = user.split_once(',').map_or(&*user, |(before, _)| before);
    let separators = |c: char| "-.() ".contains(c);
    let digits = |c: char| c.is_ascii_hexdigit() || "*#+".contains(c) || separators(c);
    let number = match is_phone && dialled.chars().all(digits) {
        true => dialled.replace(separators, ""),
        false => user,
    };
    let mut contexts = parts.filter_map(|part| part.split_once('='));
    let context = contexts.find(|(name, _)| name.eq_ignore_ascii_case("phone-context"));
    let prefix = match context {
        Some((_, value)) if is_tel && value.starts_with('+') && !number.starts_with('+') => value,
        _ => "",
    };
    (!number.is_empty()).then(|| format!("{prefix}{number}"))
}

/// Parses `name` or `name=value`, without quotes.
fn parse_param(text: &str) -> Option<Param> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    (!name.is_empty()).then(|| (name.to_owned(), value))
}

/// True if a request can be sent to this URI as it is written.
pub fn is_target(text: &str) -> bool {
    let plain = !text.chars().any(|c| c.is_ascii_control() || " <>\"".contains(c));
    plain && matches!(Uri::parse(text), Ok(_) | Err(UriError::Scheme))
}

/// Decodes %-escapes. A `%` that begins none, as in `*72%`, stands for itself.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Escapes the characters that are not allowed in a user part (RFC 3261 §25.1, `user`).
pub fn escape_user(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.!~*'()&=+$,;?/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_all_components() {
        let uri = Uri::parse("sips:al%69ce;x?y:pw@[2001:db8::10]:5070;transport=tcp;lr").unwrap();
        assert!(uri.secure);
        assert_eq!(uri.user_text().unwrap(), "alice;x?y");
        assert_eq!(uri.host, Host::Ip("2001:db8::10".parse().unwrap()));
        assert_eq!(uri.port, Some(5070));
        assert_eq!(uri.param("Transport").unwrap().1.as_deref(), Some("tcp"));
        assert_eq!(Uri::parse("sip:a@h;;lr;").unwrap().to_string(), "sip:a@h;lr");
        assert_eq!(uri.to_string(), "sips:al%69ce;x?y@[2001:db8::10]:5070;transport=tcp;lr");
    }

    #[test]
    fn rejects_malformed_uris() {
        for bad in [
            "sip:",
            "sip:@host",
            "sip:a@b@c",
            "sip:host:port",
            "sip:ho st",
            "sip:<host>",
            "sip:a@[::1",
            "sip:2001:db8::10",
            "sip:host;=x",
            "sip:host;;=x",
            "sip:host:99999",
            "<sip:host>",
        ] {
            assert_eq!(Uri::parse(bad), Err(UriError::Syntax), "{bad}");
        }
        assert_eq!(Uri::parse("tel:+15551234"), Err(UriError::Scheme));
        assert_eq!(Uri::parse("nobodyKnowsThisScheme:x"), Err(UriError::Scheme));
    }

    #[test]
    fn a_number_has_no_parameters_and_no_separators() {
        let table = [
            ("sip:8010@h", Some("8010")),
            ("sip:%2B1555%30001@h", Some("+15550001")),
            ("sip:+15550001;cpc=ordinary@h;user=phone", Some("+15550001")),
            ("sip:+15550001;npdi;rn=+15550000@h", Some("+15550001")),
            ("sip:15550001;phone-context=+49@h", Some("15550001")),
            ("sip:+1-555-(00)01;isub=1@h;user=Phone", Some("+15550001")),
            ("sip:front-desk@h", Some("front-desk")),
            ("sip:front-desk@h;user=phone", Some("front-desk")),
            ("sip:a%3Bb:password@h;", Some("a;b")),
            ("tel:+15550001", Some("+15550001")),
            ("TEL:+1-(555)-00.01;ext=5;phone-context=x", Some("+15550001")),
            ("tel:%2B15550001", Some("+15550001")),
            ("tel:*72%23", Some("*72#")),
            ("sip:h", None),
            ("sip:;cpc=ordinary@h", None),
            ("tel:;phone-context=x", None),
            ("tel:+1 555 0001", Some("+15550001")),
            ("tel:+15550001,,22", Some("+15550001")),
            ("tel:5550001;phone-context=+1", Some("+15550001")),
            ("tel:8010;phone-context=pbx.local", Some("8010")),
            ("sip:+1-555-0001@h", Some("+15550001")),
            ("sip:\"15550001\"@h", Some("15550001")),
            ("sip:1555 0001@h", Some("15550001")),
            ("sip:15550001@2001:db8::1", Some("15550001")),
            ("sip:15550001@a@b", Some("15550001")),
            ("sip:15550001@", Some("15550001")),
            ("sip:@x", None),
            ("tel:%4", Some("%4")),
            ("sip:*72%@h:", Some("*72%")),
            ("urn:service:sos", None),
            ("8010", None),
        ];
        for (uri, expected) in table {
            assert_eq!(number(uri).as_deref(), expected, "{uri}");
        }
    }

    #[test]
    fn escapes_a_user_part() {
        assert_eq!(escape_user("a b@c%"), "a%20b%40c%25");
    }
}
