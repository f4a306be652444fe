//! Requests of ours within calls (BYE, re-INVITE, UPDATE, INFO), and the calls that we make.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::Instant;

use secrecy::ExposeSecret;

use crate::sip::agent::accounts::contact_uri;
use crate::sip::agent::{
    ALLOW, Agent, Call, CallAuth, CallEnd, CallKey, CallState, ClientEntry, Dial, Event, PRODUCT,
    Purpose, TimerKey, client_key,
};
use crate::sip::dialog::Dialog;
use crate::sip::digest::{Challenge, Credentials, Session, Signed};
use crate::sip::header::quote;
use crate::sip::message::Message;
use crate::sip::sdp::{self, Direction, Local};
use crate::sip::session_timer::SessionTimer;
use crate::sip::transaction;
use crate::sip::uri::escape_user;

impl Agent {
    pub(super) fn hangup(&mut self, now: Instant, key: CallKey, q850: u16, text: &str) {
        let reason = format!("Q.850;cause={q850};text={}", quote(text));
        let Some(call) = self.calls.get_mut(&key) else { return };
        match call.state {
            CallState::Offered => self.reject(now, key, 480, "Temporarily Unavailable", None),
            CallState::Dialling => self.cancel(now, key),
            CallState::Up if call.awaiting_ack.is_some() => {
                call.state = CallState::Ending;
                call.bye_reason = Some(reason);
            }
            CallState::Up => self.send_bye(now, key, &reason),
            CallState::Cancelling | CallState::Ending => {}
        }
    }

    pub(super) fn send_bye(&mut self, now: Instant, key: CallKey, reason: &str) {
        if let Some(call) = self.calls.get_mut(&key) {
            call.state = CallState::Ending;
        }
        self.send_in_dialog(now, key, "BYE", Purpose::Bye(key), |request, _| {
            request.push("Reason", reason);
        });
    }

    pub(super) fn on_bye_done(&mut self, key: CallKey, _code: u16) {
        self.end_call(key, CallEnd::HungUp);
    }

    pub(super) fn send_digit(&mut self, now: Instant, key: CallKey, digit: char) {
        if self.calls.get(&key).is_none_or(|c| c.state != CallState::Up) {
            return;
        }
        self.send_in_dialog(now, key, "INFO", Purpose::Other, |request, _| {
            request.push("Content-Type", "application/dtmf-relay");
            request.body = format!("Signal={digit}\r\nDuration=160\r\n").into_bytes();
        });
    }

    /// Refreshes the session: UPDATE where the peer takes it, else a re-INVITE with the same SDP.
    pub(super) fn refresh(&mut self, now: Instant, key: CallKey) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        call.refreshing = true;
        if call.peer_allows_update {
            self.send_in_dialog(now, key, "UPDATE", Purpose::Update(key), |request, call| {
                request.push("Contact", call.contact.clone());
                request.push("Supported", "timer");
                call.session_timer.iter().for_each(|t| t.add_to_request(request));
            });
        } else {
            self.send_reinvite(now, key);
        }
    }

    pub(super) fn change_direction(&mut self, now: Instant, key: CallKey, direction: Direction) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        if !call.may_refresh() {
            return;
        }
        if let Some(local) = &mut call.local {
            local.version += 1;
            let codecs = call.dial.as_ref().map_or(sdp::all_codecs(), |d| &d.codecs[..]);
            let text = sdp::offer(local, codecs);
            call.sdp = match direction {
                Direction::SendRecv => text,
                Direction::SendOnly => text.replace("a=sendrecv", "a=sendonly"),
                Direction::RecvOnly => text.replace("a=sendrecv", "a=recvonly"),
                Direction::Inactive => text.replace("a=sendrecv", "a=inactive"),
            };
        }
        call.refreshing = true;
        self.send_reinvite(now, key);
    }

    fn send_reinvite(&mut self, now: Instant, key: CallKey) {
        self.send_in_dialog(now, key, "INVITE", Purpose::Reinvite(key), |request, call| {
            request.push("Contact", call.contact.clone());
            request.push("Allow", ALLOW);
            request.push("Supported", "timer");
            call.session_timer.iter().for_each(|t| t.add_to_request(request));
            request.push("Content-Type", "application/sdp");
            request.body = call.sdp.clone().into_bytes();
        });
    }

    fn send_in_dialog(
        &mut self,
        now: Instant,
        key: CallKey,
        method: &str,
        purpose: Purpose,
        fill: impl FnOnce(&mut Message, &Call),
    ) {
        let Some((local_ip, flow)) = self.calls.get(&key).map(|c| (c.local_ip, c.flow)) else {
            return;
        };
        let (via, branch) = self.via(local_ip, flow.transport);
        let Some(call) = self.calls.get_mut(&key) else { return };
        let mut request = call.dialog.request(method, via, None).with("User-Agent", PRODUCT);
        fill(&mut request, call);
        self.send_request(now, flow, branch, &request, purpose);
    }

    pub(super) fn on_update_response(&mut self, now: Instant, key: CallKey, response: &Message) {
        match response.code().unwrap_or(0) {
            0..200 => {}
            200..300 => self.refreshed(now, key, response),
            code => self.on_refresh_failed_with(now, key, code, Some(response)),
        }
    }

    pub(super) fn on_reinvite_response(
        &mut self,
        now: Instant,
        key: CallKey,
        cseq: u32,
        response: &Message,
    ) {
        let Some(from) = self.calls.get(&key).map(|c| c.flow.remote.ip()) else { return };
        match response.code().unwrap_or(0) {
            0..200 => {}
            200..300 => {
                if !self.ack_again(key, cseq) {
                    self.send_ack(key, cseq);
                    self.refreshed(now, key, response);
                    let account = self.calls.get(&key).and_then(|c| c.account);
                    if let Ok(remote) = self.read_sdp(&response.body, account, from) {
                        self.event(Event::Media { call: key, remote });
                    }
                }
            }
            code => self.on_refresh_failed_with(now, key, code, Some(response)),
        }
    }

    fn refreshed(&mut self, now: Instant, key: CallKey, response: &Message) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        call.refreshing = false;
        call.dialog.refresh_target(response);
        match SessionTimer::from_response(response, now) {
            Some(timer) => call.session_timer = Some(timer),
            None => call.session_timer.iter_mut().for_each(|t| t.refreshed(now)),
        }
        self.arm(TimerKey::Call(key));
    }

    pub(super) fn on_refresh_failed(&mut self, now: Instant, key: CallKey, code: u16) {
        self.on_refresh_failed_with(now, key, code, None);
    }

    fn on_refresh_failed_with(
        &mut self,
        now: Instant,
        key: CallKey,
        code: u16,
        response: Option<&Message>,
    ) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        if call.state != CallState::Up {
            return;
        }
        call.refreshing = false;
        match code {
            // the peer has no such call any more (RFC 3261 §12.2.1.2)
            408 | 481 => {
                self.send_bye(now, key, "Q.850;cause=102;text=\"session refresh failed\"");
                self.end_call(key, CallEnd::Lost);
            }
            // only a higher minimum is a reason to ask again at once: else both could go on for
            // ever
            422 if call.raise_session_timer(response) => self.refresh(now, key),
            // no UPDATE after all: the timer, not moved on, asks again at once, by re-INVITE
            405 | 501 if call.peer_allows_update => {
                call.peer_allows_update = false;
                self.refresh(now, key);
            }
            // glare or a refusal: the session ends at its time if nobody refreshes it
            _ => {
                if let Some(timer) = &mut call.session_timer {
                    timer.postpone(now);
                }
                self.arm(TimerKey::Call(key));
            }
        }
    }

    pub(super) fn dial(&mut self, now: Instant, dial: Box<Dial>) {
        let key = dial.call;
        if !self.dialled.contains(&dial.flow.remote.ip()) {
            self.dialled.push(dial.flow.remote.ip());
        }
        let own = SocketAddr::new(dial.local_ip, self.config_port);
        let contact = contact_uri(&dial.user, own, dial.flow.transport);
        let from = format!("<sip:{}@{own}>", escape_user(&dial.user));
        let (call_id, tag) = (format!("{}@trunkless", self.random.token()), self.random.token());
        let dialog = Dialog::to_invite(call_id, from, tag, &dial.uri);
        self.dialogs.insert((dialog.call_id.clone(), dialog.local_tag.clone()), key);
        let local =
            Local { rtp: dial.rtp, session_id: self.random.range(1 << 20, 1 << 40), version: 1 };
        let auth = dial.password.clone().map(|password| CallAuth {
            user: dial.user.clone(),
            password,
            tries: 0,
            session: None,
        });
        let call = Call {
            state: CallState::Dialling,
            account: None,
            flow: dial.flow,
            dialog,
            contact: format!("<{contact}>"),
            local_ip: dial.local_ip,
            invite: None,
            awaiting_ack: None,
            late_offer: false,
            offer: None,
            bye_reason: None,
            sdp: sdp::offer(&local, &dial.codecs),
            local: Some(local),
            session_timer: None,
            peer_allows_update: false,
            refreshing: false,
            auth,
            dial: Some(dial),
            last_ack: None,
        };
        self.calls.insert(key, call);
        self.send_invite(now, key);
    }

    fn send_invite(&mut self, now: Instant, key: CallKey) {
        let cnonce = self.random.token();
        self.send_in_dialog(now, key, "INVITE", Purpose::Invite(key), |request, call| {
            request.push("Contact", call.contact.clone());
            request.push("Allow", ALLOW);
            request.push("Supported", "timer");
            for (name, value) in call.dial.iter().flat_map(|d| &d.headers) {
                request.push(name, value.clone());
            }
            if let Some(auth) = &call.auth
                && let Some((header, session)) = auth.session.clone()
            {
                let signed = Signed { method: "INVITE", uri: request.uri(), body: &call.sdp };
                let who =
                    Credentials { username: &auth.user, password: auth.password.expose_secret() };
                let value = { session }.authorize(signed, who, &cnonce);
                request.push(header, value);
            }
            request.push("Content-Type", "application/sdp");
            request.body = call.sdp.clone().into_bytes();
        });
    }

    pub(super) fn on_invite_response(
        &mut self,
        now: Instant,
        key: CallKey,
        cseq: u32,
        response: &Message,
    ) {
        let code = response.code().unwrap_or(0);
        let Some(call) = self.calls.get_mut(&key) else { return };
        let from = call.flow.remote.ip();
        let cancelling = call.state == CallState::Cancelling;
        match code {
            0..200 => {
                if cancelling {
                    self.send_cancel(now, key);
                } else if code > 100 {
                    self.event(Event::Progress { call: key, code });
                }
            }
            200..300 => {
                if self.ack_again(key, cseq) {
                    return;
                }
                let Some(call) = self.calls.get_mut(&key) else { return };
                call.dialog.on_response(response);
                call.state = CallState::Up;
                call.peer_allows_update = response.list("Allow").iter().any(|m| m == "UPDATE");
                call.session_timer = SessionTimer::from_response(response, now);
                self.send_ack(key, cseq);
                self.arm(TimerKey::Call(key));
                match self.read_sdp(&response.body, None, from) {
                    _ if cancelling => self.send_bye(now, key, "Q.850;cause=16"),
                    Ok(remote) => self.event(Event::Answered { call: key, remote }),
                    Err(_) => {
                        self.send_bye(now, key, "Q.850;cause=88");
                        self.end_call(key, CallEnd::BadAnswer);
                    }
                }
            }
            401 | 407 if !cancelling && self.take_challenge(key, response) => {
                self.send_invite(now, key)
            }
            _ => {
                let reason = match &response.start {
                    crate::sip::message::Start::Response { reason, .. } => reason.clone(),
                    crate::sip::message::Start::Request { .. } => String::new(),
                };
                self.end_call(key, CallEnd::Refused { code, reason });
            }
        }
    }

    pub(super) fn on_invite_timeout(&mut self, key: CallKey) {
        let reason = "no answer to the INVITE".to_owned();
        self.end_call(key, CallEnd::Refused { code: 408, reason });
    }

    /// True when the challenge can be answered and has not been refused before.
    fn take_challenge(&mut self, key: CallKey, response: &Message) -> bool {
        let Some(auth) = self.calls.get_mut(&key).and_then(|c| c.auth.as_mut()) else {
            return false;
        };
        let (ask, answer) = match response.code() {
            Some(407) => ("Proxy-Authenticate", "Proxy-Authorization"),
            _ => ("WWW-Authenticate", "Authorization"),
        };
        auth.tries += 1;
        match Challenge::best(response.all(ask), None) {
            Ok(challenge) if auth.tries <= 2 => {
                auth.session = Some((answer, Session::new(challenge)));
                true
            }
            _ => false,
        }
    }

    fn cancel(&mut self, now: Instant, key: CallKey) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        call.state = CallState::Cancelling;
        self.send_cancel(now, key);
    }

    /// Before the first provisional answer a CANCEL could overtake its INVITE (RFC 3261 §9.1): then
    /// it waits for that.
    fn send_cancel(&mut self, now: Instant, key: CallKey) {
        let open = |e: &ClientEntry| {
            e.purpose == Purpose::Invite(key) && e.tx.state == transaction::State::Proceeding
        };
        let invite = self.clients.iter_mut().find(|(_, e)| open(e));
        let Some((name, entry)) = invite else { return };
        let branch = name.trim_end_matches("|INVITE").to_owned();
        let flow = entry.flow;
        let Ok((invite, _)) = Message::parse(&entry.tx.request) else { return };
        entry.tx.cancelled(now);
        let cseq = entry.cseq;
        let timer = TimerKey::Client(name.clone());
        self.arm(timer);
        if self.clients.contains_key(&client_key(&branch, "CANCEL")) {
            return;
        }
        let mut cancel = Message::request("CANCEL", invite.uri());
        for name in ["Via", "From", "To", "Call-ID", "Max-Forwards"] {
            cancel.push(name, invite.get(name).unwrap_or(""));
        }
        cancel.push("CSeq", format!("{cseq} CANCEL"));
        self.send_request(now, flow, branch, &cancel, Purpose::Other);
    }

    fn send_ack(&mut self, key: CallKey, cseq: u32) {
        let Some((local_ip, flow)) = self.calls.get(&key).map(|c| (c.local_ip, c.flow)) else {
            return;
        };
        let (via, _) = self.via(local_ip, flow.transport);
        let Some(call) = self.calls.get_mut(&key) else { return };
        let ack = call.dialog.request("ACK", via, Some(cseq)).to_bytes();
        call.last_ack = Some((cseq, ack.clone()));
        self.send(flow, ack);
    }

    /// A 2xx that came before: the same ACK once more. False when it is new.
    fn ack_again(&mut self, key: CallKey, cseq: u32) -> bool {
        let Some(call) = self.calls.get(&key) else { return true };
        match &call.last_ack {
            Some((number, ack)) if *number == cseq => {
                let (flow, ack) = (call.flow, ack.clone());
                self.send(flow, ack);
                true
            }
            _ => false,
        }
    }

    /// The ACK for a refusal belongs to the INVITE's transaction (RFC 3261 §17.1.1.3).
    pub(super) fn ack_refusal(&mut self, key: &str, response: &Message) {
        let Some(entry) = self.clients.get(key) else { return };
        debug_assert_eq!(entry.method, "INVITE");
        let flow = entry.flow;
        let Ok((invite, _)) = Message::parse(&entry.tx.request) else { return };
        let mut ack = Message::request("ACK", invite.uri());
        for name in ["Via", "From", "Call-ID", "Max-Forwards"] {
            ack.push(name, invite.get(name).unwrap_or(""));
        }
        ack.push("To", response.get("To").unwrap_or(""));
        ack.push("CSeq", format!("{} ACK", entry.cseq));
        for route in invite.all("Route") {
            ack.push("Route", route);
        }
        self.send(flow, ack.to_bytes());
    }
}

impl Call {
    /// After a 422. False when it names no interval longer than the one that was refused.
    fn raise_session_timer(&mut self, response: Option<&Message>) -> bool {
        let (Some(timer), Some(response)) = (&mut self.session_timer, response) else {
            return false;
        };
        timer.raise_to(response)
    }
}
