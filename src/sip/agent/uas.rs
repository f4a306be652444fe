//! Requests outside dialogs, and incoming calls until they are answered or refused.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::sip::agent::accounts::contact_uri;
use crate::sip::agent::refusal::Refusal;
use crate::sip::agent::{
    ALLOW, AccountId, Agent, AiDown, Call, CallEnd, CallKey, CallState, Event, Invite, PRODUCT,
    TimerKey,
};
use crate::sip::bytes::readable;
use crate::sip::dialog::Dialog;
use crate::sip::flow::Flow;
use crate::sip::header::{NameAddr, find_param, media_type, option_tags, parse_number};
use crate::sip::message::Message;
use crate::sip::multipart::ACCEPT;
use crate::sip::sdp::{self, Direction, Local, Remote, SdpError};
use crate::sip::session_timer::{Asked, SessionTimer};
use crate::sip::transaction::AwaitAck;
use crate::sip::uri;

const UNAVAILABLE: (u16, &str) = (503, "Service Unavailable");
impl Agent {
    pub(super) fn on_out_of_dialog(
        &mut self,
        now: Instant,
        flow: Flow,
        key: &str,
        request: Message,
    ) {
        match request.method() {
            // takes us out of a dispatcher's rotation
            Some("OPTIONS") if self.takes_no_calls() || self.lacks_ai(flow, &request) => {
                self.refuse(now, key, &request, &Refusal::overload("no call can be taken"));
            }
            Some("OPTIONS") => {
                let headers = [("Allow", ALLOW), ("Accept", ACCEPT), ("Supported", "timer")];
                self.ok_with(now, key, &request, &headers);
            }
            Some("NOTIFY") => self.ok(now, key, &request), // unsolicited MWI
            Some("INVITE") => match self.examine(now, flow, &request) {
                Ok(accepted) => self.offer_call(now, flow, key, request, accepted),
                Err(refusal) => self.refuse(now, key, &request, &refusal),
            },
            _ => self.refuse(now, key, &request, &Refusal::no_such_call()),
        }
    }

    /// True if OPTIONS are refused because no AI can be reached for the calls of their sender.
    fn lacks_ai(&self, flow: Flow, options: &Message) -> bool {
        let user = uri::number(options.uri()).unwrap_or_default();
        let port = options.top_via().and_then(|via| via.port).unwrap_or(flow.remote.port());
        // a dispatcher may ask without a user
        let account = self.account_for(flow.remote, port, &user);
        let account = account.or_else(|| Some(self.accounts_at(flow.remote.ip()).next()?.0));
        account.is_some_and(|id| {
            let account = &self.accounts[id];
            account.ai_down && account.config.ai_down == AiDown::RefuseOptions
        })
    }

    fn takes_no_calls(&self) -> bool {
        self.stopping || self.full || self.has_no_room()
    }

    fn has_no_room(&self) -> bool {
        self.calls.len() >= self.max_calls
    }

    /// True if too many answered calls are not acknowledged. We acknowledge those that we place.
    fn has_unacknowledged(&self) -> bool {
        let answered = self.calls.values().filter(|c| c.account.is_some() && c.local.is_some());
        let answered = answered.filter(|c| c.dial.is_none());
        answered.filter(|c| !c.acknowledged).count() >= self.max_unacknowledged
    }

    /// Checks that an INVITE can be accepted, in the order of RFC 3261 §8.2.
    fn examine(&mut self, now: Instant, flow: Flow, invite: &Message) -> Result<Accepted, Refusal> {
        check_content(invite)?;
        let ip = flow.remote.ip();
        let user = uri::number(invite.uri()).unwrap_or_default();
        let via_port = invite.top_via().and_then(|via| via.port).unwrap_or(5060);
        let account = self.account_for(flow.remote, via_port, &user);
        let Some(account) = account else {
            let last_hop = invite.get("Max-Forwards").and_then(parse_number) == Some(0);
            return Err(if last_hop {
                Refusal::new(483, "Too Many Hops", "Max-Forwards is 0 and the user is unknown")
            } else {
                let why = format!("no PBX at this address is configured for the user \"{user}\"");
                Refusal::new(404, "Not Found", why)
            });
        };
        // if [calls] max is reached, or during a shutdown, the owner decides what becomes of the
        // caller
        if self.has_no_room() || self.has_unacknowledged() {
            return Err(Refusal::overload("too many calls are open"));
        }
        let session_timer = match SessionTimer::asked(invite, None, now) {
            Asked::TooSmall => return Err(Refusal::interval_too_small()),
            Asked::Timer(timer) => Some(timer),
            Asked::Nothing => None,
        };
        let remote = match invite.body.is_empty() {
            true => None,
            false => Some(self.read_sdp(&invite.body, Some(account), ip)?),
        };
        let Some(local_ip) = self.local_ip(account, ip) else {
            let why = "our own address is not known yet";
            return Err(Refusal::new(500, "Server Internal Error", why));
        };
        Ok(Accepted { account, user, session_timer, remote, local_ip })
    }

    /// Returns the called user. A PBX or carrier at which the account is registered may address all
    /// calls to our Contact, so that only To names the user. `user`: that of the Request-URI.
    fn called(&self, account: AccountId, user: String, invite: &Message) -> String {
        let account = &self.accounts[account];
        if account.registration.is_none() || user != account.config.username {
            return user;
        }
        let to = invite.to().and_then(|to| uri::number(&to.uri));
        let listed = |to: &String| account.config.users.iter().any(|pattern| pattern.matches(to));
        to.filter(listed).unwrap_or(user)
    }

    /// Parses an offer or answer and checks that its media address may be used.
    pub(super) fn read_sdp(
        &self,
        body: &[u8],
        account: Option<AccountId>,
        signalling: IpAddr,
    ) -> Result<Remote, Refusal> {
        let refusal = |error: SdpError| {
            // RFC 3261 §20.43: another network protocol, or another media format
            let code = if error == SdpError::Family { 300 } else { 304 };
            let warning = format!("{code} trunkless \"{error}\"");
            Refusal::new(488, "Not Acceptable Here", error.to_string()).with("Warning", warning)
        };
        let remote = Remote::parse_from(body, signalling).map_err(refusal)?;
        let peers = account.map_or(&[][..], |id| &self.accounts[id].config.media_peers);
        let ip = remote.rtp.ip();
        let listed =
            peers.is_empty() || ip.is_unspecified() || peers.iter().any(|n| n.contains(ip));
        let ours =
            self.calls.values().any(|c| c.local.as_ref().is_some_and(|l| l.rtp == remote.rtp));
        if !remote.is_acceptable(signalling) || !listed || ours {
            return Err(refusal(SdpError::Address));
        }
        Ok(remote)
    }

    fn offer_call(
        &mut self,
        now: Instant,
        flow: Flow,
        key: &str,
        invite: Message,
        accepted: Accepted,
    ) {
        let Accepted { account, user, session_timer, remote, local_ip } = accepted;
        let call = self.new_call_key();
        let tag = self.random.token();
        let trying = Message::response(&invite, 100, "Trying", &tag).with("Server", PRODUCT);
        self.respond(now, key, &trying);
        let config = &self.accounts[account].config;
        // Contact has the user that was called, because a trunk may call many
        let own = SocketAddr::new(local_ip, self.config_port);
        let contact = contact_uri(&user, own, config.transport);
        let dialog = Dialog::from_invite(&invite, tag);
        let (from_user, from_name) = caller(&invite);
        let called = self.called(account, user, &invite);
        let event = Invite {
            call,
            account,
            sip_call_id: readable(&dialog.call_id),
            from_tag: dialog.remote_tag.clone(),
            from_user,
            from_name,
            to_user: called,
            privacy: privacy(&invite),
            headers: headers(&invite),
            remote: remote.clone(),
            local_ip,
            signalling: flow.remote.ip(),
        };
        if let Some(entry) = self.servers.find_mut(key) {
            entry.call = Some(call);
        }
        self.dialogs.insert((dialog.call_id.clone(), dialog.local_tag.clone()), call);
        let peer_allows_update = invite.list("Allow").iter().any(|m| m == "UPDATE");
        let state = Call {
            state: CallState::Offered,
            account: Some(account),
            flow,
            reconnects: 0,
            dialog,
            contact: format!("<{contact}>"),
            local_ip,
            late_offer: remote.is_none(),
            offer: remote,
            invite: Some((invite, key.to_owned())),
            acknowledged: false,
            armed: None,
            awaiting_ack: None,
            bye_reason: None,
            local: None,
            sdp: String::new(),
            session_timer,
            peer_allows_update,
            refreshing: false,
            directing: None,
            next_direction: None,
            referring: None,
            auth: None,
            dial: None,
            last_ack: None,
        };
        self.calls.insert(call, state);
        self.event(Event::Invite(Box::new(event)));
    }

    pub(super) fn provisional(&mut self, now: Instant, key: CallKey) {
        let Some(call) = self.calls.get(&key) else { return };
        let Some((invite, server)) = &call.invite else { return };
        // the 180 would have to be sent reliably, and we do not need it
        if option_tags(invite.all("Require")).iter().any(|t| t == "100rel") {
            return;
        }
        let mut response = Message::response(invite, 180, "Ringing", &call.dialog.local_tag);
        copy_record_route(invite, &mut response);
        response.push("Contact", call.contact.clone());
        response.push("Server", PRODUCT);
        let server = server.clone();
        self.respond(now, &server, &response);
    }

    pub(super) fn answer(&mut self, now: Instant, key: CallKey, rtp: SocketAddr) {
        let session_id = self.random.range(1 << 20, 1 << 40);
        let Some(call) = self.calls.get_mut(&key) else { return };
        if call.state != CallState::Offered {
            return;
        }
        if self.has_unacknowledged() {
            let source = self.calls.get(&key).map(|call| call.flow.remote);
            let invite = self.calls.get(&key).and_then(|call| call.invite.clone());
            if let (Some(source), Some((invite, _))) = (source, invite) {
                let why = "too many calls are not acknowledged";
                self.report(source, &invite, Some(UNAVAILABLE.0), why);
            }
            return self.refuse_call(
                now,
                key,
                UNAVAILABLE,
                Some(("Retry-After", "5".to_owned())),
                CallEnd::Overload,
            );
        }
        let Some(call) = self.calls.get_mut(&key) else { return };
        let Some((invite, server)) = call.invite.take() else { return };
        let local = Local { rtp, session_id, version: 1, direction: Direction::SendRecv };
        call.sdp = match &call.offer {
            Some(remote) => remote.answer(&local),
            None => sdp::offer(&local, sdp::all_codecs()),
        };
        let mut response = Message::response(&invite, 200, "OK", &call.dialog.local_tag);
        copy_record_route(&invite, &mut response);
        response.push("Contact", call.contact.clone());
        response.push("Allow", ALLOW);
        response.push("Supported", "timer");
        response.push("Server", PRODUCT);
        if let Some(timer) = &mut call.session_timer {
            timer.refreshed(now);
            timer.add_to_response(&mut response);
        }
        let response = response.with_body("application/sdp", call.sdp.clone());
        call.local = Some(local);
        call.awaiting_ack = Some(AwaitAck::new(now, &invite, response.to_bytes()));
        call.state = CallState::Up;
        self.respond(now, &server, &response);
        self.arm(TimerKey::Call(key));
    }

    pub(super) fn reject(
        &mut self,
        now: Instant,
        key: CallKey,
        code: u16,
        reason: &'static str,
        retry_after_s: Option<u32>,
    ) {
        let header = retry_after_s.map(|seconds| ("Retry-After", seconds.to_string()));
        self.refuse_call(now, key, (code, reason), header, CallEnd::HungUp);
    }

    pub(super) fn refuse_call(
        &mut self,
        now: Instant,
        key: CallKey,
        (code, reason): (u16, &'static str),
        header: Option<(&'static str, String)>,
        end: CallEnd,
    ) {
        let Some((invite, server)) = self.calls.get_mut(&key).and_then(|c| c.invite.take()) else {
            return;
        };
        let tag = self.calls.get(&key).map(|c| c.dialog.local_tag.clone()).unwrap_or_default();
        let mut response = Message::response(&invite, code, reason, &tag).with("Server", PRODUCT);
        if let Some((name, value)) = header {
            response.push(name, value);
        }
        self.respond(now, &server, &response);
        self.end_call(key, end);
    }

    /// Ends a call that is cancelled before we answer; a CANCEL after our 200 has no effect.
    pub(super) fn cancelled(&mut self, now: Instant, key: CallKey) {
        let Some((invite, server)) = self.calls.get_mut(&key).and_then(|c| c.invite.take()) else {
            return;
        };
        let tag = self.calls.get(&key).map(|c| c.dialog.local_tag.clone()).unwrap_or_default();
        let response = Message::response(&invite, 487, "Request Terminated", &tag);
        self.respond(now, &server, &response.with("Server", PRODUCT));
        self.end_call(key, CallEnd::Cancelled);
    }
}

/// The result of [`Agent::examine`] for an acceptable INVITE.
struct Accepted {
    account: AccountId,
    user: String,
    session_timer: Option<SessionTimer>,
    remote: Option<Remote>,
    local_ip: IpAddr,
}

/// Refuses a body that is not SDP (415), and a request without an offer whose Accept excludes SDP
/// (406). A sender of SDP can read it, too, so its Accept does not count.
pub(super) fn check_content(request: &Message) -> Result<(), Refusal> {
    let encoding = request.get("Content-Encoding").unwrap_or_default();
    let encoded = !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity");
    let kind = request.content_type().unwrap_or_default();
    if encoded || (!request.body.is_empty() && kind != "application/sdp") {
        let why = match encoded {
            true => "its body is encoded".to_owned(),
            false => format!("its body, of type \"{kind}\", has a part that is not supported"),
        };
        return Err(Refusal::new(415, "Unsupported Media Type", why).with("Accept", ACCEPT));
    }
    let accepts = request.list("Accept");
    let takes_sdp =
        |a: &String| matches!(media_type(a).as_str(), "application/sdp" | "application/*" | "*/*");
    if request.body.is_empty() && !accepts.is_empty() && !accepts.iter().any(takes_sdp) {
        return Err(Refusal::new(406, "Not Acceptable", "its Accept excludes application/sdp"));
    }
    Ok(())
}

pub(super) fn copy_record_route(request: &Message, response: &mut Message) {
    for route in request.all("Record-Route") {
        response.push("Record-Route", route);
    }
}

/// Returns the caller's number and name from P-Asserted-Identity (RFC 3325), or else
/// Remote-Party-ID, or else From. A name may be in a later one than the number.
fn caller(invite: &Message) -> (String, Option<String>) {
    let headers = ["P-Asserted-Identity", "Remote-Party-ID"];
    let asserted = headers.iter().flat_map(|h| invite.addresses(h));
    let stated = asserted.filter_map(|text| NameAddr::parse(&text)).chain(invite.from());
    // a Remote-Party-ID may be about the called party
    let called = |a: &NameAddr| find_param(&a.params, "party").is_some_and(|p| p == "called");
    let stated = stated.filter(|a| !called(a)).filter_map(|a| Some((a.number()?, a.display)));
    let stated: Vec<_> = stated.collect();
    let Some((number, _)) = stated.first() else { return Default::default() };
    let name = stated.iter().find_map(|(n, name)| name.clone().filter(|_| n == number));
    (number.clone(), name)
}

/// Returns the value of Privacy, or else of Remote-Party-ID's parameter, unless it asks for none.
fn privacy(invite: &Message) -> Option<String> {
    let stated = invite.list("Privacy").join(", ");
    let parties = invite.addresses("Remote-Party-ID");
    let mut parties = parties.iter().filter_map(|a| NameAddr::parse(a));
    let party = parties.find_map(|a| find_param(&a.params, "privacy").map(str::to_owned));
    let stated = if stated.is_empty() { party? } else { stated };
    let none = ["none", "off"].iter().any(|none| stated.eq_ignore_ascii_case(none));
    (!none && !stated.is_empty()).then_some(stated)
}

fn headers(invite: &Message) -> Vec<(String, String)> {
    let secret = ["Authorization", "Proxy-Authorization"];
    let passed = |name: &str| !secret.iter().any(|s| s.eq_ignore_ascii_case(name));
    invite
        .headers
        .iter()
        .filter(|(name, _)| passed(name))
        .map(|(name, value)| (name.clone(), readable(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_read_from_several_fields() {
        let table = [
            ("P-Asserted-Identity: <sip:+15@x>|From: \"ALICE\" <sip:+15@x>", "+15 ALICE"),
            ("P-Asserted-Identity: <sip:+15@x>|From: \"ALICE\" <sip:+16@x>", "+15 -"),
            ("P-Asserted-Identity: \"B\" <sip:+15@x>, <tel:+15>|From: \"A\" <sip:1@x>", "+15 B"),
            ("P-Asserted-Identity: <sip:@x>|From: \"A\" <sip:1@x>", "1 A"),
            (
                "Remote-Party-ID: <sip:8010@x>;party=called|\
                 Remote-Party-ID: \"C\" <sip:17@x>;party=calling;privacy=full|From: <sip:1@x>",
                "17 C full",
            ),
            ("Remote-Party-ID: <sip:17@x>;privacy=off|From: <sip:1@x>", "17 -"),
            (
                "P-Asserted-Identity: <tel:+15>|Privacy: id;critical|From: <sip:1@x>",
                "+15 - id;critical",
            ),
            ("From: \"A <sip:1@x>;tag=1", "1 A"),
            ("From: Dept: Sales, Bob <sip:1@x>;tag=1", "1 Dept: Sales, Bob"),
        ];
        for (fields, expected) in table {
            let fields = fields.split('|').filter_map(|field| field.split_once(": "));
            let invite = Message::request("INVITE", "sip:a@b");
            let invite = fields.fold(invite, |invite, (name, value)| invite.with(name, value));
            let (number, name) = caller(&invite);
            let found = format!("{number} {}", name.unwrap_or("-".to_owned()));
            let found =
                privacy(&invite).map_or(found.clone(), |privacy| format!("{found} {privacy}"));
            assert_eq!(found, expected);
        }
    }
}
