//! Whole calls in virtual time over a bad network with a random seed. Each test prints its seed.

#[path = "../fixtures/call_config.rs"]
mod call_config;
mod failures;
mod film;
mod orders;
mod playout;
mod recording;
mod routes;
mod speech;
mod turns;
mod world;

use std::time::Duration;

use trunkless::call::Signal;
use trunkless::call::end::EndReason;
use trunkless::call::words::Input;
use trunkless::peer::pattern;
use trunkless::stream::FromAi;
use trunkless::stream::closed::Closed;
use world::{Network, World, seeded::Random};

/// Asserts that the timeline of the audio to the AI has no gap.
fn assert_clock(world: &World) {
    for (n, (t_ms, _)) in world.heard.ai.iter().enumerate() {
        assert_eq!(*t_ms, n as u64 * 20, "frame {n}");
    }
}

/// Asserts that frame numbers only increase: no frame is heard twice or out of order.
fn assert_order(world: &World) {
    let numbers: Vec<u32> = world.heard.ai.iter().filter_map(|(_, n)| *n).collect();
    assert!(numbers.windows(2).all(|w| w[0] < w[1]), "out of order");
}

/// Lets the caller be quiet until `ms`, on a good network.
fn rest(world: &mut World, ms: u64) {
    world.calm_down();
    world.run_to(ms);
}

/// Asserts that the AI has as many frames as time has passed, to within one.
fn assert_real_time(world: &World) {
    let passed = (world.now - world.t0).as_millis() as i64;
    let error_ms = world.heard.ai.len() as i64 * 20 - passed;
    assert!(error_ms.abs() <= 20, "{error_ms} ms ahead of real time");
}

/// Returns the number of the caller's frames that the AI has heard.
fn heard(world: &World) -> u64 {
    world.heard.ai.iter().filter(|(_, n)| n.is_some()).count() as u64
}

#[test]
fn a_good_network_loses_nothing() {
    let mut world = World::new(1, Network::default());
    world.run_to(60_000);
    assert_clock(&world);
    let numbers: Vec<u32> = world.heard.ai.iter().filter_map(|(_, n)| *n).collect();
    assert_eq!(numbers, (0..numbers.len() as u32).collect::<Vec<_>>());
    assert_eq!(world.heard.ai.len(), 3001);
}

#[test]
fn loss_is_counted_and_does_not_shorten_the_timeline() {
    for (seed, loss) in [(2, 10), (3, 50), (4, 200)] {
        let network = Network { loss, jitter: Duration::from_millis(5), ..Network::default() };
        let mut world = World::new(seed, network);
        world.run_to(60_000);
        let lost = world.lost;
        rest(&mut world, 61_100);
        assert_clock(&world);
        assert_order(&world);
        assert_real_time(&world);
        assert_eq!(world.call.summary(world.now).received.sequence.lost, lost);
        assert_eq!(heard(&world) + lost, world.said());
    }
}

#[test]
fn jitter_reordering_and_duplicates_within_the_reorder_wait_lose_nothing() {
    for seed in 10..20 {
        let jitter = Duration::from_millis(38);
        let network = Network { jitter, duplicate: 50, ..Network::default() };
        let mut world = World::new(seed, network);
        world.run_to(30_000);
        assert_clock(&world);
        let numbers: Vec<u32> = world.heard.ai.iter().filter_map(|(_, n)| *n).collect();
        assert_eq!(numbers, (0..numbers.len() as u32).collect::<Vec<_>>(), "seed {seed}");
        assert!(world.call.summary(world.now).received.sequence.duplicates > 0);
    }
}

/// Each packet is delayed at random, so that packets overtake each other by up to 15 places.
#[test]
fn heavy_jitter_is_soon_waited_for_and_never_out_of_order() {
    for seed in 20..25 {
        let jitter = Duration::from_millis(300);
        let mut world = World::new(seed, Network { jitter, loss: 20, ..Network::default() });
        world.run_to(60_000);
        let lost = world.lost;
        rest(&mut world, 61_500);
        assert_clock(&world);
        assert_order(&world);
        assert_real_time(&world);
        let received = world.call.summary(world.now).received;
        // packets that overtake the very first one are late without a gap
        assert!(received.sequence.lost.abs_diff(lost + received.late()) <= 15);
        assert_eq!(heard(&world) + lost + received.late(), world.said());
        assert!(received.late() <= 20, "{} of {} late", received.late(), world.said());
    }
}

/// The network delay grows, and shrinks again, while the caller speaks; the AI says nothing, so our
/// own silence is sent meanwhile.
#[test]
fn a_path_that_becomes_longer_is_made_up_for_in_the_next_pause() {
    for longer_ms in [30, 60, 90, 150, 450, 900] {
        let mut world = World::new(35, Network::default());
        world.run_to(2_000);
        world.delay(Duration::from_millis(longer_ms));
        world.run_to(6_000);
        world.talking = false;
        world.run_to(7_200);
        assert_clock(&world);
        assert_real_time(&world);
        world.talking = true;
        world.run_to(8_000);
        world.delay(Duration::ZERO);
        world.run_to(10_000);
        rest(&mut world, 11_500);
        assert_clock(&world);
        assert_order(&world);
        assert_real_time(&world);
        assert_eq!(heard(&world), world.said(), "{longer_ms} ms");
    }
}

#[test]
fn an_hour_of_drift_builds_no_delay() {
    for drift_ppm in [-200, 200] {
        let mut world = World::new(30, Network { drift_ppm, ..Network::default() });
        world.run_to(3_600_000);
        assert_clock(&world);
        let numbers: Vec<u32> = world.heard.ai.iter().filter_map(|(_, n)| *n).collect();
        assert_eq!(numbers, (0..numbers.len() as u32).collect::<Vec<_>>());
        let sent = 180_000 + 180_000 * drift_ppm / 1_000_000;
        assert!((numbers.len() as i64 - sent).abs() <= 2, "{} of {sent}", numbers.len());
    }
}

#[test]
fn audio_from_the_ai_is_paced_whatever_the_message_sizes() {
    for seed in 40..45 {
        let mut world = World::new(seed, Network::default());
        world.run_to(1_003);
        let mut sizes = Random(seed);
        let all: Vec<u8> = (0..500).flat_map(|n| pattern::frame(9, n)).collect();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let n = (1 + sizes.below(3000) as usize).min(rest.len());
            world.say(FromAi::Audio(&rest[..n]));
            rest = &rest[n..];
        }
        world.say(FromAi::Mark("end".into()));
        world.run_to(13_000);
        let said: Vec<&(f64, u32, Option<u32>)> =
            world.heard.caller.iter().filter(|(_, _, n)| n.is_some()).collect();
        let numbers: Vec<u32> = said.iter().filter_map(|(_, _, n)| *n).collect();
        assert_eq!(numbers, (0..500).collect::<Vec<_>>());
        assert!(said[0].0 < 1_004.0, "the first frame was not sent at once: {}", said[0].0);
        for pair in said.windows(2) {
            assert!((pair[1].0 - pair[0].0 - 20.0).abs() < 0.01, "{pair:?}");
        }
        let (at, name) = &world.heard.marks[0];
        // a frame has been played 20 ms after it was sent
        assert_eq!((name.as_str(), *at), ("end", said[499].0 + 20.0));
        for pair in world.heard.caller.windows(2) {
            assert_eq!(pair[1].1.wrapping_sub(pair[0].1), 160, "gap in the RTP timestamps");
        }
    }
}

#[test]
fn clear_takes_effect_with_the_next_packet() {
    let mut world = World::new(50, Network::default());
    world.run_to(1_000);
    let all: Vec<u8> = (0..500).flat_map(|n| pattern::frame(9, n)).collect();
    world.say(FromAi::Audio(&all));
    for name in ["a", "b"] {
        world.say(FromAi::Mark(name.into()));
    }
    world.run_to(2_010);
    world.say(FromAi::Clear);
    let names: Vec<&str> = world.heard.marks.iter().map(|(_, n)| n.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let before = world.heard.caller.iter().filter(|(_, _, n)| n.is_some()).count();
    world.run_to(3_000);
    let after = world.heard.caller.iter().filter(|(_, _, n)| n.is_some()).count();
    assert_eq!(after, before, "old audio after the clear");
    let silent = world.heard.caller.iter().filter(|(at, ..)| *at > 2_010.0).count();
    assert!(
        (48..=50).contains(&silent),
        "{silent} packets of silence in the second after the clear"
    );
}

#[test]
fn a_call_ends_when_rtp_is_missing_for_longer_than_the_limit() {
    let mut world = World::new(60, Network { loss: 1000, ..Network::default() });
    world.run_to(29_000);
    assert_eq!(world.heard.ended, None);
    assert_eq!(world.heard.ai.len(), 1450, "silence up to the present");
    world.run_to(31_000);
    assert_eq!(world.heard.ended, Some(EndReason::MediaTimeout));
}

#[test]
fn each_way_of_closing_the_stream_has_its_end_reason() {
    let table = [
        (Closed::Orderly("1000".into()), EndReason::AiHangup),
        (Closed::HandOver, EndReason::AiHandover),
        (Closed::Unanswered, EndReason::AiTimeout),
        (Closed::Failed("reset".into()), EndReason::AiClosed),
        (Closed::Protocol("junk".into()), EndReason::AiProtocol),
        (Closed::Stalled, EndReason::AiTimeout),
    ];
    for (closed, reason) in table {
        let mut world = World::new(70, Network::default());
        world.run_to(500);
        world.feed(Input::AiClosed(&closed));
        assert_eq!(world.heard.ended, Some(reason));
    }
}

/// The PBX is lost for a moment. A call whose RTP continues survives, even if its RTP pauses later.
/// A call whose RTP does not return ends: the PBX no longer has it.
#[test]
fn a_call_survives_the_loss_of_the_pbx_only_if_its_rtp_continues() {
    let mut world = World::new(80, Network::default());
    world.run_to(1_000);
    world.feed(Input::Signal(Signal::PbxLost { gone: false }));
    world.run_to(2_000);
    world.feed(Input::Signal(Signal::PbxBack));
    world.run_to(3_000);
    world.silence(true);
    world.run_to(13_000);
    assert_eq!(world.heard.ended, None);
    let mut world = World::new(81, Network::default());
    world.run_to(1_000);
    world.silence(true);
    world.feed(Input::Signal(Signal::PbxLost { gone: false }));
    world.run_to(2_000);
    world.feed(Input::Signal(Signal::PbxBack));
    world.run_to(4_000);
    assert_eq!(world.heard.ended, Some(EndReason::PbxLost));
}

/// A pause of the network looks like a PBX that does not answer. Only one that has proved to be
/// gone ends its calls soon.
#[test]
fn a_pause_of_the_network_ends_no_call() {
    let silent_for = |ms: u64, gone: bool| {
        let mut world = World::new(82, Network::default());
        world.run_to(1_000);
        world.silence(true);
        world.run_to(2_000);
        world.feed(Input::Signal(Signal::PbxLost { gone }));
        world.run_to(1_000 + ms);
        if world.heard.ended.is_none() {
            world.silence(false);
            world.feed(Input::Signal(Signal::PbxBack));
            world.run_to(20_000);
        }
        world.heard.ended
    };
    for ms in [3_000, 5_000, 8_000] {
        assert_eq!(silent_for(ms, false), None, "{ms} ms");
    }
    assert_eq!(silent_for(12_000, false), Some(EndReason::PbxLost));
    assert_eq!(silent_for(3_500, true), Some(EndReason::PbxLost));
}
