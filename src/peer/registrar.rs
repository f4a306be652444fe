//! A small registrar: as much of a PBX as the demo and the tests need.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::digest::{Algorithm, Challenge, Credentials, Qop, Signed, verify};
use crate::sip::header::{NameAddr, parse_number};
use crate::sip::message::Message;

/// A registrar for a single user.
pub struct Registrar {
    username: String,
    password: String,
    /// The challenge sent with every 401; its nonce never changes.
    challenge: Challenge,
    /// The contact registered at present.
    pub contact: Option<String>,
}

impl Registrar {
    /// Challenges like Asterisk's chan_pjsip: MD5 with qop=auth.
    pub fn new(username: &str, password: &str, nonce: String) -> Registrar {
        let challenge = Challenge {
            realm: "asterisk".to_owned(),
            nonce,
            opaque: None,
            algorithm: Algorithm::Md5,
            qop: Qop::Auth,
            stale: false,
        };
        Registrar {
            username: username.to_owned(),
            password: password.to_owned(),
            challenge,
            contact: None,
        }
    }

    /// Returns the response to a REGISTER or OPTIONS, and `None` for anything else.
    pub fn answer(&mut self, request: &Message) -> Option<Message> {
        match request.method()? {
            "OPTIONS" => Some(Message::response(request, 200, "OK", "registrar")),
            "REGISTER" => Some(self.register(request)),
            _ => None,
        }
    }

    fn register(&mut self, request: &Message) -> Message {
        let signed = Signed { method: "REGISTER", uri: request.uri(), body: "" };
        let who = Credentials { username: &self.username, password: &self.password };
        let authorization = request.get("Authorization").unwrap_or("");
        if !verify(&self.challenge, authorization, signed, who) {
            let Challenge { realm, nonce, .. } = &self.challenge;
            let ask =
                format!("Digest realm=\"{realm}\", nonce=\"{nonce}\", algorithm=MD5, qop=\"auth\"");
            return Message::response(request, 401, "Unauthorized", "registrar")
                .with("WWW-Authenticate", ask);
        }
        let expires = request.get("Expires").and_then(parse_number).unwrap_or(120);
        let contact = request.get("Contact").and_then(NameAddr::parse).map(|c| c.uri);
        let mut response = Message::response(request, 200, "OK", "registrar");
        if request.get("Contact").is_some() {
            self.contact = contact.filter(|_| expires > 0); // without a Contact, it is a query
        }
        if let Some(contact) = &self.contact {
            response.push("Contact", format!("<{contact}>;expires={expires}"));
        }
        response
    }
}
