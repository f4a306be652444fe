//! PBXs in SIP mode whose calls could not be distinguished: calls are assigned by the address and
//! port of the PBX and by the user they are addressed to.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::config::plan::SipPbx;
use crate::sip::agent::AccountConfig;

const DEFAULT_PORT: u16 = 5060;

/// Returns the first such pair: the earlier name, the later name, and the address.
pub fn twins(pbxs: &[SipPbx]) -> Option<(&str, &str, String)> {
    let pairs = pbxs.iter().enumerate().flat_map(|(n, b)| pbxs[..n].iter().map(move |a| (a, b)));
    let mut found = pairs.filter(|(a, b)| share_users(&a.account, &b.account));
    found.find_map(|(a, b)| {
        Some((a.account.name.as_str(), b.account.name.as_str(), shared_address(a, b)?))
    })
}

fn shared_address(a: &SipPbx, b: &SipPbx) -> Option<String> {
    let port = |port: Option<u16>| port.unwrap_or(DEFAULT_PORT);
    let same = a
        .hosts
        .iter()
        .find(|x| b.hosts.iter().any(|y| x.host == y.host && port(x.port) == port(y.port)));
    let ranges =
        || a.account.ranges.iter().find(|x| b.account.ranges.iter().any(|y| x.overlaps(y)));
    same.map(ToString::to_string).or_else(|| ranges().map(ToString::to_string))
}

/// True if a call to some user would suit both equally well.
fn share_users(a: &AccountConfig, b: &AccountConfig) -> bool {
    let registers = |c: &AccountConfig| c.registration.is_some();
    let takes_all = |c: &AccountConfig| !registers(c) && c.users.is_empty();
    let patterns = a.users.iter().any(|x| b.users.iter().any(|y| x.overlaps(y)));
    let names = registers(a) && registers(b) && a.username == b.username;
    patterns || names || (takes_all(a) && takes_all(b))
}
