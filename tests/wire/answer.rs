//! From the INVITE to the answer: the AI is dialled first, and without it the call is refused so
//! that the PBX can route it elsewhere.

use std::time::{Duration, Instant};

use trunkless::sip::message::Message;

use crate::bridge::Rig;
use crate::call::{media_address, sdp};
use crate::log::pass;
use crate::media::assert_continuous;
use crate::stream::AGENT;

const SHORT: &str = "[calls]\nanswer_wait = \"600ms\"";

/// Asserts a refusal that makes a dialplan try the next route: 503 without a Retry-After.
fn assert_503(response: &Message) {
    assert_eq!(response.code(), Some(503), "{response:?}");
    assert_eq!(response.get("Retry-After"), None);
}

/// Asserts that something took this long, give or take what a busy machine adds.
fn assert_about(time: Duration, ms: u64) {
    let expected = Duration::from_millis(ms - 30)..Duration::from_millis(ms + 240);
    assert!(expected.contains(&time), "{time:?} instead of {ms} ms");
}

#[tokio::test]
async fn a_call_is_refused_with_503_when_the_ai_is_unreachable() {
    let rig = Rig::new(SHORT).await;
    let Rig { ai, bridge, pbx, .. } = rig;
    drop(ai);
    let mut call = pbx.call(&bridge).await;
    let begin = Instant::now();
    call.invite().await;
    assert_503(&call.refused().await);
    // three attempts, 250 ms apart: a fourth would be too late
    assert_about(begin.elapsed(), 500);
    let record = bridge.record().await;
    assert_eq!(record.reason.label(), "ai_unreachable");
    assert!(!record.summary.answered);
}

#[tokio::test]
async fn a_call_is_refused_with_503_when_the_handshake_outlasts_answer_wait() {
    let rig = Rig::new(SHORT).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let begin = Instant::now();
    call.invite().await;
    let mut handshake = rig.ai.handshake().await;
    assert_503(&call.refused().await);
    assert_about(begin.elapsed(), 600);
    assert!(handshake.is_given_up().await);
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
}

#[tokio::test]
async fn a_permanent_refusal_by_the_ai_is_not_retried() {
    let rig = Rig::new("[calls]\nanswer_wait = \"5s\"").await;
    for status in ["403 Forbidden", "401 Unauthorized", "404 Not Found", "200 OK"] {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        rig.ai.handshake().await.refuse(status).await;
        assert_503(&call.refused().await);
    }
    assert!(rig.ai.is_left_alone(Duration::from_millis(300)).await);
}

#[tokio::test]
async fn an_ai_server_that_is_restarting_is_retried() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    rig.ai.handshake().await.refuse("503 Service Unavailable").await;
    rig.ai.handshake().await.refuse("502 Bad Gateway").await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_call_is_refused_with_503_when_the_connection_breaks_in_the_handshake() {
    let rig = Rig::new(SHORT).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let begin = Instant::now();
    call.invite().await;
    drop(rig.ai.handshake().await);
    assert_503(&call.refused().await);
    // at once, and without another attempt: a server that accepts and closes is not restarting
    assert!(begin.elapsed() < Duration::from_millis(240), "{:?}", begin.elapsed());
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
    assert!(rig.ai.is_left_alone(Duration::from_millis(300)).await);
}

#[tokio::test]
async fn the_call_is_answered_after_a_slow_handshake() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let trying = call.response(1, "INVITE", 100).await;
    assert_eq!(trying.code(), Some(100));
    let handshake = rig.ai.handshake().await;
    // neither RTP nor a 200 until the AI is connected
    pass(Duration::from_millis(500)).await;
    assert!(call.media.packets().is_empty());
    let opened = Instant::now();
    let stream = handshake.open().await.started().await;
    call.answered().await;
    let first = call.media.until("RTP", |_| true).await;
    assert!(first.at >= opened);
    call.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    assert_eq!(stream.frames()[0].0, 0, "the audio clock starts with the answer");
}

#[tokio::test]
async fn early_audio_and_digits_are_kept_when_calls_are_answered_at_once() {
    let rig = Rig::new("[calls]\nanswer = \"at_once\"").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let handshake = rig.ai.handshake().await;
    call.answered().await;
    call.say(0..20).await;
    let packets = call.media.packets();
    assert!(packets.len() >= 10 && packets.iter().all(|p| p.is_silence()));
    let press = call.talker.press(5);
    for packet in press {
        call.send_rtp(&packet).await;
    }
    let stream = handshake.open().await.started().await;
    call.say(20..30).await;
    assert_eq!(stream.heard(30).await, Vec::from_iter(0..30));
    stream.pressed("5").await;
    assert_eq!(stream.frames()[0].0, 0, "everything from time 0 on");
    stream.play_frames(0..5).await;
    assert_eq!(call.media.numbered(AGENT, 5).await, [0, 1, 2, 3, 4]);
    assert_continuous(&call.media.packets());
    call.bye().await;
    stream.stopped().await;
    assert_eq!(rig.bridge.record().await.summary.preroll_dropped, 0);
}

#[tokio::test]
async fn a_call_answered_at_once_ends_with_bye_when_the_ai_refuses() {
    let rig = Rig::new("[calls]\nanswer = \"at_once\"").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    call.answered().await;
    rig.ai.handshake().await.refuse("403 Forbidden").await;
    assert_eq!(call.hung_up().await, "Q.850;cause=38;text=\"ai_unreachable\"");
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
}

#[tokio::test]
async fn a_call_answered_at_once_and_hung_up_early_sends_no_start() {
    let rig = Rig::new("[calls]\nanswer = \"at_once\"").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let mut handshake = rig.ai.handshake().await;
    call.answered().await;
    call.bye().await;
    assert!(handshake.is_given_up().await);
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_cancel_while_the_ai_is_dialled_gets_487_and_no_start() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let mut handshake = rig.ai.handshake().await;
    call.cancel().await;
    assert_eq!(call.response(1, "CANCEL", 200).await.code(), Some(200));
    assert_eq!(call.refused().await.code(), Some(487));
    assert!(handshake.is_given_up().await);
    assert_eq!(rig.bridge.end().await, "cancelled");
}

#[tokio::test]
async fn a_cancel_that_crosses_the_200_changes_nothing() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.cancel().await;
    assert_eq!(call.response(1, "CANCEL", 200).await.code(), Some(200));
    call.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_bye_instead_of_an_ack_ends_the_call() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered_without_ack().await;
    call.bye().await;
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_bye_while_ringing_ends_the_invite_with_487() {
    let rig = Rig::new("[calls]\nringing = true").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let mut handshake = rig.ai.handshake().await;
    let ringing = call.response(1, "INVITE", 180).await;
    assert_eq!(ringing.code(), Some(180));
    call.to_tag = ringing.to().unwrap().tag().unwrap().to_owned();
    call.bye().await;
    assert_eq!(call.response(1, "INVITE", 200).await.code(), Some(487));
    assert!(handshake.is_given_up().await);
    assert_eq!(rig.bridge.end().await, "cancelled");
}

#[tokio::test]
async fn an_invite_without_sdp_gets_our_offer() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.offer = None;
    call.invite().await;
    let stream = rig.ai.stream().await;
    let answer = call.answered_without_ack().await;
    let offer = String::from_utf8(answer.body.clone()).unwrap();
    assert!(offer.contains(" RTP/AVP 0 8 101\r\n"), "{offer}");
    assert_eq!(media_address(&answer.body).ip(), rig.net.bridge());
    call.ack(&sdp(call.media.address(), "0 101", "sendrecv")).await;
    call.media.until("RTP after the ACK", |h| h.is_silence()).await;
    call.say(0..10).await;
    stream.play_frames(0..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    call.bye().await;
    stream.stopped().await;
}
