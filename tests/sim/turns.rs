//! Turn latency: which turns of a conversation are measured, and from when to when.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use trunkless::call::turns::Turn;
use trunkless::command::{Command, Side};
use trunkless::media::frame::SILENCE;
use trunkless::peer::pattern;
use trunkless::stream::FromAi;

use crate::world::{Network, World};

/// A conversation on a good network, with a caller who is silent.
fn conversation() -> World {
    conversation_over(Network::default())
}

fn conversation_over(network: Network) -> World {
    let mut world = World::new(70, network);
    world.talking = false;
    world.run_to(1000);
    world
}

/// The caller speaks for `ms`.
fn speak(world: &mut World, ms: u64) {
    world.talking = true;
    pass(world, ms);
    world.talking = false;
}

fn pass(world: &mut World, ms: u64) {
    world.run_until(world.now - world.t0 + Duration::from_millis(ms));
}

/// The AI sends `frames` frames of speech at once.
fn answer(world: &mut World, frames: u32) {
    let audio: Vec<u8> = (0..frames).flat_map(|n| pattern::frame(9, n)).collect();
    world.say(FromAi::Audio(&audio));
}

/// Asserts that one turn was measured: when the caller stopped, and how long the AI took.
fn assert_turn(world: &World, stopped: u64, ai: u64) {
    let [turn] = world.call.turns() else { panic!("{:?}", world.call.turns()) };
    assert_near(*turn, stopped, ai);
}

fn assert_near(turn: Turn, stopped: u64, ai: u64) {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    assert!((ms(turn.caller_stopped) - stopped as f64).abs() <= 20.0, "{turn:?}");
    assert!((ms(turn.ai_share()) - ai as f64).abs() <= 20.0, "{turn:?}");
    assert!(turn.bridge_share() <= Duration::from_millis(20), "{turn:?}");
    assert_eq!(turn.total(), turn.ai_share() + turn.bridge_share());
}

#[test]
fn a_turn_is_measured_from_the_last_word_to_the_first_packet_of_the_answer() {
    let mut world = conversation();
    speak(&mut world, 1000);
    pass(&mut world, 700);
    answer(&mut world, 50);
    assert!(world.call.summary(world.now).turn_latency.is_none(), "not before it is certain");
    pass(&mut world, 2000);
    assert_turn(&world, 2000, 700);
    let latency = world.call.summary(world.now).turn_latency.expect("a turn");
    assert_eq!((latency.turns, latency.last), (1, world.call.turns()[0]));
    // the AI says more, unasked
    answer(&mut world, 50);
    pass(&mut world, 2000);
    assert_turn(&world, 2000, 700);
}

#[test]
fn the_figures_of_a_call_are_those_of_all_its_turns() {
    let mut world = conversation();
    for wait in [400, 600, 800, 1000, 3000] {
        speak(&mut world, 500);
        pass(&mut world, wait);
        answer(&mut world, 10);
        pass(&mut world, 1000);
    }
    let latency = world.call.summary(world.now).turn_latency.expect("turns");
    assert_eq!(latency.turns, 5);
    let near = |time: Duration, ms: u128| assert!(time.as_millis().abs_diff(ms) <= 25, "{time:?}");
    near(latency.median, 800);
    near(latency.p95, 3000);
    near(latency.last.total(), 3000);
}

#[test]
fn a_quick_answer_counts_unless_the_caller_goes_on() {
    let mut world = conversation();
    speak(&mut world, 1000);
    pass(&mut world, 100);
    answer(&mut world, 20);
    pass(&mut world, 2000);
    assert_turn(&world, 2000, 100);

    // it breaks into a pause between two words, and does not answer the rest
    let mut world = conversation();
    speak(&mut world, 1000);
    pass(&mut world, 100);
    answer(&mut world, 5);
    pass(&mut world, 60);
    speak(&mut world, 1000);
    pass(&mut world, 2000);
    assert_eq!(world.call.turns(), []);
    answer(&mut world, 20);
    pass(&mut world, 1000);
    assert_turn(&world, 3160, 2000);
}

#[test]
fn an_ai_that_speaks_unasked_answers_nobody() {
    let mut world = conversation();
    for _ in 0..5 {
        answer(&mut world, 40);
        pass(&mut world, 2000);
    }
    // a click and a breath are not speech
    speak(&mut world, 60);
    pass(&mut world, 1000);
    answer(&mut world, 40);
    pass(&mut world, 2000);
    assert_eq!(world.call.turns(), []);
}

#[test]
fn the_rest_of_an_interrupted_utterance_is_not_an_answer() {
    let mut world = conversation();
    answer(&mut world, 250);
    pass(&mut world, 1000);
    speak(&mut world, 500);
    // it continues to its end, and the AI takes no notice
    pass(&mut world, 6000);
    answer(&mut world, 50);
    pass(&mut world, 2000);
    assert_eq!(world.call.turns(), []);
}

#[test]
fn after_an_interruption_the_answer_follows_the_clear() {
    // the AI notices while the caller speaks, or afterwards
    for (before, after) in [(300, 0), (0, 150)] {
        let mut world = conversation();
        answer(&mut world, 250);
        pass(&mut world, 1000);
        if before > 0 {
            speak(&mut world, before);
            world.say(FromAi::Clear);
        }
        speak(&mut world, 500 - before);
        if after > 0 {
            pass(&mut world, after);
            world.say(FromAi::Clear);
        }
        pass(&mut world, 800 - after);
        answer(&mut world, 50);
        pass(&mut world, 2000);
        assert_turn(&world, 2500, 800);
    }
}

#[test]
fn an_ai_that_streams_silence_answers_with_its_first_sound() {
    let mut world = conversation();
    let stream = |world: &mut World, frames: u32, speech: bool| {
        for n in 0..frames {
            let frame = if speech { pattern::frame(9, n) } else { [SILENCE; 160] };
            world.say(FromAi::Audio(&frame));
            pass(world, 20);
        }
    };
    stream(&mut world, 50, false);
    world.talking = true;
    stream(&mut world, 50, false);
    world.talking = false;
    stream(&mut world, 30, false);
    stream(&mut world, 50, true);
    stream(&mut world, 50, false);
    assert_turn(&world, 3000, 600);
}

#[test]
fn prompts_keys_and_mutes_end_the_wait_for_an_answer() {
    let hello = Bytes::from(pattern::frame(3, 0).to_vec());
    let prompts = std::sync::Arc::new(BTreeMap::from([("hello".to_owned(), hello)]));
    type Step = fn(&mut World);
    let steps: [Step; 2] = [
        |world| {
            world.order(Command::Play("hello".into()));
        },
        |world| {
            world.order(Command::Mute { side: Side::Ai, on: true });
            pass(world, 100);
            world.order(Command::Mute { side: Side::Ai, on: false });
        },
    ];
    for step in steps {
        let mut world = World::with_prompts(71, prompts.clone());
        world.talking = false;
        world.run_to(1000);
        speak(&mut world, 1000);
        pass(&mut world, 300);
        step(&mut world);
        pass(&mut world, 300);
        answer(&mut world, 20);
        pass(&mut world, 2000);
        assert_eq!(world.call.turns(), []);
    }
}

#[test]
fn loss_and_jitter_shift_a_turn_by_no_more_than_the_network_does() {
    let jitter = Duration::from_millis(15);
    let mut world = conversation_over(Network { loss: 50, jitter, ..Network::default() });
    for _ in 0..20 {
        speak(&mut world, 1000);
        pass(&mut world, 700);
        answer(&mut world, 20);
        pass(&mut world, 1500);
    }
    let turns = world.call.turns();
    assert_eq!(turns.len(), 20);
    for turn in turns {
        // a lost last frame ends the speech earlier
        let ai = turn.ai_share().as_millis();
        assert!((640..=800).contains(&ai), "{turn:?}");
    }
}
