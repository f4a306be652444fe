//! REGISTER: authentication, refusals, and an unreachable registrar.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use md5::{Digest as _, Md5};
use sha2::Sha256;
use tokio::net::UdpSocket;
use trunkless::sip::message::Message;

use crate::bridge::{Bridge, Net, Rig};
use crate::lines::Lines;
use crate::pbx::{Pbx, accept};
use crate::strict::Ai;

/// A kind of challenge, and the answer to expect.
#[derive(Clone, Copy)]
struct Kind {
    status: u16,
    /// As sent, but without realm and nonce.
    challenges: &'static [&'static str],
    /// The answer uses SHA-256, not MD5.
    sha256: bool,
    /// The answer contains a qop.
    qop: bool,
}

const REALM: &str = "realm=\"asterisk\"";

fn hash(sha256: bool, text: &str) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
    if sha256 { hex(&Sha256::digest(text)) } else { hex(&Md5::digest(text)) }
}

/// The answer to the challenge of `nonce1`, without qop.
pub fn answer(password: &str, uri: &str) -> String {
    let (one, two) = (format!("ai:asterisk:{password}"), format!("REGISTER:{uri}"));
    hash(false, &format!("{}:nonce1:{}", hash(false, &one), hash(false, &two)))
}

/// True if `authorization` answers the challenge; computed independently of the code under test.
fn is_right(kind: Kind, authorization: &str, uri: &str, nonce: &str) -> bool {
    let fields = authorization.strip_prefix("Digest ").unwrap_or("");
    let get = |name: &str| {
        let found = fields.split(", ").find_map(|f| f.strip_prefix(&format!("{name}=")));
        found.unwrap_or("").trim_matches('"').to_owned()
    };
    let hash = |text: String| hash(kind.sha256, &text);
    let (one, two) = (hash("ai:asterisk:secret".to_owned()), hash(format!("REGISTER:{uri}")));
    let expected = match kind.qop {
        true => {
            let (nc, cnonce) = (get("nc"), get("cnonce"));
            hash(format!("{one}:{nonce}:{nc}:{cnonce}:auth:{two}"))
        }
        false => hash(format!("{one}:{nonce}:{two}")),
    };
    let qop = if kind.qop { "auth" } else { "" };
    get("response") == expected
        && (get("username"), get("nonce"), get("uri"), get("qop"))
            == ("ai".to_owned(), nonce.to_owned(), uri.to_owned(), qop.to_owned())
}

/// Answers REGISTERs like a registrar with this challenge; each challenge has a new nonce.
fn registrar(kind: Kind) -> impl FnMut(&Message) -> Option<Message> + Send {
    let mut nonce = 0;
    move |request| {
        let header = if kind.status == 407 { "Proxy-Authorization" } else { "Authorization" };
        let given = request.get(header).unwrap_or("");
        if request.method() != Some("REGISTER")
            || is_right(kind, given, request.uri(), &format!("nonce{nonce}"))
        {
            return accept(request);
        }
        nonce += 1;
        let ask = if kind.status == 407 { "Proxy-Authenticate" } else { "WWW-Authenticate" };
        let mut response = Message::response(request, kind.status, "Unauthorized", "pbx");
        for challenge in kind.challenges {
            response.push(ask, format!("{challenge}, {REALM}, nonce=\"nonce{nonce}\""));
        }
        Some(response)
    }
}

async fn registers_with(kind: Kind) {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    pbx.answer_with(registrar(kind));
    let rig = Rig::with(net, pbx, ai, "").await;
    let second = rig.pbx.registered().await;
    assert_eq!(second.cseq().unwrap().0, 2);
    // the credentials were right: no third REGISTER, and calls arrive
    assert!(rig.pbx.none_of("REGISTER", Duration::from_millis(100)).await);
    let (mut call, stream) = rig.call().await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_digest_challenge_with_qop_is_answered() {
    let challenges = &["Digest algorithm=MD5, qop=\"auth,auth-int\", opaque=\"x\""];
    registers_with(Kind { status: 401, challenges, sha256: false, qop: true }).await;
}

#[tokio::test]
async fn a_digest_challenge_without_qop_is_answered() {
    registers_with(Kind { status: 401, challenges: &["Digest x=y"], sha256: false, qop: false })
        .await;
}

#[tokio::test]
async fn a_digest_challenge_with_sha_256_is_answered() {
    let challenges = &["Digest algorithm=SHA-256, qop=\"auth\""];
    registers_with(Kind { status: 401, challenges, sha256: true, qop: true }).await;
}

#[tokio::test]
async fn the_strongest_of_several_challenges_is_answered() {
    let challenges = &[
        "Digest algorithm=MD5, qop=\"auth\"",
        "Digest algorithm=SHA-256, qop=\"auth\"",
        "Digest algorithm=WHIRLPOOL, qop=\"auth\"",
    ];
    registers_with(Kind { status: 401, challenges, sha256: true, qop: true }).await;
}

#[tokio::test]
async fn a_digest_challenge_of_a_proxy_is_answered() {
    let challenges = &["Digest algorithm=MD5, qop=\"auth\""];
    registers_with(Kind { status: 407, challenges, sha256: false, qop: true }).await;
}

#[tokio::test]
async fn a_wrong_password_is_tried_twice_and_again_after_a_minute() {
    let (lines, net) = (Lines::new(), Net::new());
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let challenges = &["Digest algorithm=MD5, qop=\"auth\""];
    pbx.answer_with(registrar(Kind { status: 401, challenges, sha256: false, qop: true }));
    let wrong = "[pbx.main.sip]\npassword = \"wrong\"";
    let _bridge = Bridge::start(net, pbx.address, ai.address, wrong).await;
    for authorized in [false, true, true] {
        let request = pbx.registered().await;
        assert_eq!(request.get("Authorization").is_some(), authorized);
    }
    retried_after_a_minute(&lines, &pbx).await;
}

#[tokio::test]
async fn a_forbidden_user_is_retried_after_a_minute() {
    let (lines, net) = (Lines::new(), Net::new());
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    pbx.answer_with(|request| Some(Message::response(request, 403, "Forbidden", "pbx")));
    let _bridge = Bridge::start(net, pbx.address, ai.address, "").await;
    pbx.registered().await;
    retried_after_a_minute(&lines, &pbx).await;
}

/// Checks that the registration was refused once, with the next attempt in a minute. That it is
/// made then, and not before, is tested in virtual time (`src/sip/registration/tests.rs`).
async fn retried_after_a_minute(lines: &Lines, pbx: &Pbx) {
    let line = lines.until("registration refused").await;
    assert!(line.contains("retry_s=60"), "{line}");
    assert!(pbx.none_of("REGISTER", Duration::from_millis(800)).await);
    assert_eq!(lines.with("registration").len(), 1);
}

#[tokio::test]
async fn a_registrar_with_an_internal_error_is_retried() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    pbx.answer_with(move |request| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Some(Message::response(request, 500, "Server Internal Error", "pbx")),
        _ => accept(request),
    });
    let _bridge = Bridge::start(net, pbx.address, ai.address, "").await;
    pbx.registered().await;
    pbx.registered().await;
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_too_brief_interval_is_raised() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    pbx.answer_with(|request| match request.get("Expires") {
        Some("120") => {
            let brief = Message::response(request, 423, "Interval Too Brief", "pbx");
            Some(brief.with("Min-Expires", "600"))
        }
        _ => accept(request),
    });
    let rig = Rig::with(net, pbx, ai, "").await;
    assert_eq!(rig.pbx.registered().await.get("Expires"), Some("600"));
}

/// Waits until the bridge removes its contact and registers it again.
async fn comes_back(pbx: &Pbx) {
    while pbx.registered().await.get("Expires") != Some("0") {}
    assert_eq!(pbx.registered().await.get("Expires"), Some("120"));
}

#[tokio::test]
async fn a_registrar_that_was_silent_gets_the_contact_again() {
    let rig = Rig::new("[pbx.main.sip]\nkeepalive = \"100ms\"").await;
    rig.pbx.request("OPTIONS").await;
    rig.pbx.be_silent(true);
    // more than a second without an answer to OPTIONS
    crate::log::pass(Duration::from_millis(1300)).await;
    rig.pbx.be_silent(false);
    comes_back(&rig.pbx).await;
    let (mut call, stream) = rig.call().await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_restarted_registrar_gets_the_contact_again() {
    let rig = Rig::new("").await;
    let address = rig.pbx.address;
    let Rig { net, pbx, ai, bridge } = rig;
    drop(pbx);
    // long enough for the port probe to notice, too short for OPTIONS
    crate::log::pass(Duration::from_millis(600)).await;
    let pbx = Pbx::udp_at(address).await;
    comes_back(&pbx).await;
    let rig = Rig { net, pbx, ai, bridge };
    let (mut call, stream) = rig.call().await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn calls_outlive_the_registrar_while_their_rtp_flows() {
    let rig = Rig::new("[pbx.main.sip]\nkeepalive = \"100ms\"").await;
    let (mut talking, talking_stream) = rig.call().await;
    let (_silent, silent_stream) = rig.call().await;
    rig.pbx.be_silent(true);
    talking.say(0..110).await;
    assert_eq!(talking_stream.heard(110).await, Vec::from_iter(0..110));
    silent_stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "pbx_lost");
    rig.pbx.be_silent(false);
    talking.bye().await;
    talking_stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_silent_registrar_is_reported_after_three_seconds_and_used_when_it_answers() {
    let (lines, net) = (Lines::new(), Net::new());
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    pbx.be_silent(true);
    let begin = Instant::now();
    let bridge = Bridge::start(net, pbx.address, ai.address, "").await;
    let line = lines.until("registrar does not answer").await;
    assert!(line.contains(&format!("address={}", pbx.address)), "{line}");
    let took = begin.elapsed().as_secs_f64();
    assert!((2.9..4.0).contains(&took), "reported after {took} s");
    crate::log::pass(Duration::from_millis(1500)).await;
    assert_eq!(lines.with("registrar does not answer").len(), 1);
    pbx.be_silent(false);
    let begin = Instant::now();
    pbx.registered().await;
    let rig = Rig { net, pbx, ai, bridge };
    let (mut call, stream) = rig.call().await;
    let took = begin.elapsed().as_secs_f64();
    println!("first call answered {took:.2} s after the registrar answered again");
    assert!(took < 2.0, "{took}");
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn a_peer_beside_a_restarting_registrar_never_gets_a_register() {
    let (lines, net) = (Lines::new(), Net::new());
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let peer = Pbx::udp(net.host(9)).await;
    let config = format!(
        "[pbx.main.sip]\nkeepalive = \"500ms\"\npeers = [\"{}\", \"{}\"]",
        peer.address,
        net.host(10) // a peer that is not running
    );
    let bridge = Bridge::start(net, pbx.address, ai.address, &config).await;
    pbx.registered().await;
    let line = lines.until("registered").await;
    assert!(line.contains(&format!("address={}", pbx.address)), "{line}");
    let address = pbx.address;
    drop(pbx);
    lines.until("registrar lost").await;
    // the peer's calls are answered in the meantime
    let mut call = peer.call(&bridge).await;
    call.invite().await;
    let stream = ai.stream().await;
    call.answered().await;
    assert!(peer.none_of("REGISTER", Duration::from_secs(5)).await);
    let begin = Instant::now();
    let pbx = Pbx::udp_at(address).await;
    comes_back(&pbx).await;
    call.bye().await;
    stream.stopped().await;
    let rig = Rig { net, pbx, ai, bridge };
    let (mut call, stream) = rig.call().await;
    let took = begin.elapsed().as_secs_f64();
    println!("first call answered {took:.2} s after the restart");
    assert!(took < 2.0, "{took}");
    call.bye().await;
    stream.stopped().await;
    assert!(peer.none_of("REGISTER", Duration::ZERO).await);
}

/// Counts the empty packets that a registrar receives in half a second, with this configuration.
async fn probes(config: &str) -> usize {
    let net = Net::new();
    let socket = UdpSocket::bind((net.pbx(), 0)).await.unwrap();
    let ai = Ai::start(net.ai()).await;
    let address = socket.local_addr().unwrap();
    let _bridge = Bridge::start(net, address, ai.address, config).await;
    let (mut buffer, mut probes) = ([0; 2000], 0);
    let end = tokio::time::Instant::now() + Duration::from_millis(700);
    while let Ok(received) = tokio::time::timeout_at(end, socket.recv(&mut buffer)).await {
        probes += usize::from(received.unwrap() < 10);
    }
    probes
}

#[tokio::test]
async fn the_port_probe_can_be_switched_off() {
    assert!(probes("").await >= 2);
    assert_eq!(probes("[pbx.main.sip]\nport_probe = false").await, 0);
}
