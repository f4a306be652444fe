//! OPTIONS to the peers of a trunk.

use std::time::Duration;

use super::rig::{PBX, Rig, SECOND_ADDRESS, Text, account, response};
use crate::sip::agent::{Command, Event};

const INTERVAL: f64 = 30.0;

/// Starts a trunk with two peers, which have been sent their first OPTIONS.
fn trunk() -> Rig {
    let mut config = account("ai", None);
    config.keepalive = Duration::from_secs_f64(INTERVAL);
    let mut rig = Rig::of(vec![config], 100);
    rig.resolve(&[PBX, SECOND_ADDRESS]);
    rig.wait(0.0);
    rig
}

/// Waits `seconds`, during which the peers in `alive` answer with 403.
fn wait(rig: &mut Rig, seconds: f64, alive: &[&str]) {
    for _ in 0..(seconds * 2.0) as u32 {
        for (to, request) in rig.sent_to() {
            if alive.contains(&to.as_str()) {
                rig.feed(&to, &response(&request, 403, "", ""));
            }
        }
        rig.wait(0.5);
    }
}

fn changes(rig: &mut Rig) -> Vec<(String, bool)> {
    let changes = rig.events().into_iter().filter_map(|event| match event {
        Event::Peer { remote, answers, .. } => Some((remote.to_string(), answers)),
        _ => None,
    });
    changes.collect()
}

#[test]
fn peers_are_asked_at_the_interval() {
    let mut rig = trunk();
    let sent = rig.sent_to();
    let to: Vec<&str> = sent.iter().map(|(to, _)| to.as_str()).collect();
    assert_eq!(to, [PBX, SECOND_ADDRESS]);
    let options = &sent[0].1;
    assert_eq!((options.method(), options.uri()), (Some("OPTIONS"), "sip:10.0.0.2:5060"));
    assert!(options.get("From").unwrap().starts_with("<sip:ai@10.0.0.1:5070>;tag="));
    for (to, request) in &sent {
        rig.feed(to, &response(request, 200, "", ""));
    }
    rig.wait(INTERVAL - 0.1);
    assert_eq!(rig.told(), [""; 0], "an answer ends the resending");
    rig.wait(0.2);
    assert_eq!(rig.told(), ["OPTIONS", "OPTIONS"]);
}

#[test]
fn a_silent_peer_is_reported_once_and_is_back_with_its_first_answer() {
    let mut rig = trunk();
    wait(&mut rig, 3.0 * INTERVAL - 1.0, &[PBX]);
    assert_eq!(changes(&mut rig), []);
    wait(&mut rig, 20.0 * INTERVAL, &[PBX]);
    assert_eq!(changes(&mut rig), [(SECOND_ADDRESS.to_owned(), false)]);
    assert!(rig.agent.transaction_count() <= 2, "one per peer");
    wait(&mut rig, 2.0 * INTERVAL, &[PBX, SECOND_ADDRESS]);
    assert_eq!(changes(&mut rig), [(SECOND_ADDRESS.to_owned(), true)]);
    rig.resolve(&[PBX, SECOND_ADDRESS]);
    wait(&mut rig, 5.0 * INTERVAL, &[PBX, SECOND_ADDRESS]);
    assert_eq!(changes(&mut rig), []);
}

#[test]
fn a_call_from_a_silent_peer_is_taken_and_shows_that_the_peer_is_there() {
    let mut rig = trunk();
    wait(&mut rig, 3.5 * INTERVAL, &[]);
    let silent = [PBX, SECOND_ADDRESS].map(|peer| (peer.to_owned(), false));
    assert_eq!(changes(&mut rig), silent);
    rig.sent();
    rig.feed("10.0.0.2:40000", &Text::invite().render());
    let events = rig.events();
    assert!(events.iter().any(|e| matches!(e, Event::Invite(_))), "{events:?}");
    let back = |e: &Event| {
        matches!(e, Event::Peer { remote, answers: true, .. }
        if remote.to_string() == PBX)
    };
    assert_eq!(events.iter().filter(|e| back(e)).count(), 1);
}

#[test]
fn an_address_that_left_the_name_is_no_longer_asked_and_shutdown_ends_all() {
    let mut rig = trunk();
    wait(&mut rig, 3.5 * INTERVAL, &[PBX]);
    rig.resolve(&[PBX]);
    rig.sent();
    rig.wait(INTERVAL);
    let last = rig.sent_to().into_iter().filter(|(to, _)| to == SECOND_ADDRESS).count();
    assert!(last <= 8, "resent until 64·T1 have passed: {last}");
    rig.wait(INTERVAL);
    assert!(rig.sent_to().iter().all(|(to, _)| to == PBX));
    rig.command(Command::Shutdown);
    rig.sent();
    rig.wait(5.0 * INTERVAL);
    assert_eq!(rig.told(), [""; 0]);
    rig.assert_empty();
}

#[test]
fn without_an_interval_no_peer_is_asked() {
    let mut rig = Rig::trunk();
    rig.wait(100.0);
    assert_eq!(rig.told(), [""; 0]);
}
