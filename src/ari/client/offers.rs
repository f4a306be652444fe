//! Turns a caller in our Stasis application into an [`Offer`]: admission, RTP ports, the parameters
//! for the AI. Owns sockets.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use tracing::warn;

use crate::ari::api::{Input, NewCall, NotTaken};
use crate::ari::bridging::words::After;
use crate::ari::client::CallKey;
use crate::ari::client::inbox::after;
use crate::ari::client::{CallLink, Internal, Source};
use crate::ari::event::Channel;
use crate::call::admission::{RefusedCall, clip};
use crate::call::departure::Departure;
use crate::call::end::EndReason;
use crate::call::fault_point::fault_point;
use crate::call::ladder::Overflow;
use crate::call::leg::Leg;
use crate::call::parameters::Added;
use crate::call::{Offer, RequestSender, SourceRequest};
use crate::command::Cause;

/// The outcome for a refused caller, for the log.
const CONTINUES: &str = "the caller continues in the dialplan";

impl Source {
    pub(super) fn on_offer(&mut self, new: NewCall) {
        self.admission.count();
        let call = new.call;
        let refused = refused_call(&self.name, &new.channel);
        let context = new.channel.dialplan.context.clone();
        let name = new.channel.caller.name.clone();
        let offered = self.make_offer(new).and_then(|(offer, host)| {
            self.admission.offer(offer)?;
            Ok(Input::Accept(call, host))
        });
        match offered {
            Ok(input) => self.feed(input),
            Err(why) => {
                self.calls.remove(&call);
                self.refuse(call, EndReason::Overload, &why, &refused, &name, &context);
            }
        }
    }

    pub(super) fn on_not_taken(&mut self, call: CallKey, why: NotTaken, channel: &Channel) {
        self.admission.count();
        let refused = refused_call(&self.name, channel);
        let (reason, why) = match why {
            NotTaken::Stopping if self.leaving.is_some() => {
                (EndReason::Drain, "the PBX was removed from the configuration".to_owned())
            }
            NotTaken::Stopping => (EndReason::Drain, "trunkless is shutting down".to_owned()),
            NotTaken::Full => {
                (EndReason::Overload, format!("max_media = {} is reached", self.max_media))
            }
        };
        let (name, context) = (&channel.caller.name, &channel.dialplan.context);
        self.refuse(call, reason, &why, &refused, name, context);
    }

    fn refuse(
        &mut self,
        call: CallKey,
        reason: EndReason,
        why: &str,
        refused: &RefusedCall,
        name: &str,
        context: &str,
    ) {
        let (after, fate) = overflow(reason, &self.config.overflow, context);
        if let Some(owner) = &self.config.owner {
            let (internal, after) = (self.internal_tx.clone(), after.clone());
            let left = move || drop(internal.try_send(Internal::Left(call, after)));
            if owner.take_away(name, Box::new(left)) {
                let fate = "the dialler is asked to take the caller away";
                return self.admission.refused(refused, reason, why, fate);
            }
        }
        self.admission.refused(refused, reason, why, &fate);
        self.feed(Input::End(call, after));
    }

    /// Checks that the PBX has RTP ports for another call.
    pub(super) fn check_rtp_ports(&mut self) -> Result<(), String> {
        let starting = self.calls.values().filter(|c| c.remote.is_none()).count();
        match self.rtp_capacity.admits(self.pbx_ip, starting) {
            true => Ok(()),
            false => {
                Err("the PBX is nearly out of RTP ports: widen the range in its rtp.conf"
                    .to_owned())
            }
        }
    }

    /// Our address, as the PBX is to send RTP to.
    pub(super) fn own_ip(&self) -> Result<IpAddr, String> {
        let bound = Some(self.admission.ports().ip()).filter(|ip| !ip.is_unspecified());
        match self.config.pbx.advertised.or(bound) {
            Some(ip) => Ok(ip),
            None => local_ip(self.pbx_ip).map_err(|e| format!("no route to the PBX: {e}")),
        }
    }

    /// Returns the function by which a call sends its requests. `id` is for the log.
    pub(super) fn requests_of(&self, call: CallKey, id: String) -> RequestSender {
        let internal = self.internal_tx.clone();
        Box::new(move |request: SourceRequest| {
            if let Err(error) = internal.try_send(Internal::Request(call, request))
                && let Internal::Request(_, request) = error.into_inner()
            {
                warn!(call = id, ?request, "ARI client dropped a request: queue full or closed");
            }
        })
    }

    fn make_offer(&mut self, new: NewCall) -> Result<(Offer, SocketAddr), String> {
        let admitted = self.admission.admit(&self.name, Instant::now())?;
        self.check_rtp_ports()?;
        let leg = Leg::new(admitted.ports, self.own_ip()?, self.pbx_ip);
        let host = leg.address();
        let id = new.id.clone();
        let link = CallLink {
            signals: admitted.signals_tx,
            remote: None,
            held: false,
            id: id.clone(),
            channel: new.channel.id.clone(),
            tap: None,
        };
        self.calls.insert(new.call, link);
        let added = added(&new);
        fault_point("source", added.entries());
        let offer = Offer {
            id: new.id.clone(),
            pbx: self.name.clone(),
            from_number: clip(&new.channel.caller.number),
            from_name: clip(&new.channel.caller.name),
            to_number: clip(&new.channel.dialplan.exten),
            native_id: clip(native_id(&new.channel)),
            sid_seed: format!("{}|{}", new.channel.id, new.id),
            added,
            headers: Vec::new(),
            remote: None,
            leg,
            requests: self.requests_of(new.call, new.id.clone()),
            signals: admitted.signals,
            can_continue: true,
            permit: admitted.permit,
            owned: None,
            refused: None,
            outgoing: None,
        };
        Ok((offer, host))
    }
}

/// Returns the instruction to the PBX for a caller whose call cannot be started, and its meaning
/// for the log.
fn overflow(reason: EndReason, overflow: &Overflow, own_context: &str) -> (After, String) {
    match overflow {
        Overflow::Transfer(to) => {
            let (context, exten) =
                (to.context.as_deref().unwrap_or(own_context).to_owned(), to.exten.clone());
            let fate = format!("the caller is sent to {exten}");
            (After::Transfer { order: 0, context, exten, priority: to.priority }, fate)
        }
        Overflow::Refuse(cause) => {
            let cause = cause.unwrap_or(Cause::Congestion);
            (After::HangUp(cause.name()), "the caller is hung up".to_owned())
        }
        Overflow::Continue => (after(reason, Departure::Continue), CONTINUES.to_owned()),
    }
}

fn refused_call(pbx: &str, channel: &Channel) -> RefusedCall {
    RefusedCall {
        pbx: pbx.to_owned(),
        native_id: clip(native_id(channel)),
        from_number: clip(&channel.caller.number),
    }
}

/// The SIP Call-ID, or else Asterisk's id of the channel.
fn native_id(channel: &Channel) -> &str {
    match channel.protocol_id.as_str() {
        "" => &channel.id,
        id => id,
    }
}

/// Our address on the route to the PBX.
fn local_ip(pbx: IpAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = if pbx.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((pbx, 9))?; // sends nothing: the kernel only looks up the route
    Ok(socket.local_addr()?.ip())
}

/// Parameters for the AI: details of the channel, the arguments of `Stasis()` (`key=value`,
/// otherwise `arg1`, `arg2` …) and the channel variables.
fn added(new: &NewCall) -> Added {
    let channel = &new.channel;
    let mut added = Added::default();
    added.detail("connected_number", &channel.connected.number);
    added.detail("connected_name", &channel.connected.name);
    added.detail("context", &channel.dialplan.context);
    added.detail("exten", &channel.dialplan.exten);
    added.detail("channel_id", &channel.id);
    added.detail("channel_name", &channel.name);
    for (n, arg) in new.args.iter().enumerate() {
        match arg.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => added.dialplan(name.trim(), value),
            _ => added.dialplan(&format!("arg{}", n + 1), arg),
        }
    }
    let variables = channel.channelvars.iter().chain(new.variables.iter().map(|(n, v)| (n, v)));
    variables.for_each(|(name, value)| added.dialplan(name, value));
    added
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ari::event::Party;

    #[test]
    fn parameters_for_the_ai() {
        let channel = Channel {
            id: "1.2".into(),
            caller: Party { name: "Ann".into(), number: "555".into() },
            channelvars: [("CAMPCUST".to_owned(), "DEMO".to_owned())].into(),
            ..Channel::default()
        };
        let args = ["lead_id=42", "plain", "=odd", "empty=", "a=b=c", "X-From-Name="]
            .map(str::to_owned)
            .to_vec();
        let variables = vec![("AMDSTATUS".to_owned(), String::new())];
        let new = NewCall { call: 1, id: "x".into(), channel, args, variables };
        let ours = [("from_number", "555"), ("from_name", "Ann")];
        let all = crate::call::parameters::all(&ours, &added(&new), &[]);
        let text: Vec<String> = all.iter().map(|(n, v)| format!("{n}:{v}")).collect();
        let wanted = [
            "from_number:555",
            "from_name:Ann",
            "channel_id:1.2",
            "lead_id:42",
            "arg2:plain",
            "arg3:=odd",
            "a:b=c",
            "campcust:DEMO",
            "CAMPCUST:DEMO",
        ];
        assert_eq!(text, wanted);
    }

    #[test]
    fn the_route_to_a_loopback_address_is_loopback() {
        assert!(local_ip([127, 0, 0, 9].into()).unwrap().is_loopback());
    }
}
