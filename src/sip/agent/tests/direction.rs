//! Our hold and resume: what we offer, and what follows a response other than 200.

use super::outgoing::dial;
use super::renegotiation::{media, version};
use super::rig::{Dialog, Rig, Text, sdp};
use crate::sip::agent::{Command, Event};
use crate::sip::message::Message;
use crate::sip::sdp::Direction;

/// Returns the outcomes that the agent reported since the last call of this function.
fn outcomes(rig: &mut Rig) -> Vec<bool> {
    let outcomes = rig.events().into_iter().filter_map(|event| match event {
        Event::Directed { accepted, .. } => Some(accepted),
        _ => None,
    });
    outcomes.collect()
}

fn direct(rig: &mut Rig, dialog: &Dialog, direction: Direction) {
    rig.command(Command::Direction { call: dialog.key, direction });
}

/// The direction in our offer.
fn offered(message: &Message) -> String {
    let body = String::from_utf8_lossy(&message.body).into_owned();
    body.lines().last().unwrap_or_default().to_owned()
}

/// Returns our re-INVITE, which is sent within two seconds.
#[track_caller]
fn offer(rig: &mut Rig) -> Message {
    for _ in 0..=20 {
        let mut sent = rig.sent();
        sent.retain(|message| message.method() == Some("INVITE"));
        if let Some(offer) = sent.pop() {
            return offer;
        }
        rig.wait(0.1);
    }
    panic!("no re-INVITE");
}

#[test]
fn our_hold_and_glare() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    let hold = Command::Direction { call: dialog.key, direction: Direction::SendOnly };
    rig.command(hold);
    let ours = rig.one();
    assert_eq!((ours.method(), version(&ours)), (Some("INVITE"), 2));
    assert!(String::from_utf8_lossy(&ours.body).contains("a=sendonly"));
    rig.pbx(&dialog.request("INVITE", 11).sdp(&sdp(4000, "sendrecv")));
    rig.pbx(&dialog.request("UPDATE", 12).sdp(&sdp(4000, "sendrecv")));
    assert_eq!(rig.told(), ["491", "491"]);
    rig.answer(&ours, 491);
    assert_eq!(rig.told(), ["ACK"]);
    assert_eq!(rig.ended(), None);

    rig.command(Command::Direction { call: dialog.key, direction: Direction::Inactive });
    assert_eq!(rig.told(), [""; 0], "the PBX may repeat its own offer first");
    let ours = offer(&mut rig);
    assert_eq!(offered(&ours), "a=inactive");
    rig.answer(&ours, 100);
    rig.answer_with(&ours, 200, "Contact: <sip:new@10.0.0.2>\r\n", &sdp(4100, "inactive"));
    let ack = rig.one();
    assert_eq!((ack.method(), ack.cseq().unwrap().0), (Some("ACK"), ours.cseq().unwrap().0));
    assert_eq!(media(&mut rig)[0].rtp.port(), 4100);
    rig.answer_with(&ours, 200, "", &sdp(4100, "inactive"));
    assert_eq!(rig.told(), ["ACK"], "each 200 gets an ACK");
    rig.hang_up(&dialog);
    let bye = rig.one();
    assert_eq!(bye.uri(), "sip:new@10.0.0.2");
    rig.answer(&bye, 200);
    rig.assert_empty();
}

#[test]
fn a_change_of_direction_that_the_peer_cannot_take_now_is_repeated() {
    for code in [491, 500, 503] {
        let mut rig = Rig::trunk();
        let dialog = rig.up();
        for (direction, line, answer) in [
            (Direction::SendOnly, "a=sendonly", "recvonly"),
            (Direction::SendRecv, "a=sendrecv", "sendrecv"),
        ] {
            direct(&mut rig, &dialog, direction);
            let first = offer(&mut rig);
            rig.answer(&first, code);
            assert_eq!(rig.told(), ["ACK"]);
            let second = offer(&mut rig);
            assert_eq!((offered(&second).as_str(), version(&second)), (line, version(&first)));
            rig.answer(&second, code);
            let third = offer(&mut rig);
            assert!(outcomes(&mut rig).is_empty(), "{code}");
            rig.answer_with(&third, 200, "", &sdp(4000, answer));
            assert_eq!(outcomes(&mut rig), [true], "{code} {line}");
            rig.wait(20.0);
            assert_eq!(rig.told(), ["ACK"]);
        }
    }
}

#[test]
fn the_peers_offer_comes_before_ours_after_a_glare() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    direct(&mut rig, &dialog, Direction::SendOnly);
    let ours = offer(&mut rig);
    rig.answer(&ours, 491);
    rig.told();
    rig.pbx(&dialog.request("INVITE", 11).sdp(&sdp(4000, "sendrecv")));
    assert_eq!(offered(&rig.one()), "a=sendonly", "the direction is still wanted");
    // one re-INVITE at a time: ours follows when theirs is acknowledged
    rig.wait(2.0);
    assert!(rig.told().iter().all(|told| told == "200"));
    rig.pbx(&dialog.ack(11));
    let ours = offer(&mut rig);
    rig.answer_with(&ours, 200, "", &sdp(4000, "recvonly"));
    assert_eq!(outcomes(&mut rig), [true]);
}

#[test]
fn the_owner_of_the_call_id_waits_longer_after_a_glare() {
    let mut rig = Rig::trunk();
    let (call, invite) = dial(&mut rig, None);
    rig.answer_with(&invite, 200, "", &sdp(4000, "sendrecv"));
    rig.told();
    rig.command(Command::Direction { call, direction: Direction::SendOnly });
    let ours = offer(&mut rig);
    rig.answer(&ours, 491);
    rig.told();
    rig.wait(2.0);
    assert_eq!(rig.told(), [""; 0]);
    assert_eq!(offered(&offer(&mut rig)), "a=sendonly");
}

#[test]
fn a_change_of_direction_is_given_up_after_many_attempts() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    direct(&mut rig, &dialog, Direction::SendOnly);
    for _ in 0..10 {
        assert!(outcomes(&mut rig).is_empty());
        let ours = offer(&mut rig);
        rig.answer(&ours, 491);
        assert_eq!(rig.told(), ["ACK"]);
    }
    rig.wait(20.0);
    assert_eq!(outcomes(&mut rig), [false]);
    assert_eq!(rig.told(), [""; 0]);
    rig.pbx(&dialog.request("INVITE", 11).sdp(&sdp(4000, "sendrecv")));
    assert_eq!(offered(&rig.one()), "a=sendrecv");
}

#[test]
fn the_next_change_of_direction_replaces_the_one_that_waits() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    direct(&mut rig, &dialog, Direction::SendOnly);
    let ours = offer(&mut rig);
    direct(&mut rig, &dialog, Direction::SendRecv);
    assert_eq!(rig.told(), [""; 0]);
    rig.answer_with(&ours, 503, "Retry-After: 4\r\n", "");
    assert_eq!(rig.told(), ["ACK"]);
    rig.wait(3.9);
    assert_eq!(rig.told(), [""; 0]);
    rig.wait(0.1);
    let ours = offer(&mut rig);
    assert_eq!(offered(&ours), "a=sendrecv");
    rig.answer(&ours, 488);
    assert_eq!(outcomes(&mut rig), [false]);
    rig.wait(20.0);
    assert_eq!(rig.told(), ["ACK"]);
}

#[test]
fn our_offer_keeps_what_was_negotiated() {
    let mut rig = Rig::trunk();
    let other = "m=video 6000 RTP/AVP 99\r\n";
    let offer_of_two = sdp(4000, "sendrecv").replace("101", "96") + other;
    let dialog = rig.up_with(&Text::new("INVITE", 10).sdp(&offer_of_two));
    direct(&mut rig, &dialog, Direction::SendOnly);
    let body = String::from_utf8(rig.one().body).unwrap();
    assert!(body.contains(" RTP/AVP 0 96\r\n"), "{body}");
    assert!(body.contains("a=rtpmap:96 telephone-event/8000\r\n"), "{body}");
    assert!(body.contains("a=sendonly\r\nm=video 0 RTP/AVP 99\r\n"), "{body}");
}

#[test]
fn our_unanswered_reinvite_does_not_outlive_the_call() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.command(Command::Direction { call: dialog.key, direction: Direction::SendOnly });
    let ours = rig.one();
    rig.answer(&ours, 100);
    rig.wait(100.0);
    rig.pbx(&dialog.request("BYE", 11));
    assert_eq!(rig.told(), ["200"]);
    rig.assert_empty();
}
