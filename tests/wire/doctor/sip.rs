//! Faults of a PBX in SIP mode.

use trunkless::doctor::finding::State;
use trunkless::sip::message::Message;

use crate::bridge::Net;
use crate::doctor::pbx::{Rtp, echoing, good, refusing, registrar, seeing};
use crate::doctor::{Case, Wanted, good_ai};
use crate::pbx::Pbx;

#[tokio::test]
async fn without_a_fault_all_steps_pass() {
    let net = Net::new();
    let (pbx, ai) = (echoing(net, Rtp::Good).await, good_ai(net).await);
    let mut case = Case::sip("none", net, pbx.address, ai);
    case.options.echo = Some("600".to_owned());
    case.options.no_ai_call = false;
    let report = case.report().await;
    assert_eq!(report.result(), State::Ok, "{:#?}", report.findings);
    let state = |step: &str| {
        let found = report.findings.iter().find(|finding| finding.step == step);
        found.unwrap_or_else(|| panic!("no {step}")).state
    };
    for step in ["pbx.main.registration", "pbx.main.echo", "ai.handshake", "ai.audio"] {
        assert_eq!(state(step), State::Ok, "{step}");
    }
    assert_eq!(state("ai.barge_in"), State::Ok, "{:#?}", report.findings);
    // the registration was asked for, and not changed
    while let Some(request) = pbx.next_request("REGISTER") {
        assert_eq!(request.get("Contact"), None);
    }
}

#[tokio::test]
async fn a_firewall_before_sip() {
    let net = Net::new();
    let (pbx, ai) = (good(net).await, good_ai(net).await);
    pbx.be_silent(true);
    let wanted = Wanted::fault("pbx.main.sip", &["registrar does not answer", "firewall"]);
    Case::sip("firewall on SIP", net, pbx.address, ai)
        .shows(wanted.logged("registrar does not answer"))
        .await;
}

#[tokio::test]
async fn dropped_registers() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, good_ai(net).await);
    let mut registrar = registrar();
    pbx.answer_with(move |request| {
        if request.method() == Some("REGISTER") { None } else { registrar.answer(request) }
    });
    let words = &["registrar does not answer to REGISTER", "answers OPTIONS"];
    Case::sip("registrar packets dropped", net, pbx.address, ai)
        .shows(Wanted::fault("pbx.main.registration", words).logged("registrar does not answer"))
        .await;
}

#[tokio::test]
async fn a_closed_port() {
    let net = Net::new();
    let (pbx, ai) = (good(net).await.address, good_ai(net).await);
    // the PBX has just been stopped
    tokio::task::yield_now().await;
    let wanted =
        Wanted::fault("pbx.main.sip", &["its port is closed", "chan_sip often has another"]);
    Case::sip("wrong SIP port", net, pbx, ai).shows(wanted.logged("its port is closed")).await;
}

#[tokio::test]
async fn a_wrong_password_at_chan_pjsip() {
    let net = Net::new();
    let (pbx, ai) = (good(net).await, good_ai(net).await);
    let words = &["registration refused with 401", "wrong password for user \"ai\""];
    Case::sip("wrong password, chan_pjsip", net, pbx.address, ai)
        .with("[pbx.main.sip]\npassword = \"wrong\"")
        .shows(
            Wanted::fault("pbx.main.registration", words).logged("wrong password for user \"ai\""),
        )
        .await;
}

#[tokio::test]
async fn a_wrong_password_at_chan_sip() {
    let net = Net::new();
    let (pbx, ai) = (refusing(net, 403, true).await, good_ai(net).await);
    let words = &["registration refused with 403", "check username and password"];
    let log = "the PBX refuses user \"ai\": check username and password";
    Case::sip("wrong password, chan_sip", net, pbx.address, ai)
        .shows(Wanted::fault("pbx.main.registration", words).logged(log))
        .await;
}

#[tokio::test]
async fn an_unknown_user() {
    let net = Net::new();
    let (pbx, ai) = (refusing(net, 404, true).await, good_ai(net).await);
    let words = &["does not know user \"ai\"", "aor"];
    Case::sip("unknown extension", net, pbx.address, ai)
        .shows(Wanted::fault("pbx.main.registration", words).logged("does not know user \"ai\""))
        .await;
}

#[tokio::test]
async fn an_address_that_is_not_a_registrar() {
    let net = Net::new();
    let (pbx, ai) = (refusing(net, 405, false).await, good_ai(net).await);
    let words = &["that address is not a registrar"];
    Case::sip("registrar is a phone", net, pbx.address, ai)
        .shows(Wanted::fault("pbx.main.registration", words).logged(words[0]))
        .await;
}

#[tokio::test]
async fn a_registrar_with_an_error() {
    let net = Net::new();
    let (pbx, ai) = (refusing(net, 503, false).await, good_ai(net).await);
    let words = &["the registrar answered 503"];
    Case::sip("registrar overloaded", net, pbx.address, ai)
        .shows(Wanted::fault("pbx.main.registration", words).logged(words[0]))
        .await;
}

#[tokio::test]
async fn a_challenge_that_cannot_be_answered() {
    let net = Net::new();
    let (pbx, ai) = (good(net).await, good_ai(net).await);
    let words = &["registration refused", "check realm"];
    Case::sip("wrong realm", net, pbx.address, ai)
        .with("[pbx.main.sip]\nrealm = \"another.example\"")
        .shows(Wanted::fault("pbx.main.registration", words).logged("registration refused"))
        .await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve() {
    let net = Net::new();
    let ai = good_ai(net).await;
    let pbx = (net.pbx(), 5060).into();
    let words = &["cannot resolve pbx.invalid", "DNS"];
    Case::sip("PBX name not in the DNS", net, pbx, ai)
        .with("[pbx.main.sip]\nregistrar = \"pbx.invalid:5060\"")
        .shows(Wanted::fault("pbx.main.dns", words).logged("cannot resolve pbx.invalid"))
        .await;
}

#[tokio::test]
async fn two_bridges_with_one_extension() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, good_ai(net).await);
    let (mut registrar, stranger) = (registrar(), net.stranger());
    pbx.answer_with(move |request| {
        let mut response = registrar.answer(request)?;
        if request.method() == Some("REGISTER") && response.code() == Some(200) {
            response.push("Contact", format!("<sip:ai@{stranger}:5070>;expires=60"));
        }
        Some(response)
    });
    let words = &["another device is registered as the same user", "an extension of its own"];
    Case::sip("two bridges with one extension", net, pbx.address, ai)
        .shows(Wanted::fault("pbx.main.device", words).logged(words[0]))
        .await;
}

#[tokio::test]
async fn a_wrong_advertised_address() {
    let net = Net::new();
    let seen = (net.bridge(), 5060).into();
    let (pbx, ai) = (seeing(net, seen).await, good_ai(net).await);
    let words = &["the PBX sees us at 127.", "but we announce 203.0.113.9", "set advertised"];
    Case::sip("wrong advertised address", net, pbx.address, ai)
        .with("[pbx.main.sip]\nadvertised = \"203.0.113.9\"")
        .shows(Wanted::fault("pbx.main.address", words).logged("but we announce 203.0.113.9"))
        .await;
}

#[tokio::test]
async fn a_nat_without_an_advertised_address() {
    let net = Net::new();
    let seen = ([198, 51, 100, 7], 41_000).into();
    let (pbx, ai) = (seeing(net, seen).await, good_ai(net).await);
    let words = &["the PBX sees us at 198.51.100.7", "set advertised"];
    Case::sip("NAT, advertised not set", net, pbx.address, ai)
        .shows(Wanted::fault("pbx.main.address", words).logged(words[0]))
        .await;
}

#[tokio::test]
async fn a_pbx_that_ignores_options() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, good_ai(net).await);
    let mut registrar = registrar();
    pbx.answer_with(move |request| {
        if request.method() == Some("OPTIONS") { None } else { registrar.answer(request) }
    });
    let words = &["answers REGISTER, but not OPTIONS", "keepalive = \"0s\""];
    Case::sip("OPTIONS ignored", net, pbx.address, ai)
        .shows(Wanted::warning("pbx.main.sip", words))
        .await;
}

async fn echo(fault: &'static str, rtp: Rtp, words: &'static [&'static str]) {
    let net = Net::new();
    let (pbx, ai) = (echoing(net, rtp).await, good_ai(net).await);
    let mut case = Case::sip(fault, net, pbx.address, ai);
    case.options.echo = Some("600".to_owned());
    case.shows(Wanted::fault("pbx.main.echo", words)).await;
}

#[tokio::test]
async fn rtp_from_the_pbx_is_dropped() {
    let words =
        &["no RTP from the PBX, which hears ours", "It has to send to 127.", "[media] ports"];
    echo("RTP from the PBX dropped", Rtp::DropsTheirs, words).await;
}

#[tokio::test]
async fn rtp_to_the_pbx_is_dropped() {
    let words = &["it heard no RTP from us", "rtpstart to rtpend"];
    echo("RTP to the PBX dropped", Rtp::DropsOurs, words).await;
}

#[tokio::test]
async fn a_wrong_address_in_the_pbxs_sdp() {
    let words = &["its SDP names 127.255.3.9:9", "external_media_address"];
    echo("wrong address in the PBX's SDP", Rtp::WrongSdp, words).await;
}

#[tokio::test]
async fn rtp_from_another_address() {
    let words = &["but the PBX's SDP names", "bind_rtp_to_media_address"];
    echo("RTP from another address than the SDP's", Rtp::FromElsewhere, words).await;
}

async fn refused_call(fault: &'static str, code: u16, words: &'static [&'static str]) {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, good_ai(net).await);
    let mut registrar = registrar();
    pbx.answer_with(move |request| match request.method() {
        Some("INVITE") => Some(Message::response(request, code, "No", "pbx")),
        _ => registrar.answer(request),
    });
    let mut case = Case::sip(fault, net, pbx.address, ai);
    case.options.echo = Some("600".to_owned());
    case.shows(Wanted::fault("pbx.main.echo", words)).await;
}

#[tokio::test]
async fn no_common_codec() {
    refused_call("no common codec", 488, &["no common codec", "allow ulaw or alaw"]).await;
}

#[tokio::test]
async fn an_unknown_echo_extension() {
    refused_call("no such echo extension", 404, &["refuses the call to 600 with 404", "context"])
        .await;
}
