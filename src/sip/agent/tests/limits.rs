//! Limits are kept, and ended calls and transactions are freed.

use super::rig::{Dialog, MAX_UNACKNOWLEDGED, PBX, RTP, Rig, Text, sdp};
use crate::sip::agent::servers::{MAX_PER_CALL, MAX_TRANSACTIONS};
use crate::sip::agent::{AiDown, CallEnd, Command, Event};

#[test]
fn requests_that_change_nothing_are_answered_without_state() {
    let mut rig = Rig::trunk();
    let methods = ["OPTIONS", "NOTIFY", "REGISTER", "SUBSCRIBE", "MESSAGE", "BYE", "CANCEL"];
    for method in methods {
        let request = Text::new(method, 1);
        rig.pbx(&request);
        let (first, timers) = (rig.one(), rig.agent.timers.len());
        rig.pbx(&request);
        let again = rig.one();
        assert_eq!(again.to().unwrap().tag(), first.to().unwrap().tag(), "{method}");
        assert_eq!((rig.agent.transaction_count(), timers), (0, 0), "{method}");
    }
    for request in ["OPTIONS", "BYE", "INVITE", "INFO"].map(|m| Text::new(m, 1).tagged("old")) {
        rig.pbx(&request);
        assert_eq!(rig.told(), ["481"]);
        assert_eq!(rig.agent.transaction_count(), 0, "{}", request.method);
    }
}

#[test]
fn options_without_end_leave_room_for_calls() {
    let mut rig = Rig::trunk();
    for i in 0..10_000 {
        rig.pbx(&Text::new("OPTIONS", 1).call_id(&format!("o{i}")));
    }
    assert!(rig.told().iter().all(|t| t == "200"));
    assert_eq!((rig.agent.transaction_count(), rig.agent.timers.len()), (0, 0));
    rig.up();
}

#[test]
fn requests_that_change_nothing_in_a_call_are_answered_without_state() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.wait(33.0);
    for (i, method) in ["OPTIONS", "NOTIFY", "MESSAGE", "REFER", "DANCE"].into_iter().enumerate() {
        let request = dialog.request(method, 11 + i as u32);
        rig.pbx(&request);
        let first = rig.one().code();
        rig.pbx(&request);
        assert_eq!(rig.one().code(), first, "{method} again");
        assert_eq!(rig.agent.transaction_count(), 0, "{method}");
    }
}

/// Calls whose peers never stop sending requests within them.
#[test]
fn requests_within_one_call_leave_room_for_other_calls_and_for_byes() {
    let mut rig = Rig::trunk();
    let (dialog, other) = (rig.up(), rig.up_with(&Text::invite().call_id("call-2")));
    for i in 0..MAX_PER_CALL + 10 {
        rig.pbx(&dialog.request("INFO", 11 + i as u32));
    }
    assert_eq!(rig.told().iter().filter(|t| *t == "503").count(), 10);
    let refused = rig.events().into_iter().filter(|event| {
        matches!(event, Event::Refused(refused)
            if (refused.method, refused.code) == (Some("INFO"), Some(503)))
    });
    assert_eq!(refused.count(), 10);
    for method in ["UPDATE", "INFO"] {
        rig.pbx(&other.request(method, 11 + u32::from(method == "INFO")));
        assert_eq!(rig.told(), ["200"], "{method}");
    }
    rig.pbx(&other.request("INVITE", 13).sdp(&sdp(4000, "sendrecv")));
    assert_eq!(rig.told(), ["200"]);
    rig.up_with(&Text::invite().call_id("call-3"));
    rig.pbx(&dialog.request("BYE", 99_999));
    assert_eq!(rig.told(), ["200"]);
    assert_eq!(rig.agent.call_count(), 2);
}

#[test]
fn refused_invites_without_an_ack_leave_room_for_calls() {
    let mut rig = Rig::trunk();
    let g729 = sdp(4000, "sendrecv").replace("AVP 0", "AVP 18");
    let refused = |i: usize| Text::new("INVITE", 10).sdp(&g729).call_id(&format!("i{i}"));
    rig.pbx(&refused(0));
    let first = rig.one();
    rig.pbx(&refused(0));
    let again = rig.one();
    assert_eq!((again.code(), again.get("To")), (Some(488), first.get("To")));
    let tag = first.to().unwrap().tag().unwrap().to_owned();
    rig.events();
    rig.pbx(&Text { branch: refused(0).branch, ..Text::new("ACK", 10).call_id("i0").tagged(&tag) });
    assert!(rig.events().is_empty(), "the ACK is expected");
    for i in 1..MAX_TRANSACTIONS + 10 {
        rig.pbx(&refused(i));
    }
    assert!(rig.told().iter().all(|t| t == "488"));
    assert_eq!((rig.agent.transaction_count(), rig.agent.timers.len()), (0, 0));
    rig.up();
}

/// These have been offered, so that they need a transaction.
#[test]
fn calls_that_are_rejected_without_an_ack_make_room_for_others() {
    let mut rig = Rig::trunk();
    for i in 0..MAX_TRANSACTIONS + 10 {
        rig.pbx(&Text::invite().call_id(&format!("i{i}")));
        let (call, reason) = (rig.offered(), "Busy Here");
        rig.command(Command::Reject { call, code: 486, reason, retry_after_s: None });
        assert_eq!(rig.told(), ["100", "486"]);
        rig.events();
    }
    assert!(rig.agent.transaction_count() <= MAX_TRANSACTIONS);
    rig.up();
}

#[test]
fn calls_over_the_limit_are_refused() {
    let mut rig = Rig::trunk_with(2);
    for i in 0..3 {
        rig.pbx(&Text::invite().call_id(&format!("c{i}")));
    }
    let sent = rig.sent();
    let codes: Vec<u16> = sent.iter().filter_map(|m| m.code()).collect();
    assert_eq!(codes, [100, 100, 503]);
    assert_eq!(sent[2].get("Retry-After"), Some("5"));
    assert_eq!(rig.agent.call_count(), 2);
}

/// INVITEs that arrive at once pass the check at their arrival.
#[test]
fn an_answer_over_the_limit_of_unacknowledged_calls_becomes_a_503() {
    let mut rig = Rig::trunk();
    for i in 0..=MAX_UNACKNOWLEDGED {
        rig.pbx(&Text::invite().call_id(&format!("c{i}")));
    }
    let offers = rig.events().into_iter().filter_map(|event| match event {
        Event::Invite(invite) => Some(invite.call),
        _ => None,
    });
    let calls: Vec<_> = offers.collect();
    rig.told();
    for call in &calls {
        rig.command(Command::Answer { call: *call, rtp: RTP.parse().unwrap() });
    }
    let told = rig.told();
    let count = |code: &str| told.iter().filter(|t| *t == code).count();
    assert_eq!((count("200"), count("503")), (MAX_UNACKNOWLEDGED, 1));
    let events = rig.events();
    let [Event::Refused(refused), Event::Ended { end, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((refused.method, refused.code), (Some("INVITE"), Some(503)));
    assert_eq!(end, &CallEnd::Overload);
    rig.pbx(&Text::invite().call_id("another"));
    assert_eq!(rig.told(), ["503"]);
    rig.wait(33.0);
    rig.events();
    rig.told();
    rig.up();
}

#[test]
fn a_shutdown_leaves_calls_to_the_owner() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.command(Command::Shutdown);
    rig.pbx(&Text::invite().call_id("call-2").branch("two"));
    let new = rig.offered();
    rig.command(Command::Redirect { call: new, user: "1001".to_owned() });
    assert_eq!(rig.told().last().map(String::as_str), Some("302"));
    rig.pbx(&Text::new("ACK", 1).call_id("call-2").branch("two"));
    rig.pbx(&dialog.request("BYE", 11));
    assert_eq!(rig.told(), ["200"]);
    rig.assert_empty();
}

#[test]
fn a_thousand_calls_leave_nothing_behind() {
    let mut rig = Rig::trunk();
    for i in 0..1000 {
        let id = format!("call-{i}");
        let invite = Text::invite().call_id(&id).line("Session-Expires: 1800");
        let dialog = rig.up_with(&invite);
        rig.pbx(&dialog.request("BYE", 11));
        rig.told();
        rig.wait(0.1);
    }
    assert!(rig.agent.timers.len() < 2000, "{}", rig.agent.timers.len());
    rig.assert_empty();
}

#[test]
fn retransmissions_add_no_state() {
    let mut rig = Rig::trunk();
    let (dialog, _) = rig.answered(&Text::invite());
    let (timers, transactions) = (rig.agent.timers.len(), rig.agent.transaction_count());
    let ack = dialog.ack(10).render();
    for _ in 0..1000 {
        rig.pbx(&Text::invite());
        rig.feed(PBX, &ack.replace("theirs", "others"));
    }
    assert_eq!(rig.agent.timers.len(), timers);
    assert_eq!(rig.agent.transaction_count(), transactions);
}

#[test]
fn an_answered_call_cannot_be_answered_rung_or_rejected_again() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.command(Command::Answer { call: dialog.key, rtp: RTP.parse().unwrap() });
    rig.command(Command::Ringing { call: dialog.key });
    let reason = "Busy Here";
    rig.command(Command::Reject { call: dialog.key, code: 486, reason, retry_after_s: None });
    assert_eq!(rig.told(), [""; 0]);
    assert_eq!(rig.agent.call_count(), 1);
}

#[test]
fn options_are_answered_503_while_no_ai_can_be_reached() {
    for (ai_down, expected) in
        [(AiDown::RefuseOptions, "503"), (AiDown::Stay, "200"), (AiDown::Unregister, "200")]
    {
        let mut rig = Rig::with_ai_down(ai_down, None);
        for (down, expected) in [(true, expected), (false, "200")] {
            rig.command(Command::AiDown { account: 0, down });
            rig.pbx(&Text::new("OPTIONS", 50 + u32::from(down)));
            assert_eq!(rig.told(), [expected], "{ai_down:?} {down}");
        }
    }
}

#[test]
fn options_are_answered_503_while_no_calls_are_taken() {
    let options = |rig: &mut Rig, to: Option<&Dialog>| {
        let request = Text::new("OPTIONS", 50);
        rig.pbx(&to.map_or(request, |dialog| dialog.request("OPTIONS", 50)));
        rig.told()
    };
    let mut rig = Rig::trunk_with(2);
    rig.up();
    assert_eq!(options(&mut rig, None), ["200"]);
    rig.agent.set_full(true);
    assert_eq!(options(&mut rig, None), ["503"]);
    rig.agent.set_full(false);
    rig.up_with(&Text::invite().call_id("call-2"));
    assert_eq!(options(&mut rig, None), ["503"], "the agent is full");
    let mut rig = Rig::trunk();
    rig.command(Command::Shutdown);
    assert_eq!(options(&mut rig, None), ["503"], "stopping");
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.command(Command::Shutdown);
    assert_eq!(options(&mut rig, Some(&dialog)), ["200"], "within a call");
}
