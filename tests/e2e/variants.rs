//! Variants of the extension: digest algorithms, codecs, timers, direct media, TCP, headers.

use std::time::Duration;

use trunkless::sip::sdp::Codec;

use crate::ai::{Ai, Plan};
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::fixture::Lab;
use crate::{Pbx, assert_all, block_on};

const SECOND: Duration = Duration::from_secs(1);

/// Makes a short call to one variant and checks the audio both ways; returns what the AI received.
async fn short_call(
    lab: &Lab,
    username: &'static str,
    extension: &str,
    from: &str,
    sip_keys: &str,
) -> (crate::ai::Stream, Bridge) {
    let ai = Ai::start(Plan { say: 50, ..Plan::default() }).await;
    let mut setup = lab.setup(&ai.url);
    setup.username = username;
    setup.sip_keys = sip_keys.to_owned();
    let bridge = Bridge::registered(&setup);
    let mut caller = Caller::dial(from, lab.asterisk.sip_addr(), extension, 1, 50).await;
    caller.answered().await;
    caller.until(4 * SECOND, |c| c.sent.len() == 50 && c.numbers(1000).len() == 50).await;
    caller.wait(SECOND / 5).await;
    caller.hang_up().await;
    let heard = ai.until("the close", 5 * SECOND, |s| s.closed.is_some()).await;
    assert_all(&heard.numbers(1), 50, username);
    assert_all(&caller.numbers(1000), 50, "the caller");
    (heard, bridge)
}

#[test]
fn registration_works_with_sha_256_only() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        short_call(&lab, "ai-sha256", "v-ai-sha256", "127.0.9.1", "").await;
    });
}

#[test]
fn calls_work_over_tcp_and_with_100rel() {
    block_on(async {
        for pbx in [Pbx::Pjsip16, Pbx::Pjsip22] {
            let lab = Lab::start(pbx);
            let tcp = "transport = \"tcp\"";
            short_call(&lab, "ai-tcp", "v-ai-tcp", "127.0.9.1", tcp).await;
            short_call(&lab, "ai-100rel", "v-ai-100rel", "127.0.9.1", "").await;
        }
    });
}

/// With direct media, RTP bypasses Asterisk and comes from the address in a re-INVITE.
#[test]
fn direct_media_loses_no_audio() {
    block_on(async {
        for pbx in [Pbx::Pjsip16, Pbx::Pjsip22] {
            let lab = Lab::start(pbx);
            let (_, bridge) = short_call(&lab, "ai-direct", "v-ai-direct", "127.0.8.1", "").await;
            assert_eq!(bridge.ended("lost"), "0");
        }
    });
}

/// A silent AI must not look like a dead leg: the PBX has `rtp_timeout = 5`.
#[test]
fn silence_is_sent_while_the_ai_is_quiet() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        let ai = Ai::start(Plan::default()).await;
        let mut setup = lab.setup(&ai.url);
        setup.username = "ai-rtptimeout";
        let _bridge = Bridge::registered(&setup);
        let mut caller = lab.dial_extension("v-ai-rtptimeout", 0).await;
        caller.answered().await;
        caller.wait(8 * SECOND).await;
        assert_eq!(caller.ended, None);
        caller.hang_up().await;
    });
}

#[test]
fn a_law_is_converted_to_mu_law_and_back() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        let ai = Ai::start(Plan { say: 50, ..Plan::default() }).await;
        let mut setup = lab.setup(&ai.url);
        setup.username = "ai-alaw";
        let _bridge = Bridge::registered(&setup);
        let codecs = vec![Codec::Pcma];
        let pbx = lab.asterisk.sip_addr();
        let mut caller = Caller::dial_with("127.0.9.1", pbx, "v-ai-alaw", 1, 50, codecs).await;
        caller.answered().await;
        caller.wait(2 * SECOND).await;
        caller.hang_up().await;
        let heard = ai.until("the close", 5 * SECOND, |s| s.closed.is_some()).await;
        // A-law keeps all but the lowest steps of mu-law, so the loudness of each frame is compared
        let loud = |frame: &[u8]| trunkless::media::frame::level_dbfs(frame) > -20.0;
        let ai_heard = heard.frames.iter().filter(|f| loud(f)).count();
        let caller_heard = caller.heard.iter().filter(|h| loud(&h.samples)).count();
        assert_eq!((ai_heard, caller_heard), (50, 50));
    });
}

#[test]
fn headers_become_parameters() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        let (heard, _) = short_call(&lab, "ai", "730", "127.0.9.1", "").await;
        assert_eq!(heard.parameters["X-Lead-Id"], "42");
        assert_eq!(heard.parameters["X-Campaign"], "DEMO");
        assert_eq!(heard.parameters["from_name"], "Lead 42");
        assert!(heard.parameters["sip_call_id"].as_str().is_some_and(|id| !id.is_empty()));
    });
}

/// Calls outlast a session interval of 90 s: chan_pjsip refreshes with UPDATE, chan_sip with
/// re-INVITE.
#[test]
fn session_timers_are_refreshed() {
    block_on(async {
        let mut calls = Vec::new();
        for (pbx, username, extension) in [
            (Pbx::Pjsip16, "ai-timers", "v-ai-timers"),
            (Pbx::Sip16, "cc200", "711"),
            (Pbx::Pjsip22, "ai-timers", "v-ai-timers"),
        ] {
            let lab = Lab::start(pbx);
            let ai = Ai::start(Plan { say: 1, ..Plan::default() }).await;
            let mut setup = lab.setup(&ai.url);
            setup.username = username;
            let bridge = Bridge::registered(&setup);
            let mut caller = lab.dial_extension(extension, 0).await;
            caller.answered().await;
            calls.push((caller, bridge, ai, lab));
        }
        let begin = tokio::time::Instant::now();
        for (caller, ..) in &mut calls {
            let left =
                (begin + 100 * SECOND).saturating_duration_since(tokio::time::Instant::now());
            caller.wait(left).await;
            assert_eq!(caller.ended, None);
        }
        for (caller, bridge, ..) in &mut calls {
            caller.hang_up().await;
            assert_eq!(bridge.ended("reason"), "caller_hangup");
        }
    });
}

/// The test caller as a user runs it: an extension with a password, audio both ways.
#[test]
fn the_test_caller_authenticates_and_records() {
    let lab = Lab::start(Pbx::Pjsip22);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (play, record) = (directory.path().join("a.ulaw"), directory.path().join("b.wav"));
    let audio: Vec<u8> = (0..200).flat_map(|n| trunkless::peer::pattern::frame(3, n)).collect();
    std::fs::write(&play, &audio).expect("a file");
    let call = |password: &str| {
        let uri = format!("sip:600@{}", lab.asterisk.sip_addr());
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_trunkless"))
            .args(["call", &uri, "--user", "phone1", "--password-env", "PW", "--seconds", "3"])
            .args(["--local", "127.0.66.2", "--play"])
            .arg(&play)
            .arg("--record")
            .arg(&record)
            .env("PW", password)
            .output()
            .expect("trunkless runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = call("phonesecret");
    assert_eq!(code, Some(0), "{text}");
    let heard = trunkless::record::wav::read(&std::fs::read(&record).expect("a recording"));
    let heard = heard.expect("a WAV").remove(0);
    let back = heard.chunks(160).filter(|f| trunkless::peer::pattern::read(f).is_some()).count();
    assert!(back > 100, "only {back} frames came back: {text}");
    let (code, text) = call("wrong");
    assert_eq!(code, Some(3));
    assert!(text.contains("refused: 401"), "{text}");
}
