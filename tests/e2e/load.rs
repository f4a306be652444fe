//! Fifty calls at once, each with its own numbered audio: nothing is lost or swapped.

use std::time::Duration;

use trunkless::peer::pattern;

use crate::ai::{Ai, Plan};
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::{Pbx, assert_all, assert_no_channels, block_on};

const SECOND: Duration = Duration::from_secs(1);
const CALLS: u32 = 50;
const FRAMES: u32 = 250;

async fn fifty(pbx: Pbx, n: u8) {
    let asterisk = pbx.start(n);
    let ai = Ai::start(Plan { say: FRAMES, call: None, ..Plan::default() }).await;
    let bridge = Bridge::registered(&pbx.setup(&asterisk, n, &ai.url));
    let mut callers = Vec::new();
    for call in 1..=CALLS {
        let from = format!("127.0.9.{call}");
        callers.push(Caller::dial(&from, asterisk.sip_addr(), pbx.extension(), call, FRAMES).await);
    }
    for caller in &mut callers {
        caller.answered().await;
    }
    for (caller, call) in callers.iter_mut().zip(1..) {
        let all = |c: &Caller| c.sent.len() == 250 && c.numbers(call).len() == 250;
        caller.until(15 * SECOND, all).await;
    }
    callers[0].wait(SECOND / 2).await;
    for caller in &mut callers {
        caller.hang_up().await;
    }
    for (caller, call) in callers.iter().zip(1..) {
        assert_all(&caller.numbers(call), FRAMES, &format!("caller {call}"));
        let foreign = caller.heard.iter().filter_map(|h| pattern::read(&h.samples));
        assert_eq!(
            foreign.filter(|(c, _)| *c != call).count(),
            0,
            "caller {call} hears another call"
        );
    }
    assert_no_channels(&asterisk);
    bridge.wait_for("call ended", SECOND);
    let streams = ai.streams();
    assert_eq!(streams.len(), CALLS as usize);
    let mut seen = Vec::new();
    for stream in &streams {
        let first = stream.frames.iter().find_map(|f| pattern::read(f));
        let (call, _) = first.expect("numbered audio");
        assert_all(&stream.numbers(call), FRAMES, &format!("the AI of call {call}"));
        let read = stream.frames.iter().filter_map(|f| pattern::read(f));
        assert_eq!(read.filter(|(c, _)| *c != call).count(), 0, "the AI hears another call");
        seen.push(call);
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=CALLS).collect::<Vec<_>>());
}

#[test]
fn fifty_calls_through_pjsip_22() {
    block_on(fifty(Pbx::Pjsip22, 62));
}

#[test]
fn fifty_calls_through_chan_sip_16() {
    block_on(fifty(Pbx::Sip16, 63));
}

/// A foreign phone and many calls per second: sipp's built-in scenario, 500 calls.
#[test]
fn five_hundred_calls_of_sipp_succeed() {
    block_on(async {
        let pbx = Pbx::Pjsip22;
        let asterisk = pbx.start(65);
        let ai = Ai::start(Plan::default()).await;
        let bridge = Bridge::registered(&pbx.setup(&asterisk, 65, &ai.url));
        let directory = tempfile::tempdir().expect("a temporary directory");
        let target = asterisk.sip_addr().to_string();
        let status = std::process::Command::new("sipp")
            .args(["-sn", "uac", "-i", "127.0.9.1", "-s", pbx.extension(), &target])
            .args(["-m", "500", "-r", "50", "-d", "1000", "-nostdin", "-timeout", "60s"])
            .current_dir(directory.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .expect("sipp runs; tests/run.sh installs it");
        assert_eq!(status.code(), Some(0), "sipp counts calls that failed");
        assert_no_channels(&asterisk);
        let begin = std::time::Instant::now();
        let ended = || bridge.lines("call ended");
        while ended().len() < 500 {
            assert!(begin.elapsed() < 5 * SECOND, "{} of 500 calls have ended", ended().len());
            std::thread::sleep(SECOND / 20);
        }
        assert!(ended().iter().all(|l| l.contains("reason=\"caller_hangup\"")));
    });
}
