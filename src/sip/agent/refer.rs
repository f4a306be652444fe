//! Transfers: REFER (RFC 3515), the NOTIFYs that follow it, and the second call of a transfer that
//! is handed over with Replaces (RFC 3891).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::sip::agent::{Agent, Call, CallEnd, CallKey, CallState, Dial, Event, Purpose};
use crate::sip::header::{find_param, parse_number, parse_params, split_leniently};
use crate::sip::message::Message;
use crate::sip::sdp;
use crate::sip::uri::{Uri, escape_user};

/// The status for a REFER whose outcome is not known.
const UNKNOWN: u16 = 500;

/// A call's last REFER.
#[derive(Debug, Clone)]
pub(super) struct Referring {
    user: String,
    /// The call that is replaced.
    replaces: Option<CallKey>,
    /// Its CSeq number, which is also the id of its NOTIFYs (RFC 3515 §2.4.6).
    cseq: u32,
}

impl Agent {
    /// Calls `user` at the PBX of another call, from the same account and for the same RTP address.
    pub(super) fn consult(&mut self, now: Instant, of: CallKey, call: CallKey, user: &str) {
        let dial = self.calls.get(&of).and_then(|of| of.consultation(call, user));
        let account = self.calls.get(&of).and_then(|of| of.account);
        match dial {
            Some(dial) => {
                let call_id = self.new_call_id();
                self.dial_for(now, Box::new(dial), account, call_id);
            }
            None => {
                let reason = "there is no such call".to_owned();
                self.event(Event::Ended { call, end: CallEnd::Refused { code: UNKNOWN, reason } });
            }
        }
    }

    /// Asks the PBX to connect the peer of `call` with `user`, or with the peer of `replaces`.
    pub(super) fn refer(
        &mut self,
        now: Instant,
        key: CallKey,
        user: &str,
        replaces: Option<CallKey>,
    ) {
        let dialog = replaces.and_then(|other| self.calls.get(&other)).map(Call::replaces);
        let up = self.calls.get(&key).filter(|call| call.state == CallState::Up);
        let target = up.and_then(Call::target);
        let Some(host) = target.filter(|_| replaces.is_none() || dialog.is_some()) else {
            return self.event(Event::Referred { call: key, code: UNKNOWN });
        };
        let headers = dialog.map(|dialog| format!("?Replaces={dialog}")).unwrap_or_default();
        let refer_to = format!("<sip:{}@{host}{headers}>", escape_user(user));
        let mut cseq = 0;
        self.send_in_dialog(now, key, "REFER", Purpose::Refer(key), |request, call| {
            cseq = request.cseq().map_or(0, |(number, _)| number);
            request.push("Contact", call.contact.clone());
            request.push("Refer-To", refer_to);
            request.push("Referred-By", call.contact.clone());
        });
        if let Some(call) = self.calls.get_mut(&key) {
            call.referring = Some(Referring { user: user.to_owned(), replaces, cseq });
        }
    }

    /// Refuses a call, so that the PBX calls another of its users in place of us (RFC 3261
    /// §21.3.3).
    pub(super) fn redirect(&mut self, now: Instant, key: CallKey, user: &str) {
        let Some(host) = self.calls.get(&key).and_then(Call::target) else { return };
        let contact = ("Contact", format!("<sip:{}@{host}>", escape_user(user)));
        let status = (302, "Moved Temporarily");
        self.refuse_call(now, key, status, Some(contact), CallEnd::HungUp);
    }

    pub(super) fn on_refer_response(
        &mut self,
        now: Instant,
        key: CallKey,
        cseq: u32,
        response: &Message,
    ) {
        let Some(referring) = self.referring(key, Some(cseq)) else { return };
        match response.code().unwrap_or(UNKNOWN) {
            0..200 => {}
            // the outcome follows in NOTIFYs
            200..300 => self.event(Event::ReferAccepted { call: key }),
            401 | 407 if self.take_challenge(key, response) => {
                self.refer(now, key, &referring.user, referring.replaces);
            }
            code => self.event(Event::Referred { call: key, code }),
        }
    }

    pub(super) fn on_refer_timeout(&mut self, key: CallKey, cseq: u32) {
        if self.referring(key, Some(cseq)).is_some() {
            self.event(Event::Referred { call: key, code: 408 });
        }
    }

    /// Returns the last REFER of a call, if it has this CSeq number.
    fn referring(&self, key: CallKey, cseq: Option<u32>) -> Option<Referring> {
        let referring = self.calls.get(&key)?.referring.as_ref()?;
        cseq.is_none_or(|cseq| cseq == referring.cseq).then(|| referring.clone())
    }

    /// Handles a NOTIFY within a call. After a REFER, its body is the status line of the request
    /// that the PBX sends in consequence (RFC 3515 §2.4.5).
    pub(super) fn on_notify(&mut self, now: Instant, key: &str, call: CallKey, request: &Message) {
        self.ok(now, key, request);
        let event = split_leniently(request.get("Event").unwrap_or_default(), ';');
        let id = parse_params(&event[1..]);
        // without an id it can only be about the last REFER
        let id = find_param(&id, "id").map(|id| parse_number(id).unwrap_or(0));
        if !event[0].trim().eq_ignore_ascii_case("refer") || self.referring(call, id).is_none() {
            return;
        }
        let body = String::from_utf8_lossy(&request.body);
        let mut words = body.trim_start().split_ascii_whitespace();
        let version = words.next().unwrap_or_default();
        let code = words.next().and_then(|code| code.parse::<u16>().ok());
        let code = code.filter(|_| version.to_ascii_uppercase().starts_with("SIP/2.0"));
        let state = request.get("Subscription-State").unwrap_or_default();
        let over = state.trim_start().to_ascii_lowercase().starts_with("terminated");
        match code {
            Some(code) if code >= 200 => self.event(Event::Referred { call, code }),
            // no more will come
            _ if over => self.event(Event::Referred { call, code: UNKNOWN }),
            Some(_) => self.event(Event::ReferAccepted { call }),
            None => {}
        }
    }
}

impl Call {
    /// The host and port of the PBX, for a URI.
    fn target(&self) -> Option<String> {
        let hop = self.dialog.next_hop()?;
        let port = hop.port.map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{}{port}", hop.host))
    }

    /// The second call of a transfer of this call.
    fn consultation(&self, call: CallKey, user: &str) -> Option<Dial> {
        let local = self.local.as_ref()?;
        let own = Uri::parse(self.contact.trim_matches(['<', '>'])).ok()?;
        let remote = self.flow.remote;
        Some(Dial {
            call,
            flow: self.flow,
            uri: format!("sip:{}@{remote}", escape_user(user)),
            local_ip: self.local_ip,
            user: own.user_text().unwrap_or_default(),
            password: None,
            rtp: local.rtp,
            headers: Vec::new(),
            codecs: sdp::all_codecs().to_vec(),
        })
    }

    /// The value of Replaces for this call's dialog, as its peer has it, escaped for a URI.
    fn replaces(&self) -> String {
        let dialog = &self.dialog;
        let value = format!(
            "{};to-tag={};from-tag={}",
            dialog.call_id, dialog.remote_tag, dialog.local_tag
        );
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        value.bytes().fold(String::new(), |mut out, byte| {
            match plain(byte) {
                true => out.push(char::from(byte)),
                false => out += &format!("%{byte:02X}"),
            }
            out
        })
    }
}
