//! Calls that we place: from the wish to the `Offer`. Owns sockets and the clock.

use std::time::Instant;

use tracing::warn;

use crate::ari::api::{Input, NotTaken};
use crate::ari::bridging::callee::CalleeWish;
use crate::ari::bridging::words::After;
use crate::ari::client::{AriHandle, CallLink, Internal, Source};
use crate::ari::request::NORMAL;
use crate::call::Offer;
use crate::call::leg::Leg;
use crate::call::live::OUTBOUND;
use crate::call::parameters::Added;
use crate::call::placing::{NewCall, Refused};

/// The PBX gives up this much later than we do, so that our limit decides.
const SPARE_S: u64 = 5;

impl AriHandle {
    /// Places a call. Does not block. Returns false if the client has stopped or its queue is full.
    pub fn place(&self, new: NewCall) -> bool {
        self.internal.try_send(Internal::Place(Box::new(new))).is_ok()
    }
}

impl Source {
    pub(super) fn on_place(&mut self, mut new: NewCall) {
        let outcome = new.outgoing.outcome.take();
        let refused = match self.begin_outgoing(new) {
            Ok((call, mut offer, input)) => {
                if let Some(outgoing) = &mut offer.outgoing {
                    outgoing.outcome = outcome;
                }
                match self.admission.offer(offer) {
                    Ok(()) => self.feed(input),
                    Err(why) => {
                        // the one who waits for the outcome sees that it is gone
                        warn!(pbx = &*self.name, "call out not begun: {why}");
                        self.calls.remove(&call);
                        self.feed(Input::End(call, After::HangUp(NORMAL)));
                    }
                }
                return;
            }
            Err(why) => Refused::Busy(why),
        };
        if let Some(outcome) = outcome {
            let _ = outcome.send(Err(refused));
        }
    }

    /// Reserves what the call needs, and makes an offer of it. The callee is called later.
    fn begin_outgoing(&mut self, new: NewCall) -> Result<(u64, Offer, Input), String> {
        let now = Instant::now();
        let (ready, state) = self.config.status.get();
        if !ready {
            return Err(format!("no calls can be placed through the PBX now: {state}"));
        }
        let NewCall { to, from, context, outgoing } = new;
        let context = context.ok_or("[pbx.NAME.dial] context is missing")?;
        let admitted = self.admission.admit(&self.name, now)?;
        self.check_rtp_ports()?;
        let leg = Leg::new(admitted.ports, self.own_ip()?, self.pbx_ip);
        let wish = CalleeWish {
            // without /n, Asterisk would put another channel in place of the one that we know
            endpoint: format!("Local/{to}@{context}/n"),
            context: context.clone(),
            caller_id: from.clone(),
            timeout_s: outgoing.ring.as_secs() + SPARE_S,
        };
        let placed = self.application.place(now, wish);
        let (call, id, channel) = placed.map_err(|why| match why {
            NotTaken::Stopping => "trunkless is shutting down, or the PBX was removed".to_owned(),
            NotTaken::Full => format!("max_media = {} is reached", self.max_media),
        })?;
        let host = leg.address();
        let link = CallLink {
            signals: admitted.signals_tx,
            remote: None,
            held: false,
            id: id.clone(),
            channel: channel.clone(),
            tap: None,
        };
        self.calls.insert(call, link);
        let mut added = Added::default();
        added.detail("direction", OUTBOUND);
        added.detail("context", &context);
        added.detail("channel_id", &channel);
        let offer = Offer {
            id: id.clone(),
            pbx: self.name.clone(),
            from_number: from,
            from_name: String::new(),
            to_number: to,
            sid_seed: outgoing.sid_seed.clone().unwrap_or_else(|| format!("{channel}|{id}")),
            native_id: channel,
            added,
            headers: Vec::new(),
            remote: None,
            leg,
            requests: self.requests_of(call, id),
            signals: admitted.signals,
            can_continue: false,
            permit: admitted.permit,
            owned: None,
            refused: None,
            outgoing: Some(outgoing),
        };
        Ok((call, offer, Input::Accept(call, host)))
    }
}
