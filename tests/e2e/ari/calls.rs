//! Calls: audio and key presses, how they end, and where the caller goes.

use std::time::Duration;

use trunkless::media::frame::level_dbfs;
use trunkless::peer::phone::{Keys, PhoneCommand};
use trunkless::sip::agent::CallEnd;
use trunkless::sip::sdp::Direction;

use super::{CALLER, SECOND, assert_clean, bridge, config, hears_the_tone, start, wait_lines};
use crate::ai::{Ai, Plan, Stream};
use crate::asterisk::Asterisk;
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::{Pbx, assert_all, block_on};

/// A call with numbered audio both ways and keys, ended by the caller.
async fn whole_call(asterisk: &Asterisk, extension: &str, ai: &Ai) -> Stream {
    let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), extension, 1, 150).await;
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
    let exact: Vec<u64> = (0..heard.timestamps.len() as u64).map(|n| n * 20).collect();
    assert_eq!(heard.timestamps, exact, "the audio clock has no gap");
    heard
}

async fn a_call(version: u8, n: u8, format: &str) {
    let asterisk = start(version, n);
    let ai = Ai::start(Plan { say: 150, ..Plan::default() }).await;
    let keys = format!("format = \"{format}\"\nvariables = [\"CHANNEL(language)\", \"NONE\"]");
    let bridge = bridge(&config(&ai.url, &keys, ""));
    let extension = if format == "alaw" { "8018" } else { "8010" };
    let heard = match format {
        "ulaw" => whole_call(&asterisk, extension, &ai).await,
        _ => a_call_in_alaw(&asterisk, extension, &ai).await,
    };
    let parameters = heard.parameters;
    assert_eq!(
        (&parameters["from_number"], &parameters["exten"]),
        (&"5551234".into(), &"8010".into())
    );
    assert_eq!(
        (&parameters["did"], &parameters["context"]),
        (&extension.into(), &"from-carrier".into())
    );
    assert_eq!(parameters["CHANNEL(language)"], "en");
    assert!(parameters["channel_name"].as_str().is_some_and(|n| n.starts_with("PJSIP/carrier")));
    for field in ["lost", "late", "wrong_source", "ai_dropped_frames"] {
        assert_eq!(bridge.ended(field), "0", "{field}");
    }
    assert_eq!(bridge.ended("reason"), "caller_hangup");
    println!("{version}, {format}: set up in {} ms", bridge.ended("setup_ms"));
    assert_clean(&asterisk);
}

/// Asterisk transcodes the audio once in each direction; level and number of frames remain.
async fn a_call_in_alaw(asterisk: &Asterisk, extension: &str, ai: &Ai) -> Stream {
    let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), extension, 1, 100).await;
    caller.answered().await;
    caller.until(5 * SECOND, |c| c.sent.len() == 100).await;
    caller.wait(SECOND).await;
    caller.hang_up().await;
    let heard = ai.until("stop and close", 5 * SECOND, |s| s.closed.is_some()).await;
    // numbered frames are noise; A-law does not preserve silence exactly
    let loud = |samples: &[u8]| level_dbfs(samples) > -30.0;
    let count = heard.frames.iter().filter(|f| loud(f)).count();
    assert!((98..=102).contains(&count), "{count} frames of 100");
    let said = caller.heard.iter().filter(|h| loud(&h.samples)).count();
    assert!(said >= 100, "{said} frames of 150 within the call");
    heard
}

/// A caller who speaks on while holding a key, on a phone that sends both.
#[test]
fn a_key_held_while_the_caller_speaks_is_one_key_and_adds_no_time() {
    block_on(async {
        for (version, n) in [(16, 130), (22, 131)] {
            let asterisk = start(version, n);
            let ai = Ai::start(Plan::default()).await;
            let bridge = bridge(&config(&ai.url, "", ""));
            let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 1, 250).await;
            caller.answered().await;
            caller.wait(SECOND).await;
            for digit in "5#".chars() {
                caller.command(PhoneCommand::Press(digit, Keys::BesideAudio));
                caller.wait(2 * SECOND).await;
            }
            caller.until(6 * SECOND, |c| c.sent.len() == 250).await;
            caller.wait(SECOND).await;
            caller.hang_up().await;
            let heard = ai.until("the close", 5 * SECOND, |s| s.closed.is_some()).await;
            assert_eq!(heard.digits, "5#", "{version}");
            let talk: f64 = bridge.ended("talk_s").parse().expect("a number");
            let frames = heard.frames.len() as f64;
            assert!((talk * 50.0 - frames).abs() <= 3.0, "{version}: {frames} in {talk} s");
            // into a bridge, Asterisk passes no audio on while a key is held
            let numbers = heard.numbers(1);
            assert!(numbers.windows(2).all(|w| w[0] < w[1]), "{version}: out of order");
            assert!(numbers.len() >= 145, "{version}: {} of 250", numbers.len());
        }
    });
}

#[test]
fn a_complete_call_through_16() {
    block_on(a_call(16, 101, "ulaw"));
}

#[test]
fn a_complete_call_through_22() {
    block_on(a_call(22, 102, "ulaw"));
}

#[test]
fn a_complete_call_in_a_law() {
    block_on(async {
        a_call(16, 103, "alaw").await;
        a_call(22, 104, "alaw").await;
    });
}

/// Switching the mode in the configuration changes nothing for the AI.
#[test]
fn the_ai_receives_the_same_in_both_modes() {
    block_on(async {
        for (version, pbx, n) in [(16, Pbx::Pjsip16, 105), (22, Pbx::Pjsip22, 106)] {
            let mut stories = Vec::new();
            {
                let asterisk = pbx.start(n);
                let ai = Ai::start(Plan { say: 150, ..Plan::default() }).await;
                let _bridge = Bridge::registered(&pbx.setup(&asterisk, n, &ai.url));
                stories.push(whole_call(&asterisk, pbx.extension(), &ai).await);
            }
            let asterisk = start(version, n);
            let ai = Ai::start(Plan { say: 150, ..Plan::default() }).await;
            let _bridge = bridge(&config(&ai.url, "", ""));
            stories.push(whole_call(&asterisk, "8010", &ai).await);
            assert_eq!(stories[0].story, stories[1].story, "on {version}");
            assert!(stories[0].story.len() > 6, "{:?}", stories[0].story);
            assert_eq!((stories[0].closed, stories[1].closed), (Some(1000), Some(1000)));
            for key in ["from_number", "from_name"] {
                assert_eq!(stories[0].parameters[key], stories[1].parameters[key], "{key}");
            }
            assert!(stories[1].parameters["sip_call_id"].is_string());
        }
    });
}

/// The AI closes: the caller is hung up, or continues in the dialplan if configured.
#[test]
fn an_ai_that_closes_ends_the_call_or_sends_the_caller_back() {
    block_on(async {
        for (version, n) in [(16, 107), (22, 108)] {
            let asterisk = start(version, n);
            for word in ["hangup", "continue"] {
                let ai = Ai::start(Plan { close_after: Some(60), ..Plan::default() }).await;
                let tables = format!("[calls]\non_ai_close = \"{word}\"");
                let bridge = bridge(&config(&ai.url, "", &tables));
                let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 1, 0).await;
                caller.answered().await;
                if word == "hangup" {
                    assert!(caller.until(5 * SECOND, |c| c.ended.is_some()).await, "still up");
                    assert!(matches!(caller.ended, Some(CallEnd::Bye { .. })));
                    assert_eq!(asterisk.humans(), [""; 0]);
                } else {
                    assert!(caller.until(5 * SECOND, hears_the_tone).await, "no human");
                    assert_eq!(asterisk.humans(), ["stasis=SUCCESS reason=ai_hangup dial="]);
                    caller.hang_up().await;
                }
                assert_eq!(bridge.ended("reason"), "ai_hangup");
                assert_clean(&asterisk);
            }
        }
    });
}

/// The AI is unreachable before the call is answered, or lost in mid-call.
#[test]
fn without_an_ai_a_human_takes_the_call() {
    block_on(async {
        for (version, n) in [(16, 109), (22, 110)] {
            let asterisk = start(version, n);
            {
                let bridge = bridge(&config("ws://127.0.0.1:9", "", ""));
                let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 1, 0).await;
                assert!(caller.until(5 * SECOND, hears_the_tone).await, "no human");
                let took = caller.dialled.elapsed();
                println!("{version}: without an AI a human is heard after {took:?}");
                assert!(took < SECOND + SECOND / 4, "{took:?}");
                caller.hang_up().await;
                assert_eq!(bridge.ended("reason"), "ai_unreachable");
            }
            let ai = Ai::start(Plan { drop_after: Some(50), ..Plan::default() }).await;
            let bridge = bridge(&config(&ai.url, "", ""));
            let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 1, 0).await;
            caller.answered().await;
            assert!(caller.until(5 * SECOND, hears_the_tone).await, "no human");
            caller.hang_up().await;
            assert_eq!(bridge.ended("reason"), "ai_closed");
            let reasons = ["ai_unreachable", "ai_closed"];
            assert_eq!(
                asterisk.humans(),
                reasons.map(|r| format!("stasis=SUCCESS reason={r} dial="))
            );
            assert_clean(&asterisk);
        }
    });
}

/// No RTP arrives while the caller has the AI on hold.
#[test]
fn hold_does_not_count_as_lost_media() {
    block_on(async {
        for (version, n) in [(16, 111), (22, 112)] {
            let asterisk = start(version, n);
            let ai = Ai::start(Plan::default()).await;
            let bridge = bridge(&config(&ai.url, "", "[calls]\nmedia_timeout = \"2s\""));
            let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 1, 100).await;
            caller.answered().await;
            caller.until(6 * SECOND, |c| c.sent.len() >= 50).await;
            caller.talk(false);
            caller.wait(SECOND / 2).await;
            caller.command(PhoneCommand::Direction(Direction::SendOnly));
            caller.wait(4 * SECOND).await;
            caller.command(PhoneCommand::Direction(Direction::SendRecv));
            caller.wait(SECOND).await;
            caller.talk(true);
            caller.until(6 * SECOND, |c| c.sent.len() == 100).await;
            caller.wait(SECOND / 2).await;
            assert_eq!(caller.ended, None, "on {version}");
            caller.hang_up().await;
            let heard = ai.until("the close", 5 * SECOND, |s| s.closed.is_some()).await;
            assert_all(&heard.numbers(1), 100, "the AI");
            assert_eq!(bridge.ended("reason"), "caller_hangup");
            assert_clean(&asterisk);
        }
    });
}

/// The PBX redirects the caller in mid-call: the AI's part ends, the call does not.
#[test]
fn a_transferred_caller_is_left_alone() {
    block_on(async {
        for (version, n) in [(16, 113), (22, 114)] {
            let asterisk = start(version, n);
            let ai = Ai::start(Plan::default()).await;
            let bridge = bridge(&config(&ai.url, "", ""));
            let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 1, 0).await;
            caller.answered().await;
            ai.until("frames", 5 * SECOND, |s| s.frames.len() > 30).await;
            let channels = super::rest::channels(&asterisk);
            let channel =
                channels.iter().find(|id| !id.starts_with("trunkless-")).expect("the caller's");
            let name = asterisk.cli("core show channels concise");
            let name =
                name.lines().find(|l| l.starts_with("PJSIP/")).expect("the caller's channel");
            let name = name.split('!').next().expect("a name");
            asterisk.cli(&format!("channel redirect {name} humans,s,1"));
            assert!(caller.until(5 * SECOND, hears_the_tone).await, "{channel}: no human");
            assert_eq!(bridge.ended("reason"), "transferred");
            caller.wait(SECOND).await;
            assert_eq!(caller.ended, None, "the call continues");
            assert_eq!(super::rest::bridges(&asterisk), Vec::<String>::new());
            caller.hang_up().await;
            assert_clean(&asterisk);
        }
    });
}

/// Hang-ups at any moment of the set-up leave nothing behind, and one log line each.
#[test]
fn hang_ups_at_any_moment_leave_nothing_behind() {
    block_on(async {
        for (version, n, span_ms) in [(16, 115, 450), (22, 116, 60)] {
            let asterisk = start(version, n);
            let ai = Ai::start(Plan::default()).await;
            let bridge = bridge(&config(&ai.url, "", ""));
            let time = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
            let mut seed = u64::from(time.subsec_nanos());
            println!("seed {seed}");
            for _ in 0..10 {
                let calls = (0..10u8).map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let wait = Duration::from_micros((seed >> 33) % (span_ms * 1000));
                    let to = asterisk.sip_addr();
                    async move {
                        let mut caller = Caller::dial(CALLER, to, "8010", 1, 0).await;
                        caller.wait(wait).await;
                        caller.command(PhoneCommand::Hangup);
                        caller.until(5 * SECOND, |c| c.ended.is_some()).await
                    }
                });
                let all = futures_util::future::join_all(calls).await;
                assert!(all.into_iter().all(|ended| ended), "a call is still up");
            }
            assert_clean(&asterisk);
            let offered = bridge.lines("call offered").len();
            wait_lines(&bridge, "call ended", offered, 5 * SECOND);
            assert_eq!(bridge.lines("call ended").len(), offered);
            println!("{version}: {offered} of 100 calls reached the bridge");
            assert!(offered > 20, "the callers hang up too early: {offered}");
            assert!(!bridge.log().contains("panic"), "{}", bridge.log());
        }
    });
}
