//! wss: the configured CA and server name must match, and nothing falls back to less.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use trunkless::stream::connect::{Target, TargetOptions};
use trunkless::stream::unreachable::ConnectError;

/// A server with a certificate for `ai.test`, and the PEM file of the CA that signed it.
struct Server {
    url: String,
    ca: tempfile::NamedTempFile,
}

fn new_ca() -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn pem_file(pem: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    file
}

async fn server() -> Server {
    let (acceptor, ca) = acceptor("ai.test");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://{}/media", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(tls) = acceptor.accept(tcp).await {
                let _ = tokio_tungstenite::accept_async(tls).await;
            }
        }
    });
    Server { url, ca }
}

/// Accepts TLS with a certificate for this name. Returns the PEM file of its CA, too.
pub fn acceptor(name: &str) -> (TlsAcceptor, tempfile::NamedTempFile) {
    let (ca, pem) = new_ca();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), pem_file(&pem))
}

fn options(ca: &tempfile::NamedTempFile, name: Option<&str>) -> TargetOptions {
    TargetOptions {
        ca_file: Some(ca.path().display().to_string()),
        tls_server_name: name.map(str::to_owned),
        ..TargetOptions::default()
    }
}

const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn the_configured_ca_and_name_are_accepted() {
    let server = server().await;
    let target = Target::new(&server.url, &options(&server.ca, Some("ai.test"))).unwrap();
    assert!(target.connect(LIMIT).await.is_ok());
}

#[tokio::test]
async fn another_name_and_another_ca_are_refused() {
    let server = server().await;
    let (_, other) = new_ca();
    let other = pem_file(&other);
    let refused = [
        (options(&server.ca, None), "for another name; correct the host"),
        (options(&server.ca, Some("other.test")), "for another name; correct the host"),
        (options(&other, Some("ai.test")), "signed by an unknown CA; set [ai] ca_file"),
    ];
    for (options, advice) in refused {
        let target = Target::new(&server.url, &options).unwrap();
        let error = target.connect(LIMIT).await.err().unwrap();
        assert!(matches!(error, ConnectError::Tls(_)), "{options:?}");
        assert!(error.advice().contains(advice), "{}", error.advice());
    }
}

#[tokio::test]
async fn ws_and_wss_mixed_up_are_named() {
    let server = server().await;
    let plain = server.url.replace("wss://", "ws://");
    let target = Target::new(&plain, &TargetOptions::default()).unwrap();
    let error = target.connect(LIMIT).await.err().unwrap().advice();
    assert!(error.contains("does the AI expect wss:// there?"), "{error}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://{}/media", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let target = Target::new(&url, &options(&server.ca, Some("ai.test"))).unwrap();
    let error = target.connect(LIMIT).await.err().unwrap().advice();
    assert!(error.contains("the AI does not speak TLS; use ws://"), "{error}");
}

#[test]
fn a_ca_file_without_a_certificate_is_reported() {
    let empty = pem_file("nothing here");
    let error = Target::new("wss://ai.test/", &options(&empty, None)).err().unwrap().to_string();
    assert!(error.contains("holds no certificate"), "{error}");
}
