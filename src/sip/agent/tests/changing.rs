//! PBXs that are added, changed and removed while calls are up.

use super::rig::{PBX, Rig, Text, account, settings};
use crate::sip::agent::{AccountConfig, AiDown, Command, Event, Input, Route, Routes};
use crate::sip::message::Message;
use crate::sip::registration::{Settings, Status};

const CHALLENGE: &str =
    "WWW-Authenticate: Digest realm=\"asterisk\", nonce=\"n1\", algorithm=MD5, qop=\"auth\"\r\n";
const GRANTED: &str = "Contact: <sip:ai@10.0.0.1:5070>;expires=120\r\n";

/// Accepts the REGISTER that was sent without credentials, and returns it.
fn accept(rig: &mut Rig) -> Message {
    let request = rig.one();
    assert_eq!(request.method(), Some("REGISTER"));
    rig.answer_with(&request, 200, GRANTED, "");
    request
}

fn registered() -> Rig {
    let mut rig = Rig::registering();
    accept(&mut rig);
    assert_eq!(statuses(&mut rig), [Status::Registered { expires_s: 120 }]);
    rig
}

fn statuses(rig: &mut Rig) -> Vec<Status> {
    let statuses = rig.events().into_iter().filter_map(|event| match event {
        Event::Registration { status, .. } => Some(status),
        _ => None,
    });
    statuses.collect()
}

fn change(rig: &mut Rig, config: AccountConfig) {
    rig.command(Command::Change { account: 0, config: Box::new(config) });
}

fn with_password(password: &str) -> AccountConfig {
    account("ai", Some(Settings { password: password.into(), ..settings() }))
}

#[test]
fn the_same_settings_send_nothing() {
    let mut rig = registered();
    let lookups = rig.lookups;
    change(&mut rig, with_password("secret"));
    assert_eq!(rig.told(), [""; 0]);
    assert_eq!(rig.lookups, lookups + 1, "the hosts may be others");
}

#[test]
fn a_new_password_registers_at_once() {
    let mut rig = registered();
    let call = rig.up();
    change(&mut rig, with_password("other"));
    let first = rig.one();
    assert_eq!((first.method(), first.get("Expires")), (Some("REGISTER"), Some("120")));
    assert_eq!(first.cseq().unwrap().0, 2);
    rig.answer_with(&first, 401, CHALLENGE, "");
    let signed = rig.one();
    assert!(signed.get("Authorization").is_some());
    // refused at once, although the old password was accepted
    rig.answer(&signed, 403);
    assert!(matches!(statuses(&mut rig)[..], [Status::Refused { code: 403, .. }]));
    // the next change does not wait for the pause after a refusal: the PBX may have been corrected
    change(&mut rig, with_password("other"));
    rig.resolve(&[PBX]);
    accept(&mut rig);
    assert_eq!(statuses(&mut rig), [Status::Registered { expires_s: 120 }]);
    rig.hang_up(&call);
    assert_eq!(rig.told(), ["BYE"]);
}

#[test]
fn a_late_response_to_the_old_password_is_ignored() {
    let mut rig = Rig::registering();
    let old = rig.one();
    change(&mut rig, with_password("other"));
    let new = rig.one();
    rig.answer(&old, 403);
    assert!(statuses(&mut rig).is_empty());
    rig.answer_with(&new, 200, GRANTED, "");
    assert_eq!(statuses(&mut rig), [Status::Registered { expires_s: 120 }]);
}

#[test]
fn a_removed_pbx_is_unregistered_and_keeps_its_calls() {
    let mut rig = registered();
    let call = rig.up();
    rig.command(Command::Retire { account: 0 });
    assert!(!rig.agent.is_unregistered(0));
    let removal = rig.one();
    assert_eq!(removal.get("Expires"), Some("0"));
    // Asterisk challenges it
    rig.answer_with(&removal, 401, CHALLENGE, "");
    let signed = rig.one();
    rig.answer(&signed, 200);
    assert_eq!(statuses(&mut rig), [Status::Unregistered]);
    assert!(rig.agent.is_unregistered(0));
    // no new call, and no answer that would tell of us
    rig.pbx(&Text::invite().call_id("late"));
    rig.pbx(&Text::new("OPTIONS", 1).call_id("options"));
    assert_eq!(rig.told(), [""; 0]);
    // lookups that were under way change nothing
    rig.resolve(&[PBX]);
    rig.wait(600.0);
    assert_eq!(rig.told(), [""; 0]);
    rig.pbx(&call.request("BYE", 11));
    assert_eq!(rig.told(), ["200"]);
    assert!(rig.ended().is_some());
    rig.wait(65.0);
    // from now on, it is a stranger
    let strangers = rig.agent.counts.strangers;
    rig.pbx(&call.request("BYE", 12));
    assert_eq!((rig.told(), rig.agent.counts.strangers), (vec![], strangers + 1));
}

#[test]
fn a_pbx_that_is_back_takes_calls_with_another_account() {
    let mut rig = registered();
    let call = rig.up();
    rig.command(Command::Retire { account: 0 });
    let removal = rig.one();
    rig.answer(&removal, 200);
    rig.events();
    rig.command(Command::Add(Box::new(account("ai", Some(settings())))));
    assert_eq!(rig.agent.account_count(), 2);
    let route = Route { remote: PBX.parse().unwrap(), local: "10.0.0.1".parse().unwrap() };
    let routes = Routes { registrar: Ok(vec![route]), peers: Vec::new() };
    rig.input(Input::Resolved { account: 1, routes });
    accept(&mut rig);
    rig.events();
    rig.pbx(&Text::invite().call_id("new"));
    let accounts = rig.events().into_iter().filter_map(|event| match event {
        Event::Invite(invite) => Some(invite.account),
        _ => None,
    });
    assert_eq!(accounts.collect::<Vec<_>>(), [1]);
    assert_eq!(rig.told(), ["100"]);
    rig.hang_up(&call);
    assert_eq!(rig.told(), ["BYE"]);
}

#[test]
fn peers_of_a_trunk_change_and_its_calls_continue() {
    let mut rig = Rig::trunk();
    let call = rig.up();
    change(&mut rig, AccountConfig { users: vec!["7XX".parse().unwrap()], ..account("ai", None) });
    rig.resolve(&["10.0.0.9:5060"]);
    rig.pbx(&Text::invite().call_id("old-peer"));
    assert_eq!(rig.told(), [""; 0]);
    let invite = Text::invite().call_id("new-peer");
    rig.feed("10.0.0.9:5060", &invite.render());
    assert_eq!(rig.told(), ["404"], "the user is not one of the new ones");
    rig.pbx(&call.request("BYE", 11));
    assert_eq!(rig.told(), ["200"]);
}

#[test]
fn a_change_of_the_reaction_to_an_ai_that_is_down_applies_at_once() {
    let mut rig = registered();
    rig.command(Command::AiDown { account: 0, down: true });
    assert_eq!(rig.told(), [""; 0]);
    let hiding = AccountConfig { ai_down: AiDown::Unregister, ..with_password("secret") };
    change(&mut rig, hiding);
    let removal = rig.one();
    assert_eq!(removal.get("Expires"), Some("0"));
    rig.answer(&removal, 200);
    change(&mut rig, with_password("secret"));
    rig.resolve(&[PBX]);
    assert_eq!(accept(&mut rig).get("Expires"), Some("120"));
}

#[test]
fn a_lower_limit_ends_no_call() {
    let mut rig = Rig::trunk_with(2);
    let call = rig.up();
    rig.command(Command::Limits { max_calls: 1, max_unacknowledged: 1 });
    rig.pbx(&Text::invite().call_id("late"));
    assert_eq!(rig.told(), ["503"]);
    rig.command(Command::Limits { max_calls: 2, max_unacknowledged: 2 });
    rig.pbx(&Text::invite().call_id("later"));
    assert_eq!(rig.told(), ["100"]);
    rig.hang_up(&call);
}
