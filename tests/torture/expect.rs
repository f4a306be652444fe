//! The expected answer to a message: statuses, silence, or either.

use std::collections::HashMap;

use crate::subject::Found;

#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Allowed statuses. If empty and `silence` is false, any single answer is allowed.
    codes: Vec<u16>,
    /// True if no answer is allowed.
    silence: bool,
    /// True if the message must not be offered as a call.
    reject: bool,
}

impl Expected {
    /// Parses a sentence: three-digit numbers are statuses; `silence` and `dropped` mean no answer.
    fn parse(text: &str, reject: bool) -> Expected {
        let dropped = text.contains("dropped");
        let words = text.split(|c: char| !c.is_ascii_digit());
        let codes = words.filter(|w| w.len() == 3).filter_map(|w| w.parse().ok());
        let mut codes: Vec<u16> = if dropped { Vec::new() } else { codes.collect() };
        let mut silence = dropped || text.contains("silence");
        if text.contains("or ignore") {
            // if ignored, the rest is an INVITE for an unknown user
            codes.push(404);
        }
        if reject && codes.is_empty() && !dropped {
            codes.push(400);
            silence = true;
        }
        Expected { codes, silence, reject }
    }

    pub fn allows(&self, found: &Found) -> bool {
        let answer = match found.codes[..] {
            [] => self.silence,
            [code] => self.codes.contains(&code) || (self.codes.is_empty() && !self.silence),
            _ => false,
        };
        answer && !(self.reject && found.offers > 0)
    }
}

/// Parses a table with tab-separated columns: the name comes first, the sentence is in column
/// `answer`. If `answer` is beyond the third column, the third contains `reject` for messages that
/// must not be acted on. Lines starting with `#` are comments.
pub fn parse_table(text: &str, answer: usize) -> HashMap<String, Expected> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let rows = lines.map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        let reject = answer > 2 && cells[2] == "reject";
        (cells[0].to_owned(), Expected::parse(cells[answer], reject))
    });
    rows.collect()
}

/// Returns the expected answer to those messages of RFC 4475 that are to be refused according to
/// it, but have their fault in a field that is not needed. Devices send such messages, and a caller
/// gains nothing from a refusal.
pub fn lenient_rfc4475(name: &str) -> Option<Expected> {
    Some(match name {
        // empty parameters in Via; a quote left open before a readable URI; an Accept without SDP,
        // although the request has SDP: the user is unknown
        "badinv01" | "quotbal" | "sdp01" => Expected::parse("404", false),
        // blanks in a To; a blank after the version; a comma in a name without quotes
        "badaspec" | "trws" | "baddn" => Expected::parse("200 or 404", false),
        // a Contact with `?` and without brackets, in a method that we do not support
        "regbadct" => Expected::parse("405", false),
        _ => return None,
    })
}

/// Returns the expected answer by file name. The numbers are sections of RFC 5118.
pub fn rfc5118(name: &str) -> Option<Expected> {
    Some(match name {
        // 4.1: an IPv6 reference needs brackets
        "ipv6-bad" => Expected::parse("400 or silence", true),
        "ipv6-good" => Expected::parse("405", false),
        // 4.2, 4.3: the ambiguous one is still valid: the port is read as part of the address
        "port-ambiguous" | "port-unambiguous" => Expected::parse("405", false),
        // 4.4, 4.5: received with brackets, as some implementations write it, and without
        "via-received-param-with-delim" => Expected::parse("481", false),
        "via-received-param-no-delim" => Expected::parse("200", false),
        // 4.6: no supported codec; the original declares more octets than it has
        "ipv6-in-sdp" => Expected::parse("400", true),
        "ipv6-in-sdp.len-fixed" => Expected::parse("488", true),
        // 4.7: both address families side by side
        "mult-ip-in-header" => Expected::parse("481", false),
        // 4.8: the audio line is IPv4 and PCMU, so it is a call
        "mult-ip-in-sdp" | "mult-ip-in-sdp.len-fixed" => Expected::parse("100", false),
        // 4.9: no supported codec
        "ipv4-mapped-ipv6" | "ipv4-mapped-ipv6.len-fixed" => Expected::parse("488", true),
        // 4.10: the three colons allowed by the old, wrong grammar are refused
        "ipv6-bug-abnf-3-colons" => Expected::parse("400 or silence", true),
        "ipv6-correct-abnf-2-colons" => Expected::parse("200", false),
        _ => return None,
    })
}
