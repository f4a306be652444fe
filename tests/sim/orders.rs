//! The orders of the AI: what the caller hears, and when each one is complete.

use std::sync::Arc;

use bytes::Bytes;
use trunkless::call::end::EndReason;
use trunkless::call::words::Input;
use trunkless::call::{Signal, SourceRequest};
use trunkless::command::{
    Cause, Command, Digits, Failure, RecordCommand, Reply, Sender, Side, When,
};
use trunkless::peer::pattern;
use trunkless::stream::FromAi;
use trunkless::stream::closed::Closed;

use crate::world::{Network, World};

const AGENT: u32 = 9;
const HANGUP: Command = Command::Hangup { cause: Cause::Normal, status: None };

fn world() -> World {
    World::new(300, Network::default())
}

/// The AI sends numbered frames, all at once.
fn say(world: &mut World, frames: u32) {
    let audio: Vec<u8> = (0..frames).flat_map(|n| pattern::frame(AGENT, n)).collect();
    world.say(FromAi::Audio(&audio));
}

fn heard(world: &World) -> Vec<u32> {
    world.heard.caller.iter().filter_map(|(.., number)| *number).collect()
}

fn replies(world: &World) -> Vec<(u32, Reply)> {
    world.heard.replies.iter().map(|(_, order, reply)| (*order, reply.clone())).collect()
}

#[test]
fn a_hang_up_after_the_audio_cuts_nothing() {
    let mut world = world();
    world.run_to(500);
    say(&mut world, 250);
    world.order_when(When::AfterAudio, HANGUP);
    world.run_to(7000);
    assert_eq!(heard(&world), (0..250).collect::<Vec<_>>());
    let last = world.heard.caller.last().unwrap().0;
    let late = world.heard.ended_at - last;
    assert!((20.0..=40.0).contains(&late), "{late} ms after the last packet");
    assert_eq!(world.heard.ended, Some(EndReason::AiHangup));
    assert_eq!(replies(&world), [(1, Reply::Accepted), (1, Reply::Done)]);
    let reason = EndReason::AiHangup;
    let request = SourceRequest::HangUp { reason, cause: Cause::Normal };
    assert_eq!(world.heard.requests.last(), Some(&request));
}

/// An AI that closes its socket right behind the order.
#[test]
fn the_end_of_the_stream_does_not_cut_what_an_order_waits_for() {
    for closed in [Closed::Orderly("close frame 1000".into()), Closed::Failed("reset".into())] {
        let mut world = world();
        world.run_to(500);
        say(&mut world, 100);
        world.order_when(When::AfterAudio, HANGUP);
        world.feed(Input::AiClosed(&closed));
        world.run_to(4000);
        assert_eq!(heard(&world).len(), 100, "{closed}");
        assert_eq!(replies(&world), [(1, Reply::Accepted), (1, Reply::Done)], "{closed}");
        assert_eq!(world.heard.ended, Some(EndReason::AiHangup), "{closed}");
    }
}

#[test]
fn a_hang_up_now_cuts_and_a_clear_makes_it_now() {
    let mut world = world();
    say(&mut world, 250);
    world.run_to(1000);
    world.order(HANGUP);
    assert_eq!(world.heard.ended, Some(EndReason::AiHangup));
    assert!(heard(&world).len() <= 51);

    let mut world = self::world();
    say(&mut world, 250);
    world.order_when(When::AfterAudio, HANGUP);
    world.run_to(1000);
    assert_eq!(world.heard.ended, None);
    world.say(FromAi::Clear);
    assert_eq!(world.heard.ended, Some(EndReason::AiHangup));
}

#[test]
fn keys_are_pressed_in_order_and_the_audio_waits_for_them() {
    let mut world = world();
    world.run_to(500);
    say(&mut world, 10);
    world.order(Command::SendDigits(Digits::new("1w2#").unwrap()));
    world.run_to(3000);
    assert_eq!(heard(&world), (0..10).collect::<Vec<_>>());
    // RFC 4733 §2.5: event, end bit, duration; the end packet three times
    let events: Vec<(u8, bool)> =
        world.heard.keys.iter().map(|(_, p)| (p[0], p[1] & 0x80 != 0)).collect();
    let key = |event| [(event, false); 4].into_iter().chain([(event, true); 3]);
    let expected: Vec<_> = [1, 2, 11].into_iter().flat_map(key).collect();
    assert_eq!(events, expected);
    let begins: Vec<f64> = world.heard.keys.iter().step_by(7).map(|(ms, _)| *ms).collect();
    let between: Vec<f64> = begins.windows(2).map(|w| (w[1] - w[0]).round()).collect();
    assert_eq!(between, [700.0, 200.0], "a pause is half a second");
    let steps = world.heard.keys.windows(2).filter(|w| w[1].0 - w[0].0 < 15.0).count();
    assert_eq!(steps, 0, "packets are 20 ms apart");
    assert_eq!(replies(&world), [(1, Reply::Accepted), (1, Reply::Done)]);
    let done = world.heard.replies[1].0;
    assert!(done > world.heard.keys.last().unwrap().0, "{done}");
}

#[test]
fn muting_silences_one_side_only() {
    let mut world = world();
    let mute = |side, on| Command::Mute { side, on };
    world.run_to(1000);
    world.order(mute(Side::Caller, true));
    world.feed(Input::Signal(Signal::Digit('5')));
    world.run_to(2000);
    world.order(mute(Side::Caller, false));
    world.feed(Input::Signal(Signal::Digit('6')));
    world.run_to(3000);
    let numbered = world.heard.ai.iter().filter(|(_, number)| number.is_some()).count();
    let all = world.heard.ai.len();
    assert!((99..=101).contains(&(all - (all - numbered))), "{numbered} of {all}");
    assert!(all >= 149, "the stream continues: {all}");
    assert_eq!(world.heard.digits, "6");

    world.order(mute(Side::Ai, true));
    say(&mut world, 50);
    world.run_to(3500);
    world.order(mute(Side::Ai, false));
    world.run_to(5000);
    let numbers = heard(&world);
    assert!(numbers.len() < 30 && numbers.last() == Some(&49), "{numbers:?}");
}

#[test]
fn a_prompt_plays_before_the_ais_audio() {
    let mut prompts = std::collections::BTreeMap::new();
    prompts.insert("hold_on".to_owned(), Bytes::from(vec![0x33; 1600]));
    let mut world = World::with_prompts(301, Arc::new(prompts));
    world.run_to(500);
    say(&mut world, 10);
    let play = |name: &str| Command::Play(name.to_owned());
    world.order(play("hold_on"));
    world.order(play("other"));
    world.run_to(2000);
    assert_eq!(heard(&world), (0..10).collect::<Vec<_>>());
    let failed = (2, Reply::Failed(Failure::NoSuchPrompt));
    assert_eq!(replies(&world), [(1, Reply::Accepted), failed, (1, Reply::Done)]);
    let done = world.heard.replies[2].0;
    assert!((700.0..=740.0).contains(&done), "{done}");
}

#[test]
fn hold_is_the_sources_work() {
    let mut world = world();
    world.run_to(500);
    let number = world.order(Command::Hold(true));
    assert_eq!(world.heard.requests.last(), Some(&SourceRequest::Hold { order: 1, on: true }));
    world.feed(Input::Signal(Signal::Replied { order: number, result: Ok(()) }));
    say(&mut world, 50);
    let before = world.heard.caller.len();
    world.run_to(1500);
    assert_eq!(world.heard.caller.len(), before, "the PBX's music plays");
    let again = world.order(Command::Hold(true));
    let number = world.order(Command::Hold(false));
    world.feed(Input::Signal(Signal::Replied { order: number, result: Err(Failure::Refused) }));
    let number = world.order(Command::Hold(false));
    world.feed(Input::Signal(Signal::Replied { order: number, result: Ok(()) }));
    world.run_to(2000);
    assert!(world.heard.caller.len() > before);
    assert_eq!(
        replies(&world),
        [
            (1, Reply::Accepted),
            (1, Reply::Done),
            (again, Reply::Done),
            (3, Reply::Accepted),
            (3, Reply::Failed(Failure::Refused)),
            (4, Reply::Accepted),
            (4, Reply::Done),
        ]
    );
    // on hold there is no limit on missing RTP
    assert_eq!(world.heard.ended, None);
}

#[test]
fn orders_that_are_not_possible_fail_with_a_reason() {
    let mut world = world();
    let variables = Command::SetVariables(vec![("A".into(), "1".into())]);
    world.order(variables);
    world.order(Command::Record(RecordCommand::Start));
    assert_eq!(
        replies(&world),
        [(1, Reply::Failed(Failure::Unsupported)), (2, Reply::Failed(Failure::WrongState))]
    );
    for _ in 0..100 {
        say(&mut world, 1);
        world.order_when(When::AfterAudio, Command::Mute { side: Side::Ai, on: true });
    }
    let full =
        replies(&world).iter().filter(|(_, r)| *r == Reply::Failed(Failure::QueueFull)).count();
    assert_eq!(full, 36);
    // others can still end the call
    world.order_by(Sender::Http("admin".into()), When::Now, HANGUP);
    assert_eq!(world.heard.ended, Some(EndReason::ApiHangup));
}
