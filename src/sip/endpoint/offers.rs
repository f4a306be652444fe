//! Makes an [`Offer`] of an INVITE: admission, RTP ports and the parameters for the AI. Owns the
//! clock.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use crate::call::admission::{Admitted, RefusedCall, clip};
use crate::call::end::EndReason;
use crate::call::fault_point::fault_point;
use crate::call::ladder::Overflow;
use crate::call::leg::Leg;
use crate::call::parameters::Added;
use crate::call::{Offer, RemoteMedia, RequestSender, SourceRequest};
use crate::sip::agent::{AccountId, CallKey, Command, Input, Invite, Refused};
use crate::sip::endpoint::counters::count_refused;
use crate::sip::endpoint::translate::{refusal, remote_media, short_id};
use crate::sip::endpoint::{CallLink, Endpoint, Internal};
use crate::sip::sdp::Remote;
use crate::telemetry::Masked;

/// Maximum number of X- header fields passed on.
const MAX_X_HEADERS: usize = 32;

impl Endpoint {
    pub(super) fn on_invite(&mut self, invite: Invite) {
        fault_point("invite", &invite.headers);
        self.admission.count();
        let (call, account) = (invite.call, invite.account);
        let name = invite.from_name.clone().unwrap_or_default();
        let refused = RefusedCall {
            pbx: self.peers[invite.account].name.to_string(),
            native_id: clip(&invite.sip_call_id),
            from_number: clip(&invite.from_user),
        };
        let reason = if self.draining { EndReason::Drain } else { EndReason::Overload };
        let offered =
            self.admit(account, &refused, reason, &name).and_then(|(admitted, reason)| {
                let offer = self.make_offer(invite, admitted, reason);
                self.admission.offer(offer)
            });
        if let Err(why) = offered {
            self.calls.remove(&call);
            if self.is_taken_away(account, call, &name) {
                let fate = "the dialler is asked to take the caller away";
                return self.admission.refused(&refused, reason, &why, fate);
            }
            let fate = overflow(call, &self.peers[account].overflow).2;
            self.admission.refused(&refused, reason, &why, &fate);
            self.turn_away(account, call);
        }
    }

    /// Asks the owner of a call that cannot be started to take the caller away. Until then, the
    /// INVITE is not answered.
    fn is_taken_away(&self, account: AccountId, call: CallKey, name: &str) -> bool {
        let Some(owner) = &self.peers[account].owner else { return false };
        let internal = self.internal_tx.clone();
        let left = move || drop(internal.try_send(Internal::Left(account, call)));
        owner.take_away(name, Box::new(left))
    }

    /// Refuses or redirects a call that cannot be started. Does nothing if it is gone.
    pub(super) fn turn_away(&mut self, account: AccountId, call: CallKey) {
        if !self.agent.has_call(call) {
            return;
        }
        let (command, code, _) = overflow(call, &self.peers[account].overflow);
        count_refused(Some("INVITE"), code);
        self.agent.handle(Instant::now(), Input::Command(command));
    }

    /// Media at another address than the signalling may be anyone's, unless it is listed.
    pub(super) fn remote_media(&self, link: &CallLink, remote: &Remote) -> RemoteMedia {
        let (ip, listed) = (remote.rtp.ip(), &self.peers[link.account].media_peers);
        let trusted = ip == link.signalling || listed.iter().any(|network| network.contains(ip));
        remote_media(remote, trusted)
    }

    /// Counts and logs a request that the agent has refused.
    pub(super) fn on_refused(&mut self, refused: &Refused) {
        count_refused(refused.method, refused.code.unwrap_or(0));
        let invite = refused.method == Some("INVITE");
        let log = if invite { &mut self.refusal_log } else { &mut self.request_log };
        if !log.admits(Instant::now()) {
            return;
        }
        let (source, why) = (refused.source, clip(&refused.why));
        let (call_id, from) = (clip(&refused.sip_call_id), clip(&refused.from_number));
        let (from, method) = (Masked(&from), refused.method.unwrap_or("SIP"));
        match refused.code {
            Some(status) if invite => {
                warn!(status, %source, call_id, %from, "INVITE refused: {why}");
            }
            None if invite => {
                warn!(%source, call_id, %from, "INVITE dropped, it cannot be answered: {why}");
            }
            // two BYEs that cross are normal, and so is a late copy of an ACK
            Some(481) => info!(%source, call_id, %from, "{method} request refused: {why}"),
            None if method == "ACK" => {
                info!(%source, call_id, %from, "{method} request dropped: {why}");
            }
            Some(status) => {
                warn!(status, %source, call_id, %from, "{method} request refused: {why}");
            }
            None => warn!(%source, call_id, %from, "{method} request dropped: {why}"),
        }
    }

    /// Admits a call, and returns the reason why it may not go to its AI, if so: then its owner
    /// takes the caller away.
    fn admit(
        &mut self,
        account: AccountId,
        call: &RefusedCall,
        reason: EndReason,
        name: &str,
    ) -> Result<(Admitted, Option<EndReason>), String> {
        let (now, peer) = (Instant::now(), &self.peers[account]);
        let admitted = match self.draining {
            true => Err("trunkless is shutting down".to_owned()),
            false => self.admission.admit(&peer.name, now),
        };
        let why = match admitted {
            Ok(admitted) => return Ok((admitted, None)),
            Err(why) => why,
        };
        if !peer.owner.as_ref().is_some_and(|owner| owner.owns()(name)) {
            return Err(why);
        }
        let admitted =
            self.admission.admit_beyond(now).map_err(|error| format!("{why}; {error}"))?;
        let fate = "the dialler is asked to take the caller away";
        self.admission.log_refused(call, reason, &why, fate);
        Ok((admitted, Some(reason)))
    }

    /// Returns the function by which a call sends its requests.
    pub(super) fn requests_of(&self, call: CallKey) -> RequestSender {
        let internal = self.internal_tx.clone();
        Box::new(move |request: SourceRequest| {
            if let Err(error) = internal.try_send(Internal::Request(call, request))
                && let Internal::Request(_, request) = error.into_inner()
            {
                warn!(
                    ?call,
                    ?request,
                    "request dropped: the SIP endpoint has stopped or its queue is full"
                );
            }
        })
    }

    fn make_offer(
        &mut self,
        invite: Invite,
        admitted: Admitted,
        refused: Option<EndReason>,
    ) -> Offer {
        let peer = &self.peers[invite.account];
        let leg = Leg::new(admitted.ports, invite.local_ip, invite.signalling);
        let link = CallLink {
            signals: admitted.signals_tx,
            account: invite.account,
            rtp: leg.address(),
            signalling: invite.signalling,
            answered: false,
            outgoing: false,
            dial: None,
            holding: None,
            keys: VecDeque::new(),
            media: None,
            transfer: None,
        };
        let remote = invite.remote.as_ref().map(|remote| self.remote_media(&link, remote));
        let link = CallLink { media: remote, ..link };
        let own = SocketAddr::new(invite.local_ip, self.bound.port());
        self.messages.begin(invite.call, &invite.sip_call_id, own);
        self.calls.insert(invite.call, link);
        fault_point("link", &invite.headers);
        let requests = self.requests_of(invite.call);
        let sid_seed = format!("{}|{}", invite.sip_call_id, invite.from_tag);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Offer {
            id: short_id(&sid_seed, unix.unwrap_or_default()),
            pbx: peer.name.clone(),
            from_number: clip(&invite.from_user),
            from_name: clip(invite.from_name.as_deref().unwrap_or_default()),
            to_number: clip(&invite.to_user),
            native_id: clip(&invite.sip_call_id),
            sid_seed,
            added: added(&invite, &peer.x_headers, &peer.sip_headers),
            headers: invite.headers,
            remote,
            leg,
            requests,
            signals: admitted.signals,
            // a SIP device cannot send the caller back to the dialplan
            can_continue: false,
            permit: admitted.permit,
            owned: None,
            refused,
            outgoing: None,
        }
    }
}

/// Returns the response to a call that cannot be started, its status, and its meaning for the log.
fn overflow(call: CallKey, overflow: &Overflow) -> (Command, u16, String) {
    let (code, reason, retry_after_s) = match overflow {
        Overflow::Transfer(to) => {
            let fate = format!("redirected to {}", to.exten);
            return (Command::Redirect { call, user: to.exten.clone() }, 302, fate);
        }
        Overflow::Refuse(Some(cause)) => {
            let (code, reason) = refusal(*cause);
            (code, reason, None)
        }
        Overflow::Refuse(None) | Overflow::Continue => {
            let row = EndReason::Overload.row();
            (row.sip_status, row.sip_reason, Some(5))
        }
    };
    let command = Command::Reject { call, code, reason, retry_after_s };
    (command, code, format!("answered {code}"))
}

/// The parameters from an INVITE. `x_headers` and `sip_headers` are the configured names.
fn added(invite: &Invite, x_headers: &[String], sip_headers: &[String]) -> Added {
    let mut added = Added::default();
    added.detail("privacy", invite.privacy.as_deref().unwrap_or_default());
    for name in sip_headers {
        let same = invite.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let values: Vec<&str> = same.map(|(_, value)| value.as_str()).collect();
        // several lines are equal to one with commas (RFC 3261 §7.3.1)
        added.named(name, &values.join(", "));
    }
    let is_x = |name: &str| name.get(..2).is_some_and(|p| p.eq_ignore_ascii_case("X-"));
    let wanted = |name: &str| x_headers.iter().any(|x| x == "*" || x.eq_ignore_ascii_case(name));
    let headers = invite.headers.iter().filter(|(name, _)| is_x(name) && wanted(name));
    headers.take(MAX_X_HEADERS).for_each(|(name, value)| added.dialplan(name, value));
    added
}
