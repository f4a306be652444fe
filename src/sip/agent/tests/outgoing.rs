//! Outgoing calls.

use super::rig::{PBX, RTP, Rig, STRANGER, Text, account, flow, response, sdp};
use crate::sip::agent::{CallEnd, CallKey, Command, Dial, Event, Place};
use crate::sip::message::Message;
use crate::sip::sdp::all_codecs;

const CHALLENGE: &str = "WWW-Authenticate: Digest realm=\"pbx\", nonce=\"n1\", qop=\"auth\"\r\n";

pub fn dial(rig: &mut Rig, password: Option<&str>) -> (CallKey, Message) {
    let call = rig.agent.new_call_key();
    let dial = Dial {
        call,
        flow: flow(PBX),
        uri: "sip:500@10.0.0.2".to_owned(),
        local_ip: "10.0.0.1".parse().unwrap(),
        user: "cc100".to_owned(),
        password: password.map(Into::into),
        rtp: RTP.parse().unwrap(),
        headers: vec![("X-Test".to_owned(), "1".to_owned())],
        codecs: all_codecs().to_vec(),
    };
    rig.command(Command::Dial(Box::new(dial)));
    (call, rig.one())
}

#[test]
fn a_call_rings_is_answered_and_hung_up() {
    let mut rig = Rig::trunk();
    let (call, invite) = dial(&mut rig, None);
    assert_eq!((invite.method(), invite.uri()), (Some("INVITE"), "sip:500@10.0.0.2"));
    assert_eq!(invite.get("X-Test"), Some("1"));
    rig.answer(&invite, 100);
    assert!(rig.events().is_empty());
    rig.answer(&invite, 180);
    assert!(matches!(rig.events()[..], [Event::Progress { code: 180, .. }]));
    let contact = "Contact: <sip:500@10.0.0.2:5090>\r\n\
        Record-Route: <sip:p2;lr>\r\nRecord-Route: <sip:p1;lr>\r\n";
    rig.answer_with(&invite, 200, contact, &sdp(4000, "sendrecv"));
    let events = rig.events();
    let Event::Answered { remote, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!(remote.rtp.port(), 4000);
    let ack = rig.one();
    assert_eq!((ack.method(), ack.uri()), (Some("ACK"), "sip:500@10.0.0.2:5090"));
    assert_eq!(ack.list("Route"), ["<sip:p1;lr>", "<sip:p2;lr>"]);
    assert_eq!(ack.cseq().unwrap().0, invite.cseq().unwrap().0);

    rig.answer_with(&invite, 200, contact, &sdp(4000, "sendrecv"));
    assert_eq!(rig.one(), ack, "a retransmitted 200 gets the same ACK");
    assert!(rig.events().is_empty());
    rig.command(Command::Hangup { call, q850: 16, text: "done" });
    let bye = rig.one();
    assert_eq!(bye.to().unwrap().tag(), Some("pbx"));
    rig.answer(&bye, 200);
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
    rig.assert_empty();
}

#[test]
fn the_peer_hangs_up() {
    let mut rig = Rig::trunk();
    let (_, invite) = dial(&mut rig, None);
    rig.answer_with(&invite, 200, "", &sdp(4000, "sendrecv"));
    rig.told();
    let tag = invite.from().unwrap().tag().unwrap().to_owned();
    let bye = Text { from_tag: "pbx".to_owned(), ..Text::new("BYE", 1) };
    rig.pbx(&bye.tagged(&tag).call_id(invite.call_id()));
    assert_eq!(rig.told(), ["200"]);
    assert_eq!(rig.ended(), Some(CallEnd::Bye { cause: None }));
    rig.assert_empty();
}

#[test]
fn challenges_are_answered_at_most_twice() {
    let mut rig = Rig::trunk();
    let (_, invite) = dial(&mut rig, Some("test"));
    rig.feed(STRANGER, &response(&invite, 401, CHALLENGE, ""));
    assert_eq!(rig.told(), [""; 0], "only a challenge from the called PBX is answered");
    rig.answer_with(&invite, 401, CHALLENGE, "");
    let sent = rig.sent();
    assert_eq!((sent[0].method(), sent[1].method()), (Some("ACK"), Some("INVITE")));
    let signed = &sent[1];
    assert!(signed.get("Authorization").unwrap().contains("username=\"cc100\""));
    assert_eq!(signed.cseq().unwrap().0, 2);
    assert_eq!((signed.call_id(), signed.get("From")), (invite.call_id(), invite.get("From")));
    rig.answer_with(signed, 200, "", &sdp(4000, "sendrecv"));
    assert_eq!(rig.told(), ["ACK"]);

    let (_, invite) = dial(&mut rig, Some("wrong"));
    let mut last = invite;
    for _ in 0..2 {
        rig.answer_with(&last, 407, &CHALLENGE.replace("WWW", "Proxy"), "");
        last = rig.sent().pop().unwrap();
        assert_eq!(last.method(), Some("INVITE"));
        last.get("Proxy-Authorization").or(last.get("Authorization")).unwrap();
    }
    rig.answer_with(&last, 407, &CHALLENGE.replace("WWW", "Proxy"), "");
    assert_eq!(rig.told(), ["ACK"]);
    assert!(matches!(rig.ended(), Some(CallEnd::Refused { code: 407, .. })));

    let (_, invite) = dial(&mut rig, None);
    rig.answer_with(&invite, 401, CHALLENGE, "");
    assert_eq!(rig.told(), ["ACK"]);
    assert!(matches!(rig.ended(), Some(CallEnd::Refused { code: 401, .. })));
}

#[test]
fn refused_unanswered_or_answered_without_sdp() {
    let mut rig = Rig::trunk();
    let (_, invite) = dial(&mut rig, None);
    rig.answer(&invite, 486);
    assert_eq!(rig.told(), ["ACK"]);
    let refused = CallEnd::Refused { code: 486, reason: "Said".to_owned() };
    assert_eq!(rig.ended(), Some(refused));
    rig.answer(&invite, 486);
    assert_eq!(rig.told(), ["ACK"], "each retransmission gets an ACK");
    rig.assert_empty();

    dial(&mut rig, None);
    rig.wait(32.1);
    assert_eq!(rig.told(), ["INVITE"; 6]);
    assert!(matches!(rig.ended(), Some(CallEnd::Refused { code: 408, .. })));
    rig.assert_empty();

    let (_, invite) = dial(&mut rig, None);
    rig.answer_with(&invite, 200, "", "");
    assert_eq!(rig.told(), ["ACK", "BYE"]);
    assert_eq!(rig.ended(), Some(CallEnd::BadAnswer));
    rig.assert_empty();
}

#[test]
fn a_hangup_while_dialling_sends_a_cancel() {
    let mut rig = Rig::trunk();
    let (call, invite) = dial(&mut rig, None);
    rig.answer(&invite, 100);
    rig.command(Command::Hangup { call, q850: 16, text: "done" });
    let cancel = rig.one();
    assert_eq!(cancel.cseq(), Some((1, "CANCEL")));
    assert_eq!(cancel.get("Via"), invite.get("Via"));
    rig.answer(&cancel, 200);
    rig.answer(&invite, 487);
    assert_eq!(rig.told(), ["ACK"]);
    assert!(matches!(rig.ended(), Some(CallEnd::Refused { code: 487, .. })));
    rig.assert_empty();
}

#[test]
fn a_cancel_waits_for_the_first_provisional_response() {
    let mut rig = Rig::trunk();
    let (call, invite) = dial(&mut rig, Some("test"));
    rig.answer_with(&invite, 401, CHALLENGE, "");
    let invite = rig.sent().pop().unwrap();
    rig.command(Command::Hangup { call, q850: 16, text: "done" });
    assert_eq!(rig.told(), [""; 0]);
    rig.answer(&invite, 180);
    let cancel = rig.one();
    assert_eq!(cancel.get("Via"), invite.get("Via"), "the CANCEL is for the second INVITE");
    rig.answer(&invite, 180);
    assert_eq!(rig.told(), [""; 0]);
    rig.answer(&cancel, 200);
    rig.wait(32.1);
    assert!(rig.ended().is_some(), "the call ends if no 487 follows the CANCEL");
    rig.assert_empty();
}

#[test]
fn a_cancel_that_crosses_a_200_or_401() {
    let mut rig = Rig::trunk();
    let (call, invite) = dial(&mut rig, None);
    rig.answer(&invite, 180);
    rig.events();
    rig.command(Command::Hangup { call, q850: 16, text: "done" });
    rig.answer_with(&invite, 200, "", &sdp(4000, "sendrecv"));
    assert_eq!(rig.told(), ["CANCEL", "ACK", "BYE"]);
    assert!(rig.events().is_empty());

    let (call, invite) = dial(&mut rig, Some("test"));
    rig.command(Command::Hangup { call, q850: 16, text: "done" });
    rig.answer_with(&invite, 401, CHALLENGE, "");
    assert_eq!(rig.told(), ["ACK"]);
    assert!(matches!(rig.ended(), Some(CallEnd::Refused { code: 401, .. })));
}

/// Places a call through the PBX.
fn place(rig: &mut Rig) -> (CallKey, Message) {
    let (call, call_id) = (rig.agent.new_call_key(), rig.agent.new_call_id());
    let place = Place {
        account: 0,
        call,
        call_id: call_id.clone(),
        to: "+4930 1".to_owned(),
        from: "+49301".to_owned(),
        rtp: RTP.parse().unwrap(),
    };
    rig.command(Command::Place(Box::new(place)));
    let invite = rig.one();
    assert_eq!(invite.call_id(), call_id);
    (call, invite)
}

#[test]
fn a_call_is_placed_as_the_extension_or_as_the_trunk() {
    let mut rig = Rig::registering();
    rig.sent();
    let (call, invite) = place(&mut rig);
    assert_eq!(invite.uri(), "sip:+4930%201@10.0.0.2");
    assert!(invite.get("From").unwrap().starts_with("<sip:ai@10.0.0.1:5070>"));
    let identity = invite.get("P-Asserted-Identity");
    assert_eq!(identity, Some("<sip:+49301@10.0.0.1:5070>"));
    // the password is that of the registration
    rig.answer_with(&invite, 401, CHALLENGE, "");
    let signed = rig.sent().pop().unwrap();
    assert!(signed.get("Authorization").unwrap().contains("username=\"ai\""));
    rig.command(Command::Hangup { call, q850: 16, text: "done" });
    rig.answer(&signed, 180);
    assert_eq!(rig.told(), ["CANCEL"]);

    let mut rig = Rig::trunk();
    let (_, invite) = place(&mut rig);
    assert_eq!(invite.uri(), format!("sip:+4930%201@{PBX}"));
    assert!(invite.get("From").unwrap().starts_with("<sip:+49301@10.0.0.1:5070>"));
    rig.answer_with(&invite, 407, &CHALLENGE.replace("WWW", "Proxy"), "");
    assert_eq!(rig.told(), ["ACK"], "a trunk has no password");
    assert!(matches!(rig.ended(), Some(CallEnd::Refused { code: 407, .. })));
}

#[test]
fn a_redirect_is_not_followed() {
    let mut rig = Rig::trunk();
    let (_, invite) = place(&mut rig);
    rig.answer_with(&invite, 302, "Contact: <sip:+1900@10.0.0.2>\r\n", "");
    assert_eq!(rig.told(), ["ACK"]);
    assert!(matches!(rig.ended(), Some(CallEnd::Refused { code: 302, .. })));
    rig.assert_empty();
}

#[test]
fn no_call_is_placed_before_the_address_is_known() {
    let mut rig = Rig::of(vec![account("ai", None)], 9);
    assert_eq!(rig.agent.way_to(0), None);
    assert_eq!(rig.agent.way_to(7), None);
    let call = rig.agent.new_call_key();
    let place = Place {
        account: 0,
        call,
        call_id: "1@trunkless".to_owned(),
        to: "1".to_owned(),
        from: "2".to_owned(),
        rtp: RTP.parse().unwrap(),
    };
    rig.command(Command::Place(Box::new(place)));
    assert!(matches!(rig.ended(), Some(CallEnd::Refused { code: 503, .. })));
    assert_eq!(rig.told(), [""; 0]);
}
