//! While no AI can be reached, the PBX is shown so in the way that is configured.

use std::time::Duration;

use trunkless::sip::message::Message;

use crate::bridge::{Net, Rig};
use crate::lines::Lines;
use crate::pbx::Pbx;
use crate::strict::Ai;

/// The number of failed calls after which an AI gets no more of them.
const FAILURES: u32 = 3;

async fn gated(how: &str) -> Rig {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let config = format!("[pbx.main.sip]\nwhen_ai_is_down = \"{how}\"\n");
    Rig::with(net, pbx, ai, &config).await
}

async fn fail(rig: &Rig) {
    for _ in 0..FAILURES {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        rig.ai.handshake().await.refuse("401 Unauthorized").await;
        call.refused().await;
        assert_eq!(rig.bridge.end().await, "ai_unreachable");
    }
}

async fn comes_back(rig: &Rig) {
    rig.ai.handshake().await.expect_only_a_probe().await;
}

/// Returns the status that OPTIONS get.
async fn options(rig: &Rig, number: u32) -> u16 {
    let at = rig.pbx.address;
    let request = Message::request("OPTIONS", &format!("sip:{}", rig.bridge.address()))
        .with("Via", format!("SIP/2.0/UDP {at};rport;branch=z9hG4bK-{number}"))
        .with("Max-Forwards", "70")
        .with("From", format!("<sip:proxy@{at}>;tag={number}"))
        .with("To", format!("<sip:{}>", rig.bridge.address()))
        .with("Call-ID", format!("options-{number}"))
        .with("CSeq", "1 OPTIONS");
    rig.pbx.ask(&request, &rig.bridge).await
}

#[tokio::test]
async fn the_bridge_unregisters_and_registers_again() {
    let (lines, rig) = (Lines::new(), gated("unregister").await);
    fail(&rig).await;
    assert_eq!(rig.pbx.registered().await.get("Expires"), Some("0"));
    lines.until("no AI can be reached: unregistering").await;
    // a call of a PBX that has not noticed yet goes down the ladder
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    call.refused().await;
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
    assert!(rig.pbx.none_of("REGISTER", Duration::from_millis(300)).await);
    comes_back(&rig).await;
    assert_eq!(rig.pbx.registered().await.get("Expires"), Some("120"));
    lines.until("AI reachable again: registering").await;
    let (mut call, stream) = rig.call().await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn options_get_503() {
    let rig = gated("refuse_options").await;
    assert_eq!(options(&rig, 1).await, 200);
    fail(&rig).await;
    assert_eq!(options(&rig, 2).await, 503);
    assert!(rig.pbx.none_of("REGISTER", Duration::from_millis(300)).await);
    comes_back(&rig).await;
    while options(&rig, 3).await != 200 {}
}

#[tokio::test]
async fn by_default_nothing_changes() {
    let rig = gated("stay").await;
    fail(&rig).await;
    assert_eq!(options(&rig, 1).await, 200);
    assert!(rig.pbx.none_of("REGISTER", Duration::from_millis(300)).await);
}
