//! Limits are kept, and ended calls and transactions are freed.

use super::rig::{PBX, RTP, Rig, Text};
use crate::sip::agent::{Command, MAX_TRANSACTIONS};

#[test]
fn transactions_over_the_limit_are_refused_without_state() {
    let mut rig = Rig::trunk();
    for i in 0..MAX_TRANSACTIONS + 10 {
        rig.pbx(&Text::new("OPTIONS", 1).call_id(&format!("o{i}")));
    }
    assert_eq!(rig.agent.transaction_count(), MAX_TRANSACTIONS);
    assert_eq!(rig.agent.counts.overload, 10);
    let sent = rig.told();
    assert_eq!(sent.iter().filter(|t| *t == "503").count(), 10);
    rig.assert_empty();
    rig.pbx(&Text::new("OPTIONS", 1));
    assert_eq!(rig.told(), ["200"]);
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

#[test]
fn shutdown_refuses_new_calls_and_keeps_established_ones() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.command(Command::Shutdown);
    rig.pbx(&Text::invite().call_id("call-2").branch("two"));
    assert_eq!(rig.told(), ["503"]);
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
