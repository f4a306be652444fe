//! Audio arrives byte for byte, and so do key presses.

use std::time::Duration;

use trunkless::peer::pattern;
use trunkless::peer::phone::{Keys, PhoneCommand};
use trunkless::sip::agent::CallEnd;
use trunkless::sip::sdp::Direction;

use crate::ai::{Ai, Plan};
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::fixture::Lab;
use crate::{Pbx, assert_all, assert_no_channels, block_on};

const SECOND: Duration = Duration::from_secs(1);

/// A call with numbered audio both ways and keys, ended by the caller.
async fn whole_call(pbx: Pbx) {
    let lab = Lab::start(pbx);
    let ai = Ai::start(Plan { say: 150, ..Plan::default() }).await;
    let bridge = lab.bridge(&ai);
    let mut caller = lab.dial(150).await;
    caller.answered().await;
    caller.until(6 * SECOND, |c| c.sent.len() == 150 && c.numbers(1000).len() == 150).await;
    for digit in "12#".chars() {
        caller.command(PhoneCommand::Press(digit, Keys::Rtp));
        caller.wait(SECOND / 2).await;
    }
    caller.hang_up().await;
    let heard = ai.until("stop and close", 5 * SECOND, |s| s.closed.is_some()).await;
    assert_all(&heard.numbers(1), 150, "the AI");
    assert_all(&caller.numbers(1000), 150, "the caller");
    assert_eq!(heard.digits, "12#");
    assert!(heard.stopped);
    assert_eq!(heard.closed, Some(1000));
    assert_eq!(heard.parameters["from_number"], "5551234");
    let exact: Vec<u64> = (0..heard.timestamps.len() as u64).map(|n| n * 20).collect();
    assert_eq!(heard.timestamps, exact, "the audio clock has no gap");
    for field in ["lost", "late", "wrong_source", "ai_dropped_frames"] {
        assert_eq!(bridge.ended(field), "0", "{field}");
    }
    assert_eq!(bridge.ended("reason"), "caller_hangup");
    assert_no_channels(&lab.asterisk);
}

#[test]
fn a_complete_call_through_chan_sip_16() {
    block_on(whole_call(Pbx::Sip16));
}

#[test]
fn a_complete_call_through_pjsip_16() {
    block_on(whole_call(Pbx::Pjsip16));
}

#[test]
fn a_complete_call_through_pjsip_22() {
    block_on(whole_call(Pbx::Pjsip22));
}

/// An AI that greets as soon as its stream starts, before Asterisk has connected the caller.
#[test]
fn the_first_frame_of_a_greeting_is_heard() {
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Lab::start(pbx);
            let ai = Ai::start(Plan { say: 50, after_heard: 0, ..Plan::default() }).await;
            let bridge = lab.bridge(&ai);
            for round in 0..5 {
                let mut caller = lab.dial(0).await;
                caller.answered().await;
                caller.until(3 * SECOND, |c| c.heard_last(1000, 50)).await;
                let answered = caller.answered.expect("answered");
                let first = caller.heard.iter().find(|h| pattern::read(&h.samples).is_some());
                let after = first.map(|heard| heard.at.saturating_duration_since(answered));
                println!("{pbx:?}: the greeting begins {after:?} after the answer");
                assert_all(&caller.numbers(1000), 50, &format!("{pbx:?}, round {round}"));
                caller.hang_up().await;
                assert_no_channels(&lab.asterisk);
            }
            drop(bridge);
        }
    });
}

#[test]
fn the_caller_gets_bye_when_the_ai_closes() {
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Lab::start(pbx);
            let ai = Ai::start(Plan { close_after: Some(60), ..Plan::default() }).await;
            let bridge = lab.bridge(&ai);
            let mut caller = lab.dial(0).await;
            caller.answered().await;
            assert!(caller.until(5 * SECOND, |c| c.ended.is_some()).await, "{pbx:?}: still up");
            assert!(matches!(caller.ended, Some(CallEnd::Bye { .. })), "{:?}", caller.ended);
            assert_eq!(bridge.ended("reason"), "ai_hangup");
            assert_no_channels(&lab.asterisk);
        }
    });
}

/// Asterisk turns hold into music with another SSRC.
#[test]
fn no_audio_is_lost_before_or_after_hold() {
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Lab::start(pbx);
            let ai = Ai::start(Plan::default()).await;
            let bridge = lab.bridge(&ai);
            let mut caller = lab.dial(200).await;
            caller.answered().await;
            caller.until(6 * SECOND, |c| c.sent.len() >= 100).await;
            caller.talk(false);
            caller.wait(SECOND / 2).await;
            let before = caller.sent.len();
            caller.command(PhoneCommand::Direction(Direction::SendOnly));
            caller.wait(2 * SECOND).await;
            caller.command(PhoneCommand::Direction(Direction::SendRecv));
            caller.wait(SECOND).await;
            caller.talk(true);
            caller.until(6 * SECOND, |c| c.sent.len() == 200).await;
            caller.wait(SECOND / 2).await;
            caller.hang_up().await;
            let heard = ai.until("the close", 5 * SECOND, |s| s.closed.is_some()).await;
            assert!(before < 200);
            assert_all(&heard.numbers(1), 200, &format!("{pbx:?}"));
            let exact: Vec<u64> = (0..heard.timestamps.len() as u64).map(|n| n * 20).collect();
            assert_eq!(heard.timestamps, exact, "{pbx:?}: the audio clock has no gap");
            let talk: f64 = bridge.ended("talk_s").parse().expect("a number");
            let frames = heard.frames.len() as f64;
            assert!((talk * 50.0 - frames).abs() < 8.0, "{pbx:?}: {frames} frames in {talk} s");
            assert_eq!(bridge.ended("lost"), "0", "{pbx:?}");
        }
    });
}

/// A caller who speaks on while holding a key, on a phone that sends both.
#[test]
fn a_key_held_while_the_caller_speaks_is_one_key_and_adds_no_time() {
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Lab::start(pbx);
            let ai = Ai::start(Plan::default()).await;
            let bridge = lab.bridge(&ai);
            let mut caller = lab.dial(300).await;
            caller.answered().await;
            caller.wait(SECOND).await;
            for digit in "5#".chars() {
                caller.command(PhoneCommand::Press(digit, Keys::BesideAudio));
                caller.wait(2 * SECOND).await;
            }
            caller.until(6 * SECOND, |c| c.sent.len() == 300).await;
            caller.wait(SECOND).await;
            caller.hang_up().await;
            let heard = ai.until("the close", 5 * SECOND, |s| s.closed.is_some()).await;
            assert_eq!(heard.digits, "5#", "{pbx:?}");
            let talk: f64 = bridge.ended("talk_s").parse().expect("a number");
            let frames = heard.frames.len() as f64;
            assert!((talk * 50.0 - frames).abs() <= 3.0, "{pbx:?}: {frames} frames in {talk} s");
            let numbers = heard.numbers(1);
            assert!(numbers.windows(2).all(|w| w[0] < w[1]), "{pbx:?}: out of order");
            // chan_sip passes no audio on while a key is held
            let expected = if matches!(pbx, Pbx::Sip16) { 195..=205 } else { 300..=300 };
            assert!(expected.contains(&numbers.len()), "{pbx:?}: {}", numbers.len());
        }
    });
}

/// Key presses in INFO, from the caller (Asterisk converts them to RFC 4733) and to the bridge.
#[test]
fn key_presses_in_info_are_reported() {
    block_on(async {
        let pbx = Pbx::Pjsip22;
        let lab = Lab::start(pbx);
        for (from, username, extension, keys) in [
            ("127.0.7.1", "ai", "700", Keys::Info),
            ("127.0.9.1", "ai-info", "v-ai-info", Keys::Rtp),
        ] {
            let ai = Ai::start(Plan::default()).await;
            let mut setup = lab.setup(&ai.url);
            setup.username = username;
            let _bridge = Bridge::registered(&setup);
            let mut caller = Caller::dial(from, lab.asterisk.sip_addr(), extension, 1, 0).await;
            caller.answered().await;
            caller.wait(SECOND).await;
            for digit in "77*".chars() {
                caller.command(PhoneCommand::Press(digit, keys));
                caller.wait(Duration::from_millis(700)).await;
            }
            caller.hang_up().await;
            let heard = ai.until("the close", 5 * SECOND, |s| s.closed.is_some()).await;
            assert_eq!(heard.digits, "77*", "{username}");
        }
    });
}
