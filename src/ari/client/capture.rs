//! Copies the events, requests and responses of captured calls to their captures. Owns no I/O.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::ari::api::CallKey;
use crate::ari::client::{CallLink, Source};
use crate::ari::request::{Method, Outcome, RestRequest};
use crate::capture::tap::Tap;
use crate::capture::{Direction, Kind, redact};

/// A capture of the call that a request belongs to, and the request's name.
pub(super) struct Captured {
    tap: Tap,
    between: (SocketAddr, SocketAddr),
    name: String,
    /// True if the response has the value of a secret variable.
    is_secret: bool,
}

impl Source {
    pub(super) fn capture(&mut self, call: CallKey, tap: Tap) {
        if let Some(link) = self.calls.get_mut(&call) {
            link.tap = Some(tap);
            self.captured.push(call);
        }
    }

    /// The call that this text names, if it is captured: by its channel, or by our id of the call,
    /// which is a part of the ids of all its other objects.
    fn captured_call(&mut self, text: &str) -> Option<&CallLink> {
        let calls = &self.calls;
        let is_open = |link: &CallLink| link.tap.as_ref().is_some_and(Tap::is_open);
        self.captured.retain(|call| calls.get(call).is_some_and(is_open));
        let mut links = self.captured.iter().filter_map(|call| calls.get(call));
        links.find(|link| text.contains(&link.channel) || text.contains(&link.id))
    }

    /// Our address, which is not known, and that of the PBX.
    fn between(&self) -> (SocketAddr, SocketAddr) {
        (
            (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
            (self.pbx_ip, self.config.pbx.target.port).into(),
        )
    }

    /// Copies an event.
    pub(super) fn capture_event(&mut self, text: &str) {
        if self.captured.is_empty() {
            return;
        }
        let between = self.between();
        if let Some(CallLink { tap: Some(tap), .. }) = self.captured_call(text) {
            tap.message(Kind::Ari, Direction::Received, between, text.as_bytes());
        }
    }

    /// Copies a request, and returns where its response is to be copied to.
    pub(super) fn capture_request(&mut self, request: &RestRequest) -> Option<Captured> {
        if self.captured.is_empty() {
            return None;
        }
        let wire = request.wire();
        let method = match wire.method {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
        };
        let variable = wire.query.iter().find(|(name, _)| *name == "variable");
        let is_secret = variable.is_some_and(|(_, value)| redact::is_secret(value));
        let query: serde_json::Map<String, Value> =
            wire.query.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let body = wire.body.and_then(|body| serde_json::from_str::<Value>(&body).ok());
        let name = format!("{method} {}", wire.path);
        let text = json!({ "request": name, "query": query, "body": body }).to_string();
        let between = self.between();
        let tap = self.captured_call(&text)?.tap.clone()?;
        tap.message(Kind::Ari, Direction::Sent, between, text.as_bytes());
        Some(Captured { tap, between, name, is_secret })
    }
}

impl Captured {
    /// Copies the response to the request.
    pub fn response(&self, outcome: &Outcome) {
        let text = match outcome {
            Outcome::Answered { status, body } => {
                let body = match self.is_secret {
                    true => "removed".into(),
                    false => serde_json::from_str::<Value>(body).unwrap_or_default(),
                };
                json!({ "response": self.name, "status": status, "body": body })
            }
            outcome => json!({ "response": self.name, "error": outcome.text() }),
        };
        let text = text.to_string();
        self.tap.message(Kind::Ari, Direction::Received, self.between, text.as_bytes());
    }
}
