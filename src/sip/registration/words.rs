//! The settings of a registration, and its outputs.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::IpAddr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

#[derive(Debug, Clone)]
pub struct Settings {
    /// Request-URI of REGISTER, as in `sip:pbx.example:5060`.
    pub registrar_uri: String,
    pub auth_username: String,
    pub password: SecretString,
    /// If set, only challenges for this realm are answered.
    pub realm: Option<String>,
    pub expires_s: u32,
    /// Interval between OPTIONS to the registrar; zero disables them.
    pub keepalive: Duration,
}

impl Settings {
    /// True if a registration with these settings need not be made again.
    pub fn is_same(&self, other: &Settings) -> bool {
        let of = |s: &Settings| {
            let names = (s.registrar_uri.clone(), s.auth_username.clone(), s.realm.clone());
            (names, s.password.expose_secret().to_owned(), s.expires_s, s.keepalive)
        };
        of(self) == of(other)
    }
}

/// The status of the registration, for the log and the rest of the program. Reported only when it
/// changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Registered {
        expires_s: u32,
    },
    /// The registrar refused the REGISTER; the next attempt follows after `retry`.
    Refused {
        code: u16,
        hint: String,
        retry: Duration,
    },
    /// The registrar's name cannot be resolved, or it answers with an error or not at all.
    Failing {
        why: String,
    },
    /// The registrar answered before and has stopped answering.
    Lost {
        why: &'static str,
        /// True if it has proved that it is not there: an ICMP error, or a refused or reset TCP
        /// connection. Mere silence may be a pause of the network.
        gone: bool,
    },
    /// The address does not answer REGISTER. Reported once per address.
    Silent,
    /// Another device is registered as the same user.
    Conflict {
        contact: String,
    },
    Unregistered,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Register {
        /// `None` asks for the registered contacts and has no Contact (RFC 3261 §10.2.3).
        expires_s: Option<u32>,
        /// Header fields for our credentials.
        authorization: Vec<(&'static str, String)>,
    },
    Options,
    /// Resolve the registrar's name again.
    Resolve,
    /// Send further REGISTERs to the next address of the name.
    NextAddress,
    /// The address does not answer: report it, and use the next one.
    Silent,
    Changed(Status),
    /// The registrar sees us at another address than that of our contact. Reported once per
    /// address.
    AddressDiffers {
        ours: IpAddr,
        seen: IpAddr,
    },
}
