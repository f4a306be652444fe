//! Audio in both directions: nothing is lost, changed or reordered.

use std::time::Duration;

use trunkless::media::g711;

use crate::bridge::Rig;
use crate::call::sdp;
use crate::log::steady;
use crate::media::assert_continuous;
use crate::stream::{AGENT, agent_frames};

use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

#[tokio::test]
async fn audio_is_byte_exact_in_both_directions() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    stream.play_frames(0..50).await;
    call.say(0..50).await;
    assert_eq!(stream.heard(50).await, Vec::from_iter(0..50));
    assert_eq!(call.media.numbered(AGENT, 50).await, Vec::from_iter(0..50));
    // each frame is 20 ms on the audio clock
    let first = stream.positions()[0].0;
    let expected = (0..50).map(|i| (first + 20 * u64::from(i), i));
    assert_eq!(stream.positions(), Vec::from_iter(expected));
    assert_eq!(stream.frames()[0].0, 0);
    call.bye().await;
    stream.stopped().await;
    let summary = rig.bridge.record().await.summary;
    assert_eq!((summary.received.sequence.received, summary.received.late()), (50, 0));
    assert_eq!((summary.received.sequence.lost, summary.received.wrong_source), (0, 0));
}

#[tokio::test]
async fn rtp_flows_from_the_200_on_through_speech_and_silence() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.media.until("silence", |h| h.is_silence()).await;
    stream.play_frames(0..10).await;
    call.media.numbered(AGENT, 10).await;
    let before = call.media.packets().len();
    while call.media.packets().len() < before + 10 {
        call.media.next().await;
    }
    let packets = call.media.packets();
    assert_continuous(&packets);
    assert!(packets[0].marker);
    assert!(packets.iter().all(|p| p.payload.len() == 160 && p.payload_type == 0));
    assert!(packets.iter().all(|p| Some(p.from) == call.rtp));
    // the marker opens the talkspurt (RFC 3551)
    let first = packets.iter().position(|p| !p.is_silence()).unwrap();
    let markers: Vec<usize> = (0..packets.len()).filter(|i| packets[*i].marker).collect();
    assert_eq!(markers, [0, first]);
    call.bye().await;
}

#[tokio::test]
async fn the_first_frame_after_silence_is_sent_at_once() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    steady("delay of the first frame", async || {
        // right after a packet of silence, when the next one would be due in 20 ms
        let tick = call.media.next().await;
        stream.play_frames(0..1).await;
        let heard = call.media.until("speech", |h| h.at > tick.at && !h.is_silence()).await;
        let delay = heard.at - tick.at;
        match delay < Duration::from_millis(15) {
            true => Ok(()),
            false => Err(format!("{delay:?}")),
        }
    })
    .await;
    assert_continuous(&call.media.packets());
}

#[tokio::test]
async fn media_messages_may_have_any_size() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    let audio = agent_frames(0..40);
    // the first piece is long, so that the queue never runs dry within a frame
    let sizes = [1600, 159, 161, 7, 0, 800, 2000].into_iter().chain(std::iter::repeat_n(1, 480));
    let mut rest = &audio[..];
    for size in sizes {
        let (piece, after) = rest.split_at(size);
        stream.play(piece).await;
        rest = after;
    }
    stream.play(rest).await;
    assert_eq!(call.media.numbered(AGENT, 40).await, Vec::from_iter(0..40));
    assert!(call.media.next().await.is_silence());
}

#[tokio::test]
async fn an_incomplete_frame_is_filled_up_with_silence() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    stream.play(&[0x55; 40]).await;
    let heard = call.media.until("speech", |h| !h.is_silence()).await;
    assert_eq!(heard.payload, [[0x55; 40].as_slice(), &[0xff; 120]].concat());
}

#[tokio::test]
async fn one_message_may_hold_ten_seconds() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    stream.play_frames(0..500).await;
    stream.mark("all").await;
    call.media.numbered(AGENT, 25).await;
    stream.clear().await;
    stream.marked("all").await;
    let heard = call.media.numbered(AGENT, 25).await;
    assert_eq!(heard, Vec::from_iter(0..heard.len() as u32));
    call.bye().await;
    assert_eq!(rig.bridge.record().await.summary.playout_discarded, 0);
}

#[tokio::test]
async fn fragmented_messages_are_reassembled() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    for index in 0..10 {
        let text = stream.media(&agent_frames(index..index + 1));
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(50).collect();
        for (i, piece) in pieces.iter().enumerate() {
            let kind = if i == 0 { Data::Text } else { Data::Continue };
            let last = i + 1 == pieces.len();
            let frame = Frame::message(piece.to_vec(), OpCode::Data(kind), last);
            stream.send(Message::Frame(frame)).await;
            if i == 1 {
                // control frames may stand between fragments (RFC 6455 §5.4)
                stream.send(Message::Ping(vec![index as u8].into())).await;
            }
        }
    }
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    stream.ponged(&[9]).await;
}

#[tokio::test]
async fn a_law_calls_are_converted() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.offer = Some(sdp(call.media.address(), "8 101", "sendrecv"));
    call.talker.payload_type = 8;
    call.invite().await;
    let stream = rig.ai.stream().await;
    let answer = call.answered().await;
    let answer = String::from_utf8(answer.body).unwrap();
    assert!(answer.contains("RTP/AVP 8 101\r\na=rtpmap:8 PCMA/8000"), "{answer}");
    // samples that survive conversion in either direction
    let mut tone = [0u8; 160];
    tone.iter_mut().enumerate().for_each(|(i, s)| *s = 0x80 + (i % 32) as u8);
    g711::mu_to_a(&mut tone);
    let a_law = tone;
    g711::a_to_mu(&mut tone);
    stream.play(&tone).await;
    let heard = call.media.until("speech", |h| !h.is_silence()).await;
    assert_eq!((heard.payload_type, &heard.payload[..]), (8, &a_law[..]));
    let packet = call.talker.write(8, &a_law);
    call.send_rtp(&packet).await;
    stream.listen(200).await;
    assert!(stream.frames().iter().any(|(_, samples)| *samples == tone));
    assert!(call.media.packets().iter().all(|h| h.is_silence() || h.payload == a_law));
}
