//! Incoming calls: offered, answered, acknowledged, ended.

use super::rig::{RTP, Rig, SECOND_ADDRESS, Text};
use crate::sip::agent::{CallEnd, Command, Event};

fn bye() -> CallEnd {
    CallEnd::Bye { cause: None }
}

#[test]
fn a_call_is_offered_answered_and_hung_up_by_the_pbx() {
    let mut rig = Rig::trunk();
    let invite = Text::invite().line("X-Lead: 7").line("Record-Route: <sip:10.0.0.2;lr>");
    rig.pbx(&invite);
    let events = rig.events();
    let Event::Invite(offer) = &events[0] else { panic!("{events:?}") };
    assert_eq!((offer.from_user.as_str(), offer.to_user.as_str()), ("100", "ai"));
    assert_eq!(offer.from_name.as_deref(), Some("Caller"));
    assert!(offer.headers.contains(&("X-Lead".to_owned(), "7".to_owned())));
    assert_eq!(offer.remote.as_ref().unwrap().rtp.to_string(), "10.0.0.2:4000");
    let trying = rig.one();
    assert_eq!((trying.code(), trying.to().unwrap().tag()), (Some(100), None));

    rig.command(Command::Ringing { call: offer.call });
    let ringing = rig.one();
    assert_eq!(ringing.code(), Some(180));
    rig.command(Command::Answer { call: offer.call, rtp: RTP.parse().unwrap() });
    let ok = rig.one();
    assert_eq!(ok.code(), Some(200));
    assert_eq!(ok.get("Record-Route"), Some("<sip:10.0.0.2;lr>"));
    assert_eq!(ok.contact().unwrap().uri, "sip:ai@10.0.0.1:5070");
    assert_eq!(ok.to().unwrap().tag(), ringing.to().unwrap().tag());
    assert!(String::from_utf8_lossy(&ok.body).contains("m=audio 20000 RTP/AVP 0 101"));

    let tag = ok.to().unwrap().tag().unwrap().to_owned();
    rig.pbx(&Text::new("ACK", 10).tagged(&tag));
    assert!(matches!(rig.events()[..], [Event::Acked { .. }]));
    let with_cause = Text::new("BYE", 11).tagged(&tag).line("Reason: Q.850;cause=16");
    rig.pbx(&with_cause);
    assert_eq!(rig.told(), ["200"]);
    assert_eq!(rig.ended(), Some(CallEnd::Bye { cause: Some(16) }));
    rig.pbx(&with_cause);
    assert_eq!(rig.told(), ["200"], "a retransmitted BYE gets the same response");
    rig.assert_empty();
}

#[test]
fn our_hangup_sends_a_bye() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.hang_up(&dialog);
    let bye = rig.one();
    assert_eq!((bye.method(), bye.uri()), (Some("BYE"), "sip:100@10.0.0.2:5060"));
    assert_eq!(bye.get("Reason"), Some("Q.850;cause=16;text=\"done\""));
    assert_eq!(bye.from().unwrap().tag(), Some(dialog.tag.as_str()));
    rig.hang_up(&dialog);
    assert_eq!(rig.told(), [""; 0], "the second hangup sends no BYE");
    rig.answer(&bye, 200);
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
    rig.assert_empty();
}

#[test]
fn an_unanswered_bye_is_resent_then_times_out() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.hang_up(&dialog);
    rig.wait(31.9);
    assert_eq!(rig.sent().len(), 11);
    assert_eq!(rig.ended(), None);
    rig.wait(0.2);
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
    rig.assert_empty();
}

#[test]
fn a_challenge_to_our_bye_is_not_answered() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.hang_up(&dialog);
    let bye = rig.one();
    rig.answer_with(&bye, 401, "WWW-Authenticate: Digest realm=\"r\", nonce=\"n\"\r\n", "");
    assert_eq!(rig.told(), [""; 0]);
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
    rig.assert_empty();
}

#[test]
fn a_retransmitted_invite_gets_the_same_response() {
    let mut rig = Rig::trunk();
    let invite = Text::invite();
    rig.pbx(&invite);
    rig.offered();
    rig.pbx(&invite);
    assert_eq!(rig.told(), ["100", "100"]);
    assert!(rig.events().is_empty());
    assert_eq!(rig.agent.counts.retransmissions, 1);
    assert_eq!(rig.agent.call_count(), 1);
}

#[test]
fn our_200_is_resent_until_the_ack() {
    let mut rig = Rig::trunk();
    let (dialog, _) = rig.answered(&Text::invite());
    rig.wait(3.6);
    assert_eq!(rig.told(), ["200", "200", "200"]);
    rig.pbx(&Text::invite());
    assert_eq!(rig.told(), [""; 0], "the timer resends the 200, retransmitted INVITEs do not");
    rig.pbx(&dialog.ack(10));
    rig.pbx(&dialog.ack(10));
    rig.wait(40.0);
    assert_eq!(rig.told(), [""; 0]);
    let acked = rig.events().iter().filter(|e| matches!(e, Event::Acked { .. })).count();
    assert_eq!(acked, 1);
    assert_eq!(rig.agent.call_count(), 1);
}

#[test]
fn a_call_without_an_ack_is_ended() {
    let mut rig = Rig::trunk();
    rig.answered(&Text::invite());
    rig.wait(31.9);
    assert!(rig.told().iter().all(|t| t == "200"));
    rig.wait(0.2);
    let bye = rig.one();
    assert_eq!(bye.method(), Some("BYE"));
    assert_eq!(rig.ended(), Some(CallEnd::NoAck));
    rig.answer(&bye, 200);
    rig.assert_empty();
}

#[test]
fn a_hangup_before_the_ack_waits_for_it() {
    let mut rig = Rig::trunk();
    let (dialog, _) = rig.answered(&Text::invite());
    rig.hang_up(&dialog);
    rig.wait(1.0);
    assert_eq!(rig.told(), ["200"], "the 200 is resent and the BYE waits for the ACK");
    rig.pbx(&dialog.ack(10));
    let bye = rig.one();
    assert_eq!(bye.get("Reason"), Some("Q.850;cause=16;text=\"done\""));
    rig.answer(&bye, 200);
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
    rig.assert_empty();

    let (dialog, _) = rig.answered(&Text::invite().call_id("call-2"));
    rig.hang_up(&dialog);
    rig.wait(32.1);
    assert_eq!(rig.told().last().unwrap(), "BYE");
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
    rig.assert_empty();
}

#[test]
fn a_bye_before_the_ack_ends_the_call() {
    let mut rig = Rig::trunk();
    let (dialog, _) = rig.answered(&Text::invite());
    rig.pbx(&dialog.request("BYE", 11));
    assert_eq!(rig.told(), ["200"]);
    assert_eq!(rig.ended(), Some(bye()));
    rig.pbx(&dialog.ack(10));
    rig.wait(40.0);
    assert_eq!(rig.told(), [""; 0]);
    rig.assert_empty();
}

#[test]
fn a_bye_before_the_answer_terminates_the_invite() {
    let mut rig = Rig::trunk();
    rig.pbx(&Text::invite());
    let call = rig.offered();
    rig.command(Command::Ringing { call });
    let tag = rig.sent().last().unwrap().to().unwrap().tag().unwrap().to_owned();
    rig.pbx(&Text::new("BYE", 11).tagged(&tag));
    assert_eq!(rig.told(), ["200", "487"]);
    assert_eq!(rig.ended(), Some(bye()));
    rig.assert_empty();
}

#[test]
fn crossing_byes() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.hang_up(&dialog);
    let ours = rig.one();
    rig.pbx(&dialog.request("BYE", 11));
    assert_eq!(rig.told(), ["200"]);
    assert_eq!(rig.ended(), Some(bye()));
    rig.answer(&ours, 481);
    assert_eq!(rig.ended(), None);
    rig.assert_empty();
}

#[test]
fn a_cancel_before_the_answer_ends_the_call() {
    let mut rig = Rig::trunk();
    let invite = Text::invite();
    rig.pbx(&invite);
    let call = rig.offered();
    rig.told();
    let cancel = Text { branch: invite.branch.clone(), ..Text::new("CANCEL", 10) };
    rig.pbx(&cancel.clone().line("Require: 100rel, unknown"));
    let sent = rig.sent();
    assert_eq!((sent[0].code(), sent[0].cseq().unwrap().1), (Some(200), "CANCEL"));
    assert_eq!((sent[1].code(), sent[1].cseq().unwrap().1), (Some(487), "INVITE"));
    assert_eq!(rig.ended(), Some(CallEnd::Cancelled));
    rig.command(Command::Answer { call, rtp: RTP.parse().unwrap() });
    rig.wait(0.6);
    assert_eq!(
        rig.told(),
        ["487"],
        "the 487 is resent until its ACK, and the late answer is ignored"
    );
    rig.pbx(&Text { branch: invite.branch, ..Text::new("ACK", 10) });
    rig.wait(5.1);
    assert_eq!(rig.told(), [""; 0]);
    rig.assert_empty();
}

#[test]
fn a_cancel_that_crosses_our_200_has_no_effect() {
    let mut rig = Rig::trunk();
    let invite = Text::invite();
    let (dialog, _) = rig.answered(&invite);
    rig.pbx(&Text { branch: invite.branch, ..Text::new("CANCEL", 10) });
    assert_eq!(rig.told(), ["200"]);
    assert_eq!(rig.ended(), None);
    rig.pbx(&dialog.ack(10));
    rig.pbx(&dialog.request("BYE", 11));
    assert_eq!(rig.told(), ["200"]);
    assert_eq!(rig.ended(), Some(bye()));
    rig.assert_empty();
}

#[test]
fn a_cancel_without_an_invite_is_refused() {
    let mut rig = Rig::trunk();
    rig.pbx(&Text::new("CANCEL", 10));
    assert_eq!(rig.told(), ["481"]);
    rig.assert_empty();
}

#[test]
fn a_reject_or_hangup_refuses_the_invite() {
    let mut rig = Rig::trunk();
    let invite = Text::invite();
    rig.pbx(&invite);
    let call = rig.offered();
    rig.told();
    let reason = "Service Unavailable";
    rig.command(Command::Reject { call, code: 503, reason, retry_after_s: Some(5) });
    let refusal = rig.one();
    assert_eq!((refusal.code(), refusal.get("Retry-After")), (Some(503), Some("5")));
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
    rig.wait(32.5);
    assert_eq!(rig.sent().len(), 10, "without an ACK the 503 is resent until timer H");
    rig.assert_empty();

    let invite = Text::invite().call_id("call-2").branch("second");
    rig.pbx(&invite);
    let call = rig.offered();
    rig.told();
    rig.command(Command::Hangup { call, q850: 16, text: "done" });
    assert_eq!(rig.told(), ["480"]);
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
    rig.assert_empty();
}

#[test]
fn a_caller_that_requires_100rel_gets_no_180() {
    let mut rig = Rig::trunk();
    rig.pbx(&Text::invite().line("Require: 100rel"));
    let call = rig.offered();
    rig.told();
    rig.command(Command::Ringing { call });
    assert_eq!(rig.told(), [""; 0]);
    rig.command(Command::Answer { call, rtp: RTP.parse().unwrap() });
    assert_eq!(rig.told(), ["200"]);
}

#[test]
fn dtmf_digits_by_info() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    let relay = "application/dtmf-relay";
    let table = [
        (relay, "Signal=5\r\nDuration=160\r\n", "200", Some('5')),
        (relay, "Signal= 11\r\n", "200", Some('#')),
        ("application/dtmf", "*", "200", Some('*')),
        ("application/dtmf", "d", "200", Some('D')),
        (relay, "Signal=55\r\n", "400", None),
        (relay, "Duration=160\r\n", "400", None),
        ("application/media_control+xml", "<x/>", "415", None),
    ];
    for (i, (kind, body, answer, key)) in table.into_iter().enumerate() {
        rig.pbx(&dialog.request("INFO", 20 + i as u32).body(kind, body));
        assert_eq!(rig.told(), [answer], "{body}");
        let keys = rig.events().into_iter().filter_map(|e| match e {
            Event::Digit { digit, .. } => Some(digit),
            _ => None,
        });
        assert_eq!(keys.collect::<Vec<_>>(), Vec::from_iter(key), "{body}");
    }
    rig.pbx(&dialog.request("INFO", 40));
    assert_eq!(rig.told(), ["200"], "an empty INFO checks that the call is alive");
    rig.command(Command::Info { call: dialog.key, digit: '7' });
    let info = rig.one();
    assert_eq!(info.body, b"Signal=7\r\nDuration=160\r\n");
    rig.answer(&info, 200);
}

#[test]
fn options_and_notify_inside_and_outside_calls() {
    let mut rig = Rig::trunk();
    let outside = |method, call_id: &str| Text::new(method, 1).call_id(call_id).branch(call_id);
    rig.pbx(&outside("OPTIONS", "o"));
    let ok = rig.one();
    assert_eq!(ok.code(), Some(200));
    assert!(ok.get("Allow").unwrap().contains("INVITE") && ok.get("Accept").is_some());
    rig.pbx(&outside("NOTIFY", "n").line("Event: message-summary").body("text/plain", "x"));
    assert_eq!(rig.told(), ["200"]);
    let dialog = rig.up();
    rig.pbx(&dialog.request("OPTIONS", 11));
    rig.pbx(&dialog.request("NOTIFY", 12));
    assert_eq!(rig.told(), ["200", "200"]);
    rig.pbx(&dialog.request("BYE", 13));
    rig.assert_empty();
}

#[test]
fn another_address_of_the_same_pbx_may_end_the_call() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.feed(SECOND_ADDRESS, &dialog.request("BYE", 11).render());
    assert_eq!(rig.told(), ["200"]);
    assert_eq!(rig.ended(), Some(bye()));
}
