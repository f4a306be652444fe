//! RTP as networks deliver it, and the sources it is accepted from.

use std::time::Duration;

use trunkless::media::frame::SILENCE;
use trunkless::peer::pattern;

use crate::bridge::Rig;
use crate::call::{CALLER, Call};
use crate::log::pass;
use crate::media::{Media, Talker};

/// Builds packets for the caller's frames `frames` without sending them.
fn packets(call: &mut Call, frames: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    frames.map(|index| call.talker.packet(&pattern::frame(CALLER, index))).collect()
}

/// Sends packets in this order, one every 20 ms.
async fn send(call: &Call, packets: &[Vec<u8>], order: &[usize]) {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for i in order {
        ticks.tick().await;
        call.send_rtp(&packets[*i]).await;
    }
}

#[tokio::test]
async fn rtp_from_a_stranger_is_ignored() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let stranger = Media::open(rig.net.stranger()).await;
    let mut talker = Talker::new(999);
    for _ in 0..10 {
        stranger.send(call.rtp.unwrap(), &talker.packet(&pattern::frame(CALLER, 666))).await;
    }
    call.say(0..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    assert!(stranger.packets().is_empty());
    call.bye().await;
    assert_eq!(rig.bridge.record().await.summary.received.wrong_source, 10);
}

#[tokio::test]
async fn another_port_of_the_pbx_is_learned_right_after_the_answer() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let other = Media::open(rig.net.pbx()).await;
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    let to = call.rtp.unwrap();
    other.say(to, &mut call.talker, CALLER, 0..15).await;
    assert_eq!(stream.heard(15).await, Vec::from_iter(0..15));
    // our RTP goes to the address in the SDP, wherever theirs comes from
    assert!(other.packets().is_empty());
}

#[tokio::test]
async fn another_port_of_the_pbx_is_not_learned_while_the_call_is_heard() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..15).await;
    let other = Media::open(rig.net.pbx()).await;
    let mut talker = Talker::new(999);
    for index in 600..605 {
        other.send(call.rtp.unwrap(), &talker.packet(&pattern::frame(CALLER, index))).await;
    }
    call.say(15..20).await;
    assert_eq!(stream.heard(20).await, Vec::from_iter(0..20));
    call.bye().await;
    assert_eq!(rig.bridge.record().await.summary.received.wrong_source, 5);
}

/// A PBX behind NAT may send from a port that it cannot know, and be silent at first.
#[tokio::test]
async fn another_port_of_the_pbx_is_learned_late_if_nothing_was_heard() {
    let rig = Rig::new("[media]\nsymmetric = true").await;
    let (mut call, stream) = rig.call().await;
    pass(Duration::from_millis(500)).await;
    let other = Media::open(rig.net.pbx()).await;
    let to = call.rtp.unwrap();
    other.say(to, &mut call.talker, CALLER, 0..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    // with `symmetric`, our RTP now goes there
    other.next().await;
    let before = call.media.packets().len();
    other.next().await;
    assert_eq!(call.media.packets().len(), before);
    // after two seconds without RTP, a third port is learned
    pass(Duration::from_millis(2100)).await;
    let third = Media::open(rig.net.pbx()).await;
    call.talker.timestamp = call.talker.timestamp.wrapping_add(2100 * 8);
    third.say(to, &mut call.talker, CALLER, 10..20).await;
    assert_eq!(stream.heard(20).await, Vec::from_iter(0..20));
    third.next().await;
}

#[tokio::test]
async fn a_new_ssrc_loses_no_frame() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    for round in 0..3 {
        call.talker = Talker { sequence: 20_000 * round as u16, ..Talker::new(5000 + round) };
        call.say(10 * round..10 * round + 10).await;
    }
    assert_eq!(stream.heard(30).await, Vec::from_iter(0..30));
    call.bye().await;
    let received = rig.bridge.record().await.summary.received;
    assert_eq!((received.sequence.stream_changes, received.sequence.lost), (2, 0));
}

#[tokio::test]
async fn reordered_and_duplicated_packets_are_sorted_out() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let packets = packets(&mut call, 0..20);
    let order = [0, 1, 3, 2, 4, 4, 5, 7, 6, 6, 8, 9, 9, 11, 10, 12, 13, 14, 15, 17, 16, 18, 19];
    send(&call, &packets, &order).await;
    assert_eq!(stream.heard(20).await, Vec::from_iter(0..20));
    call.bye().await;
    let received = rig.bridge.record().await.summary.received;
    assert_eq!((received.sequence.lost, received.sequence.duplicates), (0, 3));
}

#[tokio::test]
async fn lost_packets_are_concealed_and_the_timeline_stays_exact() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let packets = packets(&mut call, 0..30);
    let lost = [5, 12, 13, 20];
    let order: Vec<usize> = (0..30).filter(|i| !lost.contains(i)).collect();
    // lost packets leave a pause, the others are on time
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for (i, packet) in packets.iter().enumerate() {
        ticks.tick().await;
        if order.contains(&i) {
            call.send_rtp(packet).await;
        }
    }
    call.bye().await;
    stream.stopped().await;
    let frames = stream.frames();
    let read = |samples: &[u8; 160]| pattern::read(samples).map(|(_, index)| index);
    let first = frames.iter().position(|(_, s)| read(s) == Some(0)).unwrap();
    for (i, (t_ms, samples)) in frames[first..].iter().take(30).enumerate() {
        assert_eq!(*t_ms, frames[first].0 + 20 * i as u64);
        if lost.contains(&i) {
            assert!(read(samples).is_none() && *samples != [SILENCE; 160], "{i}: concealed");
        } else {
            assert_eq!(read(samples), Some(i as u32));
        }
    }
    let received = rig.bridge.record().await.summary.received;
    assert_eq!(received.sequence.lost, 4);
    assert_eq!(received.timeline.concealed_samples, 4 * 160);
}

#[tokio::test]
async fn a_pause_becomes_silence_and_the_audio_clock_keeps_running() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..5).await;
    stream.hears(4).await;
    stream.listen(300).await;
    // discontinuous transmission: sequence numbers continue, timestamps include the pause, and the
    // marker is set
    call.talker.timestamp = call.talker.timestamp.wrapping_add(2400);
    call.talker.marker = true;
    call.say(5..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    let positions = stream.positions();
    assert!(positions[5].0 - positions[4].0 >= 300, "{positions:?}");
    call.bye().await;
    assert_eq!(rig.bridge.record().await.summary.received.late(), 0);
}

#[tokio::test]
async fn without_any_rtp_the_ai_receives_silence() {
    let rig = Rig::new("").await;
    let (_call, stream) = rig.call().await;
    stream.listen(400).await;
    let frames = stream.frames();
    assert!(frames.iter().all(|(_, samples)| *samples == [SILENCE; 160]));
    assert_eq!(frames[0].0, 0);
}

#[tokio::test]
async fn junk_on_the_rtp_port_is_dropped() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let mut other_type = Talker::new(77);
    let mut packet = other_type.write(0, &[1; 160]);
    let cut = packet[..11].to_vec();
    packet[0] = 0x90; // announces an extension that is missing
    let foreign = other_type.write(18, &[1; 20]);
    for junk in [&b""[..], b"\0", &cut, &foreign, b"\0\x01\0\0STUN", &[0xff; 1500]] {
        call.send_rtp(junk).await;
    }
    call.say(0..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    call.bye().await;
    assert_eq!(rig.bridge.record().await.summary.received.not_audio, 6);
}

#[tokio::test]
async fn packets_of_other_lengths_are_cut_into_frames() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let audio: Vec<u8> = (0..30).flat_map(|index| pattern::frame(CALLER, index)).collect();
    // 10, 30 and 60 ms per packet, and odd lengths
    let mut rest = &audio[..];
    for size in [80, 80, 240, 240, 480, 1, 159, 7, 313, 960].into_iter().cycle() {
        let (piece, after) = rest.split_at(size.min(rest.len()));
        let packet = call.talker.write(0, piece);
        call.talker.timestamp = call.talker.timestamp.wrapping_add(piece.len() as u32);
        call.send_rtp(&packet).await;
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(stream.heard(30).await, Vec::from_iter(0..30));
}
