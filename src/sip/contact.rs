//! The Contact values in a registrar's 200 response to REGISTER (RFC 3261 §10.2.4).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::header::{NameAddr, find_param, parse_number};
use crate::sip::message::Message;

/// Returns the seconds granted to our contact: its `expires` parameter, or else the Expires header
/// field.
pub fn granted(response: &Message, contact: &str) -> Option<u32> {
    let contacts: Vec<NameAddr> =
        response.list("Contact").iter().filter_map(|c| NameAddr::parse(c)).collect();
    let ours = contacts.iter().find(|c| same_contact(&c.uri, contact));
    // a PBX that rewrites contacts lists ours with the address it sees, so a single one is ours
    let ours = ours.or(if contacts.len() == 1 { contacts.first() } else { None });
    let own = ours.and_then(|c| find_param(&c.params, "expires")).and_then(parse_number);
    own.or_else(|| response.get("Expires").and_then(parse_number))
}

/// Returns another device's contact, if ours is listed as well.
pub fn foreign_contact(response: &Message, contact: &str) -> Option<String> {
    let all: Vec<NameAddr> =
        response.list("Contact").iter().filter_map(|c| NameAddr::parse(c)).collect();
    let ours = all.iter().any(|c| same_contact(&c.uri, contact));
    all.into_iter().map(|c| c.uri).find(|uri| ours && !same_contact(uri, contact))
}

/// True if user, host and port match; parameters are ignored.
fn same_contact(a: &str, b: &str) -> bool {
    let plain = |uri: &str| uri.split(';').next().unwrap_or("").to_ascii_lowercase();
    plain(a) == plain(b)
}
