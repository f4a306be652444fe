//! Limits of time and size: what ends a call, and what is discarded.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::SinkExt as _;
use serde_json::json;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::bridge::{Net, Rig};
use crate::call::sdp;
use crate::media::assert_continuous;
use crate::pbx::Pbx;
use crate::stream::{AGENT, agent_frames};
use crate::strict::Ai;
use crate::wav::write_prompt;

#[tokio::test]
async fn an_ai_that_sends_nothing_has_failed() {
    let rig = Rig::new("[ai]\nsilent_timeout = \"300ms\"").await;
    let (call, stream) = rig.call().await;
    assert_eq!(call.hung_up().await, "Q.850;cause=38;text=\"ai_timeout\"");
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "ai_timeout");
}

#[tokio::test]
async fn an_ai_that_has_sent_anything_may_be_silent() {
    let rig = Rig::new("[ai]\nsilent_timeout = \"300ms\"").await;
    let (mut call, stream) = rig.call().await;
    stream.mark("here").await;
    stream.listen(600).await;
    call.bye().await;
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_silent_ai_gets_stop_before_the_prompt() {
    let (directory, prompt) = write_prompt(10);
    let config = format!("[ai]\nsilent_timeout = \"200ms\"\n[calls]\nprompt = {prompt:?}");
    let rig = Rig::new(&config).await;
    let (call, stream) = rig.call().await;
    // like many servers, this one closes as soon as it receives `stop`
    stream.until_stop().await;
    stream.close_if_open().await;
    call.hung_up().await;
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(1000..1010));
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "ai_timeout");
    drop(directory);
}

#[tokio::test]
async fn missing_rtp_ends_the_call_after_media_timeout() {
    let rig = Rig::new("[calls]\nmedia_timeout = \"400ms\"").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..25).await;
    assert_eq!(stream.heard(25).await.len(), 25, "the call lasts while RTP arrives");
    assert_eq!(call.hung_up().await, "Q.850;cause=44;text=\"media_timeout\"");
    stream.stopped().await;
}

#[tokio::test]
async fn missing_rtp_on_hold_and_right_after_it_is_tolerated() {
    let rig = Rig::new("[calls]\nmedia_timeout = \"300ms\"").await;
    let (mut call, stream) = rig.call().await;
    call.reinvite("", &sdp(call.media.address(), "0", "inactive")).await;
    stream.listen(600).await;
    call.reinvite("", &sdp(call.media.address(), "0", "sendrecv")).await;
    // the PBX needs a moment to send again
    stream.listen(100).await;
    call.say(0..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    assert_eq!(call.hung_up().await, "Q.850;cause=44;text=\"media_timeout\"");
    stream.stopped().await;
}

#[tokio::test]
async fn a_silent_ai_times_out_even_on_hold() {
    let rig =
        Rig::new("[calls]\nmedia_timeout = \"200ms\"\n[ai]\nsilent_timeout = \"500ms\"").await;
    let (mut call, stream) = rig.call().await;
    call.reinvite("", &sdp(call.media.address(), "0", "inactive")).await;
    assert_eq!(call.hung_up().await, "Q.850;cause=38;text=\"ai_timeout\"");
    stream.stopped().await;
}

#[tokio::test]
async fn no_call_is_longer_than_max_duration() {
    let rig = Rig::new("[calls]\nmax_duration = \"400ms\"").await;
    let (mut call, stream) = rig.call().await;
    stream.play_frames(0..100).await;
    call.say(0..10).await;
    assert_eq!(call.hung_up().await, "Q.850;cause=16;text=\"max_duration\"");
    stream.stopped().await;
    let record = rig.bridge.record().await;
    assert!(record.summary.talk >= Duration::from_millis(400));
}

#[tokio::test]
async fn audio_beyond_the_queue_limit_is_discarded_and_counted() {
    let rig = Rig::new("[calls]\nplayout_minutes = 1").await;
    let (mut call, stream) = rig.call().await;
    stream.play(&vec![0x55; 70 * 8000]).await;
    stream.mark("end").await;
    call.media.until("audio", |h| !h.is_silence()).await;
    stream.clear().await;
    stream.marked("end").await;
    stream.play_frames(0..3).await;
    call.media.until("audio after the flood", |h| h.payload == agent_frames(2..3)).await;
    call.bye().await;
    assert_eq!(rig.bridge.record().await.summary.playout_discarded, 10 * 8000);
}

#[tokio::test]
async fn an_oversized_message_ends_the_call() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    // only a frame header that announces 9 MiB
    let mut head = vec![0x81, 127];
    head.extend_from_slice(&(9u64 << 20).to_be_bytes());
    stream.write_raw(&head);
    assert_eq!(call.hung_up().await, "Q.850;cause=111;text=\"ai_protocol\"");
}

#[tokio::test]
async fn an_ai_that_never_reads_times_out_after_5_s_while_playout_continues() {
    let net = Net::new();
    let ai = Ai::with_buffer(net.ai(), Some(2048)).await;
    let rig = Rig::with(net, Pbx::udp(net.pbx()).await, ai, "").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let mut handshake = rig.ai.handshake().await;
    handshake.accept().await;
    call.answered().await;
    let begin = Instant::now();
    let mut socket = WebSocketStream::from_raw_socket(handshake.tcp, Role::Server, None).await;
    let media = json!({"payload": BASE64.encode(agent_frames(0..250))});
    let text = json!({"event": "media", "media": media}).to_string();
    socket.send(Message::Text(text.into())).await.unwrap();
    call.say(0..200).await;
    assert_eq!(call.media.numbered(AGENT, 250).await, Vec::from_iter(0..250));
    assert_continuous(&call.media.packets());
    assert_eq!(call.hung_up().await, "Q.850;cause=38;text=\"ai_timeout\"");
    let took = begin.elapsed();
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(7), "{took:?}");
    let record = rig.bridge.record().await;
    assert!(record.ai.dropped_audio > 50, "{:?}", record.ai);
}

#[tokio::test]
async fn an_ai_that_pauses_reading_loses_only_the_oldest_audio_and_the_clock_stays_exact() {
    let net = Net::new();
    let ai = Ai::with_buffer(net.ai(), Some(2048)).await;
    let rig = Rig::with(net, Pbx::udp(net.pbx()).await, ai, "").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let mut handshake = rig.ai.handshake().await;
    handshake.accept().await;
    call.answered().await;
    call.say(0..150).await;
    let stream = handshake.into_stream_that_may_skip().await.started().await;
    call.say(150..160).await;
    stream.hears(159).await;
    call.bye().await;
    stream.stopped().await;
    let positions = stream.positions();
    let lost = 160 - positions.len();
    let first = positions[0];
    assert_eq!(first.1, 0, "audio already on its way is not lost");
    let late = positions.iter().find(|(t, i)| *t != first.0 + 20 * u64::from(*i));
    assert_eq!(late, None, "the time of each frame");
    assert!(positions.windows(2).all(|p| p[0].1 < p[1].1));
    let record = rig.bridge.record().await;
    assert!((1..100).contains(&lost) && record.ai.dropped_audio == lost as u64, "{lost}");
}
