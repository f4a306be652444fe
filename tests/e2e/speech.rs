//! A recorded voice through a real Asterisk: the events for the AI, and the interruption of the AI.

use std::time::Duration;

use trunkless::media::g711::Law;
use trunkless::media::quiet::energy;
use trunkless::peer::pattern;

use crate::ai::{Ai, Plan};
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::fixture::Lab;
use crate::{Pbx, block_on};

const SECOND: Duration = Duration::from_secs(1);
/// Frames before the caller speaks: 3 s.
const BEFORE: u64 = 150;

/// A second of recorded speech, from its first sound on.
fn voice() -> &'static [[u8; 160]] {
    let frames = include_bytes!("../../src/cli/assets/caller.ulaw").as_chunks::<160>().0;
    let first = frames.iter().position(|frame| energy(Law::Mu, frame) > 300 * 300 * 160);
    &frames[first.expect("speech")..][..50]
}

#[test]
fn the_caller_ends_what_the_ai_says() {
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Lab::start(pbx);
            let (say, call) = (1000, Some(1000));
            let ai = Ai::start(Plan { say, after_heard: 1, call, ..Plan::default() }).await;
            let mut setup = lab.setup(&ai.url);
            setup.tables += "[speech]\nevents = true\nbarge_in_after = \"100ms\"\n";
            let bridge = Bridge::registered(&setup);
            let (to, extension) = (lab.asterisk.sip_addr(), pbx.extension());
            let mut caller = Caller::dial_voice("127.0.9.1", to, extension, BEFORE, voice()).await;
            caller.answered().await;
            caller.until(6 * SECOND, |caller| caller.sent_at.len() == 50).await;
            caller.wait(SECOND).await;
            let began = caller.sent_at[0];
            let mut read =
                caller.heard.iter().filter(|heard| pattern::read(&heard.samples).is_some());
            let last = read.next_back().expect("the AI was heard").at;
            let took = last.saturating_duration_since(began);
            let loud = |frame: &Vec<u8>| energy(Law::Mu, frame) > 300 * 300 * 160;
            let stream = ai.streams().into_iter().next().expect("a stream");
            let first = stream.frames.iter().position(loud).expect("the voice");
            let path = stream.heard_at[first].saturating_duration_since(began);
            println!("{pbx:?}: {path:?} from the caller to the AI");
            println!("{pbx:?}: {took:?} from the first sound to the AI's last frame");
            assert!(caller.numbers(1000).len() > 100, "the AI spoke for seconds before");
            assert!((Duration::from_millis(20)..=Duration::from_millis(150)).contains(&took));
            let heard = ai.until("the end of speech", 3 * SECOND, |s| s.own.len() >= 2).await;
            let events: Vec<&str> =
                heard.own.iter().filter_map(|own| own["event"].as_str()).collect();
            assert_eq!(events[..2], ["speechStarted", "speechStopped"], "{:?}", heard.own);
            caller.hang_up().await;
            drop(bridge);
        }
    });
}
