//! Offers and answers by re-INVITE and UPDATE: late offers, hold, new addresses, glare.

use super::rig::{Dialog, Rig, Text, sdp};
use crate::sip::agent::{CallEnd, Command, Event};
use crate::sip::message::Message;
use crate::sip::sdp::{Direction, Remote};

/// Returns the media that the agent reported since the last call of this function.
pub fn media(rig: &mut Rig) -> Vec<Remote> {
    let media = rig.events().into_iter().filter_map(|e| match e {
        Event::Media { remote, .. } => Some(remote),
        _ => None,
    });
    media.collect()
}

/// Returns the version in the o= line.
pub fn version(message: &Message) -> u64 {
    let body = String::from_utf8_lossy(&message.body).into_owned();
    let origin = body.lines().find(|l| l.starts_with("o=")).unwrap().to_owned();
    origin.split(' ').nth(2).unwrap().parse().unwrap()
}

/// Sends a re-INVITE, acknowledges our 200 and returns it.
fn reinvite(rig: &mut Rig, dialog: &Dialog, number: u32, body: &str) -> Message {
    rig.pbx(&dialog.request("INVITE", number).sdp(body));
    let ok = rig.one();
    assert_eq!(ok.code(), Some(200));
    rig.pbx(&dialog.ack(number));
    ok
}

#[test]
fn hold_resume_and_a_new_address() {
    let mut rig = Rig::trunk();
    let (dialog, first) = rig.answered(&Text::invite());
    rig.pbx(&dialog.ack(10));
    rig.events();

    let held = reinvite(&mut rig, &dialog, 11, &sdp(4000, "sendonly"));
    assert!(String::from_utf8_lossy(&held.body).contains("a=recvonly"));
    assert_eq!(version(&held), version(&first) + 1);
    let reported = media(&mut rig);
    assert_eq!((reported.len(), reported[0].wants_audio()), (1, false));

    let resumed = reinvite(&mut rig, &dialog, 12, &sdp(4000, "sendrecv"));
    assert_eq!(version(&resumed), version(&first) + 2);
    assert!(media(&mut rig)[0].wants_audio());

    let again = reinvite(&mut rig, &dialog, 13, &sdp(4000, "sendrecv"));
    assert_eq!(version(&again), version(&first) + 2, "an unchanged SDP keeps its version");
    assert_eq!(again.body, resumed.body);

    let moved = sdp(6000, "sendrecv").replace("c=IN IP4 10.0.0.2", "c=IN IP4 10.0.0.7");
    let moved = reinvite(&mut rig, &dialog, 14, &moved);
    assert_eq!(version(&moved), version(&first) + 2, "our SDP is unchanged");
    assert_eq!(media(&mut rig).last().unwrap().rtp.to_string(), "10.0.0.7:6000");

    let old_hold = sdp(4000, "sendrecv").replace("c=IN IP4 10.0.0.2", "c=IN IP4 0.0.0.0");
    reinvite(&mut rig, &dialog, 15, &old_hold);
    assert!(!media(&mut rig)[0].wants_audio());
    rig.pbx(&dialog.request("BYE", 16));
    rig.assert_empty();
}

#[test]
fn an_unacceptable_offer_leaves_the_call_unchanged() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    let bad = [
        sdp(4000, "sendrecv").replace("RTP/AVP 0 101", "RTP/AVP 18"),
        sdp(4000, "sendrecv").replace("c=IN IP4 10.0.0.2", "c=IN IP4 127.0.0.1"),
        // our own RTP address: a loop
        sdp(20000, "sendrecv").replace("c=IN IP4 10.0.0.2", "c=IN IP4 10.0.0.1"),
        "nonsense".to_owned(),
    ];
    for (i, body) in bad.iter().enumerate() {
        let number = 11 + 2 * i as u32;
        let invite = dialog.request("INVITE", number).sdp(body);
        rig.pbx(&invite);
        assert_eq!(rig.told(), ["488"], "{body}");
        rig.pbx(&Text { branch: invite.branch, ..dialog.ack(number) });
        rig.pbx(&dialog.request("UPDATE", number + 1).sdp(body));
        assert_eq!(rig.told(), ["488"], "{body}");
    }
    rig.pbx(&dialog.request("INVITE", 30).body("text/plain", "x"));
    assert_eq!(rig.told(), ["415"]);
    assert!(media(&mut rig).is_empty());
    let ok = reinvite(&mut rig, &dialog, 31, &sdp(4000, "sendrecv"));
    assert_eq!(version(&ok), 1);
    rig.pbx(&dialog.request("BYE", 32));
    assert_eq!(rig.told(), ["200"]);
    rig.assert_empty();
}

#[test]
fn a_late_offer_at_call_setup() {
    let mut rig = Rig::trunk();
    let (dialog, ok) = rig.answered(&Text::new("INVITE", 10));
    assert!(String::from_utf8_lossy(&ok.body).contains("RTP/AVP 0 8 101"));
    rig.pbx(&dialog.ack(10).sdp(&sdp(4000, "sendrecv")));
    assert_eq!(media(&mut rig)[0].rtp.port(), 4000);
    rig.pbx(&dialog.request("BYE", 11));
    rig.told();
    rig.assert_empty();

    for (id, ack_body) in [("call-2", ""), ("call-3", "nonsense")] {
        let (dialog, _) = rig.answered(&Text::new("INVITE", 10).call_id(id));
        rig.pbx(&dialog.ack(10).sdp(ack_body));
        let bye = rig.one();
        assert_eq!(bye.method(), Some("BYE"));
        assert!(bye.get("Reason").unwrap().contains("cause=88"));
        assert_eq!(rig.ended(), Some(CallEnd::BadAnswer));
        rig.answer(&bye, 200);
        rig.assert_empty();
    }
}

#[test]
fn a_late_offer_during_the_call() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.pbx(&dialog.request("INVITE", 11));
    assert!(String::from_utf8_lossy(&rig.one().body).contains("RTP/AVP 0 8 101"));
    assert!(media(&mut rig).is_empty());
    // our offer is open until the ACK brings the answer
    rig.pbx(&dialog.request("INVITE", 12).sdp(&sdp(5000, "sendrecv")));
    rig.pbx(&dialog.request("UPDATE", 13).sdp(&sdp(5000, "sendrecv")));
    rig.pbx(&dialog.request("UPDATE", 14));
    assert_eq!(rig.told(), ["491", "491", "200"]);
    rig.pbx(&dialog.ack(11).sdp(&sdp(6000, "sendrecv")));
    assert_eq!(media(&mut rig)[0].rtp.port(), 6000);

    rig.pbx(&dialog.request("INVITE", 15));
    rig.told();
    rig.pbx(&dialog.ack(15));
    assert_eq!(rig.told(), ["BYE"]);
    assert_eq!(rig.ended(), Some(CallEnd::BadAnswer));
    rig.assert_empty();
}

#[test]
fn our_offer_keeps_the_lines_and_payload_types_of_the_call() {
    let mut rig = Rig::trunk();
    let other = "m=image 5000 udptl t38\r\n";
    let offer = sdp(4000, "sendrecv").replace("101", "96") + other;
    let offer = offer.replace("RTP/AVP 0 96", "RTP/AVP 0 96 101");
    let dialog = rig.up_with(&Text::new("INVITE", 10).sdp(&offer));
    rig.pbx(&dialog.request("INVITE", 11));
    let body = String::from_utf8(rig.one().body).unwrap();
    assert!(body.contains("RTP/AVP 0 8 96\r\n") && body.contains("m=image 0 udptl t38"), "{body}");
    rig.pbx(&dialog.ack(11).sdp(&sdp(4000, "sendrecv").replace("101", "96")));

    let offer = sdp(4000, "sendrecv").replace("telephone-event", "opus");
    let dialog = rig.up_with(&Text::new("INVITE", 10).call_id("call-2").sdp(&offer));
    rig.pbx(&dialog.request("INVITE", 11));
    let body = String::from_utf8(rig.one().body).unwrap();
    assert!(body.contains("RTP/AVP 0 8\r\n"), "101 has a meaning already: {body}");
}

#[test]
fn an_ack_matches_only_its_own_invite() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.pbx(&dialog.request("INVITE", 11));
    assert_eq!(rig.told(), ["200"]);
    rig.pbx(&dialog.ack(10));
    assert_eq!(rig.ended(), None, "a copy of the first ACK does not answer the new offer");
    rig.wait(0.6);
    assert_eq!(rig.told(), ["200"]);
    rig.pbx(&dialog.ack(11).sdp(&sdp(4000, "sendrecv")));
    rig.wait(40.0);
    assert_eq!(rig.told(), [""; 0]);
    assert_eq!(rig.agent.call_count(), 1);
}

#[test]
fn a_reinvite_without_an_ack_ends_the_call() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.pbx(&dialog.request("INVITE", 11).sdp(&sdp(4000, "sendrecv")));
    rig.wait(32.1);
    assert_eq!(rig.ended(), Some(CallEnd::NoAck));
    rig.assert_empty();
}

#[test]
fn a_reinvite_or_update_before_the_answer_or_after_our_bye_is_refused() {
    let mut rig = Rig::trunk();
    rig.pbx(&Text::invite());
    let call = rig.offered();
    rig.command(Command::Ringing { call });
    let tag = rig.sent().last().unwrap().to().unwrap().tag().unwrap().to_owned();
    let early = |method, number| Text::new(method, number).tagged(&tag);
    rig.pbx(&early("INVITE", 11).sdp(&sdp(4000, "sendrecv")));
    rig.pbx(&early("UPDATE", 12).sdp(&sdp(4000, "sendrecv")));
    let sent = rig.sent();
    assert!(sent.iter().all(|m| m.code() == Some(500) && m.get("Retry-After").is_some()));
    assert_eq!(sent.len(), 2);

    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.hang_up(&dialog);
    rig.told();
    rig.pbx(&dialog.request("INVITE", 11).sdp(&sdp(4000, "sendrecv")));
    rig.pbx(&dialog.request("UPDATE", 12));
    assert_eq!(rig.told(), ["481", "481"]);
    rig.assert_empty();
}

#[test]
fn update_with_and_without_sdp() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.pbx(&dialog.request("UPDATE", 11));
    let ok = rig.one();
    assert_eq!((ok.code(), ok.body.len()), (Some(200), 0));
    assert!(media(&mut rig).is_empty());
    rig.pbx(&dialog.request("UPDATE", 12).sdp(&sdp(4000, "inactive")));
    let ok = rig.one();
    assert!(String::from_utf8_lossy(&ok.body).contains("a=inactive"));
    assert!(!media(&mut rig)[0].wants_audio());
    rig.wait(40.0);
    assert_eq!(rig.told(), [""; 0], "an UPDATE needs no ACK");
}

#[test]
fn a_reinvite_or_update_changes_the_remote_target() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    let moved = |text: Text, user: &str| text.render().replace("sip:100@10.0.0.2:5060", user);
    rig.feed("10.0.0.2:5060", &moved(dialog.request("UPDATE", 11), "sip:x@10.0.0.2:5062"));
    rig.told();
    rig.command(Command::Info { call: dialog.key, digit: '1' });
    assert_eq!(rig.one().uri(), "sip:x@10.0.0.2:5062");
    let body = sdp(4000, "sendrecv");
    let text = dialog.request("INVITE", 12).sdp(&body);
    rig.feed("10.0.0.2:5060", &moved(text, "sip:y@10.0.0.2:5063"));
    rig.pbx(&dialog.ack(12));
    rig.told();
    rig.hang_up(&dialog);
    assert_eq!(rig.one().uri(), "sip:y@10.0.0.2:5063");
}

#[test]
fn an_answer_may_not_aim_our_rtp_at_this_host() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.command(Command::Direction { call: dialog.key, direction: Direction::SendRecv });
    let ours = rig.one();
    let body = sdp(4000, "sendrecv").replace("c=IN IP4 10.0.0.2", "c=IN IP4 127.0.0.1");
    rig.answer_with(&ours, 200, "", &body);
    assert_eq!(rig.told(), ["ACK"]);
    assert!(media(&mut rig).is_empty());
}
