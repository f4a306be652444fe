//! REFER and the NOTIFYs that follow it.

use super::rig::{Dialog, Rig, Text};
use crate::sip::agent::{CallEnd, CallKey, Command, Event};
use crate::sip::message::Message;

/// Returns the outcomes since the last call of this function; 0 if the REFER was accepted.
fn outcomes(rig: &mut Rig) -> Vec<u16> {
    let outcomes = rig.events().into_iter().filter_map(|event| match event {
        Event::Referred { code, .. } => Some(code),
        Event::ReferAccepted { .. } => Some(0),
        _ => None,
    });
    outcomes.collect()
}

fn refer(rig: &mut Rig, dialog: &Dialog) -> Message {
    let user = "1001".to_owned();
    rig.command(Command::Refer { call: dialog.key, user, replaces: None });
    let refer = rig.one();
    assert_eq!(refer.method(), Some("REFER"));
    refer
}

fn notify(dialog: &Dialog, number: u32, event: &str, status: &str) -> Text {
    let notify = dialog.request("NOTIFY", number).line(&format!("Event: {event}"));
    notify.line("Subscription-State: active").body("message/sipfrag", &format!("SIP/2.0 {status}"))
}

#[test]
fn a_refer_is_accepted_and_its_outcome_follows() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    let first = refer(&mut rig, &dialog);
    rig.answer(&first, 100);
    assert_eq!(outcomes(&mut rig), [0; 0]);
    rig.answer(&first, 202);
    assert_eq!(outcomes(&mut rig), [0]);
    rig.pbx(&notify(&dialog, 11, "refer", "180 Ringing"));
    rig.pbx(&notify(&dialog, 12, "refer", "486 Busy Here"));
    assert_eq!(rig.told(), ["200", "200"]);
    assert_eq!(outcomes(&mut rig), [0, 486]);
}

#[test]
fn a_notify_belongs_to_the_refer_with_its_id() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.pbx(&notify(&dialog, 11, "refer", "200 OK"));
    assert_eq!(outcomes(&mut rig), [0; 0], "there was no REFER");
    assert_eq!(rig.told(), ["200"]);
    let first = refer(&mut rig, &dialog);
    let second = refer(&mut rig, &dialog);
    rig.told();
    // the response to the first, and its timeout, are about the first only
    rig.answer(&first, 603);
    assert_eq!(outcomes(&mut rig), [0; 0]);
    let id = |refer: &Message| format!("refer;id={}", refer.cseq().unwrap().0);
    rig.pbx(&notify(&dialog, 12, &id(&first), "503 Service Unavailable"));
    rig.pbx(&notify(&dialog, 13, "refer;id=x", "503 Service Unavailable"));
    assert_eq!(outcomes(&mut rig), [0; 0]);
    rig.pbx(&notify(&dialog, 14, &id(&second), "200 OK"));
    assert_eq!(outcomes(&mut rig), [200]);
    assert_eq!(rig.told(), ["200"; 3]);
}

#[test]
fn a_notify_that_arrives_late_or_again_is_only_answered() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    refer(&mut rig, &dialog);
    rig.pbx(&notify(&dialog, 12, "refer", "100 Trying"));
    assert_eq!(outcomes(&mut rig), [0]);
    for number in [12, 11] {
        rig.pbx(&notify(&dialog, number, "refer", "503 Service Unavailable"));
    }
    assert_eq!(rig.told(), ["200"; 3]);
    assert_eq!(outcomes(&mut rig), [0; 0]);
}

#[test]
fn a_consultation_of_a_call_that_is_over_ends_at_once() {
    let mut rig = Rig::trunk();
    let (of, call) = (CallKey(77), rig.agent.new_call_key());
    rig.command(Command::Consult { of, call, user: "1001".to_owned() });
    assert!(matches!(rig.ended(), Some(CallEnd::Refused { .. })));
}
