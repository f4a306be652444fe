//! Audio that arrives late, in bursts, beside key presses or under new numbers: every word arrives.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;
use tokio::task::JoinSet;
use trunkless::media::frame::{SILENCE, Samples};
use trunkless::peer::pattern;

use crate::bridge::Rig;
use crate::call::{CALLER, Call, sdp};
use crate::log::pass;
use crate::stream::{AGENT, Stream, agent_frames};

fn packets(call: &mut Call, frames: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    frames.map(|index| call.talker.packet(&pattern::frame(CALLER, index))).collect()
}

/// Sends `count` frames of silence, one every 20 ms.
async fn quiet(call: &mut Call, count: usize) {
    let silence: Samples = [SILENCE; 160];
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..count {
        ticks.tick().await;
        let packet = call.talker.packet(&silence);
        call.send_rtp(&packet).await;
    }
}

/// Sends frames in bursts: `size` packets at once, every `size` · 20 ms.
async fn bursts(call: &mut Call, frames: std::ops::Range<u32>, size: usize) {
    let packets = packets(call, frames);
    let mut ticks = tokio::time::interval(Duration::from_millis(20 * size as u64));
    for burst in packets.chunks(size) {
        ticks.tick().await;
        for packet in burst {
            call.send_rtp(packet).await;
        }
    }
}

/// Asserts that the AI's timeline has as many frames as the time that has passed since `start`,
/// to within `tolerance` frames: one for the timeline, and what this machine adds.
fn assert_real_time(stream: &Stream, answered: tokio::time::Instant, tolerance: i64) {
    let frames = stream.frames().len() as i64;
    let passed = answered.elapsed().as_millis() as i64 / 20;
    assert!((frames - passed).abs() <= tolerance, "{frames} frames in {passed} times 20 ms");
}

#[tokio::test]
async fn bursts_and_stalls_lose_no_word_and_real_time_returns_in_the_pause() {
    let rig = Rig::new("").await;
    let mut calls = Vec::new();
    for (size, stall_ms) in [(2, 0), (6, 0), (10, 0), (1, 150), (1, 400), (1, 900)] {
        let (call, stream) = rig.call().await;
        calls.push((call, stream, tokio::time::Instant::now(), size, stall_ms));
    }
    type Plan = (Call, Stream, tokio::time::Instant, usize, u64);
    let run = |plan: Plan| async move {
        let (mut call, stream, answered, size, stall_ms) = plan;
        call.say(0..15).await;
        bursts(&mut call, 15..75, size).await;
        if stall_ms > 0 {
            // the packets of a stall arrive at its end
            let late = packets(&mut call, 75..75 + stall_ms as u32 / 20);
            pass(Duration::from_millis(stall_ms)).await;
            for packet in &late {
                call.send_rtp(packet).await;
            }
        }
        quiet(&mut call, 55).await;
        let sent = 75 + stall_ms as u32 / 20;
        let what = format!("bursts of {size}, a stall of {stall_ms} ms");
        assert_eq!(stream.heard(sent as usize).await, Vec::from_iter(0..sent), "{what}");
        assert_real_time(&stream, answered, 4);
        let (frames, positions) = (stream.frames(), stream.positions());
        assert!(frames.iter().zip(0..).all(|((t_ms, _), n)| *t_ms == n * 20), "{what}");
        assert_eq!(positions.len(), sent as usize);
        call.bye().await;
        stream.stopped().await;
    };
    let mut running: JoinSet<()> = calls.into_iter().map(run).collect();
    while let Some(result) = running.join_next().await {
        result.expect("a call failed");
    }
}

#[tokio::test]
async fn late_audio_is_dropped_if_so_configured() {
    let rig = Rig::new("[media]\nlate_audio = \"drop\"").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..10).await;
    let late = packets(&mut call, 10..60);
    pass(Duration::from_millis(1000)).await;
    for packet in &late {
        call.send_rtp(packet).await;
    }
    quiet(&mut call, 20).await;
    call.bye().await;
    stream.stopped().await;
    let received = rig.bridge.record().await.summary.received;
    assert!((40..=46).contains(&received.late()), "{received:?}");
}

/// Phones and gateways that keep sending audio while a key is held.
#[tokio::test]
async fn keys_beside_audio_add_no_time_and_lose_no_frame() {
    let rig = Rig::new("").await;
    for own_ssrc in [false, true] {
        let (mut call, stream) = rig.call().await;
        let answered = tokio::time::Instant::now();
        let mut keys = call.talker.clone();
        keys.ssrc = 4711;
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let mut press = std::collections::VecDeque::new();
        for index in 0..150 {
            ticks.tick().await;
            if index % 30 == 10 {
                let at = call.talker.timestamp;
                let from = if own_ssrc { &mut keys } else { &mut call.talker };
                from.timestamp = at;
                press = from.press((index / 30) as u8).into();
                // the audio's timestamps do not stand still for the key
                from.timestamp = at;
            }
            // the sequence numbers of a press follow each other, as it is sent at once
            while let Some(packet) = press.pop_front() {
                call.send_rtp(&packet).await;
            }
            let packet = call.talker.packet(&pattern::frame(CALLER, index));
            call.send_rtp(&packet).await;
        }
        stream.pressed("01234").await;
        assert_eq!(stream.heard(150).await, Vec::from_iter(0..150), "own SSRC: {own_ssrc}");
        assert_real_time(&stream, answered, 3);
        call.bye().await;
        stream.stopped().await;
    }
}

#[tokio::test]
async fn restarted_sequence_numbers_lose_no_word() {
    let rig = Rig::new("").await;
    for (back, timestamp_too) in [(30, false), (300, false), (5000, true), (20_000, false)] {
        let (mut call, stream) = rig.call().await;
        call.talker.sequence = 10_000;
        call.say(0..40).await;
        call.talker.sequence = call.talker.sequence.wrapping_sub(back);
        if timestamp_too {
            call.talker.timestamp = 0;
        }
        call.say(40..80).await;
        assert_eq!(stream.heard(80).await, Vec::from_iter(0..80), "{back} back");
        call.bye().await;
        stream.stopped().await;
    }
}

#[tokio::test]
async fn the_law_that_was_not_agreed_on_is_heard() {
    let rig = Rig::new("").await;
    for (agreed, sent) in [("0 8 101", 8), ("8 101", 0)] {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.send("INVITE", "", &sdp(call.media.address(), agreed, "sendrecv")).await;
        let stream = rig.ai.stream().await;
        call.answered().await;
        call.talker.payload_type = sent;
        call.say(0..20).await;
        if sent == 0 {
            // mu-law passes through unchanged
            assert_eq!(stream.heard(20).await, Vec::from_iter(0..20));
        } else {
            stream.listen(500).await;
            let loud = stream.frames().iter().filter(|(_, s)| *s != [SILENCE; 160]).count();
            assert!(loud >= 20, "{loud} frames that are not silence");
        }
        call.bye().await;
        stream.stopped().await;
    }
}

/// An AI may greet as soon as its stream is open, before the caller is connected.
#[tokio::test]
async fn audio_and_marks_from_before_start_are_played() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let media = json!({"payload": BASE64.encode(agent_frames(0..10))});
    let greeting = [
        json!({"event": "media", "media": media}).to_string(),
        json!({"event": "mark", "mark": {"name": "greeting"}}).to_string(),
    ];
    let opened = rig.ai.handshake().await.open_saying(&greeting).await;
    call.answered().await;
    let stream = opened.started().await;
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    stream.marked("greeting").await;
}

/// A mark without audio is due at once, but cannot be returned before `start`.
#[tokio::test]
async fn a_mark_alone_from_before_start_holds_nothing_up() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let mark = [json!({"event": "mark", "mark": {"name": "ready"}}).to_string()];
    let opened = rig.ai.handshake().await.open_saying(&mark).await;
    call.answered().await;
    opened.started().await.marked("ready").await;
}
