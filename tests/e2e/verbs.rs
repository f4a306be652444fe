//! Every command of the AI in every mode, except transfers: what the caller hears, what the AI
//! hears and is answered, and what Asterisk reports.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkless::media::frame::SILENCE;
use trunkless::peer::pattern;
use trunkless::peer::phone::Heard;
use trunkless::sip::agent::CallEnd;

use crate::ai::{Plan, Stream};
use crate::caller::Caller;
use crate::transfers::{MODES, Mode, SECOND, Scene, sorry};
use crate::{assert_no_channels, block_on};

/// The call number in the audio of the AI.
const AI: u32 = 1000;
/// The payload type of key presses towards the caller.
const EVENTS: u8 = 101;
/// The PBX joins two legs, and audio is on its way, for at most this long.
const SETTLE: Duration = Duration::from_millis(200);

/// The orders of the AI: after how many frames, and which.
fn orders() -> Vec<(usize, Value)> {
    let all = [
        (50, json!({"event": "play", "play": {"prompt": "sorry"}})),
        (260, json!({"event": "sendDigits", "sendDigits": {"digits": "1w2#"}})),
        (340, json!({"event": "mute"})),
        (400, json!({"event": "unmute"})),
        (410, json!({"event": "mute", "mute": {"side": "ai"}})),
        (470, json!({"event": "unmute", "unmute": {"side": "ai"}})),
        (480, json!({"event": "hold"})),
        (600, json!({"event": "unhold"})),
        (660, json!({"event": "setVariables", "variables": {"lead_quality": "hot"}})),
        (662, json!({"event": "setVariables", "variables": {"MONITOR_EXEC": "x"}})),
        (664, json!({"event": "disposition", "disposition": {"status": "SALE"}})),
        (670, json!({"event": "record", "record": {"action": "start"}})),
        (720, json!({"event": "record", "record": {"action": "pause"}})),
        (770, json!({"event": "record", "record": {"action": "resume"}})),
        (830, json!({"event": "hangup", "hangup": {"cause": "busy"}})),
    ];
    // the id of an order is its number of frames
    let with_id = |(after, mut order): (usize, Value)| {
        order["id"] = after.to_string().into();
        (after, order)
    };
    all.into_iter().map(with_id).collect()
}

/// The packets that the caller heard between two orders of the AI, from `SETTLE` after the first.
fn between<'a>(caller: &'a Caller, ai: &'a Stream, from: usize, to: usize) -> Vec<&'a Heard> {
    let at = |order: usize| ai.heard_at[order - 1];
    let (from, to) = (at(from) + SETTLE, at(to));
    caller.heard.iter().filter(|heard| heard.at > from && heard.at < to).collect()
}

fn numbered(heard: &[&Heard]) -> usize {
    let read = heard.iter().filter_map(|heard| pattern::read(&heard.samples));
    read.filter(|(call, _)| *call == AI).count()
}

/// Frames that are neither silence nor numbered.
fn music(heard: &[&Heard]) -> usize {
    let sounds = |heard: &&&Heard| {
        heard.payload_type != EVENTS
            && heard.samples.iter().any(|sample| *sample != SILENCE)
            && pattern::read(&heard.samples).is_none()
    };
    heard.iter().filter(sounds).count()
}

/// The keys in the RFC 4733 events.
fn keys(heard: &[Heard]) -> Vec<u8> {
    let events = heard.iter().filter(|heard| heard.payload_type == EVENTS);
    let mut keys: Vec<(u32, u8)> =
        events.map(|heard| (heard.timestamp, heard.samples[0])).collect();
    keys.dedup_by_key(|(timestamp, _)| *timestamp);
    keys.into_iter().map(|(_, key)| key).collect()
}

fn audible(mode: Mode, caller: &Caller, ai: &Stream) {
    let prompt = sorry(caller);
    assert!(prompt > 150, "{mode:?}: {prompt} frames of the prompt");
    assert_eq!(keys(&caller.heard), [1, 2, 11], "{mode:?}");
    let muted = ai.frames[350..395].iter().filter(|frame| pattern::read(frame).is_some()).count();
    let before = ai.frames[285..330].iter().filter(|frame| pattern::read(frame).is_some()).count();
    assert_eq!(muted, 0, "{mode:?}: the AI hears a muted caller");
    assert!(before > 40, "{mode:?}: {before}");
    let muted = numbered(&between(caller, ai, 410, 470));
    assert_eq!(muted, 0, "{mode:?}: the caller hears a muted AI");
    let held = between(caller, ai, 480, 600);
    assert!(music(&held) > 50, "{mode:?}: {} frames of music", music(&held));
    assert_eq!(numbered(&held), 0, "{mode:?}: the AI is heard on hold");
    let back = numbered(&between(caller, ai, 600, 660));
    assert!(back > 30, "{mode:?}: {back} frames after the hold");
}

fn answered(mode: Mode, ai: &Stream) {
    let done = ["accepted", "done"].map(str::to_owned).to_vec();
    let reply = |order: usize| ai.replies(&order.to_string());
    for order in [50, 260, 480, 600] {
        assert_eq!(reply(order).0, done, "{mode:?} {order}: {:?}", ai.own);
    }
    for order in [340, 400, 410, 470, 664, 670, 720, 770, 830] {
        assert_eq!(reply(order).0, ["done"], "{mode:?} {order}: {:?}", ai.own);
    }
    let (variables, reason) = reply(660);
    match mode {
        Mode::Sip(_) => assert_eq!(reason, "unsupported", "{mode:?}"),
        Mode::Ari(..) => assert_eq!(variables, done, "{mode:?}"),
    }
    let refused = if matches!(mode, Mode::Sip(_)) { "unsupported" } else { "not_allowed" };
    assert_eq!(reply(662).1, refused, "{mode:?}");
    let states: Vec<&str> = ai.own.iter().filter_map(|own| own["call"]["state"].as_str()).collect();
    assert_eq!(states, ["held", "resumed"], "{mode:?}");
}

/// Waits until the AI has received this many frames.
async fn until_frame(scene: &Scene, caller: &mut Caller, frames: usize) {
    let begin = Instant::now();
    while scene.ai.streams().first().is_none_or(|stream| stream.frames.len() < frames) {
        assert!(begin.elapsed() < 30 * SECOND, "{}", scene.bridge.log());
        caller.wait(SECOND / 20).await;
    }
}

/// The variables of all channels.
fn variables(scene: &Scene) -> String {
    let channels = scene.asterisk.cli("core show channels concise");
    let names = channels.lines().filter_map(|line| line.split('!').next());
    names.map(|name| scene.asterisk.cli(&format!("core show channel {name}"))).collect()
}

/// The length of the only recording, and its sidecar.
fn recorded(folder: &std::path::Path) -> (Duration, Value) {
    let all = walk(folder);
    let only = |end: &str| {
        let found: Vec<_> =
            all.iter().filter(|path| path.to_string_lossy().ends_with(end)).collect();
        assert_eq!(found.len(), 1, "{all:?}");
        std::fs::read(found[0]).expect("a file")
    };
    let sidecar: Value = serde_json::from_slice(&only(".json")).expect("JSON");
    // two channels of 8,000 bytes per second
    (Duration::from_millis(only(".wav").len() as u64 / 16), sidecar)
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

async fn every_verb(mode: Mode) {
    let folder = tempfile::tempdir().expect("a folder");
    let tables = format!("[recording]\ndirectory = {:?}\nwhen = \"on_command\"\n", folder.path());
    let plan = Plan { say: 5000, paced: true, orders: orders(), ..Plan::default() };
    let scene = mode.scene_with(plan, &tables).await;
    let mut caller = scene.call().await;
    until_frame(&scene, &mut caller, 690).await;
    let variables = variables(&scene);
    let ended = caller.until(10 * SECOND, |caller| caller.ended.is_some()).await;
    assert!(ended, "{mode:?}: {}", scene.bridge.log());
    let ai = scene.ai.streams().remove(0);
    audible(mode, &caller, &ai);
    answered(mode, &ai);
    let is_set = variables.contains("lead_quality=hot");
    assert_eq!(is_set, matches!(mode, Mode::Ari(..)), "{mode:?}");
    assert!(!variables.contains("MONITOR_EXEC"), "{mode:?}");
    let Some(CallEnd::Bye { cause }) = caller.ended else { panic!("{:?}", caller.ended) };
    println!("{mode:?}: the caller's cause {cause:?}, {:?}", scene.asterisk.dials());
    assert_no_channels(&scene.asterisk);
    scene.bridge.wait_for("recording finished", 5 * SECOND);
    let (length, sidecar) = recorded(folder.path());
    let seconds = length.as_secs_f64();
    assert!((2.8..=3.4).contains(&seconds), "{mode:?}: {seconds} s recorded");
    assert_eq!(sidecar["disposition"]["status"], "SALE", "{sidecar}");
}

#[test]
fn every_verb_has_its_effect() {
    block_on(async {
        for mode in MODES {
            every_verb(mode).await;
        }
    });
}

/// The last word of a goodbye of 5 s is heard, and then the call ends at once.
#[test]
fn a_hang_up_after_the_audio_cuts_no_goodbye_and_one_now_does() {
    block_on(async {
        for mode in MODES {
            for (when, whole) in [("after_audio", true), ("now", false)] {
                let hangup = json!({"event": "hangup", "hangup": {"when": when}});
                let orders = vec![(if whole { 26 } else { 100 }, hangup)];
                let scene = mode.scene_with(Plan { say: 250, orders, ..Plan::default() }, "").await;
                let mut caller = scene.call().await;
                assert!(caller.until(15 * SECOND, |caller| caller.ended.is_some()).await);
                let end = Instant::now();
                let numbers = caller.numbers(AI);
                if whole {
                    assert_eq!(numbers, (0..250).collect::<Vec<u32>>(), "{mode:?}");
                    let last = caller
                        .heard
                        .iter()
                        .rev()
                        .find(|heard| pattern::read(&heard.samples).is_some());
                    let late = end - last.expect("the last word").at;
                    println!("{mode:?}: hung up {late:?} after the last word");
                    assert!(late < Duration::from_millis(60), "{mode:?}: {late:?}");
                } else {
                    assert!((60..=90).contains(&numbers.len()), "{mode:?}: {}", numbers.len());
                }
                assert_no_channels(&scene.asterisk);
            }
        }
    });
}
