//! Calls with something like speech both ways.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use trunkless::media::frame::{FRAME_SAMPLES, SILENCE, Samples};
use trunkless::media::g711;

use crate::bridge::Rig;
use crate::call::Call;
use crate::stream::Stream;

/// Frames of the AI in one message.
const MESSAGE: u32 = 10;

/// Frame `index` of a voice that speaks half of the time: tones in syllables.
pub fn voice(index: u32, seed: u32) -> Samples {
    let turn = (index / 120 + seed).is_multiple_of(2);
    let syllable = f64::from((index + 3 * seed) % 12) / 12.0;
    let loud = 22_000.0 / f64::from(1 + seed % 4) * (syllable * std::f64::consts::PI).sin();
    let pitch = f64::from(110 + 17 * (seed % 7));
    std::array::from_fn(|n| {
        let t = f64::from(index * 160 + n as u32) / 8000.0;
        let tone = (t * pitch * std::f64::consts::TAU).sin();
        g711::encode(if turn { (loud * tone) as i16 } else { 0 })
    })
}

/// Places a call of this number and name.
pub async fn place(rig: &Rig, number: &str, name: &str) -> (Call, Stream) {
    let mut call = rig.pbx.call(&rig.bridge).await;
    let alice = "\"Alice\" <sip:5550100";
    call.replace = Some((alice.to_owned(), format!("\"{name}\" <sip:{number}")));
    call.invite().await;
    // on a busy machine, frames may be missing
    let mut handshake = rig.ai.handshake().await;
    handshake.accept().await;
    let stream = handshake.into_stream_that_may_skip().await.started().await;
    call.answered().await;
    (call, stream)
}

/// A call in which both sides talk. Dropping it stops them, and keeps the call.
pub struct Talk {
    pub task: JoinHandle<()>,
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a call in which nothing is said after one frame: an AI that never sends anything is given
/// up.
pub fn keep(call: Call, stream: Stream) -> Talk {
    let task = tokio::spawn(async move {
        stream.play(&[SILENCE; FRAME_SAMPLES]).await;
        std::future::pending::<()>().await;
        drop((call, stream));
    });
    Talk { task }
}

/// Lets both sides of a call talk, from its beginning. Every `skip`th packet of the caller is lost.
pub fn talk(mut call: Call, stream: Stream, seed: u32, skip: Option<u32>) -> Talk {
    let task = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(20));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for index in 0.. {
            ticks.tick().await;
            let packet = call.talker.packet(&voice(index, seed));
            if skip.is_none_or(|skip| !(index + 1).is_multiple_of(skip)) {
                call.send_rtp(&packet).await;
            }
            if index.is_multiple_of(MESSAGE) {
                let audio: Vec<u8> =
                    (index..index + MESSAGE).flat_map(|n| voice(n, seed + 1)).collect();
                let message = stream.media(&audio);
                stream.send(tokio_tungstenite::tungstenite::Message::text(message)).await;
            }
        }
    });
    Talk { task }
}
