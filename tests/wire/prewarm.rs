//! Connections to the AI that are open before a call needs them.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::bridge::Rig;
use crate::call::Call;
use crate::stream::{AGENT, Stream};

/// Begins a call, whose AI answers a ping and then gets its stream.
async fn begin(call: &mut Call, ai: impl Future<Output = Stream>) -> Stream {
    let answered = async {
        call.invite().await;
        call.answered().await;
    };
    tokio::join!(ai, answered).0
}

/// Returns the stream of a call that dials its AI, while another connection is opened for the next.
async fn dialled(rig: &Rig) -> Stream {
    let one = rig.ai.handshake().await.open().await;
    let other = async { rig.ai.handshake().await.open().await.started().await };
    tokio::select! { stream = one.started() => stream, stream = other => stream }
}

#[tokio::test]
async fn a_call_finds_its_ai_connected() {
    let rig = Rig::new("[ai]\nprewarm = 2").await;
    let first = rig.ai.handshake().await.open().await;
    let second = rig.ai.handshake().await.open().await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let stream = begin(&mut call, first.started()).await;
    stream.play_frames(0..20).await;
    call.say(0..20).await;
    assert_eq!(call.media.numbered(AGENT, 20).await, Vec::from_iter(0..20));
    stream.hears(19).await;
    // another one is opened in its place
    let third = rig.ai.handshake().await.open().await;
    call.bye().await;
    stream.stopped().await;
    rig.bridge.reload("[ai]\nprewarm = 0").await;
    for idle in [second, third] {
        assert!(idle.started_unless_ended().await.is_none(), "closed after the reload");
    }
    // from here on, a call dials
    let (mut call, stream) = rig.call().await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_connection_that_the_ai_has_closed_is_not_used() {
    let rig = Rig::new("[ai]\nprewarm = 1").await;
    // a ping, which is answered although there is no call
    let mut tcp = rig.ai.handshake().await.open_with_behind(&[0x89, 2, b'h', b'i']).await;
    let mut pong = [0; 8];
    let read = timeout(Duration::from_secs(5), tcp.read_exact(&mut pong)).await;
    read.expect("a pong").unwrap();
    let payload = [pong[6] ^ pong[2], pong[7] ^ pong[3]];
    assert_eq!((pong[0], pong[1], payload), (0x8a, 0x82, *b"hi"));
    // the beginning of a call at the same moment
    tcp.write_all(&[0x88, 2, 3, 0xe8]).await.unwrap();
    let mut call = rig.pbx.call(&rig.bridge).await;
    let stream = begin(&mut call, dialled(&rig)).await;
    stream.play_frames(0..5).await;
    assert_eq!(call.media.numbered(AGENT, 5).await, Vec::from_iter(0..5));
    call.bye().await;
    stream.stopped().await;
    // the AI hangs up without a word
    let tcp = rig.ai.handshake().await.open_with_behind(&[]).await;
    drop(tcp);
    let idle = rig.ai.handshake().await.open().await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let stream = begin(&mut call, idle.started()).await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_connection_that_a_firewall_has_forgotten_is_not_used() {
    let rig = Rig::new("[ai]\nprewarm = 1").await;
    // nothing comes back on it
    let _dead = rig.ai.handshake().await.open_with_behind(&[]).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let stream = begin(&mut call, dialled(&rig)).await;
    stream.play_frames(0..5).await;
    assert_eq!(call.media.numbered(AGENT, 5).await, Vec::from_iter(0..5));
    call.bye().await;
    stream.stopped().await;
}
