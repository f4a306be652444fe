//! How calls end, whichever side ends them.

use std::time::Duration;

use trunkless::call::end::CallerFate;

use crate::bridge::Rig;
use crate::stream::{AGENT, Stream, What};
use crate::wav::write_prompt;

#[tokio::test]
async fn the_ai_gets_stop_and_close_1000_when_the_caller_hangs_up() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    stream.play_frames(0..100).await;
    stream.mark("unplayed").await;
    call.say(0..5).await;
    stream.hears(4).await;
    call.bye().await;
    stream.stopped().await;
    assert!(stream.marks().is_empty());
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    // no RTP is sent after the caller hung up
    while !call.media.is_quiet(Duration::from_millis(60)).await {}
}

#[tokio::test]
async fn the_caller_gets_bye_when_the_ai_closes() {
    for code in [1000, 1001, 3000, 4001, 4999] {
        let rig = Rig::new("").await;
        let (call, stream) = rig.call().await;
        stream.close(code).await;
        assert_eq!(call.hung_up().await, "Q.850;cause=16;text=\"ai_hangup\"");
        stream.ended().await;
        assert_eq!(rig.bridge.end().await, "ai_hangup");
    }
}

#[tokio::test]
async fn queued_audio_is_played_before_the_bye() {
    let rig = Rig::new("[calls]\ndrain_on_close = \"5s\"").await;
    let (call, stream) = rig.call().await;
    stream.play_frames(0..20).await;
    stream.close(1000).await;
    call.hung_up().await;
    assert_eq!(call.media.numbered(AGENT, 20).await, Vec::from_iter(0..20));
    assert_eq!(rig.bridge.end().await, "ai_hangup");
}

#[tokio::test]
async fn queued_audio_is_played_no_longer_than_drain_on_close() {
    let rig = Rig::new("[calls]\ndrain_on_close = \"100ms\"").await;
    let (call, stream) = rig.call().await;
    stream.play_frames(0..500).await;
    stream.close(1000).await;
    call.hung_up().await;
    assert!(call.media.numbered(AGENT, 1).await.len() < 100);
}

/// Ways in which an AI may fail, and the Reason of the BYE for each.
const FAILURES: [(&str, &str); 7] = [
    ("reset", "38;text=\"ai_closed\""),
    ("end without a close frame", "38;text=\"ai_closed\""),
    ("close 1011", "38;text=\"ai_closed\""),
    ("close 1006", "38;text=\"ai_closed\""),
    ("reserved opcode", "111;text=\"ai_protocol\""),
    ("masked frame", "111;text=\"ai_protocol\""),
    ("not UTF-8", "111;text=\"ai_protocol\""),
];

async fn fail(stream: Stream, how: &str) {
    match how {
        "reset" => return stream.reset().await,
        "end without a close frame" => stream.hang_up(),
        "close 1011" => stream.close(1011).await,
        // not allowed on the wire, but servers send it
        "close 1006" => stream.write_raw(&[0x88, 2, 0x03, 0xee]),
        "reserved opcode" => stream.write_raw(b"\xffgarbage"),
        "masked frame" => stream.write_raw(&[0x81, 0x82, 1, 2, 3, 4, 5, 6]),
        "not UTF-8" => stream.write_raw(&[0x81, 2, 0xc3, 0x28]),
        _ => unreachable!("{how}"),
    }
    let told = stream.told();
    assert!(!told.iter().any(|t| t.what == What::Stop), "{how}");
}

#[tokio::test]
async fn the_caller_gets_bye_when_the_ai_fails() {
    let rig = Rig::new("").await;
    for (how, reason) in FAILURES {
        let (call, stream) = rig.call().await;
        stream.play_frames(0..100).await;
        fail(stream, how).await;
        assert_eq!(call.hung_up().await, format!("Q.850;cause={reason}"), "{how}");
        let record = rig.bridge.record().await;
        assert!(record.reason.row().caller == CallerFate::AfterAiFailure, "{how}");
    }
}

#[tokio::test]
async fn the_prompt_is_played_before_the_bye_when_the_ai_fails() {
    let (directory, prompt) = write_prompt(10);
    let rig = Rig::new(&format!("[calls]\nprompt = {prompt:?}")).await;
    for (how, reason) in [FAILURES[0], FAILURES[2], FAILURES[4]] {
        let (call, stream) = rig.call().await;
        stream.play_frames(0..100).await;
        call.media.numbered(AGENT, 5).await;
        fail(stream, how).await;
        assert_eq!(call.hung_up().await, format!("Q.850;cause={reason}"), "{how}");
        let heard = call.media.numbered(AGENT, 10).await;
        // the prompt's frames are numbered from 1000 on; no AI audio follows them
        let (ai, rest) = heard.split_at(heard.len() - 10);
        assert_eq!(rest, Vec::from_iter(1000..1010), "{how}");
        assert_eq!(ai, Vec::from_iter(0..ai.len() as u32), "{how}");
    }
    drop(directory);
}

#[tokio::test]
async fn a_second_call_is_not_disturbed_by_the_end_of_the_first() {
    let rig = Rig::new("").await;
    let (mut first, first_stream) = rig.call().await;
    let (mut second, second_stream) = rig.call().await;
    assert_ne!(first_stream.sid, second_stream.sid);
    assert_ne!(first_stream.call_sid, second_stream.call_sid);
    assert_eq!(first_stream.account_sid, second_stream.account_sid);
    first_stream.play_frames(0..10).await;
    second_stream.play_frames(500..520).await;
    tokio::join!(first.say(0..10), second.say(700..720));
    first.bye().await;
    first_stream.stopped().await;
    assert_eq!(second_stream.heard(20).await, Vec::from_iter(700..720));
    assert_eq!(second.media.numbered(AGENT, 20).await, Vec::from_iter(500..520));
    second.bye().await;
    second_stream.stopped().await;
}

#[tokio::test]
async fn an_ai_that_never_closes_does_not_hold_up_the_next_call() {
    let rig = Rig::new("[calls]\nmax = 1").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    // accepted by hand, so that the close frame is not answered
    let mut handshake = rig.ai.handshake().await;
    handshake.accept().await;
    call.answered().await;
    call.bye().await;
    let (mut next, stream) = rig.call().await;
    next.bye().await;
    stream.stopped().await;
}
