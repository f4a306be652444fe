//! The AI's audio to the caller, sent in real time: lateness, stalls and clock drift.

use std::time::Duration;

use trunkless::call::Signal;
use trunkless::call::words::Input;
use trunkless::media::frame::SILENCE;
use trunkless::peer::pattern;
use trunkless::stream::FromAi;

use crate::world::{Network, World, seeded::Random};

/// The AI's source number in the frame pattern.
const AGENT: u32 = 9;
/// Frames that the AI sends: 18 s.
const FRAMES: u32 = 900;

/// Result of one run, in milliseconds.
#[derive(Debug)]
struct Outcome {
    /// Packets of silence between two frames of speech that follow each other.
    holes: usize,
    p50: f64,
    p99: f64,
    /// Delay of the last frame of speech.
    last: f64,
}

/// The AI streams without a break, a frame every 20 ms; in every 2 s, the last 400 ms are silent.
/// Frame n is sent `late(n)` ms after its time, in order as over TCP.
fn stream(late: &dyn Fn(u32) -> f64) -> Outcome {
    let mut world = World::new(90, Network::default());
    let speaks = |n: u32| n % 100 < 80;
    let (mut sent, mut last) = (Vec::new(), 0.0f64);
    for n in 0..FRAMES {
        last = last.max(1005.0 + 20.0 * f64::from(n) + late(n));
        world.run_until(Duration::from_secs_f64(last / 1000.0));
        sent.push(last);
        let frame = if speaks(n) { pattern::frame(AGENT, n) } else { [SILENCE; 160] };
        world.say(FromAi::Audio(&frame));
    }
    world.run_to(last as u64 + 3000);
    let packets = &world.heard.caller;
    let said: Vec<(usize, f64, u32)> = packets
        .iter()
        .enumerate()
        .filter_map(|(place, (at, _, number))| Some((place, *at, (*number)?)))
        .collect();
    let numbers: Vec<u32> = said.iter().map(|(.., number)| *number).collect();
    assert_eq!(numbers, (0..FRAMES).filter(|n| speaks(*n)).collect::<Vec<_>>(), "speech is lost");
    for pair in packets.windows(2) {
        assert_eq!(pair[1].1.wrapping_sub(pair[0].1), 160, "gap in the RTP timestamps");
    }
    let follow = said.windows(2).filter(|w| w[1].2 == w[0].2 + 1);
    let holes = follow.map(|w| w[1].0 - w[0].0 - 1).sum();
    let delay = |(_, at, number): &(usize, f64, u32)| at - sent[*number as usize];
    let mut delays: Vec<f64> = said.iter().map(delay).collect();
    let last = delays[delays.len() - 1];
    delays.sort_by(f64::total_cmp);
    let at = |part: f64| delays[(delays.len() as f64 * part) as usize];
    Outcome { holes, p50: at(0.5), p99: at(0.99), last }
}

fn jitter(ms: f64) -> impl Fn(u32) -> f64 {
    let mut random = Random(7);
    let table: Vec<f64> = (0..FRAMES).map(|_| random.below(1000) as f64 / 1000.0 * ms).collect();
    move |n| table[n as usize]
}

#[test]
fn an_ai_less_late_than_the_grace_leaves_no_hole_and_no_delay() {
    for ms in [0.0, 5.0, 10.0, 20.0, 38.0] {
        let outcome = stream(&jitter(ms));
        println!("jitter {ms} ms: {outcome:?}");
        assert_eq!(outcome.holes, 0, "jitter {ms} ms");
        assert!(outcome.p50 <= 0.5 + ms / 4.0 && outcome.p99 <= 5.0 + ms / 2.0, "{outcome:?}");
        if ms <= 5.0 {
            assert!(outcome.p50 <= 0.1 && outcome.p99 <= 0.1, "{outcome:?}");
        }
    }
    // beyond the grace, the slots move back until the jitter fits
    let outcome = stream(&jitter(60.0));
    println!("jitter 60 ms: {outcome:?}");
    assert!(outcome.holes <= 12, "{outcome:?}");
}

/// A stall of the AI leaves one hole. The delay that it leaves behind is worked off in the pauses.
#[test]
fn a_stall_leaves_one_hole_and_its_delay_passes() {
    for ms in [30.0, 100.0, 400.0, 1000.0] {
        // in the middle of a sentence
        let late = |n: u32| (230.0 - f64::from(n)) * 20.0 + ms;
        let outcome = stream(&|n| if n >= 230 { late(n).max(0.0) } else { 0.0 });
        println!("stall of {ms} ms: {outcome:?}");
        let silent = outcome.holes as f64 * 20.0;
        assert!(silent <= ms && (silent > 0.0 || ms <= 40.0), "{ms} ms: {outcome:?}");
        assert!(outcome.last <= 80.0, "{ms} ms: {outcome:?}");
    }
}

#[test]
fn clock_drift_of_the_ai_leaves_no_hole_and_no_delay() {
    for ppm in [-300.0, 300.0] {
        let outcome = stream(&|n| f64::from(n) * 20.0 * ppm / 1e6);
        println!("{ppm} ppm: {outcome:?}");
        assert_eq!(outcome.holes, 0, "{ppm} ppm");
        assert!(outcome.p99 <= 0.1 && outcome.last <= 0.1, "{ppm} ppm: {outcome:?}");
    }
}

/// This process stands still four times for 0.95 s, with 0.3 s between. Two seconds after the last
/// time, the AI's frames leave when they arrive, for an AI at any phase.
#[test]
fn after_standstills_the_ai_is_in_real_time_again() {
    const LENGTH: u64 = 950_000;
    for phase_us in (0..20_000).step_by(900) {
        let mut world = World::new(91, Network::default());
        let arrives = |n: u32| 1_000_000 + phase_us + 20_000 * u64::from(n);
        let mut sent = 0;
        let mut say_to = |world: &mut World, until: u64| {
            while arrives(sent) < until {
                let at = Duration::from_micros(arrives(sent)).max(world.now - world.t0);
                world.run_until(at);
                world.say(FromAi::Audio(&pattern::frame(AGENT, sent)));
                sent += 1;
            }
        };
        let mut at = 6_003_000;
        for _ in 0..4 {
            say_to(&mut world, at);
            world.run_until(Duration::from_micros(at));
            at += LENGTH;
            world.now = world.t0 + Duration::from_micros(at);
            world.call.stood_still(world.now, Duration::from_micros(LENGTH - 7_000));
            at += 300_000;
        }
        say_to(&mut world, at + 4_000_000);
        let heard = world.heard.caller.iter().filter_map(|(ms, _, n)| Some((ms, (*n)?)));
        let delays = heard.map(|(ms, n)| (*ms, ms - arrives(n) as f64 / 1000.0));
        let again = at as f64 / 1000.0 + 2000.0;
        let late = delays.filter(|(ms, delay)| *ms > again && *delay > 0.5).collect::<Vec<_>>();
        assert!(late.is_empty(), "at {phase_us} us: {late:?}");
    }
}

/// The AI begins at about the time of the PBX's ACK. A PBX drops what comes in the first
/// milliseconds after that: nothing is sent for 20 ms, and then nothing is delayed by that.
#[test]
fn audio_from_the_time_of_the_ack_is_sent_20_ms_later_and_catches_up() {
    const ACK_MS: u64 = 2;
    for (begins_ms, paced) in [(1, true), (3, true), (12, true), (21, true), (24, true), (1, false)]
    {
        let mut world = World::unanswered(92, Network::default(), false);
        world.feed(Input::Signal(Signal::Answered));
        let arrives = |n: u32| begins_ms + if paced { 20 * u64::from(n) } else { 0 };
        let mut connected = false;
        for n in 0..=60 {
            let at = if n == 60 { 2000 } else { arrives(n) };
            if at >= ACK_MS && !std::mem::replace(&mut connected, true) {
                world.run_to(ACK_MS);
                world.feed(Input::Signal(Signal::Connected));
            }
            world.run_to(at);
            if n < 60 {
                world.say(FromAi::Audio(&pattern::frame(AGENT, n)));
            }
        }
        let said =
            world.heard.caller.iter().filter_map(|(ms, _, number)| Some((ms.round(), (*number)?)));
        let said: Vec<(f64, u32)> = said.collect();
        let due = |n: u32| if paced { arrives(n) } else { ACK_MS + 20 * u64::from(n) };
        let expected: Vec<_> = (0..60).map(|n| (due(n).max(ACK_MS + 20) as f64, n)).collect();
        assert_eq!(said, expected, "begins at {begins_ms} ms, paced: {paced}");
    }
}

/// Messages that are not whole frames, sent in real time with jitter: no frame is padded.
#[test]
fn messages_of_any_length_in_real_time_leave_no_hole() {
    for (bytes, late_ms) in
        [(80, 0), (80, 15), (240, 0), (240, 15), (100, 10), (820, 20), (1000, 5)]
    {
        let mut world = World::new(91, Network::default());
        let all: Vec<u8> = (0..400).flat_map(|n| pattern::frame(AGENT, n)).collect();
        let (mut random, mut last) = (Random(3), 0);
        for (n, piece) in all.chunks(bytes).enumerate() {
            let due_us = 1_005_000 + (n * bytes) as u64 * 125;
            last = last.max(due_us + random.below(late_ms * 1000 + 1));
            world.run_until(Duration::from_micros(last));
            world.say(FromAi::Audio(piece));
        }
        world.run_to(last / 1000 + 1000);
        let heard = &world.heard.caller;
        let first = heard.iter().position(|(.., number)| number.is_some()).expect("speech");
        let numbers: Vec<Option<u32>> = heard[first..].iter().take(400).map(|h| h.2).collect();
        let expected: Vec<Option<u32>> = (0..400).map(Some).collect();
        assert_eq!(numbers, expected, "messages of {bytes} bytes, up to {late_ms} ms late");
    }
}

/// The rest of an utterance that does not fill a frame is played in its slot.
#[test]
fn the_end_of_an_utterance_is_not_held_back() {
    let mut world = World::new(92, Network::default());
    world.run_to(1_003);
    let all: Vec<u8> = (0..101).flat_map(|n| pattern::frame(AGENT, n)).collect();
    world.say(FromAi::Audio(&all[..100 * 160 + 50]));
    world.run_to(4_000);
    let heard = &world.heard.caller;
    let last = heard.iter().rposition(|(.., number)| number.is_some()).expect("speech");
    assert!((heard[last + 1].0 - heard[last].0 - 20.0).abs() < 0.1, "{:?}", &heard[last..last + 3]);
}
