//! Registration through crashes and refusals, the dialplan's fallbacks, and shutdown.

use std::time::{Duration, Instant};

use trunkless::sip::agent::CallEnd;

use crate::ai::{Ai, Plan};
use crate::bridge::Bridge;
use crate::fixture::Lab;
use crate::{Pbx, assert_no_channels, block_on};

const SECOND: Duration = Duration::from_secs(1);

/// Calls repeatedly until a call is answered; returns the time since `since`.
async fn first_answer(lab: &Lab, since: Instant) -> Duration {
    while since.elapsed() < 15 * SECOND {
        let mut caller = lab.dial(0).await;
        caller.until(SECOND, |c| c.answered.is_some() || c.ended.is_some()).await;
        if caller.answered.is_some() {
            let took = since.elapsed();
            caller.hang_up().await;
            return took;
        }
        caller.wait(SECOND / 10).await;
    }
    panic!("{:?}: no call was answered within 15 s of the restart", lab.pbx);
}

/// Asterisk crashes and returns, with and without its stored registrations, at once and after 5 s.
#[test]
fn calls_are_answered_within_three_seconds_of_a_restart() {
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Lab::start(pbx);
            let ai = Ai::start(Plan::default()).await;
            let _bridge = lab.bridge(&ai);
            for (wipe, away) in [(false, 0), (true, 0), (false, 5), (true, 5)] {
                // astdb is written about once a second
                tokio::time::sleep(SECOND * 3 / 2).await;
                lab.asterisk.kill();
                tokio::time::sleep(away * SECOND).await;
                lab.asterisk.again(wipe);
                let took = first_answer(&lab, Instant::now()).await;
                println!("{pbx:?}, wiped {wipe}, away {away} s: answered after {took:?}");
                assert!(took < 3 * SECOND, "{pbx:?}, wiped {wipe}, away {away} s: {took:?}");
            }
        }
    });
}

#[test]
fn a_wrong_password_is_logged_once_and_retried_slowly() {
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Lab::start(pbx);
            let mut setup = lab.setup("ws://127.0.0.1:9");
            setup.password = "wrong";
            let bridge = Bridge::start(&setup);
            bridge.wait_for("registration refused", 5 * SECOND);
            tokio::time::sleep(5 * SECOND).await;
            let lines = bridge.lines("WARN");
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains("retry_s=60"), "{lines:?}");
            assert!(!bridge.log().contains("wrong\""), "the password is not in the log");
        }
    });
}

/// The AI is unreachable: the dialplan continues at its next line.
#[test]
fn without_an_ai_the_dialplan_continues() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        let bridge = Bridge::registered(&lab.setup("ws://127.0.0.1:9"));
        let begin = Instant::now();
        let mut caller = lab.dial_extension("790", 0).await;
        caller.answered().await;
        assert!(begin.elapsed() < 3 * SECOND);
        caller.until(3 * SECOND, |c| c.heard.len() > 50).await;
        let tone = |h: &trunkless::peer::phone::Heard| h.samples.iter().any(|s| *s != 0xff);
        assert!(caller.heard.iter().any(tone), "the fallback is heard");
        caller.hang_up().await;
        assert!(
            lab.asterisk.dials().contains(&"CONGESTION 34".to_owned()),
            "{:?}",
            lab.asterisk.dials()
        );
        assert_eq!(bridge.ended("reason"), "ai_unreachable");
    });
}

/// The AI fails in mid-call: the caller gets a BYE, never dead air.
#[test]
fn an_ai_that_fails_ends_the_call() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        let ai = Ai::start(Plan { drop_after: Some(50), ..Plan::default() }).await;
        let bridge = lab.bridge(&ai);
        let mut caller = lab.dial_extension("700", 0).await;
        caller.answered().await;
        assert!(caller.until(4 * SECOND, |c| c.ended.is_some()).await);
        assert!(matches!(caller.ended, Some(CallEnd::Bye { .. })), "{:?}", caller.ended);
        assert_eq!(bridge.ended("reason"), "ai_closed");
        assert_no_channels(&lab.asterisk);
    });
}

/// On SIGTERM the bridge unregisters at once, live calls may finish, and the exit code is 0.
#[test]
fn sigterm_unregisters_and_drains() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        let ai = Ai::start(Plan::default()).await;
        let mut bridge = lab.bridge(&ai);
        let mut caller = lab.dial_extension("700", 0).await;
        caller.answered().await;
        let ended = std::thread::spawn(move || {
            let code = bridge.terminate(10 * SECOND);
            (code, bridge)
        });
        caller.wait(SECOND).await;
        let contacts = lab.asterisk.cli("pjsip show contacts");
        assert!(!contacts.contains("sip:ai@"), "{contacts}");
        assert_eq!(caller.ended, None, "the call continues");
        caller.hang_up().await;
        let (code, bridge) = ended.join().expect("the bridge ends");
        assert_eq!(code, 0);
        assert_eq!(bridge.ended("reason"), "caller_hangup");
    });
}

/// Asterisk is killed in mid-call: the call ends with the reason `pbx_lost`.
#[test]
fn a_killed_pbx_ends_its_calls() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        let ai = Ai::start(Plan::default()).await;
        let bridge = lab.bridge(&ai);
        let mut caller = lab.dial_extension("700", 0).await;
        caller.answered().await;
        caller.wait(SECOND).await;
        lab.asterisk.kill();
        bridge.wait_for("call ended", 6 * SECOND);
        assert_eq!(bridge.ended("reason"), "pbx_lost");
        ai.until("the close", 5 * SECOND, |s| s.closed == Some(1000)).await;
    });
}
