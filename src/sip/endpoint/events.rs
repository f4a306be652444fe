//! Handles the agent's events, most of which become signals to calls. Owns the clock.

use std::time::Instant;

use tracing::{debug, warn};

use crate::call::{RemoteMedia, Signal};
use crate::faults::ADDRESS_DIFFERS_CURE;
use crate::sip::agent::{CallEnd, CallKey, Event};
use crate::sip::endpoint::Endpoint;
use crate::sip::endpoint::translate::end_reason;
use crate::sip::sdp::Remote;

impl Endpoint {
    pub(super) fn on_event(&mut self, event: Event) {
        match event {
            Event::Invite(invite) => self.on_invite(*invite),
            Event::Media { call, remote } => self.on_media(call, &remote),
            Event::Acked { call } => self.signal(call, Signal::Connected),
            Event::Digit { call, digit } => {
                if let Some(call) = self.partner_of(call) {
                    self.signal(call, Signal::Digit(digit));
                }
            }
            Event::Ended { call, end } if self.consults.contains_key(&call) => {
                self.on_consult_ended(call, &end);
            }
            Event::Ended { call, end } => self.on_ended(call, &end),
            Event::Registration { account, remote, status } => {
                self.on_registration(account, remote, status);
            }
            Event::Peer { account, remote, answers } => self.on_peer(account, remote, answers),
            Event::AddressDiffers { account, ours, seen } => {
                let pbx = &*self.peers[account].name;
                // as in `faults::address_differs`
                warn!(
                    pbx,
                    "the PBX sees us at {seen}, but we announce {ours}: audio may go nowhere; \
                     {ADDRESS_DIFFERS_CURE}"
                );
            }
            Event::Registrar { account, remote } => self.probe_port(account, remote),
            Event::Refused(refused) => self.on_refused(&refused),
            Event::Unreadable { source, why } => {
                if self.refusal_log.admits(Instant::now()) {
                    warn!(%source, "SIP message dropped: {why}");
                }
            }
            Event::Unregistered => {
                if let Some(done) = self.stopping.take() {
                    let _ = done.send(());
                }
            }
            Event::Directed { call, accepted } => self.on_directed(call, accepted),
            Event::InfoAnswered { call, accepted } => self.on_key_pressed(call, accepted),
            Event::ReferAccepted { call } => self.on_refer_accepted(call),
            Event::Referred { call, code } => self.on_referred(call, code),
            Event::Progress { call, code } if self.consults.contains_key(&call) => {
                self.on_consult_progress(call, code);
            }
            Event::Progress { call, code } => self.on_callee_progress(call, code),
            Event::Answered { call, remote } if self.consults.contains_key(&call) => {
                self.on_consult_answered(call, &remote);
            }
            Event::Answered { call, remote } => self.on_callee_answered(call, &remote),
        }
    }

    fn on_media(&mut self, of: CallKey, remote: &Remote) {
        if let Some(media) = self.calls.get(&of).map(|link| self.remote_media(link, remote)) {
            self.calls.entry(of).and_modify(|link| link.media = Some(media));
        }
        let Some(call) = self.partner_of(of) else { return };
        let Some(media) = self.calls.get(&call).map(|link| self.remote_media(link, remote)) else {
            return;
        };
        // a target's media are accepted from wherever its PBX names
        let trusted = media.trusted || call != of;
        self.signal(call, Signal::Media(RemoteMedia { trusted, ..media }));
    }

    fn on_ended(&mut self, call: CallKey, end: &CallEnd) {
        let handed_over = matches!(end, CallEnd::Bye { .. }) && self.is_handed_over(call);
        match handed_over {
            true => self.transferred(call),
            false => self.drop_transfer(call),
        }
        if let CallEnd::Bye { cause: Some(cause) } = end
            && !handed_over
        {
            self.signal(call, Signal::HangupCause(*cause));
        }
        if let CallEnd::Refused { code, reason } = end {
            self.on_callee_refused(call, *code, reason);
        }
        // after our own hangup, the call has ended already
        if !matches!(end, CallEnd::HungUp | CallEnd::Refused { .. }) {
            self.signal(call, Signal::Ended(end_reason(end)));
        }
        self.calls.remove(&call);
        self.messages.end(call);
    }

    pub(super) fn signal(&mut self, call: CallKey, signal: Signal) {
        if let Some(link) = self.calls.get(&call)
            && link.signals.try_send(signal).is_err()
        {
            debug!(?call, ?signal, "signal dropped: call ended or its queue is full");
        }
    }
}
