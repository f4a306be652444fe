//! The log lines about RTP that does not arrive, and about the end of a call.

use std::time::{Duration, Instant};

use crate::ari;
use crate::bridge::Rig;
use crate::call::sdp;
use crate::lines::Lines;
use crate::log::pass;
use crate::media::Media;

/// Our RTP address, as it stands in the log.
fn our_rtp(call: &crate::call::Call) -> String {
    format!("our_rtp={}", call.rtp.unwrap())
}

#[tokio::test]
async fn missing_rtp_is_reported_after_2_s_with_all_addresses() {
    let lines = Lines::of_calls();
    let rig = Rig::new("").await;
    let (mut call, _stream) = rig.call().await;
    let begin = Instant::now();
    let stranger = Media::open(rig.net.stranger()).await;
    stranger.send(call.rtp.unwrap(), &call.talker.packet(&[1; 160])).await;
    let ours = our_rtp(&call);
    let line = lines.until_all(&["no RTP from the PBX for 2 s: firewall?", &ours]).await;
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    for part in [
        "WARN".to_owned(),
        format!("pbx_rtp={}", call.media.address()),
        format!("pbx_signalling={}", rig.net.pbx()),
        format!("rejected_from={}", stranger.address()),
    ] {
        assert!(line.contains(&part), "{part}: {line}");
    }
    pass(Duration::from_secs(3)).await;
    assert_eq!(lines.with(&ours).len(), 1, "once per call");
    call.bye().await;
}

#[tokio::test]
async fn rtp_that_stops_in_mid_call_is_reported_except_on_hold() {
    let lines = Lines::of_calls();
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..10).await;
    call.reinvite("", &sdp(call.media.address(), "0", "inactive")).await;
    stream.listen(2500).await;
    let ours = our_rtp(&call);
    assert!(lines.with(&ours).is_empty(), "on hold");
    call.reinvite("", &sdp(call.media.address(), "0", "sendrecv")).await;
    lines.until_all(&["RTP from the PBX has stopped for 2 s", &ours]).await;
    call.bye().await;
}

#[tokio::test]
async fn a_hangup_with_cause_44_means_that_the_pbx_heard_nothing() {
    let lines = Lines::of_calls();
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..5).await;
    call.request("BYE", "Reason: Q.850;cause=44\r\n", "").await;
    stream.stopped().await;
    let ours = our_rtp(&call);
    lines.until_all(&["the PBX hung up with cause 44: it heard no RTP from us", &ours]).await;
}

#[tokio::test]
async fn missing_rtp_and_the_cause_are_reported_in_ari_mode() {
    let lines = Lines::of_calls();
    let rig = ari::rig::Rig::new("").await;
    let (mut caller, _stream) = rig.call("ai.1").await;
    let ours = format!("our_rtp={}", caller.external.host);
    lines.until_all(&["RTP from the PBX", &ours]).await;
    caller.say(0..5).await;
    caller.hang_up();
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

/// A good call has four lines at INFO, without figures that are 0.
#[tokio::test]
async fn the_lines_of_a_good_call_are_short() {
    let lines = Lines::of_calls();
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..20).await;
    stream.heard(20).await;
    call.bye().await;
    stream.stopped().await;
    let offered = lines.until_all(&["call offered", &call.id]).await;
    let at = offered.find("call=\"").unwrap() + 6;
    let id = &offered[at..at + offered[at..].find('"').unwrap()];
    let ended = lines.until_all(&["call ended", id]).await;
    let all = lines.with(id);
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(all[1].contains("call answered") && all[1].contains("setup_ms="), "{}", all[1]);
    assert!(ended.contains("packets_in=20") && ended.contains("talk_s="), "{ended}");
    assert!(!ended.contains("=0 ") && !ended.contains("lost") && ended.len() < 250, "{ended}");
}
