//! Refusals of requests: their responses, and the events by which they are logged and counted.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::Instant;

use crate::sip::agent::servers::{Kind, server_key};
use crate::sip::agent::{ALLOW, Agent, Event, PRODUCT, Refused};
use crate::sip::bytes::readable;
use crate::sip::flow::Flow;
use crate::sip::header::NameAddr;
use crate::sip::message::{Fault, Message};
use crate::sip::session_timer::MIN_SE;

/// A response that refuses a request.
#[derive(Debug)]
pub(super) struct Refusal {
    code: u16,
    reason: &'static str,
    headers: Vec<(&'static str, String)>,
    /// The cause, for the log.
    why: String,
}

impl Refusal {
    pub fn new(code: u16, reason: &'static str, why: impl Into<String>) -> Refusal {
        Refusal { code, reason, headers: Vec::new(), why: why.into() }
    }

    /// Adds a header field that explains the refusal to the sender.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Refusal {
        self.headers.push((name, value.into()));
        self
    }

    /// A request for a dialog that does not exist, or whose call is ending.
    pub fn no_such_call() -> Refusal {
        Refusal::new(481, "Call/Transaction Does Not Exist", "there is no such call")
    }

    /// An offer while ours is open, or while our answer is awaited (RFC 3261 §14.2).
    pub fn pending() -> Refusal {
        Refusal::new(491, "Request Pending", "our own offer is still open")
    }

    /// An offer while one by the peer is open (RFC 3261 §14.2).
    pub fn too_early() -> Refusal {
        let why = "an earlier INVITE or UPDATE is still open";
        Refusal::new(500, "Server Internal Error", why).with("Retry-After", "3")
    }

    pub fn overload(why: &str) -> Refusal {
        Refusal::new(503, "Service Unavailable", why).with("Retry-After", "5")
    }

    pub fn interval_too_small() -> Refusal {
        let why = format!("its Session-Expires is below {MIN_SE} s");
        Refusal::new(422, "Session Interval Too Small", why).with("Min-SE", MIN_SE.to_string())
    }

    fn response(&self, request: &Message, tag: &str) -> Message {
        let mut response = Message::response(request, self.code, self.reason, tag);
        for (name, value) in &self.headers {
            response.push(name, value.as_str());
        }
        response.with("Server", PRODUCT)
    }
}

impl Agent {
    /// Refuses a request in its transaction. An initial INVITE has none any more afterwards: a
    /// retransmission is refused in the same way, with the same tag, and its ACK is ignored.
    pub(super) fn refuse(&mut self, now: Instant, key: &str, request: &Message, refusal: &Refusal) {
        let Some(entry) = self.servers.find(key) else { return };
        let (flow, kind) = (entry.flow, entry.kind);
        if kind == Kind::NewCall {
            self.forget(key);
            return self.refuse_stateless(flow, request, refusal);
        }
        self.report(flow.remote, request, Some(refusal.code), &refusal.why);
        let tag = self.random.tag(key);
        self.respond(now, key, &refusal.response(request, &tag));
    }

    /// Refuses a request without keeping state.
    pub(super) fn refuse_stateless(&mut self, flow: Flow, request: &Message, refusal: &Refusal) {
        self.report(flow.remote, request, Some(refusal.code), &refusal.why);
        let tag = self.random.tag(&server_key(request));
        self.send(flow, refusal.response(request, &tag).to_bytes());
    }

    /// Answers a malformed request without keeping state, if that is possible.
    pub(super) fn refuse_faulty(&mut self, flow: Flow, message: &Message, fault: &Fault) {
        let code = message.can_be_answered().then_some(fault.code);
        self.report(flow.remote, message, code, fault.reason);
        if let Some(code) = code {
            let reason = if code == 400 { "Bad Request" } else { fault.reason };
            let warning = format!("399 trunkless \"{}\"", fault.reason);
            let refusal = Refusal::new(code, reason, fault.reason).with("Warning", warning);
            let tag = self.random.tag(&server_key(message));
            self.send(flow, refusal.response(message, &tag).to_bytes());
        }
    }

    /// Reports a request that was refused, or dropped if there is no `code`.
    pub(super) fn report(
        &mut self,
        source: SocketAddr,
        request: &Message,
        code: Option<u16>,
        why: &str,
    ) {
        let from = request.from().as_ref().and_then(NameAddr::number).unwrap_or_default();
        self.event(Event::Refused(Box::new(Refused {
            method: request.known_method(),
            code,
            why: why.to_owned(),
            source,
            sip_call_id: readable(request.call_id()),
            from_number: from,
        })));
    }

    /// Sends a 200 with these header fields.
    pub(super) fn ok_with(
        &mut self,
        now: Instant,
        key: &str,
        request: &Message,
        headers: &[(&str, &str)],
    ) {
        let tag = self.random.tag(key);
        let mut response = Message::response(request, 200, "OK", &tag);
        for (name, value) in headers {
            response.push(name, *value);
        }
        self.respond(now, key, &response.with("Server", PRODUCT));
    }

    pub(super) fn ok(&mut self, now: Instant, key: &str, request: &Message) {
        self.ok_with(now, key, request, &[("Allow", ALLOW)]);
    }
}
