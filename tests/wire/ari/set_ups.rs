//! A thousand calls are set up while requests, answers and events overtake each other and callers
//! hang up at any moment; nothing may be left of them. With a real Asterisk, 28 of 100 events
//! arrive before the answer to the request that caused them; here the share is about the same.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use trunkless::telemetry::PANICS;

use crate::ari::ask::Verb;
use crate::ari::fake::Fake;
use crate::ari::rig::plain;
use crate::ari::world::{Channel, Item, Pace, Random, World};
use crate::bridge::{Bridge, Net};
use crate::lines::Lines;
use crate::log::pass;
use crate::strict::{Ai, Handshake};

/// Names that begin like each other or like parts of ids.
const APPS: [&str; 5] = ["ai", "ai2", "ai-m", "ai-m-1", "a"];
const CALLS: u64 = 40;
/// All callers arrive within this many milliseconds.
const SPAN: u64 = 1200;

#[tokio::test]
async fn set_ups_in_any_order_leave_nothing() {
    set_ups(1, "", false).await;
}

#[tokio::test]
async fn set_ups_with_variables_and_ringing_leave_nothing() {
    let config = "[calls]\nringing = true\n[pbx.main.ari]\nvariables = [\"A\", \"B\"]";
    set_ups(2, config, false).await;
}

#[tokio::test]
async fn set_ups_that_are_answered_at_once_leave_nothing() {
    let config = "[calls]\nanswer = \"at_once\"\non_ai_close = \"continue\"";
    set_ups(3, config, false).await;
}

#[tokio::test]
async fn set_ups_with_a_prompt_and_hang_ups_leave_nothing() {
    let (_directory, prompt) = crate::wav::write_prompt(3);
    let config = format!("[calls]\non_ai_failure = \"hangup\"\nprompt = {prompt:?}");
    set_ups(4, &config, false).await;
}

#[tokio::test]
async fn set_ups_with_lost_events_leave_nothing() {
    set_ups(5, "", true).await;
}

async fn set_ups(seed: u64, config: &str, cuts: bool) {
    let (lines, net) = (Lines::new(), Net::new());
    let fake = Arc::new(Fake::at(SocketAddr::new(net.pbx(), 0), seed).await);
    let ai = Arc::new(Ai::start(net.ai()).await);
    let mut bridges = Vec::new();
    for (n, app) in APPS.iter().enumerate() {
        let plain = plain(net.host(10 + n as u8), app, fake.address, ai.address);
        // a busy machine must not cause timeouts here
        let plain = plain.replace("500ms", "5s");
        bridges.push(Bridge::launch(&plain, config).await);
        fake.asked(Verb::Bridges, "", n + 1).await;
    }
    // a caller who arrives before the first look at the lists may leave before being offered
    pass(Duration::from_millis(50)).await;
    let mut random = Random::new(seed);
    fake.pace(Pace { request: 3, answer: 6, event: 10 });
    fake.world().hang_ups = 12;
    let mut streams = JoinSet::new();
    let mut callers = JoinSet::new();
    for app in APPS {
        for n in 0..CALLS {
            callers.spawn(caller(fake.clone(), app, format!("{app}.{n}"), random.fork()));
        }
        if cuts {
            callers.spawn(cut(fake.clone(), app, random.fork()));
        }
    }
    let serving = async {
        loop {
            if let Some(handshake) = ai.next().await {
                streams.spawn(stream(handshake, random.fork()));
            }
        }
    };
    tokio::select! {
        () = serving => {}
        () = all(&mut callers) => {}
    }
    all(&mut streams).await;
    let clean = |w: &World| APPS.iter().all(|app| w.left(app).is_empty()).then_some(());
    let is_clean = fake.within(Duration::from_secs(10), clean).await;
    let left: Vec<String> = APPS.iter().flat_map(|app| fake.world().left(app)).collect();
    assert!(is_clean.is_some(), "seed {seed}: {left:?}");
    count(seed, &lines, &fake, bridges, cuts || config.contains("variables")).await;
}

/// Checks that each offered call has one record. With `some`, not all callers are offered, because
/// events get lost or variables are read first.
async fn count(seed: u64, lines: &Lines, fake: &Fake, bridges: Vec<Bridge>, some: bool) {
    let mut records = Vec::new();
    for bridge in bridges {
        records.extend(bridge.all_records().await);
    }
    let ids: HashSet<&str> = records.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids.len(), records.len(), "seed {seed}: a call ended twice");
    assert_eq!(records.len(), lines.with("call offered").len(), "seed {seed}");
    let callers: usize = fake.world().told.values().sum();
    // those who are not offered left before; the slower the machine, the more
    let least = if some { callers / 3 } else { callers };
    let offered = records.len();
    assert!((least..=callers).contains(&offered), "seed {seed}: {offered} of {callers} callers");
    // a bridge that sends every caller on would leave nothing either
    let answered = records.iter().filter(|r| r.summary.answered).count();
    assert!(answered * 6 > callers, "seed {seed}: {answered} of {callers} callers answered");
    assert!(callers as u64 * 3 > CALLS * APPS.len() as u64, "seed {seed}: {callers} callers");
    println!("seed {seed}: {answered} answered");
    assert_eq!(PANICS.get(), 0, "seed {seed}");
    let mut reasons: Vec<&str> = records.iter().map(|r| r.reason.label()).collect();
    reasons.sort_unstable();
    let share = reasons.chunk_by(|a, b| a == b).map(|same| format!("{} {}", same.len(), same[0]));
    println!("{} of {callers} callers: {}", records.len(), Vec::from_iter(share).join(", "));
}

/// Waits for all tasks; panics if one of them panicked.
async fn all(tasks: &mut JoinSet<()>) {
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

async fn some_ms(random: &mut Random, limit: u64) {
    pass(Duration::from_micros(1 + random.below(1000 * limit))).await;
}

/// A caller who, after a while, hangs up, is transferred, or loses the bridge or its media.
async fn caller(fake: Arc<Fake>, app: &str, id: String, mut random: Random) {
    some_ms(&mut random, SPAN).await;
    let up = random.below(3) == 0;
    fake.world().enter(&id, app, &["n=1"], Channel { up, ..Channel::caller() });
    // half of them wait until they are connected or no longer in the application
    if random.below(2) == 0 {
        let settled = |w: &World| {
            let here = w.channels.get(&id).is_some_and(|c| c.is_in(app));
            (!here || w.bridge_of(&id).is_some()).then_some(())
        };
        fake.until("the caller is connected, or no longer in the application", settled).await;
    }
    some_ms(&mut random, 60).await;
    match random.below(10) {
        0 => fake.world().leave(&id),
        1 => {
            let bridge = fake.world().bridge_of(&id);
            fake.world().remove_bridge(&bridge.unwrap_or_default());
        }
        2 => {
            let media = fake.world().media_of(&id);
            fake.world().hang_up(&media.unwrap_or_default());
        }
        3..6 => fake.world().hang_up(&id),
        _ => {}
    }
    some_ms(&mut random, 100).await;
    fake.world().hang_up(&id);
}

/// Ends an events socket now and then.
async fn cut(fake: Arc<Fake>, app: &str, mut random: Random) {
    for _ in 0..5 {
        some_ms(&mut random, 2 * SPAN / 5).await;
        let how = if random.below(2) == 0 { Item::Reset } else { Item::Close };
        if fake.world().sockets.contains_key(app) {
            fake.cut(app, how);
        }
    }
}

/// An AI that may refuse, not answer, close or fail.
async fn stream(handshake: Handshake, mut random: Random) {
    some_ms(&mut random, 8).await;
    match random.below(20) {
        0 => return handshake.refuse_if_open("503 Service Unavailable").await,
        1 => return,
        _ => {}
    }
    let Some(opened) = handshake.open_if_open().await else { return };
    let Some(stream) = opened.started_unless_ended().await else { return };
    some_ms(&mut random, 60).await;
    match random.below(6) {
        0 => stream.close_if_open().await,
        1 => return stream.reset().await,
        _ => {}
    }
    stream.over().await;
}
