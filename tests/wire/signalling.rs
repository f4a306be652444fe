//! SIP between PBX and bridge: permitted callers, limits and transports.

use std::time::Duration;

use crate::bridge::{Bridge, Net, Rig};
use crate::http::{free, get, status};
use crate::lines::Lines;
use crate::log::pass;
use crate::media::Media;
use crate::pbx::{Pbx, accept};
use crate::stream::AGENT;
use crate::strict::Ai;

/// Makes a complete call with audio both ways.
async fn whole_call(rig: &Rig) {
    let (mut call, stream) = rig.call().await;
    stream.play_frames(0..10).await;
    call.say(0..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn the_peer_refreshes_the_session() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let timer = "Supported: timer\r\nSession-Expires: 90;refresher=uac\r\nMin-SE: 90\r\n";
    call.headers = timer.to_owned();
    call.invite().await;
    let stream = rig.ai.stream().await;
    let answer = call.answered().await;
    assert_eq!(answer.get("Session-Expires"), Some("90;refresher=uac"));
    assert_eq!(answer.get("Require"), Some("timer"));
    let update = call.request("UPDATE", timer, "").await;
    assert_eq!(update.code(), Some(200));
    assert_eq!(update.get("Session-Expires"), Some("90;refresher=uac"));
    assert!(update.body.is_empty());
    let before = String::from_utf8(answer.body).unwrap();
    let offer = call.offer.clone().unwrap();
    let again = call.reinvite(timer, &offer).await;
    assert_eq!(again.get("Session-Expires"), Some("90;refresher=uac"));
    // nothing changed, so our SDP keeps its version (RFC 3264)
    assert_eq!(String::from_utf8(again.body).unwrap(), before);
    call.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_too_small_session_interval_is_refused() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.headers = "Supported: timer\r\nSession-Expires: 30\r\n".to_owned();
    call.invite().await;
    let response = call.refused().await;
    assert_eq!((response.code(), response.get("Min-SE")), (Some(422), Some("90")));
}

#[tokio::test]
async fn update_moves_the_media() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let other = Media::open(rig.net.pbx()).await;
    let offer = crate::call::sdp(other.address(), "0 101", "sendrecv");
    let response = call.request("UPDATE", "", &offer).await;
    assert_eq!((response.code(), response.body.is_empty()), (Some(200), false));
    other.next().await;
    stream.play_frames(0..3).await;
    assert_eq!(other.numbered(AGENT, 3).await, [0, 1, 2]);
}

#[tokio::test]
async fn calls_beyond_the_maximum_are_refused() {
    let rig = Rig::new("[calls]\nmax = 2").await;
    let (mut first, first_stream) = rig.call().await;
    let (mut second, second_stream) = rig.call().await;
    let mut third = rig.pbx.call(&rig.bridge).await;
    third.invite().await;
    let response = third.refused().await;
    assert_eq!((response.code(), response.get("Retry-After")), (Some(503), Some("5")));
    assert!(rig.ai.is_left_alone(Duration::from_millis(50)).await);
    first.bye().await;
    first_stream.stopped().await;
    whole_call(&rig).await;
    second.bye().await;
    second_stream.stopped().await;
}

#[tokio::test]
async fn calls_are_refused_when_rtp_ports_run_out() {
    // two port pairs
    let rig = Rig::new("[media]\nports = \"20002-20005\"").await;
    let (first, _first_stream) = rig.call().await;
    let (mut second, second_stream) = rig.call().await;
    let ports = [first.rtp.unwrap().port(), second.rtp.unwrap().port()];
    assert_eq!(ports, [20002, 20004]);
    let mut third = rig.pbx.call(&rig.bridge).await;
    third.invite().await;
    let response = third.refused().await;
    assert_eq!((response.code(), response.get("Retry-After")), (Some(503), Some("5")));
    second.say(0..5).await;
    assert_eq!(second_stream.heard(5).await, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn strangers_get_no_answer() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let stranger = Pbx::udp(rig.net.stranger()).await;
    stranger.call(&rig.bridge).await.invite().await;
    // a stranger that knows a call's ids is still a stranger
    let mut forged = stranger.forge(&call).await;
    forged.send("BYE", "", "").await;
    forged.send("OPTIONS", "", "").await;
    assert!(stranger.hears_nothing(Duration::from_millis(200)).await);
    assert!(rig.ai.is_left_alone(Duration::from_millis(10)).await);
    call.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_call_for_another_user_gets_404() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.target = format!("sip:other@{}", rig.bridge.address());
    call.invite().await;
    assert_eq!(call.refused().await.code(), Some(404));
}

#[tokio::test]
async fn a_trunk_calls_without_registration() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let config = format!("[pbx.main.sip]\nregister = false\npeers = [\"{}\"]", net.pbx());
    let bridge = Bridge::start(net, pbx.address, ai.address, &config).await;
    assert!(pbx.none_of("REGISTER", Duration::from_millis(300)).await);
    // a trunk may call any user
    let mut call = pbx.call(&bridge).await;
    call.target = format!("sip:1234@{}", bridge.address());
    call.invite().await;
    let stream = ai.stream().await;
    call.answered().await;
    assert_eq!(stream.parameters["to_number"], "1234");
    call.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_trunk_that_does_not_answer_options_is_not_ready_and_its_calls_are_taken() {
    let (net, lines) = (Net::new(), Lines::new());
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let http = free(net.bridge());
    let config = format!(
        "[pbx.main.sip]\nregister = false\npeers = [\"{}\"]\nkeepalive = \"200ms\"\n\
         [http]\nlisten = \"{http}\"",
        pbx.address
    );
    pbx.be_silent(true);
    let bridge = Bridge::start(net, pbx.address, ai.address, &config).await;
    lines.until("peer does not answer OPTIONS").await;
    assert_eq!(status(http, "/readyz").await, 503);
    let (code, body) = get(http, "/healthz").await;
    let reason = format!("no answer to OPTIONS from {}", pbx.address);
    assert!(code == 200 && body.contains(&reason), "{body}");
    pbx.be_silent(false);
    lines.until("peer answers again").await;
    assert_eq!(status(http, "/readyz").await, 200);
    assert!(get(http, "/healthz").await.1.contains("\"trunk\""));

    // OPTIONS stay without an answer, calls do not
    pbx.answer_with(|request| accept(request).filter(|_| request.method() != Some("OPTIONS")));
    let later = Lines::new();
    later.until("peer does not answer OPTIONS").await;
    let mut call = pbx.call(&bridge).await;
    call.invite().await;
    let stream = ai.stream().await;
    call.answered().await;
    assert_eq!(later.with("peer answers again").len(), 1, "the INVITE counts");
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_complete_call_works_over_ipv6() {
    if std::env::var_os("TESTS_WITHOUT_IPV6").is_some() {
        return;
    }
    let loopback = std::net::UdpSocket::bind("[::1]:0");
    assert!(loopback.is_ok(), "this machine has no IPv6: run with TESTS_WITHOUT_IPV6=1");
    let net = Net::V6;
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let rig = Rig::with(net, pbx, ai, "").await;
    whole_call(&rig).await;
}

#[tokio::test]
async fn sip_over_tcp_uses_the_connection_of_the_registration() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::tcp(net.pbx()).await, Ai::start(net.ai()).await);
    let rig = Rig::with(net, pbx, ai, "[pbx.main.sip]\ntransport = \"tcp\"").await;
    whole_call(&rig).await;
    let (call, stream) = rig.call().await;
    assert!(call.target.ends_with(";transport=tcp"), "{}", call.target);
    stream.close(1000).await;
    call.hung_up().await;
    assert_eq!(rig.pbx.connections(), 1);
}

#[tokio::test]
async fn an_unacknowledged_200_is_sent_again() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let stream = rig.ai.stream().await;
    assert_eq!(call.response(1, "INVITE", 100).await.code(), Some(100));
    let first = call.answered_without_ack().await;
    let again = call.response(1, "INVITE", 200).await;
    assert_eq!(first, again);
    call.ack("").await;
    // media starts without the ACK, and the ACK stops the retransmissions
    call.media.until("RTP", |_| true).await;
    pass(Duration::from_millis(1100)).await;
    call.bye().await;
    stream.stopped().await;
    assert!(rig.pbx.hears_nothing(Duration::from_millis(10)).await);
}
