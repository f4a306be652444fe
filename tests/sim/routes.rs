//! A call with several AIs, and one whose AI is replaced by another step.

use trunkless::call::end::EndReason;
use trunkless::call::ladder::Rung;
use trunkless::call::words::Input;
use trunkless::command::{Cause, Failure};

use crate::failures::{failed, humans, outcome, transfers, world};

/// The AIs of a route replace each other: whichever fails after a while, all others follow.
#[test]
fn an_ai_of_a_route_is_followed_by_all_others() {
    let mut world = world(&[Rung::Next(1), Rung::Next(2), Rung::Hangup(None)]);
    world.feed(Input::AiClosed(&failed()));
    world.feed(Input::AiOpen);
    world.run_to(90_000);
    for _ in 0..2 {
        world.feed(Input::AiClosed(&failed()));
        world.feed(Input::AiOpen);
    }
    assert_eq!((&world.heard.dialled[..], world.heard.ended), (&[1, 0, 2][..], None));
    world.feed(Input::AiClosed(&failed()));
    assert_eq!(world.heard.ended, Some(EndReason::AiClosed));
}

/// A step that a server chose in place of an AI leads past the AIs of the ladder.
#[test]
fn a_step_instead_of_an_ai_leaves_out_all_ais() {
    let mut world = world(&[Rung::Next(1), Rung::Ai(2), Rung::Hangup(Some(Cause::Busy))]);
    world.feed(Input::AiClosed(&failed()));
    world.feed(Input::Instead(humans()));
    assert!(transfers(&world));
    outcome(&mut world, 0, Err(Failure::Busy));
    assert_eq!(world.heard.dialled, [1]);
    assert_eq!(world.heard.ended, Some(EndReason::AiHangup));
}
