//! Outgoing calls: INVITE, the answer to its challenge, CANCEL, and the ACK for a refusal.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::Instant;

use crate::sip::agent::accounts::contact_uri;
use crate::sip::agent::credentials::CallAuth;
use crate::sip::agent::{
    ALLOW, AccountId, Agent, Call, CallEnd, CallKey, CallState, ClientEntry, Dial, Event,
    NO_RESPONSE, Place, Purpose, Route, TimerKey, client_key,
};
use crate::sip::dialog::Dialog;
use crate::sip::flow::Flow;
use crate::sip::message::Message;
use crate::sip::sdp::{self, Direction, Local};
use crate::sip::session_timer::SessionTimer;
use crate::sip::transaction;
use crate::sip::uri::escape_user;

impl Agent {
    pub(super) fn dial(&mut self, now: Instant, dial: Box<Dial>) {
        let call_id = self.new_call_id();
        self.dial_for(now, dial, None, call_id);
    }

    /// Returns the address that calls through a PBX go to, and our own towards it; `None` before
    /// its name has been looked up.
    pub fn way_to(&self, account: AccountId) -> Option<Route> {
        let of = self.accounts.get(account).filter(|account| !account.retired)?;
        let remote = of.registrar.get(of.target).or_else(|| of.routes().next())?.remote;
        Some(Route { remote, local: self.local_ip(account, remote.ip())? })
    }

    /// Places a call through a PBX, as its extension. The number that the callee is to see goes
    /// into P-Asserted-Identity, because the PBX knows the extension by From. A trunk has it in
    /// From, too.
    pub(super) fn place(&mut self, now: Instant, place: Place) {
        let Place { account, call, call_id, to, from, rtp } = place;
        let Some(Route { remote, local }) = self.way_to(account) else {
            let reason = "the address of the PBX is not known".to_owned();
            return self.event(Event::Ended { call, end: CallEnd::Refused { code: 503, reason } });
        };
        let config = &self.accounts[account].config;
        let registration = self.accounts[account].registration.as_ref();
        let registrar = registration.map(|r| r.settings().registrar_uri.clone());
        let (to, shown) = (escape_user(&to), escape_user(&from));
        // a PBX with several domains goes by the one in the URI
        let uri = match registrar.as_deref().and_then(|uri| uri.strip_prefix("sip:")) {
            Some(host) => format!("sip:{to}@{host}"),
            None => format!("sip:{to}@{remote}"),
        };
        let own = SocketAddr::new(local, self.config_port);
        let dial = Dial {
            call,
            flow: Flow { transport: config.transport, remote },
            uri,
            local_ip: local,
            user: if registrar.is_some() { config.username.clone() } else { from },
            password: None,
            rtp,
            headers: vec![("P-Asserted-Identity".to_owned(), format!("<sip:{shown}@{own}>"))],
            codecs: sdp::all_codecs().to_vec(),
        };
        self.dial_for(now, Box::new(dial), Some(account), call_id);
    }

    /// Dials with the credentials of an account.
    pub(super) fn dial_for(
        &mut self,
        now: Instant,
        dial: Box<Dial>,
        account: Option<AccountId>,
        call_id: String,
    ) {
        let key = dial.call;
        if !self.dialled.contains(&dial.flow.remote.ip()) {
            self.dialled.push(dial.flow.remote.ip());
        }
        let own = SocketAddr::new(dial.local_ip, self.config_port);
        let contact = contact_uri(&dial.user, own, dial.flow.transport);
        let from = format!("<sip:{}@{own}>", escape_user(&dial.user));
        let tag = self.random.token();
        let dialog = Dialog::to_invite(call_id, from, tag, &dial.uri);
        self.dialogs.insert((dialog.call_id.clone(), dialog.local_tag.clone()), key);
        let session_id = self.random.range(1 << 20, 1 << 40);
        let local = Local { rtp: dial.rtp, session_id, version: 1, direction: Direction::SendRecv };
        let password = dial.password.clone();
        let auth = password.map(|password| CallAuth::new(dial.user.clone(), password, None));
        let call = Call {
            state: CallState::Dialling,
            account,
            flow: dial.flow,
            reconnects: 0,
            dialog,
            contact: format!("<{contact}>"),
            local_ip: dial.local_ip,
            invite: None,
            acknowledged: false,
            armed: None,
            awaiting_ack: None,
            late_offer: false,
            offer: None,
            bye_reason: None,
            sdp: sdp::offer(&local, &dial.codecs),
            local: Some(local),
            session_timer: None,
            peer_allows_update: false,
            refreshing: false,
            directing: None,
            next_direction: None,
            referring: None,
            auth,
            dial: Some(dial),
            last_ack: None,
        };
        self.calls.insert(key, call);
        self.send_invite(now, key);
    }

    fn send_invite(&mut self, now: Instant, key: CallKey) {
        self.send_in_dialog(now, key, "INVITE", Purpose::Invite(key), |request, call| {
            request.push("Contact", call.contact.clone());
            request.push("Allow", ALLOW);
            request.push("Supported", "timer");
            for (name, value) in call.dial.iter().flat_map(|d| &d.headers) {
                request.push(name, value.clone());
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
                call.auth.iter_mut().for_each(CallAuth::accepted);
                call.peer_allows_update = response.list("Allow").iter().any(|m| m == "UPDATE");
                call.session_timer = SessionTimer::from_response(response, now);
                self.send_ack(key, cseq);
                self.arm(TimerKey::Call(key));
                let account = self.calls.get(&key).and_then(|call| call.account);
                match self.read_sdp(&response.body, account, from) {
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
        let reason = NO_RESPONSE.to_owned();
        self.end_call(key, CallEnd::Refused { code: 408, reason });
    }

    pub(super) fn cancel(&mut self, now: Instant, key: CallKey) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        call.state = CallState::Cancelling;
        self.send_cancel(now, key);
    }

    /// Sends a CANCEL if the INVITE has a provisional response. Before that it could overtake the
    /// INVITE (RFC 3261 §9.1), so it is sent when the response arrives.
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
