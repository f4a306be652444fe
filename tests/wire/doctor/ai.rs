//! Faults of the AI.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;

use crate::bridge::{Bridge, Net};
use crate::doctor::pbx::good;
use crate::doctor::{Case, Wanted, row};
use crate::http::free;
use crate::lines::Lines;
use crate::pbx::Pbx;
use crate::strict::Ai;
use crate::tls::acceptor;

async fn case(fault: &'static str, net: Net, ai: SocketAddr) -> (Pbx, Case) {
    let pbx = good(net).await;
    let case = Case::sip(fault, net, pbx.address, ai);
    (pbx, case)
}

/// Also places a call through the bridge, whose log has to give the same reason and remedy.
async fn called(fault: &'static str, net: Net, ai: SocketAddr, more: &str, wanted: Wanted) {
    let (pbx, case) = case(fault, net, ai).await;
    let case = case.with(more);
    let finding = case.finding(&wanted).await;
    let lines = Lines::of_calls();
    let bridge = Bridge::launch(&case.plain, &case.more).await;
    while pbx.registered().await.get("Contact").is_none() {}
    let mut call = pbx.call(&bridge).await;
    call.invite().await;
    let url = format!("{}/media", more.split("://").nth(1).map_or(ai.to_string(), host_and_port));
    let log = lines.until_all(&["AI unreachable", &url, &finding.remedy.clone().unwrap()]).await;
    row(fault, &finding, &log);
}

/// The beginning of a URL behind its scheme.
fn host_and_port(url: &str) -> String {
    url.split('/').next().unwrap().to_owned()
}

#[tokio::test]
async fn an_ai_that_does_not_run() {
    let net = Net::new();
    let ai = free(net.ai());
    let words = &["AI unreachable", "Connection refused", "check that the AI runs"];
    called("AI not running", net, ai, "", Wanted::fault("ai.connect", words)).await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve() {
    let net = Net::new();
    let ai = free(net.ai());
    let words = &["cannot resolve ai.invalid", "this host's DNS"];
    let more = "[ai]\nurl = \"ws://ai.invalid:80/media\"";
    called("AI name not in the DNS", net, ai, more, Wanted::fault("ai.dns", words)).await;
}

/// Accepts TLS with this acceptor, and then a WebSocket.
async fn serve_tls(net: Net, acceptor: TlsAcceptor) -> SocketAddr {
    let listener = TcpListener::bind((net.ai(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(tls) = acceptor.accept(tcp).await {
                let _ = tokio_tungstenite::accept_async(tls).await;
            }
        }
    });
    address
}

/// An acceptor with a certificate that has signed itself.
fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> (TlsAcceptor, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["ai.test".to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), certificate.pem())
}

fn wss(ai: SocketAddr, more: &str) -> String {
    format!("[ai]\nurl = \"wss://{ai}/media\"\n{more}\n")
}

const NAME: &str = "tls_server_name = \"ai.test\"";

#[tokio::test]
async fn a_private_ca() {
    let net = Net::new();
    let ai = serve_tls(net, acceptor("ai.test").0).await;
    let words = &["signed by an unknown CA", "set [ai] ca_file to that CA's certificate"];
    called("private CA", net, ai, &wss(ai, NAME), Wanted::fault("ai.tls", words)).await;
}

#[tokio::test]
async fn a_self_signed_certificate() {
    let net = Net::new();
    let ai = serve_tls(net, self_signed(|_| {}).0).await;
    let words = &["signed by an unknown CA", "the AI's own if it is self-signed"];
    called("self-signed certificate", net, ai, &wss(ai, NAME), Wanted::fault("ai.tls", words))
        .await;
}

#[tokio::test]
async fn a_self_signed_certificate_of_a_ca() {
    let net = Net::new();
    let ca = |params: &mut CertificateParams| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    };
    let ai = serve_tls(net, self_signed(ca).0).await;
    let words = &["self-signed as a CA's", "replace it"];
    let wanted = Wanted::fault("ai.tls", words);
    called("self-signed certificate of openssl req -x509", net, ai, &wss(ai, NAME), wanted).await;
}

#[tokio::test]
async fn an_expired_certificate() {
    let net = Net::new();
    let old = |params: &mut CertificateParams| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    };
    let (acceptor, pem) = self_signed(old);
    let ai = serve_tls(net, acceptor).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem).unwrap();
    let more = wss(ai, &format!("{NAME}\nca_file = \"{}\"", file.path().display()));
    let words = &["has expired", "renew it"];
    called("expired certificate", net, ai, &more, Wanted::fault("ai.tls", words)).await;
}

#[tokio::test]
async fn a_certificate_for_another_name() {
    let net = Net::new();
    let (acceptor, ca) = acceptor("other.test");
    let ai = serve_tls(net, acceptor).await;
    let more = wss(ai, &format!("{NAME}\nca_file = \"{}\"", ca.path().display()));
    let words = &["is for another name", "tls_server_name"];
    called("certificate for another name", net, ai, &more, Wanted::fault("ai.tls", words)).await;
}

#[tokio::test]
async fn ws_against_wss() {
    let net = Net::new();
    let ai = serve_tls(net, acceptor("ai.test").0).await;
    let words = &["does the AI expect wss:// there?"];
    called("ws:// against wss://", net, ai, "", Wanted::fault("ai.handshake", words)).await;
}

#[tokio::test]
async fn wss_against_ws() {
    let net = Net::new();
    let ai = plain_http(net, "400 Bad Request").await;
    let words = &["the AI does not speak TLS", "use ws:// in [ai] url"];
    called("wss:// against ws://", net, ai, &wss(ai, NAME), Wanted::fault("ai.tls", words)).await;
}

/// A web server that answers everything with this status.
async fn plain_http(net: Net, status: &'static str) -> SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind((net.ai(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.read(&mut [0u8; 4096]).await;
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            let _ = tcp.write_all(text.as_bytes()).await;
        }
    });
    address
}

async fn refused(fault: &'static str, status: &'static str, words: &'static [&'static str]) {
    let net = Net::new();
    let ai = plain_http(net, status).await;
    called(fault, net, ai, "", Wanted::fault("ai.handshake", words)).await;
}

#[tokio::test]
async fn a_wrong_path() {
    refused("AI path wrong", "404 Not Found", &["HTTP status 404", "check the path"]).await;
}

#[tokio::test]
async fn a_wrong_token() {
    refused("AI token wrong", "401 Unauthorized", &["HTTP status 401", "check the token"]).await;
}

#[tokio::test]
async fn a_web_page_instead_of_a_websocket() {
    refused("AI url is a web page", "200 OK", &["HTTP status 200", "not a WebSocket"]).await;
}

#[tokio::test]
async fn an_ai_that_does_not_answer_the_handshake() {
    let net = Net::new();
    let ai = Ai::start(net.ai()).await;
    let words = &["timed out", "accepts the WebSocket before it does anything else"];
    let wanted = Wanted::fault("ai.handshake", words);
    called("AI hangs in the handshake", net, ai.address, "", wanted).await;
}

/// An AI that sends this after the start, and then closes if `closes`.
async fn saying(net: Net, text: &'static str, closes: bool) -> SocketAddr {
    let listener = TcpListener::bind((net.ai(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut socket) = tokio_tungstenite::accept_async(tcp).await else { continue };
            let _ = socket.next().await;
            let _ = socket.send(Message::text(text)).await;
            if closes {
                let _ = socket.close(None).await;
            }
            while let Some(Ok(_)) = socket.next().await {}
        }
    });
    address
}

async fn talking(fault: &'static str, net: Net, ai: SocketAddr, wanted: Wanted) {
    let (_pbx, mut case) = case(fault, net, ai).await;
    case.options.no_ai_call = false;
    case.shows(wanted).await;
}

#[tokio::test]
async fn an_ai_that_closes_at_once() {
    let net = Net::new();
    let ai = saying(net, "{}", true).await;
    let wanted = Wanted::fault("ai.audio", &["closed the stream before it sent audio", "AI's log"]);
    talking("AI closes after the start", net, ai, wanted).await;
}

#[tokio::test]
async fn an_ai_whose_messages_are_not_understood() {
    let net = Net::new();
    let ai = saying(
        net,
        "{\"event\":\"media\",\"streamSid\":\"MZ0\",\"media\":{\"payload\":\"//8=\"}}",
        false,
    )
    .await;
    let wanted =
        Wanted::fault("ai.audio", &["messages are not understood", "streamSid of another stream"]);
    talking("AI sends another streamSid", net, ai, wanted).await;
}

#[tokio::test]
async fn a_silent_ai() {
    let net = Net::new();
    let listener = TcpListener::bind((net.ai(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut socket) = tokio_tungstenite::accept_async(tcp).await else { continue };
            while let Some(Ok(_)) = socket.next().await {}
        }
    });
    let wanted = Wanted::warning("ai.audio", &["sent no audio within 5 s"]);
    talking("AI says nothing", net, address, wanted).await;
}
