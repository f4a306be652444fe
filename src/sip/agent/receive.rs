//! The path of a received message: source check, parsing, transaction matching, dispatch.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::sip::agent::refusal::Refusal;
use crate::sip::agent::servers::{Kind, cancelled_key, server_key};
use crate::sip::agent::{ALLOW, Agent, CallEnd, CallKey, Event, Purpose, TimerKey, client_key};
use crate::sip::flow::{Flow, Transport};
use crate::sip::header::{find_param, option_tags};
use crate::sip::message::{Fault, Message, Unreadable};
use crate::sip::multipart;
use crate::sip::reader::is_filler;
use crate::sip::transaction::{Due, State};

/// Option tags accepted in Require. 100rel needs no code: if it is required, we send no provisional
/// response other than 100, so none has to be sent reliably.
const SUPPORTED: [&str; 2] = ["timer", "100rel"];

/// Methods of which a second copy would change a call again.
const CHANGES_A_CALL: [&str; 4] = ["INVITE", "UPDATE", "INFO", "BYE"];

impl Agent {
    pub(super) fn on_message(&mut self, now: Instant, flow: Flow, data: &[u8]) {
        let ip = flow.remote.ip();
        if !self.knows(ip) {
            self.counts.strangers += 1;
            return;
        }
        if data.iter().all(|b| is_filler(*b)) {
            return; // keep-alive
        }
        let (mut message, fault) = match Message::parse(data) {
            Ok(parsed) => parsed,
            Err(Unreadable(why)) => {
                self.counts.unreadable += 1;
                return self.event(Event::Unreadable { source: flow.remote, why });
            }
        };
        if message.code().is_none() {
            message.complete_via(flow.remote);
        }
        if matches!(message.cseq(), Some((_, "INVITE" | "UPDATE" | "ACK"))) {
            multipart::unwrap(&mut message);
        }
        let flow = reply_flow(flow, &message);
        if message.code().is_none() {
            self.heard_from(ip, None);
        }
        match (message.code().is_some(), fault) {
            (true, None) => self.on_response(now, flow, message),
            (true, Some(fault)) => {
                self.counts.unreadable += 1;
                self.event(Event::Unreadable { source: flow.remote, why: fault.reason });
            }
            (false, Some(fault)) => self.refuse_faulty(flow, &message, &fault),
            (false, None) => self.on_request(now, flow, message),
        }
    }

    /// Answers the request at which a stream ended, if that is possible.
    pub(super) fn on_broken(&mut self, flow: Flow, head: &[u8], why: &'static str) {
        if !self.knows(flow.remote.ip()) {
            self.counts.strangers += 1;
            return;
        }
        match Message::parse(head) {
            Ok((mut request, _)) if request.code().is_none() => {
                request.complete_via(flow.remote);
                self.refuse_faulty(flow, &request, &Fault { code: 400, reason: why });
            }
            _ => {
                self.counts.unreadable += 1;
                self.event(Event::Unreadable { source: flow.remote, why });
            }
        }
    }

    fn on_response(&mut self, now: Instant, flow: Flow, response: Message) {
        let branch = response.top_via().and_then(|v| v.branch().map(str::to_owned));
        let method = response.cseq().map(|(_, m)| m.to_owned()).unwrap_or_default();
        let key = client_key(branch.as_deref().unwrap_or(""), &method);
        let code = response.code().unwrap_or(0);
        // only from the address the request was sent to: a guessed branch must not be enough
        let entry = self.clients.get_mut(&key).filter(|e| e.flow.remote.ip() == flow.remote.ip());
        let Some(entry) = entry else {
            self.counts.stray_responses += 1;
            return;
        };
        let (purpose, cseq, asked) = (entry.purpose, entry.cseq, entry.flow);
        let shown = entry.tx.on_response(now, code);
        let is_completed = entry.tx.state == State::Completed;
        self.arm(TimerKey::Client(key.clone()));
        if method == "INVITE" && code >= 300 {
            self.ack_refusal(&key, &response);
        }
        self.heard_from(asked.remote.ip(), Some(asked.remote.port()));
        if !shown {
            self.counts.retransmissions += 1;
            return;
        }
        match purpose {
            Purpose::Register(id) => {
                let branch = branch.as_deref().unwrap_or("");
                self.on_register_response(now, id, asked, branch, &response);
            }
            Purpose::Keepalive(id) => self.on_keepalive_response(now, id, &response),
            Purpose::Invite(call) => self.on_invite_response(now, call, cseq, &response),
            Purpose::Reinvite(call) => self.on_reinvite_response(now, call, cseq, &response),
            Purpose::Update(call) => self.on_update_response(now, call, &response),
            Purpose::Bye(call) if code >= 200 => self.on_bye_response(now, call, &response),
            Purpose::Info(call) if code >= 200 => {
                self.event(Event::InfoAnswered { call, accepted: code < 300 });
            }
            Purpose::Refer(call) => self.on_refer_response(now, call, cseq, &response),
            Purpose::Bye(_) | Purpose::Info(_) | Purpose::Other => {}
        }
        if is_completed && matches!(purpose, Purpose::Keepalive(_)) {
            // a response to OPTIONS is hardly ever resent, and with OPTIONS every 2 s completed
            // transactions would pile up
            self.clients.remove(&key);
        }
    }

    pub(super) fn on_client_timeout(&mut self, now: Instant, key: &str) {
        let Some(entry) = self.clients.get_mut(key) else { return };
        let (due, purpose, flow) = (entry.tx.on_timeout(now), entry.purpose, entry.flow);
        let cseq = entry.cseq;
        if due == Due::Resend {
            let data = entry.tx.request.clone();
            return self.send(flow, data);
        }
        if entry.tx.state == State::Terminated {
            self.clients.remove(key);
        }
        if due != Due::TimedOut {
            return;
        }
        match purpose {
            Purpose::Register(id) => self.on_register_timeout(now, id),
            Purpose::Invite(call) => self.on_invite_timeout(call),
            Purpose::Reinvite(call) | Purpose::Update(call) => {
                self.on_refresh_failed(now, call, 408)
            }
            Purpose::Bye(call) => self.end_call(call, CallEnd::HungUp),
            Purpose::Info(call) => self.event(Event::InfoAnswered { call, accepted: false }),
            Purpose::Refer(call) => self.on_refer_timeout(call, cseq),
            Purpose::Keepalive(_) | Purpose::Other => {}
        }
    }

    pub(super) fn on_server_timeout(&mut self, now: Instant, key: &str) {
        let Some(entry) = self.servers.find_mut(key) else { return };
        if entry.tx.on_timeout(now) == Due::Resend
            && let Some(data) = entry.tx.response().map(<[u8]>::to_vec)
        {
            let flow = entry.flow;
            return self.send(flow, data);
        }
        if entry.tx.state == State::Terminated {
            self.servers.remove(key);
        }
    }

    fn on_request(&mut self, now: Instant, flow: Flow, request: Message) {
        let key = server_key(&request);
        let method = request.method().unwrap_or("").to_owned();
        if method == "ACK" {
            return self.on_ack(now, flow, &key, &request);
        }
        if let Some(entry) = self.servers.find(&key) {
            self.counts.retransmissions += 1;
            if let Some(data) = entry.tx.on_retransmission().map(<[u8]>::to_vec) {
                self.send(flow, data);
            }
            return;
        }
        let ip = flow.remote.ip();
        let of_a_call = request.to().is_some_and(|to| to.tag().is_some()) || method == "CANCEL";
        if !of_a_call && self.was_at(ip) && self.accounts_at(ip).next().is_none() {
            self.counts.strangers += 1; // the address serves the calls that it still has
            return;
        }
        let kind = self.kind(flow, &request);
        let room = self.has_room(kind);
        if !room && method != "BYE" {
            let busy = Refusal::overload("too many SIP requests are open");
            return self.refuse_stateless(flow, &request, &busy);
        }
        let first = self.servers.insert(&key, &request, flow, kind);
        match first {
            true => self.dispatch(now, flow, &key, &method, request),
            false => {
                let why = "the same request has arrived over another path";
                self.refuse(now, &key, &request, &Refusal::new(482, "Loop Detected", why));
            }
        }
        if !room || kind == Kind::Brief {
            self.forget(&key);
        }
    }

    /// The kind of transaction that a request needs.
    fn kind(&self, flow: Flow, request: &Message) -> Kind {
        let method = request.method().unwrap_or_default();
        match request.to().is_some_and(|to| to.tag().is_some()) {
            true if CHANGES_A_CALL.contains(&method) => {
                self.find_dialog(request, flow).map_or(Kind::Brief, Kind::InCall)
            }
            false if method == "INVITE" => Kind::NewCall,
            _ => Kind::Brief,
        }
    }

    /// True if there is room for a transaction. Refused INVITEs make room for new ones.
    fn has_room(&mut self, kind: Kind) -> bool {
        if kind == Kind::NewCall && !self.servers.has_room(kind) {
            self.servers.oldest_refused().iter().for_each(|key| self.forget(key));
        }
        self.servers.has_room(kind)
    }

    /// Removes the server transaction of a request that has been answered, with its timer.
    pub(super) fn forget(&mut self, key: &str) {
        let timer = TimerKey::Server(key.to_owned());
        if let Some(at) = self.owner_timeout(&timer) {
            self.timers.remove(&(at, timer));
        }
        self.servers.remove(key);
    }

    fn dispatch(&mut self, now: Instant, flow: Flow, key: &str, method: &str, request: Message) {
        if method == "CANCEL" {
            return self.on_cancel(now, key, &request);
        }
        if request.known_method().is_none() {
            let why = format!("unknown method \"{method}\"");
            let refusal = Refusal::new(501, "Not Implemented", why);
            return self.refuse(now, key, &request, &refusal.with("Allow", ALLOW));
        }
        if !ALLOW.split(", ").any(|m| m == method) {
            let refusal = Refusal::new(405, "Method Not Allowed", "unsupported method");
            return self.refuse(now, key, &request, &refusal.with("Allow", ALLOW));
        }
        let required = option_tags(request.all("Require"));
        let unknown: Vec<String> =
            required.into_iter().filter(|t| !SUPPORTED.contains(&t.as_str())).collect();
        if !unknown.is_empty() {
            let unknown = unknown.join(", ");
            let why = format!("it requires the unsupported extension {unknown}");
            let refusal = Refusal::new(420, "Bad Extension", why).with("Unsupported", unknown);
            return self.refuse(now, key, &request, &refusal);
        }
        match request.to().and_then(|to| to.tag().map(str::to_owned)) {
            Some(tag) => self.on_in_dialog(now, flow, key, request, tag),
            None => self.on_out_of_dialog(now, flow, key, request),
        }
    }

    fn on_ack(&mut self, now: Instant, flow: Flow, key: &str, request: &Message) {
        if let Some(entry) = self.servers.find_mut(key)
            && entry.tx.state != State::Accepted
        {
            entry.tx.on_ack(now);
            return self.arm(TimerKey::Server(key.to_owned()));
        }
        let refusal_tag = self.random.tag(key);
        let call = self.find_dialog(request, flow);
        match (call, request.to()) {
            (Some(call), _) => self.on_dialog_ack(now, call, request),
            // an INVITE that was refused without a transaction
            (None, Some(to)) if to.tag() == Some(&*refusal_tag) => {}
            (None, _) => self.report(flow.remote, request, None, "there is no such call"),
        }
    }

    fn on_cancel(&mut self, now: Instant, key: &str, request: &Message) {
        let Some(entry) = self.servers.find(&cancelled_key(request)) else {
            return self.refuse(now, key, request, &Refusal::no_such_call());
        };
        let call = entry.call;
        self.ok(now, key, request);
        if let Some(call) = call {
            self.cancelled(now, call);
        }
    }

    /// Returns the call whose dialog a request belongs to, if it came from an address of its PBX.
    pub(super) fn find_dialog(&self, request: &Message, flow: Flow) -> Option<CallKey> {
        let tag = request.to()?.tag()?.to_owned();
        let key = *self.dialogs.get(&(request.call_id().to_owned(), tag))?;
        let call = self.calls.get(&key)?;
        let ip = flow.remote.ip();
        let same = call.flow.remote.ip() == ip || call.account.is_some_and(|id| self.is_of(id, ip));
        same.then_some(key)
    }
}

/// Returns the destination of the response to a message: its source, but with the port of the Via
/// if that has no rport (RFC 3261 §18.2.2, RFC 3581 §4). The address is always the source's.
fn reply_flow(mut flow: Flow, message: &Message) -> Flow {
    if message.code().is_none()
        && flow.transport == Transport::Udp
        && let Some(via) = message.top_via()
        && find_param(&via.params, "rport").is_none()
    {
        flow.remote.set_port(via.port.unwrap_or(5060));
    }
    flow
}
