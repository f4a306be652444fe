//! From an INVITE to an [`Offer`]: admission, RTP ports, what the AI is told. Owns the clock.

use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tracing::warn;

use crate::call::end::EndReason;
use crate::call::leg::Leg;
use crate::call::{Offer, Request};
use crate::sip::agent::{CallKey, Command, Input, Invite};
use crate::sip::endpoint::translate::{cut, remote_media, short_id};
use crate::sip::endpoint::{CallLink, Endpoint, Internal};
use crate::telemetry::COUNTERS;

/// Signals that wait for a call; its loop takes them at once.
const SIGNALS: usize = 64;

impl Endpoint {
    pub(super) fn on_invite(&mut self, invite: Invite) {
        COUNTERS.offered.fetch_add(1, Ordering::Relaxed);
        let (call, account) = (invite.call, invite.account);
        let offer = match self.make_offer(invite) {
            Ok(offer) => offer,
            Err(why) => {
                COUNTERS.ended(EndReason::Overload);
                if self.refusal_log.admits(Instant::now()) {
                    warn!(pbx = &*self.peers[account].name, why, "calls are refused");
                }
                return self.refuse(call);
            }
        };
        if self.offers.try_send(offer).is_err() {
            COUNTERS.ended(EndReason::Overload);
            self.calls.remove(&call);
            self.refuse(call);
        }
    }

    fn refuse(&mut self, call: CallKey) {
        let row = EndReason::Overload.row();
        let (code, reason) = (row.sip_status, row.sip_reason);
        let command = Command::Reject { call, code, reason, retry_after_s: Some(5) };
        self.agent.handle(Instant::now(), Input::Command(command));
    }

    fn make_offer(&mut self, invite: Invite) -> Result<Offer, String> {
        let permit = self.permits.clone().try_acquire_owned();
        let permit = permit.map_err(|_| "as many calls are up as [calls] max allows".to_owned())?;
        let ports = self.ports.lease(Instant::now()).map_err(|e| e.to_string())?;
        let peer = &self.peers[invite.account];
        let leg = Leg::new(ports, invite.local_ip, invite.signalling);
        let (signals_tx, signals) = mpsc::channel(SIGNALS);
        let link = CallLink {
            signals: signals_tx,
            account: invite.account,
            rtp: leg.address(),
            answered: false,
        };
        self.calls.insert(invite.call, link);
        let internal = self.internal_tx.clone();
        let call = invite.call;
        let requests = Box::new(move |request: Request| {
            if internal.try_send(Internal::Request(call, request)).is_err() {
                warn!(?call, ?request, "the SIP endpoint does not take requests");
            }
        });
        let wanted =
            |name: &str| peer.x_headers.iter().any(|x| x == "*" || x.eq_ignore_ascii_case(name));
        let mut vars: Vec<(String, String)> = Vec::new();
        if let Some(name) = invite.from_name {
            vars.push(("from_name".to_owned(), cut(&name)));
        }
        vars.extend(invite.x_headers.into_iter().filter(|(name, _)| wanted(name)));
        let sid_seed = format!("{}|{}", invite.sip_call_id, invite.from_tag);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Offer {
            id: short_id(&sid_seed, unix.unwrap_or_default()),
            pbx: peer.name.clone(),
            from_number: cut(&invite.from_user),
            to_number: cut(&invite.to_user),
            native_id: cut(&invite.sip_call_id),
            sid_seed,
            vars,
            remote: invite.remote.as_ref().map(remote_media),
            leg,
            requests,
            signals,
            // a SIP device can only hang up
            can_continue: false,
            permit,
        })
    }
}
