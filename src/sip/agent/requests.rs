//! Our requests within calls: BYE, re-INVITE, UPDATE and INFO.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::sip::agent::credentials::CallAuth;
use crate::sip::agent::{
    ALLOW, Agent, Call, CallEnd, CallKey, CallState, Event, PRODUCT, Purpose, TimerKey,
};
use crate::sip::header::quote;
use crate::sip::message::Message;
use crate::sip::session_timer::SessionTimer;

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
            call.bye_reason = Some(reason.to_owned());
        }
        self.send_in_dialog(now, key, "BYE", Purpose::Bye(key), |request, _| {
            request.push("Reason", reason);
        });
    }

    /// Handles a final response to our BYE.
    pub(super) fn on_bye_response(&mut self, now: Instant, key: CallKey, response: &Message) {
        if is_challenge(response) && self.take_challenge(key, response) {
            let reason = self.calls.get_mut(&key).and_then(|call| call.bye_reason.take());
            return self.send_bye(now, key, &reason.unwrap_or_default());
        }
        self.end_call(key, CallEnd::HungUp);
    }

    pub(super) fn send_digit(&mut self, now: Instant, key: CallKey, digit: char) {
        if self.calls.get(&key).is_none_or(|c| c.state != CallState::Up) {
            return self.event(Event::InfoAnswered { call: key, accepted: false });
        }
        self.send_in_dialog(now, key, "INFO", Purpose::Info(key), |request, _| {
            request.push("Content-Type", "application/dtmf-relay");
            request.body = format!("Signal={digit}\r\nDuration=160\r\n").into_bytes();
        });
    }

    /// Refreshes the session, by UPDATE if the peer allows it, or else by a re-INVITE with the same
    /// SDP.
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

    pub(super) fn send_reinvite(&mut self, now: Instant, key: CallKey) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        call.refreshing = true;
        self.send_in_dialog(now, key, "INVITE", Purpose::Reinvite(key), |request, call| {
            request.push("Contact", call.contact.clone());
            request.push("Allow", ALLOW);
            request.push("Supported", "timer");
            call.session_timer.iter().for_each(|t| t.add_to_request(request));
            request.push("Content-Type", "application/sdp");
            request.body = call.sdp.clone().into_bytes();
        });
    }

    pub(super) fn send_in_dialog(
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
        let cnonce = self.random.token();
        let Some(call) = self.calls.get_mut(&key) else { return };
        let mut request = call.dialog.request(method, via, None).with("User-Agent", PRODUCT);
        fill(&mut request, call);
        call.auth.iter_mut().for_each(|auth| auth.sign(&mut request, &cnonce));
        self.send_request(now, flow, branch, &request, purpose);
    }

    pub(super) fn on_update_response(&mut self, now: Instant, key: CallKey, response: &Message) {
        match response.code().unwrap_or(0) {
            0..200 => {}
            200..300 => self.refreshed(now, key, response),
            _ if self.answers_challenge(key, response) => self.refresh(now, key),
            // a re-INVITE may be accepted, unless the reason applies to it as well
            code if !matches!(code, 408 | 422 | 481 | 491) && self.is_up(key) => {
                if let Some(call) = self.calls.get_mut(&key) {
                    call.peer_allows_update = false;
                }
                self.refresh(now, key);
            }
            code => self.on_refresh_failed_with(now, key, code, Some(response)),
        }
    }

    fn raises_session_timer(&mut self, key: CallKey, response: Option<&Message>) -> bool {
        self.calls.get_mut(&key).is_some_and(|call| call.raise_session_timer(response))
    }

    fn is_up(&self, key: CallKey) -> bool {
        self.calls.get(&key).is_some_and(|call| call.state == CallState::Up)
    }

    /// True if the response is a challenge to our refresh and can be answered.
    fn answers_challenge(&mut self, key: CallKey, response: &Message) -> bool {
        is_challenge(response) && self.is_up(key) && self.take_challenge(key, response)
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
            _ if self.answers_challenge(key, response) => self.send_reinvite(now, key),
            code => self.on_refresh_failed_with(now, key, code, Some(response)),
        }
    }

    fn refreshed(&mut self, now: Instant, key: CallKey, response: &Message) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        call.refreshing = false;
        call.auth.iter_mut().for_each(CallAuth::accepted);
        call.dialog.refresh_target(response);
        // without Session-Expires, the session no longer expires (RFC 4028 §7.2)
        call.session_timer = SessionTimer::from_response(response, now);
        self.arm(TimerKey::Call(key));
        self.directed(key, true);
        self.direct_next(now, key);
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
            // the peer no longer has this call (RFC 3261 §12.2.1.2)
            408 | 481 => {
                self.directed(key, false);
                self.send_bye(now, key, "Q.850;cause=102;text=\"session refresh failed\"");
                self.end_call(key, CallEnd::Lost);
            }
            // retry at once only with a longer interval; otherwise the two sides could repeat
            // this forever
            422 if self.raises_session_timer(key, response) => match self.is_directing(key) {
                true => self.send_reinvite(now, key),
                false => self.refresh(now, key),
            },
            // glare, or the peer is busy: the direction is still wanted
            491 | 500 | 503 if self.direct_later(now, key, response) => {
                self.postpone_refresh(now, key);
            }
            _ => {
                self.directed(key, false);
                self.postpone_refresh(now, key);
                self.direct_next(now, key);
            }
        }
    }

    /// Tries the refresh again later; without one, the session expires.
    fn postpone_refresh(&mut self, now: Instant, key: CallKey) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        if let Some(timer) = &mut call.session_timer {
            timer.postpone(now);
        }
        self.arm(TimerKey::Call(key));
    }

    pub(super) fn send_ack(&mut self, key: CallKey, cseq: u32) {
        let Some((local_ip, flow)) = self.calls.get(&key).map(|c| (c.local_ip, c.flow)) else {
            return;
        };
        let (via, _) = self.via(local_ip, flow.transport);
        let Some(call) = self.calls.get_mut(&key) else { return };
        let ack = call.dialog.request("ACK", via, Some(cseq)).to_bytes();
        call.last_ack = Some((cseq, ack.clone()));
        self.send(flow, ack);
    }

    /// Resends the ACK for a 2xx that was already acknowledged. Returns false if the 2xx is new.
    pub(super) fn ack_again(&mut self, key: CallKey, cseq: u32) -> bool {
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
}

fn is_challenge(response: &Message) -> bool {
    matches!(response.code(), Some(401 | 407))
}

impl Call {
    /// Raises the session interval after a 422. Returns false if the response does not ask for a
    /// longer one.
    fn raise_session_timer(&mut self, response: Option<&Message>) -> bool {
        let (Some(timer), Some(response)) = (&mut self.session_timer, response) else {
            return false;
        };
        timer.raise_to(response)
    }
}
