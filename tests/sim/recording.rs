//! The two tracks of a recording stay aligned over ten minutes on a bad network.

use std::time::Duration;

use trunkless::command::{Command, RecordCommand};
use trunkless::media::frame::FRAME_SAMPLES;
use trunkless::peer::pattern;
use trunkless::stream::FromAi;

use crate::world::{Network, World};

/// The AI's source number in the frame pattern.
const AGENT: u32 = 9;
const MINUTES: u64 = 10;
const FRAMES: u64 = MINUTES * 3000;

/// Runs a call of ten minutes with numbered frames in both directions. `asked` holds actions and
/// the seconds at which they happen.
fn call(seed: u64, network: Network, early: bool, asked: &[(u64, Ask)]) -> World {
    talk(World::with(seed, network, early), asked)
}

fn talk(mut world: World, asked: &[(u64, Ask)]) -> World {
    // nine and a half minutes: the playout queue takes no more than ten
    let frames = (0..FRAMES as u32 - 1500).flat_map(|n| pattern::frame(AGENT, n));
    world.say(FromAi::Audio(&Vec::from_iter(frames)));
    for (second, ask) in asked {
        world.run_to(second * 1000);
        match ask {
            Ask::Silence(on) => world.silence(*on),
            Ask::Record(command) => drop(world.order(Command::Record(*command))),
        }
    }
    world.run_to(MINUTES * 60_000);
    world
}

/// An action during the call.
#[derive(Clone, Copy)]
enum Ask {
    /// Turns total packet loss on or off.
    Silence(bool),
    Record(RecordCommand),
}

/// Returns the position in the track and the number of every numbered frame. Frames with any wrong
/// byte are left out.
fn found(track: &[u8], source: u32) -> Vec<(i64, i64)> {
    let frames = track.chunks_exact(FRAME_SAMPLES).enumerate();
    frames
        .filter_map(|(place, frame)| {
            let (from, number) = pattern::read(frame)?;
            let whole = from == source && frame == pattern::frame(source, number);
            whole.then_some((place as i64, i64::from(number)))
        })
        .collect()
}

/// Asserts that the caller's frames keep their distance from the time at which they were spoken, by
/// the caller's clock, to within a frame (two with drift or a new SSRC), and that the AI's frames
/// are where they were played.
fn assert_aligned(world: &mut World, drift_ppm: i64) {
    let limit = match (drift_ppm, world.restarts) {
        (0, false) => 20_000,
        // with drift, one more frame, because the correction waits for a quiet moment; with a new
        // SSRC, because its first packet is delayed if the second is lost
        _ => 40_000,
    };
    let film = world.film.develop();
    assert_eq!(film.caller.len(), film.ai.len());
    assert_eq!(film.caller.len() as u64 / FRAME_SAMPLES as u64, film.sidecar.duration_ms / 20);
    let ai = found(&film.ai, AGENT);
    // the first frame is played before there is audio from the AI
    assert!(
        ai.iter().all(|(place, number)| *place == number + 1),
        "frames of the AI are misplaced"
    );
    assert!(ai.len() as u64 >= FRAMES - 1501, "only {} frames from the AI", ai.len());
    let caller = found(&film.caller, 7);
    // with drift, a frame may be repeated to make up for missing time
    let step = i64::from(drift_ppm == 0);
    assert!(
        caller.windows(2).all(|w| w[0].1 + step <= w[1].1),
        "frames of the caller are out of order"
    );
    let off = |(place, number): &(i64, i64)| {
        let said_us = number * 20_000 - number * 20_000 * drift_ppm / 1_000_000;
        place * 20_000 - said_us
    };
    let (least, most) = (caller.iter().map(off).min(), caller.iter().map(off).max());
    let (Some(least), Some(most)) = (least, most) else { panic!("no frames from the caller") };
    println!(
        "{} frames from the caller, {least} to {most} us off, {:?}",
        caller.len(),
        film.sidecar.alignment
    );
    assert!(most - least <= limit, "the tracks drift apart by {} us", most - least);
}

#[test]
fn tracks_stay_aligned_under_loss_and_jitter() {
    for (seed, early) in [(66, false), (67, true)] {
        let jitter = Duration::from_millis(30);
        let network = Network { loss: 20, jitter, duplicate: 10, ..Network::default() };
        let mut world = call(seed, network, early, &[]);
        let lost = world.lost;
        assert_aligned(&mut world, 0);
        let heard = world.heard.ai.iter().filter(|(_, n)| n.is_some()).count() as u64;
        assert!(heard + lost + 5 >= FRAMES, "{heard} heard and {lost} lost of {FRAMES}");
    }
}

#[test]
fn tracks_stay_aligned_across_gaps_in_rtp() {
    let silences = [(60, 75), (120, 121), (200, 229), (300, 301), (400, 415)];
    let asked: Vec<(u64, Ask)> = silences
        .iter()
        .flat_map(|(from, to)| [(*from, Ask::Silence(true)), (*to, Ask::Silence(false))])
        .collect();
    for seed in [70, 71, 72] {
        let jitter = Duration::from_millis(25);
        let network = Network { jitter, ..Network::default() };
        assert_aligned(&mut call(seed, network, false, &asked), 0);
    }
}

/// Phones send nothing while their user is silent, and then resume with the same or a new SSRC.
#[test]
fn tracks_stay_aligned_across_talkspurts() {
    for (seed, every, restarts) in [(75, 2, false), (76, 1, false), (77, 2, true), (78, 1, true)] {
        let jitter = Duration::from_millis(15);
        let network = Network { loss: 5, jitter, ..Network::default() };
        let mut world = World::with(seed, network, false);
        (world.pauses_every, world.restarts) = (every, restarts);
        assert_aligned(&mut talk(world, &[]), 0);
    }
}

#[test]
fn tracks_stay_aligned_under_clock_drift() {
    for (seed, drift_ppm) in [(80, 100), (81, -100), (82, 300), (83, -300)] {
        let jitter = Duration::from_millis(15);
        let network = Network { loss: 20, jitter, drift_ppm, ..Network::default() };
        assert_aligned(&mut call(seed, network, false, &[]), drift_ppm);
    }
}

#[test]
fn a_pause_does_not_move_the_rest() {
    let asked =
        [(100, Ask::Record(RecordCommand::Pause)), (130, Ask::Record(RecordCommand::Resume))];
    let mut world = call(90, Network::default(), false, &asked);
    let film = world.film.develop();
    let silent = |track: &[u8], from: usize, to: usize| {
        track[from * 8000..to * 8000].iter().all(|sample| *sample == 0xff)
    };
    assert!(silent(&film.caller, 101, 129) && silent(&film.ai, 101, 129));
    let at = |track: &[u8], source| {
        let (place, number) = *found(track, source).last().expect("numbered frames");
        place - number
    };
    assert_eq!((at(&film.caller, 7), at(&film.ai, AGENT)), (0, 1));
    assert_eq!(film.sidecar.pauses.len(), 1);
}
