//! Why an AI could not be reached, in plain words, and what to do about it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use rustls::{CertificateError, Error as TlsFailure, InvalidMessage};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::error::ProtocolError;

/// Why the AI could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot resolve {0}: {1}")]
    Dns(String, String),
    #[error("cannot connect to {0}: {1}")]
    Tcp(SocketAddr, io::Error),
    #[error("TLS failed: {}", tls_words(.0))]
    Tls(io::Error),
    #[error("WebSocket handshake refused: HTTP status {0}")]
    Status(u16),
    #[error("WebSocket handshake failed: {}", handshake_words(.0))]
    Handshake(tungstenite::Error),
    #[error("timed out after {0:?}{1}")]
    Timeout(Duration, String),
    #[error("the proxy does not connect us: {0}")]
    Proxy(String),
    #[error("the request before the socket failed: {0}")]
    Create(String),
    #[error("the session was refused: {0}")]
    Session(String),
    #[error("not offered: it could not be reached several times in a row")]
    Open,
    #[error("internal error: {0}")]
    Internal(String),
}

impl ConnectError {
    /// All that [`ConnectError::kind`] returns.
    pub const KINDS: [&'static str; 11] = [
        "dns",
        "tcp",
        "tls",
        "status",
        "handshake",
        "timeout",
        "proxy",
        "create",
        "session",
        "breaker_open",
        "internal",
    ];

    /// Returns true if another attempt may succeed, and false for a lasting refusal.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            ConnectError::Dns(..) | ConnectError::Tcp(..) => true,
            ConnectError::Status(code) => matches!(code, 502..=504),
            _ => false,
        }
    }

    /// The kind of the error, for the metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            ConnectError::Dns(..) => "dns",
            ConnectError::Tcp(..) => "tcp",
            ConnectError::Tls(_) => "tls",
            ConnectError::Status(_) => "status",
            ConnectError::Handshake(_) => "handshake",
            ConnectError::Timeout(..) => "timeout",
            ConnectError::Proxy(_) => "proxy",
            ConnectError::Create(_) => "create",
            ConnectError::Session(_) => "session",
            ConnectError::Open => "breaker_open",
            ConnectError::Internal(_) => "internal",
        }
    }

    /// Returns the error, and what to do.
    pub fn advice(&self) -> String {
        let cure = self.cure();
        if cure.is_empty() { self.to_string() } else { format!("{self}; {cure}") }
    }

    /// Returns the remedy.
    pub fn cure(&self) -> &'static str {
        match self {
            ConnectError::Dns(..) => "check the host in [ai] url, and this host's DNS",
            ConnectError::Tcp(_, error) => match error.kind() {
                ErrorKind::ConnectionRefused => "check that the AI runs, and the port in [ai] url",
                _ => "check that the AI's host is up, and the firewall",
            },
            ConnectError::Tls(error) => tls_cure(error),
            ConnectError::Status(code) => match code {
                301..=308 => "the AI redirects: set [ai] url to the new address",
                400 | 426 => "check [ai] url: does the AI expect wss:// there, or another path?",
                401 | 403 => "check the token: [ai] headers or auth_token",
                404 | 405 | 410 => "check the path in [ai] url",
                429 | 500.. => "look at the AI's own log",
                _ => "check [ai] url: this is not a WebSocket",
            },
            ConnectError::Handshake(error) => match error {
                tungstenite::Error::Http(_) | tungstenite::Error::Url(_) => "check [ai] url",
                _ => "does [ai] url name a WebSocket, and does the AI expect wss:// there?",
            },
            ConnectError::Timeout(..) => {
                "check that the AI accepts the WebSocket before it does anything else; or raise \
                 [calls] answer_wait"
            }
            ConnectError::Proxy(_) => "check [ai] proxy, and what the proxy allows",
            ConnectError::Create(_) => "check [ai.create], and the server's own log",
            ConnectError::Session(_) => "check the key and [ai.session]",
            ConnectError::Open => "look for AI unreachable in the log, which has the cause",
            ConnectError::Internal(_) => "",
        }
    }
}

fn failure(error: &io::Error) -> Option<&TlsFailure> {
    error.get_ref()?.downcast_ref::<TlsFailure>()
}

/// Puts an error of rustls into words; its own texts contain Debug output.
fn tls_words(error: &io::Error) -> String {
    match failure(error) {
        Some(TlsFailure::InvalidCertificate(why)) => format!("the AI's certificate {}", fault(why)),
        Some(TlsFailure::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "the AI does not speak TLS".to_owned()
        }
        Some(TlsFailure::InvalidMessage(_)) => "the AI sent an invalid TLS message".to_owned(),
        Some(TlsFailure::AlertReceived(alert)) => {
            format!("the AI refused with alert \"{}\"", words(&format!("{alert:?}")))
        }
        Some(TlsFailure::PeerIncompatible(_)) => "no common TLS version or cipher".to_owned(),
        Some(TlsFailure::General(why)) => why.clone(),
        Some(other) => words(&format!("{other:?}")),
        None if error.kind() == ErrorKind::UnexpectedEof => {
            "the AI closed the connection".to_owned()
        }
        None => error.to_string(),
    }
}

fn fault(why: &CertificateError) -> String {
    use CertificateError as C;
    match why {
        // a signature is bad if another CA has the name of the trusted one
        C::UnknownIssuer | C::BadSignature => "is signed by an unknown CA".to_owned(),
        C::NotValidForName | C::NotValidForNameContext { .. } => "is for another name".to_owned(),
        C::Expired | C::ExpiredContext { .. } => "has expired".to_owned(),
        C::NotValidYet | C::NotValidYetContext { .. } => "is not valid yet".to_owned(),
        C::Revoked => "is revoked".to_owned(),
        other if is_ca(other) => "is self-signed as a CA's".to_owned(),
        other => format!("is not accepted: {}", words(&format!("{other:?}"))),
    }
}

/// True for a CA's certificate in place of a server's, as `openssl req -x509` makes it. rustls has
/// no variant for it.
fn is_ca(why: &CertificateError) -> bool {
    format!("{why:?}").contains("CaUsedAsEndEntity")
}

fn tls_cure(error: &io::Error) -> &'static str {
    use CertificateError as C;
    match failure(error) {
        Some(TlsFailure::InvalidCertificate(why)) => match why {
            C::UnknownIssuer | C::BadSignature => {
                "set [ai] ca_file to that CA's certificate, or to the AI's own if it is self-signed"
            }
            C::NotValidForName | C::NotValidForNameContext { .. } => {
                "correct the host in [ai] url, or set tls_server_name"
            }
            C::Expired
            | C::ExpiredContext { .. }
            | C::NotValidYet
            | C::NotValidYetContext { .. } => "renew it, or correct this host's clock",
            _ => "replace it; a CA's own certificate cannot serve as a server's",
        },
        Some(TlsFailure::InvalidMessage(_)) => "use ws:// in [ai] url, or another port",
        _ => "check the port in [ai] url, and the AI's TLS settings",
    }
}

/// Puts a failed handshake into words.
fn handshake_words(error: &tungstenite::Error) -> String {
    use tungstenite::Error as E;
    match error {
        E::Protocol(ProtocolError::HandshakeIncomplete) => {
            "the AI closed the connection".to_owned()
        }
        E::Protocol(ProtocolError::HttparseError(_)) | E::HttpFormat(_) => {
            "the answer is not HTTP".to_owned()
        }
        other => other.to_string(),
    }
}

/// Turns the name of a variant into words: `HandshakeFailure(…)` becomes "handshake failure".
fn words(debug: &str) -> String {
    let name: String = debug.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() && !out.ends_with(' ') {
            out.push(' ');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::AlertDescription;

    fn tls(error: TlsFailure) -> String {
        ConnectError::Tls(io::Error::new(ErrorKind::InvalidData, error)).advice()
    }

    #[test]
    fn tls_errors_are_words_with_a_cure() {
        for (error, text) in [
            (
                TlsFailure::InvalidCertificate(CertificateError::UnknownIssuer),
                "TLS failed: the AI's certificate is signed by an unknown CA; set [ai] ca_file to \
                 that CA's certificate, or to the AI's own if it is self-signed",
            ),
            (
                TlsFailure::InvalidCertificate(CertificateError::NotValidForName),
                "TLS failed: the AI's certificate is for another name; correct the host in [ai] \
                 url, or set tls_server_name",
            ),
            (
                TlsFailure::InvalidCertificate(CertificateError::Expired),
                "TLS failed: the AI's certificate has expired; renew it, or correct this host's \
                 clock",
            ),
            (
                TlsFailure::InvalidCertificate(CertificateError::BadEncoding),
                "TLS failed: the AI's certificate is not accepted: bad encoding; replace it; a \
                 CA's own certificate cannot serve as a server's",
            ),
            (
                TlsFailure::InvalidMessage(InvalidMessage::InvalidContentType),
                "TLS failed: the AI does not speak TLS; use ws:// in [ai] url, or another port",
            ),
            (
                TlsFailure::AlertReceived(AlertDescription::HandshakeFailure),
                "TLS failed: the AI refused with alert \"handshake failure\"; check the port in \
                 [ai] url, and the AI's TLS settings",
            ),
        ] {
            assert_eq!(tls(error), text);
        }
    }

    #[test]
    fn each_error_has_a_cure() {
        let refused = io::Error::from(ErrorKind::ConnectionRefused);
        let address = "127.0.0.1:9".parse().unwrap();
        for (error, part) in [
            (ConnectError::Dns("ai.invalid".into(), "unknown".into()), "the host in [ai] url"),
            (ConnectError::Tcp(address, refused), "that the AI runs"),
            (ConnectError::Status(404), "the path"),
            (ConnectError::Status(403), "the token"),
            (ConnectError::Status(401), "the token"),
            (ConnectError::Status(400), "wss://"),
            (ConnectError::Status(302), "redirects"),
            (ConnectError::Status(503), "own log"),
            (ConnectError::Status(200), "not a WebSocket"),
            (
                ConnectError::Handshake(ProtocolError::HandshakeIncomplete.into()),
                "the AI closed the connection; does [ai] url name a WebSocket",
            ),
            (ConnectError::Timeout(Duration::from_secs(2), String::new()), "answer_wait"),
        ] {
            assert!(error.advice().contains(part), "{}", error.advice());
        }
    }
}
