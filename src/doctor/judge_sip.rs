//! The meaning of the answers of a PBX in SIP mode.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};

use crate::doctor::finding::Finding;
use crate::doctor::running::PbxState;
use crate::faults;
use crate::sip::header::find_param;
use crate::sip::message::Message;
use crate::sip::uri::Uri;

/// The state of a running trunkless whose extension another device uses as well.
const BESIDE_ANOTHER: &str = "registered beside another device";

/// A reaction of the PBX to a request, without its I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    Answered(u16),
    Refused,
    Silent,
}

/// Judges the OPTIONS to an address, with the REGISTER that followed it if there was no answer.
/// `None` for the latter: none was sent.
pub fn reachable(
    step: &str,
    address: SocketAddr,
    options: Reaction,
    register: Option<Reaction>,
) -> Finding {
    match (options, register) {
        (Reaction::Answered(code), _) => {
            Finding::ok(step, format!("{address} answers OPTIONS with {code}"))
        }
        (Reaction::Silent, Some(Reaction::Answered(_))) => Finding::warning(
            step,
            format!("{address} answers REGISTER, but not OPTIONS"),
            "set keepalive = \"0s\", so that the registration does not count as lost",
        ),
        (Reaction::Refused, _) | (_, Some(Reaction::Refused)) => Finding::fault(
            step,
            format!("{address}: its port is closed (ICMP or reset): no SIP server listens there"),
            "check that the PBX runs, and the port: chan_sip often has another than chan_pjsip",
        ),
        (Reaction::Silent, _) => Finding::fault(
            step,
            format!("{}: {address} answers nothing, not even with ICMP", faults::REGISTRAR_SILENT),
            faults::REGISTRAR_SILENT_CURE,
        ),
    }
}

/// Judges the answer to the REGISTER with credentials. `options`: whether OPTIONS was answered.
pub fn registration(step: &str, user: &str, reaction: Reaction, rejected: bool) -> Finding {
    let refused = |code: u16| {
        let hint = faults::registration_refused(code, user);
        let (what, remedy) = hint.split_once(": ").unwrap_or((&hint, "compare with the PBX"));
        let what = format!("{} with {code}: {what}", faults::REGISTRATION_REFUSED);
        Finding::fault(step, what, remedy)
    };
    match reaction {
        Reaction::Answered(200..300) => {
            Finding::ok(step, format!("the PBX accepts user \"{user}\" and the password"))
        }
        Reaction::Answered(401 | 407) if !rejected => Finding::fault(
            step,
            "registration refused: no challenge of the PBX can be answered",
            "check realm, and allow MD5 or SHA-256 digest on the PBX",
        ),
        Reaction::Answered(code @ (408 | 480 | 500..600)) => Finding::fault(
            step,
            format!("registration failed: the registrar answered {code}"),
            "look at the PBX's own log",
        ),
        Reaction::Answered(code) => refused(code),
        Reaction::Refused | Reaction::Silent => Finding::fault(
            step,
            format!(
                "{} to REGISTER, although it answers OPTIONS: a packet filter drops it",
                faults::REGISTRAR_SILENT
            ),
            faults::REGISTRAR_SILENT_CURE,
        ),
    }
}

/// The addresses by which a binding can be recognised as ours.
pub struct Own {
    /// Host and port in our Contact.
    pub contact: SocketAddr,
    /// Our address as the PBX sees it.
    pub seen: Option<IpAddr>,
}

/// Judges the contacts that the PBX has for our user.
pub fn devices(step: &str, contacts: &[String], own: &Own, running: Option<&PbxState>) -> Finding {
    let state = running.map_or("", |pbx| pbx.state.as_str());
    let fault = |contact: &str| {
        Finding::fault(
            step,
            format!("another device is registered as the same user ({contact})"),
            faults::TWO_DEVICES.split_once(": ").map_or("", |(_, cure)| cure),
        )
    };
    let foreign: Vec<&String> = contacts.iter().filter(|uri| !is_own(uri, own)).collect();
    let Some(first) = foreign.first() else {
        return match (state, contacts.len()) {
            (BESIDE_ANOTHER, _) => fault("as the log of the running trunkless says"),
            (_, 0) if running.is_some_and(|pbx| pbx.ready) => Finding::warning(
                step,
                "trunkless is registered, but the PBX lists no contact for its user",
                "restart trunkless, and look at the contacts on the PBX",
            ),
            (state, 0) if state.starts_with(faults::REGISTRATION_REFUSED) => Finding::fault(
                step,
                "the PBX would accept the running trunkless now, but has refused it before",
                faults::NOT_TRIED_AGAIN_CURE,
            ),
            (state, 0) if running.is_some() => Finding::warning(
                step,
                format!("the running trunkless is not registered: {state}"),
                "look at its log",
            ),
            (_, 0) => Finding::ok(step, "no device is registered as this user"),
            _ => Finding::ok(step, "only trunkless is registered as this user"),
        };
    };
    // a NAT may have changed the port of our own
    let behind_nat = own.seen.is_some_and(|seen| seen != own.contact.ip() && has_host(first, seen));
    if state == "registered" && behind_nat && contacts.len() == 1 {
        return Finding::ok(step, "only trunkless is registered as this user, through a NAT");
    }
    fault(&host_and_port(first))
}

fn is_own(uri: &str, own: &Own) -> bool {
    let Ok(uri) = Uri::parse(uri) else { return false };
    let port = uri.port.unwrap_or(5060);
    let ip = uri.host.ip();
    port == own.contact.port() && (ip == Some(own.contact.ip()) || (ip.is_some() && ip == own.seen))
}

fn has_host(uri: &str, ip: IpAddr) -> bool {
    Uri::parse(uri).is_ok_and(|uri| uri.host.ip() == Some(ip))
}

/// The contact without its user, which may be a phone number.
fn host_and_port(uri: &str) -> String {
    match Uri::parse(uri) {
        Ok(uri) => match uri.port {
            Some(port) => format!("{}:{port}", uri.host),
            None => uri.host.to_string(),
        },
        Err(_) => "an unreadable contact".to_owned(),
    }
}

/// Our address as the PBX sees it, from the Via of its response (RFC 3261 §18.2.1).
pub fn seen(response: &Message) -> Option<IpAddr> {
    let via = response.top_via()?;
    find_param(&via.params, "received")?.trim_matches(['[', ']']).parse().ok()
}

/// Judges the address that we announce in Contact and SDP. `heard`: a test call brought audio back.
pub fn address(step: &str, announced: IpAddr, seen: Option<IpAddr>, heard: bool) -> Finding {
    match seen {
        None => Finding::ok(step, format!("{announced}; the PBX does not report what it sees")),
        Some(seen) if seen == announced => {
            Finding::ok(step, format!("the PBX sees us at {announced}, as we announce"))
        }
        Some(seen) => {
            let what = faults::address_differs(announced, seen);
            match heard {
                true => Finding::warning(
                    step,
                    format!("{what}; the test call was heard all the same"),
                    faults::ADDRESS_DIFFERS_CURE,
                ),
                false => Finding::fault(step, what, faults::ADDRESS_DIFFERS_CURE),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    const OWN: Own = Own {
        contact: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5)), 5060),
        seen: None,
    };

    fn at(ready: bool, state: &str) -> PbxState {
        PbxState { ready, state: state.to_owned() }
    }

    #[test]
    fn bindings() {
        let judge = |contacts: &[&str], running: Option<&PbxState>| {
            let contacts: Vec<String> = contacts.iter().map(|c| (*c).to_owned()).collect();
            devices("d", &contacts, &OWN, running)
        };
        let registered = at(true, "registered");
        assert_eq!(judge(&["sip:ai@10.0.0.5:5060"], Some(&registered)).state, State::Ok);
        assert_eq!(judge(&["sip:ai@10.0.0.5"], None).state, State::Ok);
        assert_eq!(judge(&[], None).state, State::Ok);
        assert_eq!(judge(&[], Some(&registered)).state, State::Warning);
        let foreign = judge(&["sip:ai@10.0.0.5:5060", "sip:0301234567@10.0.0.9:5062"], None);
        assert!(foreign.is_fault() && foreign.what.contains("10.0.0.9:5062"), "{foreign:?}");
        assert!(!foreign.what.contains("0301234567"));
        let beside = at(true, BESIDE_ANOTHER);
        assert!(judge(&["sip:ai@10.0.0.5:5060"], Some(&beside)).is_fault());
    }

    #[test]
    fn our_own_contact_behind_a_nat() {
        let seen = "192.0.2.7".parse().ok();
        let own = Own { seen, ..OWN };
        let contacts = ["sip:ai@192.0.2.7:41000".to_owned()];
        let registered = at(true, "registered");
        assert_eq!(devices("d", &contacts, &own, Some(&registered)).state, State::Ok);
        assert!(devices("d", &contacts, &own, None).is_fault());
    }

    #[test]
    fn silence_and_icmp_differ() {
        let to = SocketAddr::from(([192, 0, 2, 1], 5060));
        let judge = |options, register| reachable("s", to, options, register);
        let silent = judge(Reaction::Silent, Some(Reaction::Silent));
        assert!(silent.is_fault() && silent.what.starts_with(faults::REGISTRAR_SILENT));
        let closed = judge(Reaction::Refused, None);
        assert!(closed.is_fault() && closed.what.contains("closed"));
        assert_eq!(judge(Reaction::Silent, Some(Reaction::Answered(401))).state, State::Warning);
        assert_eq!(judge(Reaction::Answered(404), None).state, State::Ok);
    }
}
