//! Parses the header field values that a user agent needs: Via, name-addr, CSeq, parameters and
//! option tags.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;

use crate::sip::bytes::readable;
use crate::sip::uri::{self, Host, Param, parse_host_port};

/// Compact header field names, from RFC 3261 §7.3.3 and the extensions in use, with their full
/// names.
const COMPACT: [(&str, &str); 15] = [
    ("a", "Accept-Contact"),
    ("b", "Referred-By"),
    ("c", "Content-Type"),
    ("e", "Content-Encoding"),
    ("f", "From"),
    ("i", "Call-ID"),
    ("k", "Supported"),
    ("l", "Content-Length"),
    ("m", "Contact"),
    ("o", "Event"),
    ("r", "Refer-To"),
    ("s", "Subject"),
    ("t", "To"),
    ("v", "Via"),
    ("x", "Session-Expires"),
];

/// Returns the full form of a compact name, and any other name unchanged.
pub fn full_name(name: &str) -> &str {
    COMPACT
        .iter()
        .find(|(short, _)| short.eq_ignore_ascii_case(name))
        .map_or(name, |(_, full)| full)
}

/// True if `text` is a `token` (RFC 3261 §25.1).
pub fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&b))
}

/// Splits at each `separator` outside quotes and angle brackets. Returns `None` if a quote or
/// bracket is left open.
pub fn split_outside(text: &str, separator: char) -> Option<Vec<&str>> {
    let (parts, balanced) = split(text, separator);
    balanced.then_some(parts)
}

/// Like [`split_outside`], but an open quote or bracket encloses the rest of the text.
pub fn split_leniently(text: &str, separator: char) -> Vec<&str> {
    split(text, separator).0
}

/// Returns the parts, and false if a quote or bracket is left open.
fn split(text: &str, separator: char) -> (Vec<&str>, bool) {
    let (mut quoted, mut angle, mut escaped, mut start) = (false, false, false, 0);
    let mut parts = Vec::new();
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '<' if !quoted => angle = true,
            '>' if !quoted => angle = false,
            c if c == separator && !quoted && !angle => {
                parts.push(text[start..i].trim());
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    (parts, !quoted && !angle)
}

/// Returns a media type without parameters and blanks, in lower case.
pub fn media_type(text: &str) -> String {
    let kind = text.split([';', ',']).next().unwrap_or("");
    kind.split_ascii_whitespace().collect::<String>().to_ascii_lowercase()
}

/// Adds a tag to a From or To, which may end with `;`.
pub fn with_tag(value: &str, tag: &str) -> String {
    format!("{};tag={tag}", value.trim_end_matches([';', ' ', '\t']))
}

/// Decodes a quoted-string; text without quotes is returned unchanged.
pub fn unquote(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

/// Returns `text` as a quoted-string, with `"` and `\` escaped and control characters dropped.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars().filter(|c| !c.is_control()) {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// Parses `name=value` parameters that have been split at `;`. Empty ones, as in `;;rport;`, and
/// those with a name that is not a token are skipped.
pub fn parse_params(parts: &[&str]) -> Vec<Param> {
    let params = parts.iter().filter_map(|part| {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(unquote(value.trim()))),
            None => (*part, None),
        };
        is_token(name).then(|| (name.to_ascii_lowercase(), value))
    });
    params.collect()
}

pub fn find_param<'a>(params: &'a [Param], name: &str) -> Option<&'a str> {
    params.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_deref().unwrap_or(""))
}

/// One Via value (RFC 3261 §20.42).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    pub transport: String,
    pub host: Host,
    pub port: Option<u16>,
    pub params: Vec<Param>,
}

impl Via {
    pub fn parse(text: &str) -> Option<Via> {
        let parts = split_leniently(text, ';');
        let mut protocol = parts[0].splitn(3, '/').map(str::trim);
        let (name, version, rest) = (protocol.next()?, protocol.next()?, protocol.next()?);
        let (transport, sent_by) = rest.split_once([' ', '\t'])?;
        if !name.eq_ignore_ascii_case("SIP") || version != "2.0" || !is_token(transport) {
            return None;
        }
        // blanks may surround the colon
        let words: Vec<&str> = sent_by.split_ascii_whitespace().collect();
        if !words.windows(2).all(|two| two[0].ends_with(':') || two[1].starts_with(':')) {
            return None;
        }
        let sent_by = words.concat();
        let (host, port) = parse_host_port(sent_by.strip_suffix(':').unwrap_or(&sent_by))?;
        let params = parse_params(&parts[1..]);
        Some(Via { transport: transport.to_ascii_uppercase(), host, port, params })
    }

    pub fn branch(&self) -> Option<&str> {
        find_param(&self.params, "branch")
    }

    /// Returns the Via of a request that arrived from `source` with the fields that responses must
    /// have: `received` if the sender gave another address or asks for `rport` (RFC 3261 §18.2.1),
    /// and a value for `rport` (RFC 3581 §4). `None` if the text cannot be parsed.
    pub fn completed(text: &str, source: SocketAddr) -> Option<String> {
        let via = Via::parse(text)?;
        let asks = find_param(&via.params, "rport").is_some();
        let mut out = String::new();
        for part in split_leniently(text, ';').into_iter().filter(|part| !part.is_empty()) {
            let name = part.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
            match name.as_str() {
                // only we know the source
                "received" => continue,
                "rport" => out += &format!(";rport={}", source.port()),
                _ if out.is_empty() => out += part,
                _ => out += &format!(";{part}"),
            }
        }
        if asks || via.host.ip().map(|ip| ip.to_canonical()) != Some(source.ip()) {
            out += &format!(";received={}", source.ip());
        }
        Some(out)
    }
}

/// A value of From, To, Contact, Route … (RFC 3261 §20.10): a display name, a URI and parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameAddr {
    pub display: Option<String>,
    /// The URI as written; its scheme may be one that we do not support.
    pub uri: String,
    pub params: Vec<Param>,
}

impl NameAddr {
    /// Reads what can be read, because a request must not fail on a name that a device writes
    /// wrongly. The URI may be unusable. `None` for empty text.
    pub fn parse(text: &str) -> Option<NameAddr> {
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        let Some((open, close)) = find_angles(text) else {
            // addr-spec form: parameters belong to the header field, and the URI may not contain
            // ',' or '?'
            let parts = split_leniently(text, ';');
            let uri = parts[0].split([',', '?']).next().unwrap_or("").trim().to_owned();
            return Some(NameAddr { display: None, uri, params: parse_params(&parts[1..]) });
        };
        let display = readable(&display_name(text[..open].trim()));
        let uri = text[open + 1..close].trim().to_owned();
        let params = parse_params(&split_leniently(&text[close..], ';')[1..]);
        Some(NameAddr { display: (!display.is_empty()).then_some(display), uri, params })
    }

    pub fn tag(&self) -> Option<&str> {
        find_param(&self.params, "tag")
    }

    /// Returns the number or user in the URI, if there is one; see [`uri::number`].
    pub fn number(&self) -> Option<String> {
        uri::number(&self.uri)
    }
}

/// Returns a display name without its quotes. It is of no use to the dialog, so commas outside
/// quotes and stray quotes, as devices send them, are accepted.
fn display_name(text: &str) -> String {
    let quoted = text.strip_prefix('"');
    match quoted.is_some_and(|rest| closing_quote(rest) == Some(rest.len().wrapping_sub(1))) {
        true => unquote(text),
        false => text.replace('"', "").trim().to_owned(),
    }
}

/// Splits a line with several addresses at its commas, but not at those in display names that lack
/// their quotes: a piece without a URI belongs to the next. A line with an open quote is one
/// address.
pub fn split_addresses(line: &str) -> Vec<String> {
    let Some(pieces) = split_outside(line, ',') else { return vec![line.to_owned()] };
    let is_uri = |text: &str| {
        let scheme = text.split(':').next().unwrap_or("");
        ["sip", "sips", "tel"].iter().any(|s| s.eq_ignore_ascii_case(scheme))
    };
    let mut all: Vec<String> = Vec::new();
    let mut begun = String::new();
    for piece in pieces {
        begun += piece;
        if begun.contains('<') || is_uri(&begun) {
            all.push(std::mem::take(&mut begun));
        } else if !begun.is_empty() {
            begun.push(',');
        }
    }
    let rest = begun.trim_end_matches(',');
    all.extend((!rest.is_empty()).then(|| rest.to_owned()));
    all
}

/// Returns the positions of the `<` and `>` around the URI: the first ones after a quoted display
/// name, or else the last ones in the text.
fn find_angles(text: &str) -> Option<(usize, usize)> {
    let name_end = match text.strip_prefix('"') {
        Some(rest) => closing_quote(rest).map(|at| at + 2),
        None => Some(0),
    };
    let first = name_end.and_then(|end| Some(end + text[end..].find('<')?));
    let open = first.or_else(|| text.rfind('<'))?;
    // without `>`, parameters end the URI
    let len = text[open..].find('>').or_else(|| text[open..].find(';'));
    Some((open, open + len?))
}

/// Returns the position of the closing quote; the opening one is just before `text`.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(i),
            _ => {}
        }
    }
    None
}

/// Parses a number and a method, as in `314159 INVITE`. RFC 3261 §8.1.1.5 allows numbers below
/// 2^31, but some devices begin above.
pub fn parse_cseq(text: &str) -> Option<(u32, &str)> {
    let (number, method) = text.trim().split_once([' ', '\t'])?;
    let number = parse_number(number)?;
    let method = method.trim();
    is_token(method).then_some((number, method))
}

/// Parses an unsigned number of digits only. A number that does not fit in 32 bits is rejected,
/// never wrapped.
pub fn parse_number(text: &str) -> Option<u32> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Returns the option tags in values such as `100rel, timer`, in lower case.
pub fn option_tags<'a>(values: impl Iterator<Item = &'a str>) -> Vec<String> {
    let tags = values.flat_map(|v| v.split(','));
    tags.map(|t| t.trim().to_ascii_lowercase()).filter(|t| !t.is_empty()).collect()
}

/// Parses delta-seconds with parameters, as in `Session-Expires: 1800;refresher=uac` or
/// `Retry-After: 5 (busy)`.
pub fn parse_seconds(text: &str) -> Option<(u32, Vec<Param>)> {
    let parts = split_leniently(text, ';');
    let number = parts[0].split(['(', ' ']).next()?;
    Some((parse_number(number)?, parse_params(&parts[1..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn via_with_spaces_and_ipv6() {
        let via = Via::parse(
            "SIP  / 2.0 / UDP  [2001:db8::9:1]:5061;received=1.2.3.4;branch=z9hG4bKx;rport",
        );
        let via = via.unwrap();
        assert_eq!((via.transport.as_str(), via.port), ("UDP", Some(5061)));
        assert_eq!(via.branch(), Some("z9hG4bKx"));
        assert_eq!(find_param(&via.params, "rport"), Some(""));
        let empty = Via::parse("SIP/2.0/UDP 192.0.2.15;;branch=z9hG4bKx; ;rport;").unwrap();
        assert_eq!((empty.branch(), empty.params.len()), (Some("z9hG4bKx"), 2));
        let spaced =
            Via::parse("SIP / 2.0 / UDP first.example.com: 4000;x[1]=2 ;branch=b").unwrap();
        assert_eq!((spaced.port, spaced.branch()), (Some(4000), Some("b")));
        assert!(Via::parse("SIP/2.0/UDP 192.0.2.15 5060").is_none());
        assert!(Via::parse("SIP/2.0/UDP").is_none());
    }

    #[test]
    fn a_via_is_completed_with_the_source() {
        let table = [
            ("192.0.2.9:5060;branch=z9hG4bKx", "192.0.2.9:5060;branch=z9hG4bKx"),
            ("10.0.0.7:5060;branch=b", "10.0.0.7:5060;branch=b;received=192.0.2.9"),
            ("pbx.local;branch=b", "pbx.local;branch=b;received=192.0.2.9"),
            ("192.0.2.9;rport;branch=b", "192.0.2.9;rport=6000;branch=b;received=192.0.2.9"),
            ("192.0.2.9;RPORT=;;branch=b;", "192.0.2.9;rport=6000;branch=b;received=192.0.2.9"),
            ("10.0.0.7;received=1.2.3.4;rport=1", "10.0.0.7;rport=6000;received=192.0.2.9"),
        ];
        let source = "192.0.2.9:6000".parse().unwrap();
        for (theirs, ours) in table {
            let completed = Via::completed(&format!("SIP/2.0/UDP {theirs}"), source);
            assert_eq!(completed, Some(format!("SIP/2.0/UDP {ours}")));
        }
        let source = "[2001:db8::9]:6000".parse().unwrap();
        let v6 = Via::completed("SIP/2.0/TCP [2001:db8::1];rport", source).unwrap();
        assert_eq!(v6, "SIP/2.0/TCP [2001:db8::1];rport=6000;received=2001:db8::9");
        assert_eq!(Via::parse(&v6).unwrap().port, None);
    }

    #[test]
    fn commas_in_names_without_quotes_do_not_split_addresses() {
        let table: [(&str, &[&str]); 7] = [
            ("<sip:1@x>, <tel:+1>", &["<sip:1@x>", "<tel:+1>"]),
            ("THOMPSON,ALICE <sip:1@x>", &["THOMPSON,ALICE <sip:1@x>"]),
            ("A, B & C <sip:1@x>,, D <sip:2@x>", &["A,B & C <sip:1@x>", "D <sip:2@x>"]),
            ("\"A, B\" <sip:1@x>, sip:2@x", &["\"A, B\" <sip:1@x>", "sip:2@x"]),
            ("*", &["*"]),
            ("Dept: Sales, Bob <sip:1@x>", &["Dept: Sales,Bob <sip:1@x>"]),
            ("\"A, B <sip:1@x>", &["\"A, B <sip:1@x>"]),
        ];
        for (line, expected) in table {
            assert_eq!(split_addresses(line), expected, "{line}");
        }
    }

    #[test]
    fn name_addr_forms() {
        let quoted =
            NameAddr::parse(r#""J Rosenberg \\\"" <sip:jd@ex.com;x=y>;tag = 98asj8"#).unwrap();
        assert_eq!(quoted.display.as_deref(), Some(r#"J Rosenberg \""#));
        assert_eq!(quoted.uri, "sip:jd@ex.com;x=y");
        assert_eq!(quoted.tag(), Some("98asj8"));
        let bare = NameAddr::parse("sip:caller@example.net;tag=134161461246").unwrap();
        assert_eq!(
            (bare.uri.as_str(), bare.tag()),
            ("sip:caller@example.net", Some("134161461246"))
        );
        assert_eq!(
            NameAddr::parse("Joe Doe <sip:1@h>").unwrap().display.as_deref(),
            Some("Joe Doe")
        );
        let names = [
            ("THOMPSON,ALICE <sip:1@h>", "THOMPSON,ALICE"),
            ("Smith & Sons (Ltd.) <sip:1@h>;tag=1", "Smith & Sons (Ltd.)"),
            (r#"""Front Desk"" <sip:1@h>;tag=1"#, "Front Desk"),
            (r#""Front" Desk <sip:1@h>"#, "Front Desk"),
            (r#""a < b" <sip:1@h>"#, "a < b"),
        ];
        for (text, name) in names {
            let found = NameAddr::parse(text).expect(text);
            assert_eq!((found.display.as_deref(), &*found.uri), (Some(name), "sip:1@h"));
        }
        let odd = [
            (r#""Mr. J. User <sip:j@ex.com>;tag=1"#, "sip:j@ex.com"),
            (r#""Watson" < sip:t@ex.org >"#, "sip:t@ex.org"),
            ("sip:user@ex.com?Route=%3Csip:x%3E", "sip:user@ex.com"),
            ("<sip:a@b> trailing", "sip:a@b"),
            ("<sip:a@b;tag=1", "sip:a@b"), // the tag is a parameter of the field
            ("<sip:a@b", "<sip:a@b"),
            ("a <b> <sip:a@b", "b"),
        ];
        for (text, uri) in odd {
            assert_eq!(NameAddr::parse(text).unwrap().uri, uri, "{text}");
        }
        assert_eq!(NameAddr::parse(" "), None);
    }

    #[test]
    fn numbers_do_not_wrap() {
        assert_eq!(parse_number("4294967295"), Some(u32::MAX));
        assert_eq!(parse_number("4294967296"), None);
        assert_eq!(parse_number("-1"), None);
        assert_eq!(parse_cseq("9292394834772304023312 OPTIONS"), None);
        assert_eq!(parse_cseq("0009  INVITE"), Some((9, "INVITE")));
    }

    #[test]
    fn seconds_with_comment_and_parameters() {
        assert_eq!(parse_seconds("90;refresher=uac").unwrap().0, 90);
        assert_eq!(parse_seconds("18000 (in a meeting);duration=3600").unwrap().0, 18000);
        assert_eq!(parse_seconds("-5"), None);
    }
}
