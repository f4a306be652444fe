//! Registration as seen on the wire, and monitoring of the registrar.

use super::rig::{Dialog, PBX, RTP, Rig, SECOND_ADDRESS, STRANGER, Text, response, sdp, settings};
use crate::sip::agent::{AiDown, Command, Event, Input, Route, Routes};
use crate::sip::message::Message;
use crate::sip::registration::Status;

const CHALLENGE: &str =
    "WWW-Authenticate: Digest realm=\"asterisk\", nonce=\"n1\", algorithm=MD5, qop=\"auth\"\r\n";
const GRANTED: &str = "Contact: <sip:ai@10.0.0.1:5070>;expires=120\r\n";

fn statuses(rig: &mut Rig) -> Vec<Status> {
    let statuses = rig.events().into_iter().filter_map(|e| match e {
        Event::Registration { status, .. } => Some(status),
        _ => None,
    });
    statuses.collect()
}

/// Challenges the outstanding REGISTER and accepts the one with credentials.
fn let_in(rig: &mut Rig) -> Message {
    let first = rig.one();
    assert_eq!(first.method(), Some("REGISTER"));
    rig.answer_with(&first, 401, CHALLENGE, "");
    let signed = rig.one();
    rig.answer_with(&signed, 200, GRANTED, "");
    signed
}

fn registered() -> Rig {
    let mut rig = Rig::registering();
    let_in(&mut rig);
    assert_eq!(statuses(&mut rig), [Status::Registered { expires_s: 120 }]);
    rig
}

#[test]
fn registers_with_a_password() {
    let mut rig = Rig::registering();
    let (to, first) = rig.sent_to().remove(0);
    assert_eq!((to.as_str(), first.uri()), (PBX, "sip:10.0.0.2"));
    assert_eq!(first.get("To"), Some("<sip:ai@10.0.0.2>"));
    assert_eq!(first.get("Contact"), Some("<sip:ai@10.0.0.1:5070>"));
    assert_eq!(first.get("Authorization"), None);
    rig.feed(STRANGER, &response(&first, 401, CHALLENGE, ""));
    rig.feed(SECOND_ADDRESS, &response(&first, 401, CHALLENGE, ""));
    assert_eq!(rig.told(), [""; 0], "only a challenge from the registrar itself is answered");
    rig.answer(&first, 100);
    rig.answer_with(&first, 401, CHALLENGE, "");
    let signed = rig.one();
    assert!(signed.get("Authorization").unwrap().contains("realm=\"asterisk\""));
    assert_eq!(signed.call_id(), first.call_id());
    assert_eq!((first.cseq().unwrap().0, signed.cseq().unwrap().0), (1, 2));
    rig.answer_with(&signed, 200, GRANTED, "");
    assert_eq!(statuses(&mut rig), [Status::Registered { expires_s: 120 }]);
    rig.answer_with(&signed, 200, GRANTED, "");
    assert!(statuses(&mut rig).is_empty());
}

#[test]
fn monitors_the_registrar_and_refreshes() {
    let mut rig = registered();
    for _ in 0..40 {
        rig.wait(2.0);
        for request in rig.sent() {
            match request.method() {
                Some("OPTIONS") => rig.answer(&request, 401),
                _ => rig.answer_with(&request, 200, GRANTED, ""),
            }
        }
        assert_eq!(
            rig.told(),
            [""; 0],
            "a challenge to OPTIONS counts as a response and is not answered"
        );
    }
    assert!(statuses(&mut rig).is_empty());
    assert!(rig.agent.transaction_count() <= 2);
}

#[test]
fn a_silent_registrar_is_lost_then_registered_again() {
    let mut rig = registered();
    rig.wait(2.9);
    assert_eq!(rig.told(), ["OPTIONS", "OPTIONS"]);
    assert!(statuses(&mut rig).is_empty());
    rig.wait(0.2);
    assert!(matches!(statuses(&mut rig)[..], [Status::Lost { .. }]));
    rig.wait(300.0);
    assert_eq!(statuses(&mut rig), [Status::Silent, Status::Silent], "once per address");
    assert!(rig.agent.transaction_count() <= 32, "{}", rig.agent.transaction_count());
    assert!(rig.lookups > 10, "the registrar's name is looked up again");

    // all outstanding REGISTERs to one address are challenged at once
    let open = rig.sent_to().into_iter().rev().take(40);
    let open: Vec<Message> = open.filter(|(to, _)| to == PBX).map(|(_, m)| m).collect();
    for request in &open {
        rig.answer_with(request, 401, CHALLENGE, "");
    }
    let gone = rig.one();
    assert_eq!(
        gone.get("Expires"),
        Some("0"),
        "the contact, which the PBX may hold unreachable, is removed first"
    );
    rig.answer_with(&gone, 200, "", "");
    let again = rig.one();
    assert_eq!(again.get("Expires"), Some("120"));
    rig.answer_with(&again, 200, GRANTED, "");
    assert_eq!(statuses(&mut rig), [Status::Registered { expires_s: 120 }]);
    rig.wait(2.1);
    assert_eq!(rig.told(), ["OPTIONS"]);
}

#[test]
fn a_closed_port_is_noticed_at_once_and_the_next_address_tried() {
    let mut rig = registered();
    rig.input(unreachable(STRANGER));
    assert!(statuses(&mut rig).is_empty());
    rig.input(unreachable(PBX));
    assert!(matches!(statuses(&mut rig)[..], [Status::Lost { .. }]));
    let (to, register) = rig.sent_to().remove(0);
    assert_eq!(register.method(), Some("REGISTER"));
    assert_eq!(to, PBX);
    rig.input(unreachable(PBX));
    let (to, register) = rig.sent_to().pop().unwrap();
    assert_eq!(to, SECOND_ADDRESS, "at once");
    rig.input(unreachable(SECOND_ADDRESS));
    rig.input(unreachable(PBX));
    assert_eq!(rig.told(), [""; 0], "one round a second");
    rig.feed(SECOND_ADDRESS, &response(&register, 200, GRANTED, ""));
    assert_eq!(rig.sent_to()[0].0, SECOND_ADDRESS);
}

/// Runs a registrar at `alive` until we are registered there, and returns the seconds it took.
fn registers_at(rig: &mut Rig, alive: &str) -> f64 {
    let begin = rig.now;
    while (rig.now - begin).as_secs() < 60 {
        for (to, request) in rig.sent_to() {
            if to == alive && request.method() == Some("REGISTER") {
                let lines = if request.get("Expires") == Some("0") { "" } else { GRANTED };
                rig.feed(alive, &response(&request, 200, lines, ""));
            }
        }
        if statuses(rig).contains(&Status::Registered { expires_s: 120 }) {
            return (rig.now - begin).as_secs_f64();
        }
        rig.wait(0.05);
    }
    panic!("not registered at {alive}");
}

#[test]
fn a_dead_first_address_costs_three_seconds_at_the_start() {
    let mut rig = Rig::registering();
    rig.wait(2.9);
    assert!(rig.sent_to().iter().all(|(to, _)| to == PBX));
    assert!(statuses(&mut rig).is_empty());
    rig.wait(0.2);
    assert_eq!(statuses(&mut rig), [Status::Silent]);
    let took = registers_at(&mut rig, SECOND_ADDRESS);
    assert!(took < 0.2, "{took}");
}

#[test]
fn a_registered_address_that_dies_is_failed_over() {
    let mut rig = registered();
    let took = registers_at(&mut rig, SECOND_ADDRESS);
    println!("registered at the second address after {took} s");
    // at most 2 s until an OPTIONS, 1 s without an answer, 3 REGISTERs
    assert!((5.9..6.2).contains(&took), "{took}");
}

#[test]
fn a_slow_address_that_answers_after_all_is_used() {
    let mut rig = Rig::registering();
    let first = rig.one();
    rig.wait(3.5);
    assert_eq!(rig.sent_to().pop().unwrap().0, SECOND_ADDRESS);
    rig.answer_with(&first, 401, CHALLENGE, "");
    let (to, signed) = rig.sent_to().pop().unwrap();
    assert_eq!(to, PBX);
    rig.answer_with(&signed, 200, GRANTED, "");
    assert!(statuses(&mut rig).contains(&Status::Registered { expires_s: 120 }));
}

const PEER: &str = "10.0.0.7:5060";

fn with_peer(registrar: &[&str]) -> Input<'static> {
    let route = |a: &str| Route { remote: a.parse().unwrap(), local: "10.0.0.1".parse().unwrap() };
    let registrar = Ok(registrar.iter().map(|a| route(a)).collect());
    Input::Resolved { account: 0, routes: Routes { registrar, peers: vec![route(PEER)] } }
}

#[test]
fn a_peer_never_gets_a_register() {
    let mut rig = registered();
    rig.input(with_peer(&[PBX]));
    assert_eq!(rig.told(), [""; 0], "the registration stays where it is");
    for _ in 0..20 {
        rig.input(unreachable(PBX));
        rig.input(with_peer(&[PBX]));
        rig.wait(1.0);
    }
    let mut sent = rig.sent_to();
    assert!(sent.len() > 15 && sent.iter().all(|(to, _)| to == PBX), "{sent:?}");
    rig.feed(PEER, &Text::invite().render());
    assert_eq!(rig.told(), ["100"]);
    // the registrar refuses us, and it still gets the next attempt
    rig.answer(&sent.pop().unwrap().1, 403);
    rig.wait(70.0);
    assert!(rig.sent_to().iter().all(|(to, _)| to == PBX));
}

#[test]
fn another_order_of_the_addresses_moves_nothing() {
    let mut rig = registered();
    rig.resolve(&[SECOND_ADDRESS, PBX]);
    assert_eq!(rig.told(), [""; 0]);
    rig.wait(2.1);
    assert!(rig.sent_to().iter().all(|(to, m)| to == PBX && m.method() == Some("OPTIONS")));
}

#[test]
fn calls_that_are_up_stay_reachable_after_a_dns_change() {
    const NEW: &str = "10.0.0.9:5060";
    let mut rig = registered();
    let call = rig.up();
    rig.resolve(&[NEW]);
    // until we are registered there, calls may still come from the old address
    let took = registers_at(&mut rig, NEW);
    assert!(took < 0.1, "{took}");
    rig.resolve(&[NEW]);
    rig.pbx(&Text::invite().call_id("stranger"));
    assert_eq!(rig.told(), [""; 0], "new calls only from the new address");
    rig.pbx(&call.request("INVITE", 11).sdp(&sdp(4010, "sendonly")));
    assert_eq!(rig.told(), ["200"]);
    rig.pbx(&call.ack(11));
    let bye = call.request("BYE", 12);
    rig.pbx(&bye);
    assert_eq!(rig.told(), ["200"]);
    assert_eq!(rig.agent.call_count(), 0);
    rig.pbx(&bye);
    assert_eq!(rig.told(), ["200"], "resent, because our 200 was lost");
    rig.wait(40.0);
    rig.sent();
    rig.pbx(&call.request("BYE", 13));
    assert_eq!(rig.told(), [""; 0]);
    assert!(!rig.agent.knows("10.0.0.2".parse().unwrap()));
}

#[test]
fn a_proxy_and_the_registrar_both_get_credentials() {
    let mut rig = Rig::registering();
    let first = rig.one();
    let proxy = CHALLENGE.replace("WWW-", "Proxy-").replace("asterisk", "edge");
    rig.answer_with(&first, 407, &proxy, "");
    let second = rig.one();
    assert!(second.get("Proxy-Authorization").is_some());
    rig.answer_with(&second, 401, CHALLENGE, "");
    let third = rig.one();
    assert!(third.get("Proxy-Authorization").unwrap().contains("realm=\"edge\""));
    assert!(third.get("Authorization").unwrap().contains("realm=\"asterisk\""));
    rig.answer_with(&third, 200, GRANTED, "");
    assert_eq!(statuses(&mut rig), [Status::Registered { expires_s: 120 }]);
}

#[test]
fn the_name_is_resolved_again_after_an_error() {
    let mut rig = Rig::registering();
    let register = rig.one();
    rig.answer(&register, 503);
    assert!(matches!(statuses(&mut rig)[..], [Status::Failing { .. }]));
    let before = rig.lookups;
    rig.wait(1.0);
    assert_eq!(rig.lookups, before + 1);
    rig.input(Input::Resolved {
        account: 0,
        routes: Routes { registrar: Err("no such name".to_owned()), peers: Vec::new() },
    });
    assert_eq!(rig.told(), ["REGISTER"], "the last known address is used");
    rig.input(Input::Resolved {
        account: 0,
        routes: Routes { registrar: Ok(Vec::new()), peers: Vec::new() },
    });
    assert_eq!(rig.told(), [""; 0]);
}

#[test]
fn a_wrong_password_is_not_offered_forever() {
    let mut rig = Rig::registering();
    for i in 0..3 {
        let register = rig.one();
        let challenge = CHALLENGE.replace("n1", &format!("n{i}"));
        rig.answer_with(&register, 401, &challenge, "");
    }
    assert_eq!(rig.told(), [""; 0]);
    assert!(matches!(statuses(&mut rig)[..], [Status::Refused { code: 401, .. }]));
    rig.wait(59.0);
    assert_eq!(rig.told(), [""; 0]);
}

#[test]
fn shutdown_removes_the_registration_and_reports_it_once() {
    let mut rig = registered();
    rig.command(Command::Shutdown);
    let gone = rig.one();
    assert_eq!(gone.get("Expires"), Some("0"));
    assert!(gone.get("Authorization").is_some());
    assert!(rig.events().is_empty());
    rig.answer_with(&gone, 401, &CHALLENGE.replace("n1", "n2"), "");
    let signed = rig.one();
    assert_eq!(signed.get("Expires"), Some("0"));
    rig.answer(&signed, 200);
    let reported = rig.events().iter().filter(|e| matches!(e, Event::Unregistered)).count();
    assert_eq!(reported, 1);
    rig.answer(&signed, 200);
    rig.input(unreachable(PBX));
    assert!(rig.events().is_empty());
    rig.wait(100.0);
    assert_eq!(rig.told(), [""; 0], "no more OPTIONS, no more REGISTER");
    rig.assert_empty();
}

fn gated(how: AiDown) -> Rig {
    let mut rig = Rig::with_ai_down(how, Some(settings()));
    let_in(&mut rig);
    rig.events();
    rig
}

#[test]
fn the_registration_is_removed_while_no_ai_can_be_reached() {
    let mut rig = gated(AiDown::Unregister);
    let tell = |rig: &mut Rig, down| rig.command(Command::AiDown { account: 0, down });
    for _ in 0..2 {
        tell(&mut rig, true);
        let gone = rig.one();
        assert_eq!(gone.get("Expires"), Some("0"));
        tell(&mut rig, true);
        assert_eq!(rig.told(), [""; 0], "once");
        rig.answer(&gone, 200);
        rig.wait(300.0);
        assert_eq!(rig.told(), [""; 0], "neither REGISTER nor OPTIONS");
        tell(&mut rig, false);
        rig.resolve(&[PBX]);
        let back = rig.one();
        assert_eq!(back.get("Expires"), Some("120"));
        rig.answer_with(&back, 200, GRANTED, "");
        tell(&mut rig, false);
        assert_eq!(rig.told(), [""; 0], "once");
    }
    // the AI is back before the removal is answered
    tell(&mut rig, true);
    let gone = rig.one();
    tell(&mut rig, false);
    assert_eq!(rig.told(), [""; 0]);
    rig.answer(&gone, 200);
    rig.resolve(&[PBX]);
    assert_eq!(rig.one().get("Expires"), Some("120"));
    // a shutdown meanwhile
    tell(&mut rig, true);
    rig.one();
    rig.command(Command::Shutdown);
    tell(&mut rig, false);
    rig.wait(100.0);
    let told = rig.events();
    assert_eq!(told.iter().filter(|e| matches!(e, Event::Unregistered)).count(), 1);
}

#[test]
fn the_registration_stays_unless_it_is_configured_otherwise() {
    for how in [AiDown::Stay, AiDown::RefuseOptions] {
        let mut rig = gated(how);
        rig.command(Command::AiDown { account: 0, down: true });
        assert_eq!(rig.told(), [""; 0], "{how:?}");
    }
}

#[test]
fn shutdown_does_not_wait_for_an_unreachable_registrar() {
    let unregistered =
        |rig: &mut Rig| rig.events().iter().any(|e| matches!(e, Event::Unregistered));
    let mut rig = registered();
    rig.command(Command::Shutdown);
    assert!(!unregistered(&mut rig));
    rig.input(unreachable(PBX));
    assert!(unregistered(&mut rig));

    let mut rig = registered();
    rig.command(Command::Shutdown);
    rig.wait(32.1);
    assert!(unregistered(&mut rig));

    let mut rig = Rig::trunk();
    rig.command(Command::Shutdown);
    assert!(unregistered(&mut rig));
}

#[test]
fn calls_are_accepted_while_the_registrar_is_lost() {
    let mut rig = registered();
    rig.wait(3.1);
    rig.sent();
    rig.events();
    rig.pbx(&Text::invite());
    assert_eq!(rig.told(), ["100"]);
}

/// The PBX calls over a TCP connection of its own, from a port that accepts nothing.
#[test]
fn after_the_end_of_a_tcp_connection_requests_go_to_the_contact() {
    const SOURCE: &str = "10.0.0.2:40123";
    let tcp = |text: &Text| text.render().replace("SIP/2.0/UDP", "SIP/2.0/TCP");
    let closed = |rig: &mut Rig, remote: &str| {
        rig.input(Input::Unreachable { remote: remote.parse().unwrap(), gone: false });
    };
    for (contact, route, expected) in [
        ("<sip:100@10.0.0.2:5090;transport=tcp>", "", "10.0.0.2:5090"),
        ("<sip:100@10.0.0.2>", "", PBX),
        ("<sip:100@10.0.0.3:5090>", "", "10.0.0.3:5090"),
        ("<sip:100@192.168.1.9:5090>", "", "10.0.0.2:5090"), // behind NAT
        ("<sip:100@pbx.example:5090>", "", "10.0.0.2:5090"),
        ("<sip:100@10.0.0.2:5090>", "<sip:10.0.0.3:5080;lr>", "10.0.0.3:5080"),
    ] {
        let mut rig = Rig::trunk();
        let with_contact = |text: Text| {
            let text = tcp(&text).replace(&format!("<sip:100@{PBX}>"), contact);
            let route = format!("Record-Route: {route}\r\nContact:");
            if route.contains('<') { text.replace("Contact:", &route) } else { text }
        };
        rig.feed_tcp(SOURCE, &with_contact(Text::invite()));
        let key = rig.offered();
        rig.command(Command::Answer { call: key, rtp: RTP.parse().unwrap() });
        let ok = rig.sent().pop().unwrap();
        let tag = ok.to().unwrap().tag().unwrap().to_owned();
        let call = Dialog { key, tag, call_id: "call-1".to_owned() };
        rig.feed_tcp(SOURCE, &with_contact(call.ack(10)));
        closed(&mut rig, SOURCE);
        rig.hang_up(&call);
        let (to, bye) = rig.sent_to().pop().unwrap();
        assert_eq!((to.as_str(), bye.method()), (expected, Some("BYE")), "{contact} {route}");
        // if nothing accepts there either, the usual port is tried, and then nothing more
        closed(&mut rig, expected);
        let again = rig.sent_to();
        let usual = format!("{}:5060", expected.split(':').next().unwrap());
        let other: &[&str] = if expected == usual { &[] } else { &[&usual] };
        assert_eq!(again.iter().map(|(to, _)| to).collect::<Vec<_>>(), other, "{contact}");
        closed(&mut rig, &usual);
        assert!(rig.sent_to().is_empty(), "{contact}");
    }
}

/// An ICMP error from this address.
fn unreachable(remote: &str) -> Input<'static> {
    Input::Unreachable { remote: remote.parse().unwrap(), gone: true }
}
