//! The Contact values in a registrar's 200 response to REGISTER (RFC 3261 §10.2.4).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::header::{NameAddr, find_param, parse_number, split_addresses, split_outside};
use crate::sip::message::Message;
use crate::sip::uri::is_target;

/// The contacts that are registered for our user.
pub struct Bindings {
    /// URI and seconds until it expires, if given.
    all: Vec<(String, Option<u32>)>,
    /// Index of our contact.
    ours: Option<usize>,
    /// The Expires header field.
    expires: Option<u32>,
}

impl Bindings {
    /// Reads a 200. `contact` is ours; `seen` is our address as the registrar sees it, which a PBX
    /// behind NAT may list in its place. Malformed contacts of other devices are left out.
    pub fn read(response: &Message, contact: &str, seen: Option<(&str, &str)>) -> Bindings {
        let all: Vec<_> = response.all("Contact").flat_map(contacts).collect();
        let mut ours = all.iter().position(|(uri, _)| same_contact(uri, contact));
        if let (None, Some((ip, port))) = (ours, seen.filter(|(ip, _)| !ip.is_empty())) {
            let address = format!("{ip}:{port}");
            ours = all.iter().position(|(uri, _)| plain(uri).ends_with(&address));
        }
        let expires = response.get("Expires").and_then(parse_number);
        Bindings { all, ours, expires }
    }

    /// The URIs of all contacts.
    pub fn uris(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|(uri, _)| uri.as_str())
    }

    /// Returns the seconds granted to our contact: its `expires` parameter, or else the Expires
    /// header field.
    pub fn granted(&self) -> Option<u32> {
        // a PBX that rewrites contacts lists ours with the address it sees, so a single one is ours
        let ours = self.ours.or((self.all.len() == 1).then_some(0));
        ours.and_then(|ours| self.all[ours].1).or(self.expires)
    }

    /// True if our contact is listed.
    pub fn has_ours(&self) -> bool {
        self.ours.is_some()
    }

    /// Returns another device's contact. A single one may be ours, with another address.
    pub fn foreign(&self) -> Option<&str> {
        let other = self.all.iter().enumerate().find(|(n, _)| Some(*n) != self.ours);
        other.filter(|_| self.all.len() > 1).map(|(_, (uri, _))| uri.as_str())
    }

    /// Returns the first contact if ours is not listed.
    pub fn instead(&self) -> Option<&str> {
        self.all.first().filter(|_| self.ours.is_none()).map(|(uri, _)| uri.as_str())
    }
}

/// Reads the contacts in one header field. If the field is malformed, each piece is read by itself.
fn contacts(line: &str) -> Vec<(String, Option<u32>)> {
    let usable = |piece: &String| NameAddr::parse(piece).is_some_and(|a| is_target(&a.uri));
    let pieces = split_outside(line, ',')
        .map(|_| split_addresses(line))
        .filter(|pieces| pieces.iter().all(usable))
        .unwrap_or_else(|| line.split(',').map(str::to_owned).collect());
    pieces.iter().filter_map(|piece| contact(piece.trim())).collect()
}

fn contact(piece: &str) -> Option<(String, Option<u32>)> {
    let piece = piece.trim_end_matches([';', ' ']);
    let start = piece.find('<');
    // a display name is of no use here, and may be malformed
    let address = NameAddr::parse(&piece[start.unwrap_or(0)..])?;
    let expires = find_param(&address.params, "expires").and_then(parse_number);
    // without brackets, the name of another header field would look like a URI's scheme
    let sip = is_target(&address.uri) && plain(&address.uri).starts_with("sip");
    sip.then_some((address.uri, expires))
}

/// True if user, host and port match; parameters are ignored.
fn same_contact(a: &str, b: &str) -> bool {
    plain(a) == plain(b)
}

fn plain(uri: &str) -> String {
    uri.split(';').next().unwrap_or("").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "sip:ai@10.0.0.1:5070";

    fn read(lines: &[&str]) -> Bindings {
        let mut response = Message::response(&Message::request("REGISTER", "sip:x"), 200, "", "t");
        lines.iter().for_each(|line| response.push("Contact", *line));
        Bindings::read(&response, OURS, Some(("203.0.113.9", "6000")))
    }

    #[test]
    fn malformed_contacts_of_other_devices_do_not_hide_ours() {
        for line in [
            "<sip:ai@10.0.0.1:5070>;expires=100",
            "<sip:ai@10.0.0.1:5070>;expires=100;",
            "<sip:ai@10.0.0.1:5070>;expires=100,<sip:x@9.9.9.9>;expires=60,Date:Thu, 24 May 2018",
            "<sip:ai@10.0.0.1:5070>;expires=100,: <sip:y@9.9.9.9>;expires=30",
            "Doe, Jane <sip:x@9.9.9.9>;expires=9, <sip:ai@10.0.0.1:5070>;expires=100",
            "\"Jane <sip:x@9.9.9.9>;expires=9, <sip:ai@10.0.0.1:5070>;expires=100",
            "<sip:a b@9.9.9.9>;expires=9, <sip:ai@10.0.0.1:5070>;expires=100",
            "<sip:x@9.9.9.9, <sip:ai@10.0.0.1:5070;transport=udp>;expires=100",
            ", ,sip:ai@10.0.0.1:5070;expires=100",
        ] {
            let bindings = read(&[line]);
            assert!(bindings.has_ours() && bindings.granted() == Some(100), "{line}");
            let two = read(&["<sip:<>>", line]);
            assert!(two.has_ours() && two.granted() == Some(100), "{line}");
        }
        let rewritten = read(&["<sip:ai@203.0.113.9:6000>;expires=70, <sip:x@9.9.9.9>;expires=9"]);
        assert_eq!((rewritten.granted(), rewritten.foreign()), (Some(70), Some("sip:x@9.9.9.9")));
        let single = read(&["<sip:ai@192.0.2.77:1>;expires=70"]);
        assert_eq!((single.granted(), single.foreign()), (Some(70), None));
        assert_eq!(single.instead(), Some("sip:ai@192.0.2.77:1"));
        assert_eq!(read(&[]).granted(), None);
    }
}
