//! Shutdown: the bridge unregisters and lets live calls finish.

use std::time::{Duration, Instant};

use crate::bridge::Rig;
use crate::stream::AGENT;

#[tokio::test]
async fn shutdown_unregisters() {
    let Rig { pbx, bridge, .. } = Rig::new("").await;
    let begin = Instant::now();
    bridge.shutdown().await;
    assert_eq!(pbx.registered().await.get("Expires"), Some("0"));
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn shutdown_waits_for_live_calls_and_refuses_new_ones() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let mut late = rig.pbx.call(&rig.bridge).await;
    let Rig { pbx, bridge, .. } = rig;
    let ended = async {
        assert_eq!(pbx.registered().await.get("Expires"), Some("0"));
        late.invite().await;
        let response = late.refused().await;
        assert_eq!((response.code(), response.get("Retry-After")), (Some(503), Some("5")));
        stream.play_frames(0..10).await;
        call.say(0..10).await;
        assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
        assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
        call.bye().await;
        stream.stopped().await;
        Instant::now()
    };
    let down = async {
        bridge.shutdown().await;
        Instant::now()
    };
    let (ended, down) = tokio::join!(ended, down);
    assert!(down >= ended && down - ended < Duration::from_secs(2));
}

#[tokio::test]
async fn shutdown_ends_calls_after_the_drain_time() {
    let rig = Rig::new("[calls]\ndrain = \"300ms\"").await;
    let (call, stream) = rig.call().await;
    let Rig { bridge, .. } = rig;
    let ended = async {
        assert_eq!(call.hung_up().await, "Q.850;cause=31;text=\"drain\"");
        stream.stopped().await;
    };
    tokio::join!(ended, bridge.shutdown());
}

#[tokio::test]
async fn shutdown_refuses_a_call_whose_ai_is_still_being_dialled() {
    let rig = Rig::new("[calls]\ndrain = \"100ms\"\nanswer_wait = \"10s\"").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let mut handshake = rig.ai.handshake().await;
    let Rig { bridge, .. } = rig;
    let ended = async {
        assert_eq!(call.refused().await.code(), Some(503));
        assert!(handshake.is_given_up().await);
    };
    tokio::join!(ended, bridge.shutdown());
}
