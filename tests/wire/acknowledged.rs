//! Audio before the PBX has acknowledged our answer: an INVITE with a forged source address must
//! not direct it at anyone, and an AI that greets at once must be heard from its first frame.

use std::time::Duration;

use trunkless::peer::pattern;

use crate::bridge::Rig;
use crate::call::{Call, sdp};
use crate::log::pass;
use crate::media::{Heard, Media, assert_continuous};
use crate::stream::{AGENT, Stream};

const WAIT: Duration = Duration::from_millis(250);

/// A call that is answered, but not acknowledged, and whose AI greets at once.
async fn greeted(rig: &Rig, call: &mut Call) -> Stream {
    call.invite().await;
    let stream = rig.ai.stream().await;
    stream.play_frames(0..10).await;
    stream.mark("greeted").await;
    call.answered_without_ack().await;
    stream
}

fn all_silent(packets: &[Heard]) -> bool {
    packets.iter().all(Heard::is_silence)
}

#[tokio::test]
async fn a_greeting_waits_for_the_ack() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let stream = greeted(&rig, &mut call).await;
    pass(WAIT).await;
    let before = call.media.packets();
    assert!(before.len() >= 8 && all_silent(&before), "{} packets", before.len());
    assert!(stream.marks().is_empty());
    call.ack("").await;
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    stream.marked("greeted").await;
    assert_continuous(&call.media.packets());
    call.bye().await;
}

#[tokio::test]
async fn without_an_ack_the_greeting_is_played_after_half_a_second() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let _stream = greeted(&rig, &mut call).await;
    pass(WAIT).await;
    assert!(all_silent(&call.media.packets()));
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    assert_continuous(&call.media.packets());
    call.ack("").await;
    call.bye().await;
}

#[tokio::test]
async fn another_address_receives_nothing_before_the_ack() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.media = Media::open(rig.net.host(5)).await;
    call.offer = Some(sdp(call.media.address(), "0", "sendrecv"));
    let stream = greeted(&rig, &mut call).await;
    // longer than a greeting waits
    pass(WAIT * 4).await;
    assert!(call.media.packets().is_empty());
    assert!(stream.marks().is_empty());
    call.ack("").await;
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    stream.marked("greeted").await;
    let packets = call.media.packets();
    assert!(packets[0].marker && pattern::read(&packets[0].payload).is_some());
    assert_continuous(&packets);
    call.bye().await;
}

#[tokio::test]
async fn a_listed_address_receives_silence_before_the_ack() {
    let config = "[pbx.main.sip]\nmedia_peers = [\"127.0.0.0/8\"]";
    let rig = Rig::new(config).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.media = Media::open(rig.net.host(5)).await;
    call.offer = Some(sdp(call.media.address(), "0", "sendrecv"));
    let _stream = greeted(&rig, &mut call).await;
    pass(WAIT).await;
    let before = call.media.packets();
    assert!(!before.is_empty() && all_silent(&before));
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    call.ack("").await;
    call.bye().await;
}

/// The PBX names its address in the ACK, with which the audio begins.
#[tokio::test]
async fn a_late_offer_loses_nothing_of_the_greeting() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.offer = None;
    let _stream = greeted(&rig, &mut call).await;
    pass(WAIT * 3).await;
    assert!(call.media.packets().is_empty());
    call.ack(&sdp(call.media.address(), "0", "sendrecv")).await;
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    call.bye().await;
}

#[tokio::test]
async fn unacknowledged_calls_are_limited() {
    let rig = Rig::new("[sip]\nmax_unacknowledged = 2").await;
    let mut calls = Vec::new();
    for _ in 0..2 {
        let mut call = rig.pbx.call(&rig.bridge).await;
        let stream = greeted(&rig, &mut call).await;
        calls.push((call, stream));
    }
    let mut third = rig.pbx.call(&rig.bridge).await;
    third.invite().await;
    assert_eq!(third.refused().await.code(), Some(503));
    assert!(rig.ai.is_left_alone(WAIT).await);
    for (call, _) in &mut calls {
        call.ack("").await;
    }
    let (mut fourth, _stream) = rig.call().await;
    for call in calls.iter_mut().map(|(call, _)| call).chain([&mut fourth]) {
        call.bye().await;
    }
}
