//! Dials the AI: DNS, TCP, TLS, WebSocket handshake. Owns I/O.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::{IntoClientRequest, client_with_config};
use tokio_tungstenite::tungstenite::handshake::HandshakeError;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, Uri};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, error::UrlError};

use crate::dns::lookup;
use crate::stream::dialect::{Codec, Dialect, Extensions, Session};
use crate::stream::proxy::Proxy;
use crate::stream::unreachable::ConnectError;
use crate::stream::wire::Wire;
use crate::stream::{StreamInfo, model};
use crate::tls::{TlsError, client_config};

/// A non-blocking socket; its owner asks the kernel when it is ready.
pub type Socket = tungstenite::WebSocket<Wire>;

/// Send buffer in the kernel, which doubles this value. It is small so that a slow AI soon shows in
/// our own queue, where the oldest audio can still be dropped.
const SEND_BUFFER_BYTES: u32 = 8 * 1024;
/// If data is unacknowledged for this long, the AI's host is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
/// The kernel probes a connection on which nothing has arrived for this long.
const PROBE: Duration = Duration::from_secs(5);
/// Ten minutes of audio in one message, in base64, with room to spare.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// Time limit for one of several addresses, apart from the last.
const OTHERS_WAIT: Duration = Duration::from_millis(400);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(250);
/// An AI that restarts is back within this time; otherwise the caller is better off with a human.
const RETRY_FOR: Duration = Duration::from_millis(600);

/// The AI's address, and how to connect to it.
#[derive(Clone)]
pub struct Target {
    pub dialect: Dialect,
    url: String,
    host: String,
    port: u16,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    /// For `tls`; also set if other URLs may be dialled.
    tls_config: Option<Arc<rustls::ClientConfig>>,
    request: Request,
    options: TargetOptions,
}

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("\"{0}\" is not a ws:// or wss:// URL with a host, such as \"ws://127.0.0.1:8080\"")]
    Url(String),
    /// The URL is not printed, because it contains a password.
    #[error("contains a user or password; remove it, and set Authorization in headers instead")]
    Credentials,
    #[error("\"{0}\" is not a valid header name or value")]
    Header(String),
    #[error("\"{0}\" is not the name of a WebSocket subprotocol")]
    Subprotocol(String),
    #[error("\"{0}\" is not a valid TLS server name")]
    ServerName(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Options of [`Target::new`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TargetOptions {
    pub dialect: Dialect,
    /// The session of a model.
    pub session: Session,
    pub headers: Vec<(String, String)>,
    /// The subprotocol that is requested; the server may ignore it.
    pub subprotocol: Option<String>,
    /// Signs the handshake, where the dialect has a signature.
    pub auth_token: Option<String>,
    /// PEM file with the only trusted CA; by default, the system's CAs are trusted.
    pub ca_file: Option<String>,
    /// Name for SNI and the certificate, if it is not the URL's host.
    pub tls_server_name: Option<String>,
    /// Through which it is reached.
    pub proxy: Option<Proxy>,
    /// [`Target::with_url`] is used.
    pub varies: bool,
}

impl Target {
    /// # Errors
    /// Returns a [`TargetError`] for the part of the configuration that is invalid.
    pub fn new(url: &str, options: &TargetOptions) -> Result<Target, TargetError> {
        let needs_tls = options.varies || url.starts_with("wss:");
        let tls = needs_tls.then(|| client_config(options.ca_file.as_deref())).transpose()?;
        Target::of(url, options, tls.map(Arc::new))
    }

    /// Returns the same AI at another URL.
    ///
    /// # Errors
    /// Returns a [`TargetError`] if the URL cannot be used.
    pub fn with_url(&self, url: &str) -> Result<Target, TargetError> {
        Target::of(url, &self.options, self.tls_config.clone())
    }

    fn of(
        url: &str,
        options: &TargetOptions,
        tls_config: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<Target, TargetError> {
        let bad_url = || match url.contains('@') {
            true => TargetError::Credentials,
            false => TargetError::Url(url.to_owned()),
        };
        let uri: Uri = url.parse().map_err(|_| bad_url())?;
        let secure = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            _ => return Err(bad_url()),
        };
        let authority = uri.authority().ok_or_else(bad_url)?;
        if authority.as_str().contains('@') {
            return Err(bad_url());
        }
        let host = Some(authority.host()).filter(|h| !h.is_empty()).ok_or_else(bad_url)?;
        // a port that is not a number would be ignored
        let port = authority.as_str().strip_prefix(host).unwrap_or_default();
        if !port.is_empty() && uri.port_u16().is_none() {
            return Err(bad_url());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        if port == 0 {
            return Err(bad_url());
        }
        let request = request(url, options)?;
        let tls = match secure {
            false => None,
            true => {
                let name = options.tls_server_name.as_deref().unwrap_or(&host).to_owned();
                let server = ServerName::try_from(name.clone())
                    .map_err(|_| TargetError::ServerName(name))?;
                let config = match &tls_config {
                    Some(config) => config.clone(),
                    None => Arc::new(client_config(options.ca_file.as_deref())?),
                };
                Some((config, server))
            }
        };
        let (url, options) = (url.to_owned(), options.clone());
        Ok(Target { dialect: options.dialect, url, host, port, tls, tls_config, request, options })
    }

    /// True if the same AI is reached in the same way, with the same credentials.
    pub fn is_same(&self, other: &Target) -> bool {
        self.url == other.url && self.options == other.options
    }

    /// True if a URL is asked for before each connection.
    pub fn varies(&self) -> bool {
        self.options.varies
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Creates the codec of a new stream.
    pub fn codec(&self, info: StreamInfo, extensions: Extensions) -> Box<dyn Codec> {
        self.dialect.codec(info, extensions, &self.options.session)
    }

    /// Returns what may be secret: the values of headers and of the URL's query, the token, and the
    /// credentials in a model's session.
    pub fn secrets(&self) -> Vec<String> {
        let headers = self.options.headers.iter().map(|(_, value)| value.as_str());
        let query = self.request.uri().query().unwrap_or_default().split('&');
        let query = query.filter_map(|pair| pair.split_once('='));
        // a sample rate would be hidden wherever that number occurs
        let query = query.filter(|(name, _)| *name != "sample-rate").map(|(_, value)| value);
        let token = self.options.auth_token.as_deref();
        let session = self.options.session.settings.as_ref().map(model::secrets);
        let plain = headers.chain(query).chain(token).map(str::to_owned);
        let proxy = self.options.proxy.iter().flat_map(Proxy::secrets);
        plain.chain(session.into_iter().flatten()).chain(proxy).collect()
    }

    /// Returns the URL for the log: without a query, which may contain a secret, and without
    /// credentials.
    pub fn shown(&self) -> String {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        let port = self.request.uri().port_u16().map(|port| format!(":{port}"));
        let path = self.request.uri().path();
        format!("{scheme}://{host}{}{path}", port.unwrap_or_default())
    }

    /// Connects within `limit`, and retries for a short time where that may help.
    ///
    /// # Errors
    /// Returns the [`ConnectError`] of the last attempt, or a timeout.
    pub async fn connect(&self, limit: Duration) -> Result<Socket, ConnectError> {
        self.connect_within(limit, RETRY_FOR, false).await
    }

    /// The same without a second attempt, for an AI that another one can replace at once.
    ///
    /// # Errors
    /// Returns the [`ConnectError`], or a timeout.
    pub async fn connect_once(&self, limit: Duration) -> Result<Socket, ConnectError> {
        self.connect_within(limit, Duration::ZERO, false).await
    }

    /// The same for an AI whose call is in progress: every error is retried until the limit.
    ///
    /// # Errors
    /// Returns the [`ConnectError`] of the last attempt, or a timeout.
    pub async fn reconnect(&self, limit: Duration) -> Result<Socket, ConnectError> {
        self.connect_within(limit, limit, true).await
    }

    async fn connect_within(
        &self,
        limit: Duration,
        retry_for: Duration,
        persistent: bool,
    ) -> Result<Socket, ConnectError> {
        let begin = Instant::now();
        let deadline = begin + limit;
        let mut last: Option<ConnectError> = None;
        let timed_out = |last: Option<ConnectError>| {
            let why = last.map(|e| format!(" (last attempt: {e})")).unwrap_or_default();
            ConnectError::Timeout(limit, why)
        };
        loop {
            match timeout_at(deadline, self.attempt()).await {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) if !error.may_pass() && !persistent => return Err(error),
                Ok(Err(error)) if Instant::now() + RETRY >= deadline.min(begin + retry_for) => {
                    return Err(error);
                }
                Ok(Err(error)) => last = Some(error),
                Err(_) => return Err(timed_out(last)),
            }
            sleep(RETRY).await;
        }
    }

    async fn attempt(&self) -> Result<Socket, ConnectError> {
        let Some(via) = self.options.proxy.as_ref().and_then(|proxy| proxy.via(&self.host)) else {
            return self.handshake(self.reach(&self.host, self.port).await?).await;
        };
        let stream = self.reach(&via.host, via.port).await.map_err(|error| via.error(error))?;
        self.handshake(via.tunnel(stream, &self.host, self.port).await?).await
    }

    /// Connects to one of the addresses of a host.
    async fn reach(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        let dns = |why: String| ConnectError::Dns(host.to_owned(), why);
        let addresses = lookup(host, port).await.map_err(dns)?;
        let mut last = dns("no address found".to_owned());
        let count = addresses.len();
        for (n, address) in addresses.into_iter().enumerate() {
            // an address that does not respond must leave time for the next
            let share = if n + 1 < count { OTHERS_WAIT } else { Duration::MAX };
            let stream = match timeout(share, tcp(address)).await {
                Ok(stream) => stream,
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            };
            match stream {
                Ok(stream) => return Ok(stream),
                Err(error) => last = ConnectError::Tcp(address, error),
            }
        }
        Err(last)
    }

    /// Performs the TLS and WebSocket handshakes. Data that a quick server sends right behind its
    /// response stays in the `Wire`.
    async fn handshake(&self, stream: TcpStream) -> Result<Socket, ConnectError> {
        let failed = |error: io::Error| ConnectError::Handshake(error.into());
        let stream = stream.into_std().map_err(failed)?;
        let watched = stream.try_clone().and_then(TcpStream::from_std).map_err(failed)?;
        let invalid = |e| ConnectError::Tls(io::Error::new(io::ErrorKind::InvalidInput, e));
        let mut wire = Wire::new(stream, self.tls.as_ref()).map_err(invalid)?;
        wire.requests(self.options.subprotocol.as_deref());
        while let Err(error) = wire.shake_hands() {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(ConnectError::Tls(error));
            }
            ready(&watched, &mut wire).await.map_err(ConnectError::Tls)?;
        }
        // the library rarely reads (see socket), and its default would be 128 KiB per call
        let config = WebSocketConfig::default()
            .read_buffer_size(1024)
            .write_buffer_size(0)
            .max_write_buffer_size(256 * 1024)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let mut step = client_with_config(fresh_key(&self.request), wire, Some(config));
        loop {
            match step {
                Ok((socket, _)) => return Ok(socket),
                Err(HandshakeError::Interrupted(mut half)) => {
                    ready(&watched, half.get_mut().get_mut()).await.map_err(failed)?;
                    step = half.handshake();
                }
                Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                    return Err(ConnectError::Status(response.status().as_u16()));
                }
                Err(HandshakeError::Failure(error)) => return Err(ConnectError::Handshake(error)),
            }
        }
    }
}

/// Waits until a handshake that would block can continue. `watched` is the same connection,
/// registered with the reactor.
async fn ready(watched: &TcpStream, wire: &mut Wire) -> io::Result<()> {
    let interest = match wire.tcp().blocked_on_write {
        true => Interest::WRITABLE,
        false => Interest::READABLE,
    };
    watched.ready(interest).await?;
    // clears the readiness before the next attempt, so that no event in between is missed
    let _ = watched.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    wire.readable_at_length();
    Ok(())
}

async fn tcp(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    let stream = socket.connect(address).await?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    // a connection that is quiet by agreement is probed, too
    let probes = TcpKeepalive::new().with_time(PROBE).with_interval(PROBE);
    socket.set_tcp_keepalive(&probes)?;
    Ok(stream)
}

fn request(url: &str, options: &TargetOptions) -> Result<Request, TargetError> {
    let mut request = url.into_client_request().map_err(|e| match e {
        tungstenite::Error::Url(UrlError::UnsupportedUrlScheme) => TargetError::Url(url.to_owned()),
        _ => TargetError::Url(url.to_owned()),
    })?;
    let headers = request.headers_mut();
    for (name, value) in options.dialect.handshake_headers(url, options.auth_token.as_deref()) {
        let value = HeaderValue::from_str(&value);
        headers.insert(name, value.map_err(|_| TargetError::Header(url.to_owned()))?);
    }
    if let Some(name) = &options.subprotocol {
        let error = || TargetError::Subprotocol(name.clone());
        // one token (RFC 6455 §4.1), not a list of several
        let known = HeaderName::from_bytes(name.as_bytes()).is_ok();
        let value = HeaderValue::from_str(name).ok().filter(|_| known).ok_or_else(error)?;
        headers.insert("Sec-WebSocket-Protocol", value);
    }
    for (name, value) in &options.headers {
        let error = || TargetError::Header(name.clone());
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| error())?;
        let mut value = HeaderValue::from_str(value).map_err(|_| error())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(request)
}

/// Returns the request with a new key, as each handshake needs one (RFC 6455 §4.1).
fn fresh_key(request: &Request) -> Request {
    let mut request = request.clone();
    let key = tungstenite::handshake::client::generate_key();
    if let Ok(value) = HeaderValue::from_str(&key) {
        request.headers_mut().insert("Sec-WebSocket-Key", value);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_websocket_urls_are_accepted() {
        let options = TargetOptions::default();
        for bad in ["http://a/b", "ai.example.com", "ws:///x", "", "wss://"] {
            assert!(matches!(Target::new(bad, &options), Err(TargetError::Url(_))), "{bad}");
        }
        assert_eq!(Target::new("ws://[::1]:9/x", &options).unwrap().host, "::1");
    }

    #[test]
    fn the_url_is_shown_without_secrets() {
        let options = TargetOptions::default();
        for (url, shown) in [
            ("ws://[::1]:9/x?token=secret", "ws://[::1]:9/x"),
            ("wss://ai.example.com/media", "wss://ai.example.com/media"),
        ] {
            assert_eq!(Target::new(url, &options).unwrap().shown(), shown);
        }
    }

    #[test]
    fn the_handshake_matches_twilios() {
        let options = TargetOptions {
            headers: vec![("Authorization".into(), "Bearer x".into())],
            auth_token: Some("12345".into()),
            ..Default::default()
        };
        let target = Target::new("ws://ai.example.com/media", &options).unwrap();
        let get = |name: &str| target.request.headers().get(name).map(|v| v.to_str().unwrap());
        assert_eq!(get("user-agent"), Some("Twilio.TmeWs/1.0"));
        assert!(get("x-twilio-signature").is_some());
        assert_eq!(get("authorization"), Some("Bearer x"));
        assert_eq!((get("origin"), get("sec-websocket-protocol")), (None, None));
        assert_eq!(get("sec-websocket-extensions"), None);
        let other = fresh_key(&target.request);
        assert_ne!(
            other.headers().get("sec-websocket-key"),
            target.request.headers().get("sec-websocket-key")
        );
    }
}
