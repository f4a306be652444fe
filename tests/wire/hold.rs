//! re-INVITEs: hold, resume, and a new media address.

use std::time::Duration;

use crate::bridge::Rig;
use crate::call::{media_address, sdp};
use crate::media::{Media, assert_continuous, indices};
use crate::stream::AGENT;

#[tokio::test]
async fn hold_stops_audio_and_resume_restores_it() {
    let rig = Rig::new("").await;
    for direction in ["sendonly", "inactive"] {
        let (mut call, stream) = rig.call().await;
        call.say(0..10).await;
        stream.hears(9).await;
        let answer = call.reinvite("", &sdp(call.media.address(), "0 8 101", direction)).await;
        let expected = if direction == "sendonly" { "a=recvonly" } else { "a=inactive" };
        assert!(String::from_utf8(answer.body).unwrap().contains(expected));
        // packets already on their way may still arrive; then the stream is quiet
        while !call.media.is_quiet(Duration::from_millis(80)).await {}
        let before = stream.frames().len();
        stream.listen(200).await;
        assert!(stream.frames()[before..].iter().all(|(_, s)| *s == [0xff; 160]));
        let heard_before = call.media.packets().len();
        call.reinvite("", &sdp(call.media.address(), "0 8 101", "sendrecv")).await;
        call.talker.marker = true;
        call.say(10..20).await;
        assert_eq!(stream.heard(20).await, Vec::from_iter(0..20));
        // the bridge's own clock kept running while nothing was sent
        call.media.next().await;
        let packets = call.media.packets();
        let [before, after] = [&packets[heard_before - 1], &packets[heard_before]];
        assert!(after.marker && !before.marker, "a step in the timestamps has the marker");
        assert_eq!((after.ssrc, after.sequence), (before.ssrc, before.sequence.wrapping_add(1)));
        let passed = (after.at - before.at).as_millis() as i64;
        let stated = i64::from(after.timestamp.wrapping_sub(before.timestamp)) / 8;
        assert!((passed - stated).abs() < 150, "{passed} ms, by the timestamps {stated} ms");
        call.bye().await;
        stream.stopped().await;
        assert_eq!(rig.bridge.record().await.summary.received.sequence.lost, 0);
    }
}

#[tokio::test]
async fn a_connection_address_of_zero_means_hold() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let address = call.media.address();
    let held = sdp(address, "0 101", "sendrecv")
        .replace(&format!("c=IN IP4 {}", address.ip()), "c=IN IP4 0.0.0.0");
    let answer = call.reinvite("", &held).await;
    assert!(String::from_utf8(answer.body).unwrap().contains("a=inactive"));
    while !call.media.is_quiet(Duration::from_millis(80)).await {}
    call.reinvite("", &sdp(address, "0 101", "sendrecv")).await;
    call.media.next().await;
    call.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn ai_audio_on_hold_is_not_sent_but_marks_come_back() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.reinvite("", &sdp(call.media.address(), "0", "inactive")).await;
    while !call.media.is_quiet(Duration::from_millis(80)).await {}
    stream.play_frames(0..5).await;
    stream.mark("played on hold").await;
    stream.marked("played on hold").await;
    assert!(indices(&call.media.packets(), AGENT).is_empty());
}

#[tokio::test]
async fn media_moves_to_another_address_and_back() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..5).await;
    // direct media: the far end's address, not the PBX's
    let far = Media::open(rig.net.stranger()).await;
    call.reinvite("", &sdp(far.address(), "0 101", "sendrecv")).await;
    far.next().await;
    stream.play_frames(0..5).await;
    assert_eq!(far.numbered(AGENT, 5).await, [0, 1, 2, 3, 4]);
    // packets from both ends are accepted, since signalling and media may cross
    let to = call.rtp.unwrap();
    far.say(to, &mut call.talker, crate::call::CALLER, 5..10).await;
    call.say(10..15).await;
    assert_eq!(stream.heard(15).await, Vec::from_iter(0..15));
    call.reinvite("", &sdp(call.media.address(), "0 101", "sendrecv")).await;
    let back = call.media.next().await;
    while !far.is_quiet(Duration::from_millis(80)).await {}
    stream.play_frames(100..103).await;
    assert_eq!(call.media.numbered(AGENT, 3).await, [100, 101, 102]);
    assert_eq!(back.ssrc, far.packets()[0].ssrc);
    assert_continuous(&far.packets());
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_reinvite_without_sdp_gets_our_offer() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.send("INVITE", "", "").await;
    let answer = call.answered_without_ack().await;
    assert_eq!(Some(media_address(&answer.body)), call.rtp);
    let other = Media::open(rig.net.pbx()).await;
    call.ack(&sdp(other.address(), "0 101", "sendrecv")).await;
    other.next().await;
    stream.play_frames(0..3).await;
    assert_eq!(other.numbered(AGENT, 3).await, [0, 1, 2]);
}

#[tokio::test]
async fn an_unacceptable_offer_changes_nothing() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    for formats in ["9", "18 101", "101"] {
        let offer = sdp(call.media.address(), formats, "sendrecv");
        call.send("INVITE", "", &offer).await;
        let tag = call.to_tag.clone();
        assert_eq!(call.refused().await.code(), Some(488));
        assert_eq!(call.to_tag, tag);
    }
    call.say(0..5).await;
    stream.play_frames(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    assert_eq!(call.media.numbered(AGENT, 5).await, [0, 1, 2, 3, 4]);
}
