//! The names of faults and their remedies, for those that both the log and `trunkless doctor`
//! report. A search for the words that one of them prints finds the other.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};

pub const REGISTRAR_SILENT: &str = "registrar does not answer";
/// The usual causes of [`REGISTRAR_SILENT`].
pub const REGISTRAR_SILENT_CURE: &str = "check the address, port and firewall; fail2ban on the PBX \
                                         may block this host";
pub const REGISTRATION_REFUSED: &str = "registration refused";
pub const TWO_DEVICES: &str = "another device is registered as the same user, beside trunkless or \
                               in its place: calls may go there; give each an extension of its own";
pub const NO_RTP: &str = "no RTP from the PBX for 2 s: firewall? It has to send to our_rtp by UDP";
pub const RTP_NOT_HEARD: &str = "it heard no RTP from us; firewall between our_rtp and pbx_rtp?";
pub const RTP_FROM_ELSEWHERE_CURE: &str = "in Asterisk set media_address and \
                                           bind_rtp_to_media_address";
pub const DESCRIPTORS: &str = "open file limit is too low for [calls] max: raise ulimit -n";
/// A placeholder of the samples as password.
pub const PLACEHOLDER: &str = "is the placeholder of the samples; choose one, here and in the PBX";
/// Our RTP ports against those of an Asterisk on this host. A range follows.
pub const RTP_RANGES_OVERLAP: &str = "overlaps Asterisk's range";
/// The cure of a registration that was refused, once the PBX would accept it.
pub const NOT_TRIED_AGAIN_CURE: &str = "trunkless reload (or restart it) has it try again at once; \
                                        by itself it does after the pause that its log names";
/// The cure of [`address_differs`].
pub const ADDRESS_DIFFERS_CURE: &str = "set advertised to the address that the PBX sees, or remove \
                                        it if there is no NAT";

/// The meaning of a refused REGISTER, and what to check.
pub fn registration_refused(code: u16, user: &str) -> String {
    match code {
        401 | 407 => format!(
            "wrong password for user \"{user}\" (or the PBX does not know it): compare username \
             and password with the PBX, and reload the PBX's file if it is new"
        ),
        403 => format!(
            "the PBX refuses user \"{user}\": check username and password (chan_sip answers 403 to \
             a wrong one); with chan_pjsip, the ACLs, and max_contacts with remove_existing = yes \
             in the aor. Reload the PBX's file if it is new"
        ),
        404 => format!(
            "the PBX does not know user \"{user}\": check username; chan_pjsip needs an aor of \
             that name. Reload the PBX's file if it is new"
        ),
        405 | 501 => "that address is not a registrar".to_owned(),
        _ => "check the registrar's address and user".to_owned(),
    }
}

/// The PBX sees another address than the one that we announce.
pub fn address_differs(ours: IpAddr, seen: IpAddr) -> String {
    format!("the PBX sees us at {seen}, but we announce {ours}: audio may go nowhere")
}

/// A closed port of Asterisk's HTTP server.
pub fn http_refused(address: SocketAddr) -> String {
    format!(
        "{address}: connection refused: Asterisk is down or its HTTP server is off; set enabled = \
         yes and bindaddr in http.conf, compare bindport with url, and load the file: module reload \
         http"
    )
}

/// Number of open files that this many calls need. A call has two RTP sockets, one to its AI and
/// perhaps a recording; ARI mode also makes short-lived requests. There may be 64 connections to
/// the HTTP server, and 256 for SIP over TCP.
pub fn descriptors_for(calls: usize) -> u64 {
    calls as u64 * 5 + 500
}
