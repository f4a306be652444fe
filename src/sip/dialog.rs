//! Dialog state (RFC 3261 §12): identifiers, sequence numbers, route set and remote target.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::sip::header::{NameAddr, with_tag};
use crate::sip::message::Message;
use crate::sip::uri::{Uri, is_target};

/// The result of checking the From tag and CSeq of an in-dialog request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The request may be processed.
    InOrder,
    /// The CSeq number is not higher than the last one: answer 500 (RFC 3261 §12.2.2).
    OutOfOrder,
    /// The From tag is not the dialog's: answer 481.
    NotOurs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialog {
    pub call_id: String,
    pub local_tag: String,
    pub remote_tag: String,
    /// The From of our requests, including the tag.
    local: String,
    /// The To of our requests, including the tag once it is known.
    remote: String,
    /// Request-URI of our requests: the peer's latest Contact.
    remote_target: String,
    /// Route values of our requests, in order.
    route_set: Vec<String>,
    /// CSeq number of our latest request.
    local_cseq: u32,
    /// CSeq number of the peer's latest request.
    remote_cseq: Option<u32>,
}

impl Dialog {
    /// Creates the dialog for an incoming INVITE, in which [`Message::parse`] found no fault.
    pub fn from_invite(invite: &Message, local_tag: String) -> Dialog {
        let remote = invite.get("From").unwrap_or("").to_owned();
        let from = invite.from();
        let contact = invite.contact().map(|c| c.uri);
        let usable = from.as_ref().map(|f| f.uri.clone()).filter(|uri| is_target(uri));
        let sent_by = || invite.top_via().map(|via| format!("sip:{}", via.host));
        Dialog {
            call_id: invite.call_id().to_owned(),
            remote_tag: from.as_ref().and_then(NameAddr::tag).unwrap_or("").to_owned(),
            local: with_tag(invite.get("To").unwrap_or(""), &local_tag),
            local_tag,
            remote,
            remote_target: contact.or(usable).or_else(sent_by).unwrap_or_default(),
            route_set: invite.list("Record-Route"),
            local_cseq: 0,
            remote_cseq: invite.cseq().map(|(n, _)| n),
        }
    }

    /// Creates the dialog for an INVITE that we send; the remote tag comes with the response.
    pub fn to_invite(call_id: String, local: String, local_tag: String, uri: &str) -> Dialog {
        Dialog {
            call_id,
            local: format!("{local};tag={local_tag}"),
            local_tag,
            remote_tag: String::new(),
            remote: format!("<{uri}>"),
            remote_target: uri.to_owned(),
            route_set: Vec::new(),
            local_cseq: 0,
            remote_cseq: None,
        }
    }

    /// Takes the remote tag, target and route set from a 1xx or 2xx to our INVITE.
    pub fn on_response(&mut self, response: &Message) {
        if let Some(to) = response.to()
            && let Some(tag) = to.tag()
        {
            self.remote_tag = tag.to_owned();
            self.remote = response.get("To").unwrap_or("").to_owned();
            self.route_set = response.list("Record-Route");
            self.route_set.reverse();
        }
        self.refresh_target(response);
    }

    /// Takes the remote target from a target refresh (RFC 3261 §12.2): a re-INVITE, an UPDATE or
    /// their 2xx.
    pub fn refresh_target(&mut self, message: &Message) {
        if let Some(contact) = message.contact() {
            self.remote_target = contact.uri;
        }
    }

    /// Checks a request from the peer and, if it is in order, stores its CSeq number.
    pub fn on_request(&mut self, request: &Message) -> Order {
        let from = request.from();
        if from.as_ref().and_then(NameAddr::tag).unwrap_or("") != self.remote_tag {
            return Order::NotOurs;
        }
        let Some((number, method)) = request.cseq() else { return Order::OutOfOrder };
        if method == "ACK" {
            return Order::InOrder;
        }
        if self.remote_cseq.is_some_and(|last| number <= last) {
            return Order::OutOfOrder;
        }
        self.remote_cseq = Some(number);
        Order::InOrder
    }

    /// Returns the address for requests (RFC 3261 §12.2.1.1): the first of the route set, or else
    /// the remote target.
    pub fn next_hop(&self) -> Option<Uri> {
        let route = self.route_set.first().and_then(|route| NameAddr::parse(route));
        Uri::parse(route.as_ref().map_or(&self.remote_target, |route| &route.uri)).ok()
    }

    /// Builds a request within the dialog. For an ACK, `ack_of` is the CSeq number of its INVITE.
    pub fn request(&mut self, method: &str, via: String, ack_of: Option<u32>) -> Message {
        let number = ack_of.unwrap_or_else(|| {
            self.local_cseq += 1;
            self.local_cseq
        });
        let (uri, routes) = self.path();
        let mut request = Message::request(method, &uri)
            .with("Via", via)
            .with("Max-Forwards", "70")
            .with("From", self.local.clone())
            .with("To", self.remote.clone())
            .with("Call-ID", self.call_id.clone())
            .with("CSeq", format!("{number} {method}"));
        routes.into_iter().for_each(|route| request.push("Route", route));
        request
    }

    /// Returns the Request-URI and the Route values. A first route without `lr` is a strict router:
    /// it expects itself in the Request-URI, and the target last (RFC 3261 §12.2.1.1).
    fn path(&self) -> (String, Vec<String>) {
        let first = self.route_set.first().and_then(|route| NameAddr::parse(route));
        let strict = first.filter(|route| {
            Uri::parse(&route.uri).is_ok_and(|uri| {
                !uri.params.iter().any(|(name, _)| name.eq_ignore_ascii_case("lr"))
            })
        });
        let Some(router) = strict else {
            return (self.remote_target.clone(), self.route_set.clone());
        };
        let uri = router.uri.split('?').next().unwrap_or_default().to_owned();
        let target = format!("<{}>", self.remote_target);
        (uri, self.route_set.iter().skip(1).cloned().chain([target]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> Message {
        Message::request("INVITE", "sip:ai@10.0.0.1")
            .with("Via", "SIP/2.0/UDP 10.0.0.2;branch=z9hG4bK1")
            .with("From", "\"A\" <sip:a@pbx>;tag=theirs")
            .with("To", "<sip:ai@10.0.0.1>")
            .with("Call-ID", "c1")
            .with("CSeq", "7 INVITE")
            .with("Contact", "<sip:asterisk@10.0.0.2:5060>")
            .with("Record-Route", "<sip:p1;lr>, <sip:p2;lr>")
    }

    fn from_peer(number: u32, tag: &str) -> Message {
        Message::request("BYE", "sip:ai@10.0.0.1")
            .with("From", format!("<sip:a@pbx>;tag={tag}"))
            .with("CSeq", format!("{number} BYE"))
    }

    #[test]
    fn requests_go_to_the_target_over_the_route_set() {
        let mut dialog = Dialog::from_invite(&invite(), "ours".into());
        let bye = dialog.request("BYE", "SIP/2.0/UDP x;branch=z9hG4bK2".into(), None);
        assert_eq!(bye.uri(), "sip:asterisk@10.0.0.2:5060");
        assert_eq!(bye.get("From"), Some("<sip:ai@10.0.0.1>;tag=ours"));
        assert_eq!(bye.get("To"), Some("\"A\" <sip:a@pbx>;tag=theirs"));
        assert_eq!(bye.list("Route"), ["<sip:p1;lr>", "<sip:p2;lr>"]);
        assert_eq!(bye.cseq(), Some((1, "BYE")));
        assert_eq!(dialog.request("INFO", "v".into(), None).cseq(), Some((2, "INFO")));
    }

    #[test]
    fn a_strict_router_is_in_the_request_uri() {
        let mut invite = invite();
        invite.headers.retain(|(name, _)| name != "Record-Route");
        invite.push("Record-Route", "<sip:p1:5070;transport=udp>, <sip:p2;lr>");
        let mut dialog = Dialog::from_invite(&invite, "ours".into());
        let bye = dialog.request("BYE", "v".into(), None);
        assert_eq!(bye.uri(), "sip:p1:5070;transport=udp");
        assert_eq!(bye.list("Route"), ["<sip:p2;lr>", "<sip:asterisk@10.0.0.2:5060>"]);
        let spelled = invite.with("X", "x");
        let mut dialog = Dialog::from_invite(&spelled, "ours".into());
        dialog.route_set[0] = "<sip:p1;LR=on>".to_owned();
        assert_eq!(dialog.request("BYE", "v".into(), None).uri(), "sip:asterisk@10.0.0.2:5060");
    }

    #[test]
    fn checks_the_order_and_tag_of_the_peers_requests() {
        let mut dialog = Dialog::from_invite(&invite(), "ours".into());
        assert_eq!(dialog.on_request(&from_peer(8, "other")), Order::NotOurs);
        assert_eq!(dialog.on_request(&from_peer(9, "theirs")), Order::InOrder);
        assert_eq!(dialog.on_request(&from_peer(8, "theirs")), Order::OutOfOrder);
    }
}
