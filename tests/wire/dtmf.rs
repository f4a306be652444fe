//! Key presses, in each way a PBX may signal them.

use std::time::Duration;

use crate::bridge::Rig;
use crate::call::Call;

const RELAY: &str = "Content-Type: application/dtmf-relay\r\n";

/// Presses a key for 100 ms and sends packet `i` of it `keep(i)` times.
async fn press(call: &mut Call, event: u8, keep: impl Fn(usize) -> usize) {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for (i, packet) in call.talker.press(event).into_iter().enumerate() {
        ticks.tick().await;
        for _ in 0..keep(i) {
            call.send_rtp(&packet).await;
        }
    }
}

async fn info(call: &mut Call, digit: &str) {
    let body = format!("Signal={digit}\r\nDuration=160\r\n");
    let response = call.request("INFO", RELAY, &body).await;
    assert_eq!(response.code(), Some(200));
}

#[tokio::test]
async fn a_key_press_in_rtp_is_reported_once() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..3).await;
    for code in [0, 9, 10, 11, 15] {
        press(&mut call, code, |_| 1).await;
    }
    stream.pressed("09*#D").await;
    // the audio continues after the presses
    call.say(3..6).await;
    assert_eq!(stream.heard(6).await, [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn lost_and_duplicated_packets_of_a_key_press_change_nothing() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..3).await;
    press(&mut call, 1, |_| 2).await; // each twice
    press(&mut call, 2, |i| usize::from(i == 6)).await; // only the last packet
    press(&mut call, 2, |i| usize::from(i == 0)).await; // only the first packet
    press(&mut call, 3, |i| usize::from(i % 2 == 1)).await;
    stream.pressed("1223").await;
}

#[tokio::test]
async fn a_key_press_in_info_is_reported() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    for digit in ["1", "*", "#", "D", "11"] {
        info(&mut call, digit).await;
    }
    let plain = call.request("INFO", "Content-Type: application/dtmf\r\n", "9").await;
    assert_eq!(plain.code(), Some(200));
    stream.pressed("1*#D#9").await;
}

#[tokio::test]
async fn a_key_press_in_rtp_and_info_is_reported_once() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    for (code, digit) in [(1, "1"), (1, "1"), (2, "2")] {
        press(&mut call, code, |_| 1).await;
        info(&mut call, digit).await;
    }
    info(&mut call, "3").await;
    press(&mut call, 3, |_| 1).await;
    info(&mut call, "4").await;
    stream.pressed("11234").await;
}

#[tokio::test]
async fn a_key_press_without_audio_is_reported() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    press(&mut call, 7, |_| 1).await;
    stream.pressed("7").await;
    stream.listen(200).await;
    assert!(stream.heard(0).await.is_empty());
    call.bye().await;
    stream.stopped().await;
}
