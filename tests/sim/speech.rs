//! The caller's voice: events for the AI, and interruptions of the AI.

use std::time::Duration;

use trunkless::call::CallConfig;
use trunkless::call::answering::{AnsweredBy, Detection};
use trunkless::call::speech::SpeechSettings;
use trunkless::media::frame::Samples;
use trunkless::media::g711::Law;
use trunkless::media::quiet::energy;
use trunkless::peer::pattern;
use trunkless::stream::{FromAi, HeardSign};

use crate::call_config::call_config;
use crate::world::World;

/// Recorded speech, and the numbers of its first and last audible frame.
fn speech() -> (&'static [Samples], u64, u64) {
    let frames = include_bytes!("../../src/cli/assets/caller.ulaw").as_chunks::<160>().0;
    let audible = |frame: &Samples| energy(Law::Mu, frame) > 300 * 300 * 160;
    let first = frames.iter().position(audible).expect("speech");
    // up to the first pause
    let pause = |frames: &[Samples]| !frames.iter().any(audible);
    let length = frames[first..].windows(15).position(pause).expect("a pause");
    (&frames[first..first + length + 15], 0, length as u64)
}

fn world(speech: SpeechSettings) -> World {
    let mut world = World::of(50, &CallConfig { speech, ..call_config() });
    world.talking = false;
    world
}

fn settings() -> SpeechSettings {
    let pause = Duration::from_millis(200);
    SpeechSettings { events: true, pause, ..SpeechSettings::default() }
}

fn barge_in() -> SpeechSettings {
    SpeechSettings { barge_in_after: Some(Duration::from_millis(100)), ..settings() }
}

/// The AI sends numbered frames, all at once.
fn says(world: &mut World, frames: std::ops::Range<u32>) {
    let audio: Vec<u8> = frames.flat_map(|n| pattern::frame(9, n)).collect();
    world.say(FromAi::Audio(&audio));
}

/// The caller speaks from now on. Returns when the first sound and the last one arrive, in ms.
fn speaks(world: &mut World) -> (f64, f64) {
    let (frames, first, last) = speech();
    world.voice = frames.iter().copied().collect();
    let now = (world.now - world.t0).as_secs_f64() * 1000.0;
    let next = (now / 20.0).floor() * 20.0 + 20.0;
    (next + first as f64 * 20.0, next + last as f64 * 20.0)
}

fn heard_between(world: &World, from: f64, to: f64) -> Vec<u32> {
    let within = world.heard.caller.iter().filter(|(at, ..)| (from..to).contains(at));
    within.filter_map(|(_, _, number)| *number).collect()
}

#[test]
fn the_ai_is_told_within_60_ms_that_the_caller_speaks() {
    for begin in [500, 3000, 20_000] {
        let mut world = world(settings());
        world.run_to(begin);
        let (first, last) = speaks(&mut world);
        world.run_to(begin + 9000);
        let signs = &world.heard.signs;
        let [(started, HeardSign::SpeechStarted { at_ms }), .., (stopped, end)] = signs[..] else {
            panic!("{signs:?}")
        };
        assert!((0.0..=60.0).contains(&(started - first)), "{} ms", started - first);
        assert!((at_ms as f64 - first).abs() <= 60.0, "{at_ms} instead of {first}");
        let HeardSign::SpeechStopped { at_ms } = end else { panic!("{signs:?}") };
        let late = stopped - last - 200.0;
        assert!((-60.0..=60.0).contains(&late), "{late} ms");
        assert!((at_ms as f64 - last).abs() <= 100.0, "{at_ms} instead of {last}");
        assert_eq!(signs.len() % 2, 0);
    }
}

#[test]
fn noise_is_not_speech() {
    let mut world = world(settings());
    let mut seed = 1u32;
    world.voice = (0..1500)
        .map(|n| {
            // a noisy line, with clicks
            std::array::from_fn(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let loud = if n % 100 == 7 { 4 } else { 32 };
                Law::Mu.encode(((seed >> 16) as i16) / loud)
            })
        })
        .collect();
    world.run_to(30_000);
    assert_eq!(world.heard.signs, []);
}

#[test]
fn nothing_is_told_unless_it_is_configured() {
    let mut world = world(SpeechSettings::default());
    says(&mut world, 0..500);
    speaks(&mut world);
    world.run_to(8000);
    assert_eq!((&world.heard.signs[..], &world.heard.interruptions[..]), (&[][..], &[][..]));
    assert_eq!(heard_between(&world, 0.0, 8000.0).len(), 400);
}

#[test]
fn the_caller_ends_the_ais_words_within_150_ms() {
    for begin in [600, 1210, 2000] {
        let mut world = world(barge_in());
        world.run_to(100);
        says(&mut world, 0..500);
        world.say(FromAi::Mark("end".to_owned()));
        world.run_to(begin);
        let (first, _) = speaks(&mut world);
        world.run_to(begin + 1000);
        assert_eq!(world.heard.interruptions.len(), 1, "one interruption");
        assert_eq!(heard_between(&world, first + 150.0, first + 900.0), [0; 0]);
        assert!(heard_between(&world, first - 100.0, first + 40.0).len() >= 6);
        assert_eq!(world.heard.marks.len(), 1, "the mark comes back");
    }
}

#[test]
fn the_rest_of_the_interrupted_words_is_not_played_and_new_words_are() {
    let mut world = world(barge_in());
    world.run_to(100);
    let mut number = 0;
    // in real time, without noticing the caller for a while
    let mut paced = |world: &mut World, ms: u64| {
        for _ in 0..ms / 20 {
            says(world, number..number + 1);
            number += 1;
            let next = world.now - world.t0 + Duration::from_millis(20);
            world.run_until(next);
        }
    };
    paced(&mut world, 2000);
    let (first, last) = speaks(&mut world);
    paced(&mut world, last as u64 + 400 - first as u64);
    assert_eq!(heard_between(&world, first + 150.0, last + 400.0), [0; 0]);
    let now = world.now - world.t0;
    world.run_until(now + Duration::from_millis(300));
    says(&mut world, 5000..5050);
    world.run_until(now + Duration::from_millis(2000));
    let end = now.as_secs_f64() * 1000.0;
    assert_eq!(heard_between(&world, end, end + 2000.0), (5000..5050).collect::<Vec<_>>());
}

#[test]
fn what_the_ai_sends_after_its_own_clear_is_new() {
    let mut world = world(barge_in());
    world.run_to(100);
    says(&mut world, 0..500);
    world.run_to(1000);
    speaks(&mut world);
    world.run_to(1400);
    assert_eq!(world.heard.interruptions.len(), 1);
    world.say(FromAi::Clear);
    says(&mut world, 7000..7010);
    world.run_to(2000);
    assert_eq!(heard_between(&world, 1400.0, 2000.0), (7000..7010).collect::<Vec<_>>());
}

#[test]
fn the_first_words_are_protected() {
    let protect_first = Duration::from_secs(2);
    let mut world = world(SpeechSettings { protect_first, ..barge_in() });
    world.run_to(100);
    says(&mut world, 0..500);
    world.run_to(300);
    speaks(&mut world);
    world.run_to(1900);
    assert_eq!(world.heard.interruptions, [0.0; 0]);
    world.run_to(4000);
    speaks(&mut world);
    world.run_to(5000);
    assert_eq!(world.heard.interruptions.len(), 1);
}

#[test]
fn who_answers_is_reported_to_the_ai_only_if_that_is_configured() {
    let word: Vec<Samples> = speech().0[..25].to_vec();
    let long: Vec<Samples> = word.iter().cycle().take(250).copied().collect();
    let machine_detection = SpeechSettings { machine_detection: true, ..settings() };
    let quick = Detection { message_end: true, limit: Duration::from_secs(4) };
    for (voice, wanted, by, at) in [
        (&word, Detection::default(), AnsweredBy::Human, 1700.0..2500.0),
        (&long, Detection::default(), AnsweredBy::MachineStart, 3000.0..4000.0),
        (&long, quick, AnsweredBy::MachineEndOther, 4000.0..4100.0),
        (&Vec::new(), quick, AnsweredBy::Unknown, 4000.0..4100.0),
    ] {
        for to_ai in [false, true] {
            let speech = if to_ai { machine_detection } else { SpeechSettings::default() };
            let mut world = world(speech);
            world.call.detect(speech, wanted);
            world.run_to(500);
            world.voice = voice.iter().copied().collect();
            world.run_to(15_000);
            let [(found_at, verdict)] = world.heard.verdicts[..] else {
                panic!("{by:?}: {:?}", world.heard.verdicts)
            };
            assert_eq!(verdict.by, by);
            assert!(at.contains(&found_at), "{by:?}: {found_at}");
            let took = verdict.took.as_secs_f64() * 1000.0;
            assert!((found_at - took).abs() < 60.0, "{found_at} {took}");
            let is_answer = |sign: &(f64, HeardSign)| matches!(sign.1, HeardSign::Answer { .. });
            let answers = world.heard.signs.iter().filter(|sign| is_answer(sign)).count();
            let known = to_ai && by != AnsweredBy::Unknown;
            assert_eq!(answers, usize::from(known), "{by:?}, to the AI: {to_ai}");
        }
    }
}
