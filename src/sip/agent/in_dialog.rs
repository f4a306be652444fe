//! Requests within a call (ACK, BYE, re-INVITE, UPDATE, INFO) and the call's timers.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::sip::agent::refusal::Refusal;
use crate::sip::agent::uas::{check_content, copy_record_route};
use crate::sip::agent::{ALLOW, Agent, CallEnd, CallKey, CallState, Event, PRODUCT, TimerKey};
use crate::sip::dialog::Order;
use crate::sip::flow::Flow;
use crate::sip::header::parse_number;
use crate::sip::key_press::{self, KeyPress};
use crate::sip::message::Message;
use crate::sip::sdp::{self, Remote};
use crate::sip::session_timer::{self, Asked, SessionTimer};
use crate::sip::transaction::{AwaitAck, Due};

impl Agent {
    pub(super) fn on_in_dialog(
        &mut self,
        now: Instant,
        flow: Flow,
        key: &str,
        request: Message,
        tag: String,
    ) {
        let found = self.dialogs.get(&(request.call_id().to_owned(), tag)).copied();
        let found = found.filter(|_| self.find_dialog(&request, flow).is_some());
        let Some((call_key, call)) = found.and_then(|k| Some((k, self.calls.get_mut(&k)?))) else {
            return self.refuse(now, key, &request, &Refusal::no_such_call());
        };
        match call.dialog.on_request(&request) {
            Order::NotOurs => {
                return self.refuse(now, key, &request, &Refusal::no_such_call());
            }
            // answered without a transaction, so that this may be a retransmission
            Order::OutOfOrder if matches!(request.method(), Some("OPTIONS" | "NOTIFY")) => {
                return self.ok(now, key, &request);
            }
            Order::OutOfOrder => {
                let why = "its CSeq is not higher than the last one";
                let refusal = Refusal::new(500, "Server Internal Error", why);
                return self.refuse(now, key, &request, &refusal);
            }
            Order::InOrder => {}
        }
        match request.method() {
            Some("BYE") => self.on_bye(now, key, call_key, &request),
            Some("INVITE") => self.on_reinvite(now, flow, key, call_key, &request),
            Some("UPDATE") => self.on_update(now, flow, key, call_key, &request),
            Some("INFO") => self.on_info(now, key, call_key, &request),
            Some("NOTIFY") => self.on_notify(now, key, call_key, &request),
            _ => self.ok(now, key, &request), // OPTIONS
        }
    }

    fn on_bye(&mut self, now: Instant, key: &str, call_key: CallKey, request: &Message) {
        self.ok(now, key, request);
        let pending = self.calls.get_mut(&call_key).and_then(|c| c.invite.take());
        if let Some((invite, server)) = pending {
            let tag = self.random.token();
            let ended = Message::response(&invite, 487, "Request Terminated", &tag);
            self.respond(now, &server, &ended.with("Server", PRODUCT));
        }
        self.end_call(call_key, CallEnd::Bye { cause: q850_cause(request) });
    }

    fn on_reinvite(
        &mut self,
        now: Instant,
        flow: Flow,
        key: &str,
        call_key: CallKey,
        request: &Message,
    ) {
        let Some(call) = self.calls.get(&call_key) else { return };
        let refusal = match call.state {
            // our re-INVITE or UPDATE is open, or our offer is still to be answered in the ACK
            CallState::Up if call.refreshing || call.late_offer => Some(Refusal::pending()),
            CallState::Up => check_content(request).err(),
            CallState::Ending => Some(Refusal::no_such_call()),
            _ => Some(Refusal::too_early()),
        };
        let result = refusal.map_or_else(|| self.negotiate(now, flow, call_key, request), Err);
        let remote = match result {
            Ok(remote) => remote,
            Err(refusal) => return self.refuse(now, key, request, &refusal),
        };
        let Some(call) = self.calls.get_mut(&call_key) else { return };
        call.late_offer = remote.is_none();
        let mut response = call.ok_with_sdp(request);
        copy_record_route(request, &mut response);
        call.awaiting_ack = Some(AwaitAck::new(now, request, response.to_bytes()));
        self.respond(now, key, &response);
        self.arm(TimerKey::Call(call_key));
        if let Some(remote) = remote {
            self.event(Event::Media { call: call_key, remote });
        }
    }

    fn on_update(
        &mut self,
        now: Instant,
        flow: Flow,
        key: &str,
        call_key: CallKey,
        request: &Message,
    ) {
        let Some(call) = self.calls.get(&call_key) else { return };
        let has_sdp = !request.body.is_empty();
        // RFC 3311 §5.2: 491 while our offer is open, 500 while the peer's is
        let refusal = match check_content(request) {
            _ if call.state == CallState::Ending => Some(Refusal::no_such_call()),
            _ if has_sdp && (call.refreshing || call.late_offer) => Some(Refusal::pending()),
            _ if has_sdp && call.invite.is_some() => Some(Refusal::too_early()),
            checked => checked.err(),
        };
        let result = match (refusal, has_sdp) {
            (Some(refusal), _) => Err(refusal),
            (None, true) => self.negotiate(now, flow, call_key, request),
            (None, false) => self.take_session_timer(now, call_key, request).map(|()| None),
        };
        match result {
            Ok(remote) => {
                let Some(call) = self.calls.get_mut(&call_key) else { return };
                call.dialog.refresh_target(request);
                let response = if remote.is_some() {
                    call.ok_with_sdp(request)
                } else {
                    call.ok_plain(request)
                };
                self.respond(now, key, &response);
                self.arm(TimerKey::Call(call_key));
                if let Some(remote) = remote {
                    self.event(Event::Media { call: call_key, remote });
                }
            }
            Err(refusal) => self.refuse(now, key, request, &refusal),
        }
    }

    /// Takes the offer in the request, or a request for our offer, and prepares our SDP. On an
    /// error nothing changes and the call continues.
    fn negotiate(
        &mut self,
        now: Instant,
        flow: Flow,
        call_key: CallKey,
        request: &Message,
    ) -> Result<Option<Remote>, Refusal> {
        let account = self.calls.get(&call_key).and_then(|c| c.account);
        let remote = match request.body.is_empty() {
            true => None,
            false => Some(self.read_sdp(&request.body, account, flow.remote.ip())?),
        };
        self.take_session_timer(now, call_key, request)?;
        if let Some(call) = self.calls.get_mut(&call_key) {
            call.dialog.refresh_target(request);
            call.update_sdp(remote.as_ref());
            if remote.is_some() {
                call.offer.clone_from(&remote);
            }
        }
        Ok(remote)
    }

    fn take_session_timer(
        &mut self,
        now: Instant,
        call_key: CallKey,
        request: &Message,
    ) -> Result<(), Refusal> {
        let Some(call) = self.calls.get_mut(&call_key) else { return Ok(()) };
        match SessionTimer::asked(request, call.session_timer.as_ref(), now) {
            Asked::TooSmall => Err(Refusal::interval_too_small()),
            Asked::Timer(timer) => {
                call.session_timer = Some(timer);
                Ok(())
            }
            // the session no longer expires (RFC 4028 §10)
            Asked::Nothing => {
                call.session_timer = None;
                Ok(())
            }
        }
    }

    fn on_info(&mut self, now: Instant, key: &str, call_key: CallKey, request: &Message) {
        if request.body.is_empty() {
            return self.ok(now, key, request);
        }
        match key_press::read(request) {
            Some(KeyPress::Digit(digit)) => {
                self.ok(now, key, request);
                self.event(Event::Digit { call: call_key, digit });
            }
            Some(KeyPress::Flash) => self.ok(now, key, request),
            Some(KeyPress::Unreadable) => {
                let refusal = Refusal::new(400, "Bad Request", "not a key press");
                self.refuse(now, key, request, &refusal);
            }
            None => {
                let refusal = Refusal::new(415, "Unsupported Media Type", "not a key press");
                self.refuse(now, key, request, &refusal.with("Accept", key_press::ACCEPT));
            }
        }
    }

    pub(super) fn on_dialog_ack(&mut self, now: Instant, call_key: CallKey, request: &Message) {
        let Some(call) = self.calls.get_mut(&call_key) else { return };
        // a late copy of the ACK for an earlier INVITE does not count
        let expected = call.awaiting_ack.as_ref().is_some_and(|wait| wait.is_ack(request));
        if !expected || call.dialog.on_request(request) != Order::InOrder {
            return;
        }
        call.awaiting_ack = None;
        call.acknowledged = true;
        let flow_ip = call.flow.remote.ip();
        let (late, account) = (std::mem::take(&mut call.late_offer), call.account);
        let reason = call.bye_reason.take();
        if let Some(reason) = reason {
            return self.send_bye(now, call_key, &reason);
        }
        if late {
            match self.read_sdp(&request.body, account, flow_ip) {
                // before Acked, which starts the audio
                Ok(remote) => self.event(Event::Media { call: call_key, remote }),
                Err(_) => {
                    self.send_bye(
                        now,
                        call_key,
                        "Q.850;cause=88;text=\"no usable SDP in the ACK\"",
                    );
                    return self.end_call(call_key, CallEnd::BadAnswer);
                }
            }
        }
        self.event(Event::Acked { call: call_key });
        self.direct_next(now, call_key);
    }

    pub(super) fn on_call_timeout(&mut self, now: Instant, key: CallKey) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        let flow = call.flow;
        if let Some(wait) = &mut call.awaiting_ack {
            match wait.on_timeout(now) {
                Due::Nothing => {}
                Due::Resend => {
                    let data = wait.response.clone();
                    self.send(flow, data);
                    return;
                }
                Due::TimedOut => {
                    call.awaiting_ack = None;
                    let hung_up = call.bye_reason.take().is_some();
                    self.send_bye(now, key, "Q.850;cause=102;text=\"no ACK\"");
                    let end = if hung_up { CallEnd::HungUp } else { CallEnd::NoAck };
                    return self.end_call(key, end);
                }
            }
        }
        let Some(call) = self.calls.get_mut(&key) else { return };
        match call.session_timer.as_ref().map(|t| t.on_timeout(now)) {
            Some(session_timer::Due::Refresh) if call.may_refresh() => self.refresh(now, key),
            Some(session_timer::Due::Expired) => {
                self.send_bye(now, key, "Q.850;cause=102;text=\"session timer expired\"");
                self.end_call(key, CallEnd::SessionExpired);
            }
            _ => self.direct_next(now, key),
        }
    }
}

impl super::Call {
    /// Makes our answer to the offer of `remote`, or our own offer. The version is incremented if
    /// the text changes (RFC 3264 §8).
    pub(super) fn update_sdp(&mut self, remote: Option<&Remote>) {
        let Some(local) = &mut self.local else { return };
        let make = |local: &sdp::Local| match remote {
            Some(remote) => remote.answer(local),
            None => match &self.offer {
                Some(remote) => remote.offer(local),
                None => sdp::offer(local, sdp::all_codecs()),
            },
        };
        if make(local) != self.sdp {
            local.version += 1;
            self.sdp = make(local);
        }
    }

    fn ok_plain(&self, request: &Message) -> Message {
        let mut response = Message::response(request, 200, "OK", &self.dialog.local_tag);
        response.push("Contact", self.contact.clone());
        response.push("Allow", ALLOW);
        response.push("Supported", "timer");
        response.push("Server", PRODUCT);
        if let Some(timer) = &self.session_timer
            && request.get("Session-Expires").is_some()
        {
            timer.add_to_response(&mut response);
        }
        response
    }

    fn ok_with_sdp(&self, request: &Message) -> Message {
        self.ok_plain(request).with_body("application/sdp", self.sdp.clone())
    }
}

/// Returns the cause from `Reason: Q.850;cause=16` (RFC 3326), or else from chan_sip's
/// `X-Asterisk-HangupCauseCode`.
fn q850_cause(request: &Message) -> Option<u16> {
    let reasons = request.list("Reason");
    let q850 = reasons.iter().find(|r| r.get(..5).is_some_and(|p| p.eq_ignore_ascii_case("Q.850")));
    let stated = q850.and_then(|r| {
        r.split(';').find_map(|p| p.trim().strip_prefix("cause=").and_then(parse_number))
    });
    let code = stated.or_else(|| parse_number(request.get("X-Asterisk-HangupCauseCode")?));
    code.and_then(|c| u16::try_from(c).ok())
}
