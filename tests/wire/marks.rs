//! Marks and clear: how the AI learns what the caller has heard.

use std::time::Instant;

use trunkless::peer::pattern;

use crate::bridge::Rig;
use crate::call::Call;
use crate::log::steady;
use crate::media::Heard;
use crate::stream::AGENT;

/// The number of speech frames that had been received at `at`.
fn heard_at(call: &Call, at: Instant) -> usize {
    let speech = |h: &&Heard| h.at <= at && !h.is_silence();
    call.media.packets().iter().filter(speech).count()
}

#[tokio::test]
async fn marks_come_back_when_the_audio_before_them_is_played() {
    steady("marks within one frame", async || {
        let rig = Rig::new("").await;
        let (call, stream) = rig.call().await;
        for (name, frames) in [("five", 0..5), ("eight", 5..8), ("all", 8..20)] {
            stream.play_frames(frames).await;
            stream.mark(name).await;
        }
        let mut late = Vec::new();
        for (name, frames) in [("five", 5), ("eight", 8), ("all", 20)] {
            let at = stream.marked(name).await;
            call.media.numbered(AGENT, frames).await;
            // the mark comes back when its frame has been played, 20 ms after the frame was sent
            let packets = call.media.packets();
            let sent = packets.iter().filter(|h| !h.is_silence()).nth(frames - 1).unwrap().at;
            let after = at.saturating_duration_since(sent).as_millis();
            if !(15..=25).contains(&after) {
                late.push((name, after));
            }
        }
        assert_eq!(stream.marks(), ["five", "eight", "all"]);
        if late.is_empty() { Ok(()) } else { Err(format!("{late:?}")) }
    })
    .await;
}

#[tokio::test]
async fn marks_come_back_at_once_when_nothing_is_queued() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    stream.mark("a").await;
    stream.mark("b \"quoted\" \u{e9}\n").await;
    stream.mark("").await;
    stream.marked("").await;
    assert_eq!(stream.marks(), ["a", "b \"quoted\" \u{e9}\n", ""]);
    assert_eq!(heard_at(&call, Instant::now()), 0);
}

#[tokio::test]
async fn one_mark_per_frame_keeps_the_order() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    for index in 0..20 {
        stream.play_frames(index..index + 1).await;
        stream.mark(&index.to_string()).await;
    }
    stream.marked("19").await;
    let names: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    assert_eq!(stream.marks(), names);
    assert_eq!(call.media.numbered(AGENT, 20).await, Vec::from_iter(0..20));
}

#[tokio::test]
async fn clear_returns_all_marks_and_silences_the_next_packet() {
    steady("clear", async || {
        let rig = Rig::new("").await;
        let (call, stream) = rig.call().await;
        stream.play_frames(0..100).await;
        stream.mark("never played").await;
        stream.play_frames(100..110).await;
        stream.mark("nor this").await;
        call.media.numbered(AGENT, 10).await;
        let cleared = Instant::now();
        stream.clear().await;
        stream.play_frames(200..205).await;
        stream.marked("nor this").await;
        assert_eq!(stream.marks(), ["never played", "nor this"]);
        let last = |h: &Heard| pattern::read(&h.payload) == Some((AGENT, 204));
        call.media.until("audio after the clear", last).await;
        let heard = call.media.numbered(AGENT, 1).await;
        let late = heard.len() - heard_at(&call, cleared) - 5;
        let old = heard.iter().filter(|i| **i < 200).count();
        // in order and without gaps, then the audio queued after the clear
        assert_eq!(heard[..old], Vec::from_iter(0..old as u32));
        assert_eq!(heard[old..], [200, 201, 202, 203, 204]);
        if late <= 1 { Ok(()) } else { Err(format!("{late} frames after the clear")) }
    })
    .await;
}

#[tokio::test]
async fn playout_continues_normally_after_a_clear() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    for round in 0..5 {
        stream.play_frames(0..50).await;
        stream.mark(&round.to_string()).await;
        stream.clear().await;
        stream.clear().await;
    }
    stream.marked("4").await;
    let before = call.media.packets().iter().filter(|h| !h.is_silence()).count();
    stream.play_frames(1000..1005).await;
    stream.mark("end").await;
    stream.marked("end").await;
    let heard = call.media.numbered(AGENT, before + 5).await;
    assert_eq!(heard[heard.len() - 5..], [1000, 1001, 1002, 1003, 1004]);
    assert_eq!(stream.marks(), ["0", "1", "2", "3", "4", "end"]);
    call.bye().await;
    stream.stopped().await;
}
