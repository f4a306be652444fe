//! Calls that we place: from the wish to the `Offer`, and from the answers to our INVITE to
//! signals. Owns the clock.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tracing::warn;

use crate::call::end::EndReason;
use crate::call::leg::Leg;
use crate::call::live::OUTBOUND;
use crate::call::outgoing::by_sip_status;
use crate::call::parameters::Added;
use crate::call::placing::{NewCall, Refused};
use crate::call::{Offer, Signal, SourceRequest};
use crate::sip::agent::{AccountId, CallKey, Command, NO_RESPONSE, Place, Route};
use crate::sip::endpoint::translate::short_id;
use crate::sip::endpoint::{CallLink, Endpoint, EndpointHandle, Internal};
use crate::sip::sdp::Remote;

impl EndpointHandle {
    /// Places a call through a PBX. Does not block. Returns false if the endpoint has stopped or
    /// its queue is full.
    pub fn place(&self, account: AccountId, new: NewCall) -> bool {
        self.internal.try_send(Internal::Place(account, Box::new(new))).is_ok()
    }
}

impl Endpoint {
    pub(super) fn on_place(&mut self, account: AccountId, mut new: NewCall) {
        let outcome = new.outgoing.outcome.take();
        match self.outgoing_offer(account, new) {
            Ok((call, mut offer)) => {
                if let Some(outgoing) = &mut offer.outgoing {
                    outgoing.outcome = outcome;
                }
                if let Err(why) = self.admission.offer(offer) {
                    // the one who waits for the outcome sees that it is gone
                    warn!("call out not begun: {why}");
                    self.forget(call);
                }
            }
            Err(why) => {
                if let Some(outcome) = outcome {
                    let _ = outcome.send(Err(Refused::Busy(why)));
                }
            }
        }
    }

    /// Checks that calls can be placed through a PBX now. Returns the way to it.
    fn may_place(&self, account: AccountId) -> Result<Route, String> {
        if self.draining {
            return Err("trunkless is shutting down".to_owned());
        }
        let Some(peer) = self.peers.get(account).filter(|peer| !peer.retired) else {
            return Err("the PBX was removed from the configuration".to_owned());
        };
        let (ready, state) = peer.status.get();
        if !ready {
            return Err(format!("no calls can be placed through the PBX now: {state}"));
        }
        let way = self.agent.way_to(account);
        way.ok_or_else(|| "the address of the PBX is not known yet".to_owned())
    }

    /// Reserves what the call needs, and makes an offer of it. The callee is called later.
    fn outgoing_offer(
        &mut self,
        account: AccountId,
        new: NewCall,
    ) -> Result<(CallKey, Offer), String> {
        let way = self.may_place(account)?;
        let name = self.peers[account].name.clone();
        let admitted = self.admission.admit(&name, Instant::now())?;
        let (call, call_id) = (self.agent.new_call_key(), self.agent.new_call_id());
        let leg = Leg::new(admitted.ports, way.local, way.remote.ip());
        let NewCall { to, from, outgoing, .. } = new;
        let place = Place {
            account,
            call,
            call_id: call_id.clone(),
            to: to.clone(),
            from: from.clone(),
            rtp: leg.address(),
        };
        let link = CallLink {
            signals: admitted.signals_tx,
            account,
            rtp: leg.address(),
            signalling: way.remote.ip(),
            answered: false,
            outgoing: true,
            dial: Some(Box::new(place)),
            holding: None,
            keys: VecDeque::new(),
            media: None,
            transfer: None,
        };
        let own = SocketAddr::new(way.local, self.bound.port());
        self.messages.begin(call, &call_id, own);
        self.calls.insert(call, link);
        let mut added = Added::default();
        added.detail("direction", OUTBOUND);
        let sid_seed = outgoing.sid_seed.clone();
        let sid_seed = sid_seed.unwrap_or_else(|| format!("{call_id}|{OUTBOUND}"));
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let offer = Offer {
            id: short_id(&sid_seed, unix.unwrap_or_default()),
            pbx: name,
            from_number: from,
            from_name: String::new(),
            to_number: to,
            native_id: call_id,
            sid_seed,
            added,
            headers: Vec::new(),
            remote: None,
            leg,
            requests: self.requests_of(call),
            signals: admitted.signals,
            can_continue: false,
            permit: admitted.permit,
            owned: None,
            refused: None,
            outgoing: Some(outgoing),
        };
        Ok((call, offer))
    }

    /// Forgets a call whose callee was never called.
    fn forget(&mut self, call: CallKey) {
        self.calls.remove(&call);
        self.messages.end(call);
        self.messages.tidy();
    }

    /// Carries out the requests that mean something else for a call that we place. Returns false if
    /// this is not one.
    pub(super) fn on_outgoing_request(&mut self, call: CallKey, request: &SourceRequest) -> bool {
        let draining = self.draining;
        let Some(link) = self.calls.get_mut(&call) else { return true };
        match (request, link.dial.take()) {
            // no callee is called for a program that is about to end
            (SourceRequest::Answer, Some(_)) if draining => {
                let reason = EndReason::Drain;
                self.signal(call, Signal::Unanswered { reason, code: None });
                self.forget(call);
                true
            }
            (SourceRequest::Answer, Some(place)) => {
                // from now on, the call ends with a CANCEL or a BYE
                link.answered = true;
                self.command(Command::Place(place));
                true
            }
            (SourceRequest::Answer | SourceRequest::Ringing, None) => true,
            // the callee was never called
            (SourceRequest::End { .. } | SourceRequest::HangUp { .. }, Some(_)) => {
                self.forget(call);
                true
            }
            (_, place) => {
                link.dial = place;
                false
            }
        }
    }

    pub(super) fn on_callee_progress(&mut self, call: CallKey, code: u16) {
        // 183 is ringing, too, with a tone that the AI does not get
        if matches!(code, 180 | 183) {
            self.signal(call, Signal::Ringing);
        }
    }

    pub(super) fn on_callee_answered(&mut self, call: CallKey, remote: &Remote) {
        let Some(media) = self.calls.get(&call).map(|link| self.remote_media(link, remote)) else {
            return;
        };
        self.calls.entry(call).and_modify(|link| link.media = Some(media));
        self.signal(call, Signal::Media(media));
        self.signal(call, Signal::Connected);
    }

    pub(super) fn on_callee_refused(&mut self, call: CallKey, code: u16, reason: &str) {
        let signal = match reason == NO_RESPONSE {
            true => Signal::Unanswered { reason: EndReason::DialFailed, code: None },
            false => Signal::Unanswered { reason: by_sip_status(code), code: Some(code) },
        };
        self.signal(call, signal);
    }
}
