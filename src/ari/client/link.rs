//! The events WebSocket: opens it and keeps it alive. Owns I/O.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use secrecy::ExposeSecret;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use crate::ari::client::rest::{Rest, Target};
use crate::ari::request::{Outcome, RestRequest, encoded};

/// Interval of our pings; Asterisk sends none.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// After this long without any message the socket is considered dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for each step of opening the socket.
const OPEN_LIMIT: Duration = Duration::from_secs(3);
/// A socket lost sooner than this counts as a failed attempt to open one.
const MIN_LIFETIME: Duration = Duration::from_secs(5);
/// Time limit for closing the socket.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);
/// Largest event that is accepted.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Longest pause between two attempts while the PBX is unreachable.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Pause after a refusal that lasts until a configuration changes.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The reason why the events socket cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("{0}")]
    Away(String),
    #[error(
        "the PBX refused user \"{0}\" or its password (401): compare [pbx.NAME.ari] with ari.conf"
    )]
    Password(String),
    #[error("user \"{0}\" has no write permission (403): set read_only = no in ari.conf")]
    ReadOnly(String),
    #[error(
        "another trunkless on this host serves application \"{0}\" of this PBX: waiting until it \
         exits; to run both, give each its own [pbx.NAME.ari] app"
    )]
    Held(String),
    #[error("no ARI at {0} (404): check that res_ari is loaded and enabled in ari.conf")]
    NotThere(String),
}

impl LinkError {
    /// The reason as reported over HTTP, without names and addresses.
    pub fn word(&self) -> &'static str {
        match self {
            LinkError::Away(_) => "ARI unreachable",
            LinkError::Password(_) => "ARI user or password refused",
            LinkError::ReadOnly(_) => "ARI user has no write permission",
            LinkError::NotThere(_) => "no ARI at this URL",
            LinkError::Held(_) => "application in use by another trunkless",
        }
    }

    /// Pause before attempt number `tries` (the first after a loss is 0), spread by `random`.
    pub fn pause(error: Option<&LinkError>, tries: u32, random: u8) -> Duration {
        match error {
            Some(LinkError::Password(_) | LinkError::ReadOnly(_)) => REFUSED_PAUSE,
            _ if tries == 0 => Duration::ZERO,
            _ => {
                let full = Duration::from_millis(50 << tries.min(6)).min(MAX_PAUSE);
                full / 2 + full.mul_f64(f64::from(random) / 512.0)
            }
        }
    }
}

/// An open socket.
pub struct Link {
    socket: Socket,
    /// When the last message arrived.
    heard: Instant,
    next_ping: Instant,
    opened: Instant,
    /// Address of the PBX.
    pub pbx: IpAddr,
}

/// Resolves the PBX's address and opens its events socket. With `probe`, first creates and deletes
/// a bridge with this id, to check that commands are allowed before any caller depends on it.
pub fn open(
    target: Target,
    rest: Rest,
    app: String,
    probe: Option<String>,
) -> BoxFuture<'static, Result<Box<Link>, LinkError>> {
    async move {
        let away = |why: String| LinkError::Away(why);
        let found = timeout(OPEN_LIMIT, lookup_host((target.host.as_str(), target.port))).await;
        let found = found.map_err(|_| away(format!("{}: DNS lookup timed out", target.host)))?;
        let found = found.map_err(|e| away(format!("{}: {e}", target.host)))?;
        let addresses: Vec<SocketAddr> = found.collect();
        if let Some(id) = probe {
            check(&target, &rest, id).await?;
        }
        let attempt = socket(&target, &addresses, &app);
        let timed_out = || away(format!("no answer within {OPEN_LIMIT:?}"));
        let (socket, pbx) = timeout(OPEN_LIMIT, attempt).await.map_err(|_| timed_out())??;
        let now = Instant::now();
        Ok(Box::new(Link { socket, heard: now, next_ping: now + PING_INTERVAL, opened: now, pbx }))
    }
    .boxed()
}

/// The error for an HTTP status other than success.
fn refusal(target: &Target, status: u16) -> LinkError {
    match status {
        401 => LinkError::Password(target.username.clone()),
        403 => LinkError::ReadOnly(target.username.clone()),
        404 => LinkError::NotThere(target.base.clone()),
        other => LinkError::Away(format!("{} answered {other}", target.base)),
    }
}

/// Creates and deletes a bridge. Without this check, the first caller would be the one to find that
/// the user has no write permission.
async fn check(target: &Target, rest: &Rest, id: String) -> Result<(), LinkError> {
    for request in [RestRequest::CreateBridge { id: id.clone() }, RestRequest::DeleteBridge { id }]
    {
        match rest.run(&request).await {
            outcome if outcome.is_success() => {}
            Outcome::Answered { status, .. } => return Err(refusal(target, status)),
            other => {
                let why = format!("{}: {}", target.base, other.text());
                return Err(LinkError::Away(why));
            }
        }
    }
    Ok(())
}

async fn socket(
    target: &Target,
    addresses: &[SocketAddr],
    app: &str,
) -> Result<(Socket, IpAddr), LinkError> {
    let away = |why: String| LinkError::Away(why);
    let mut stream = Err(away("no address in the DNS".to_owned()));
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(open) => {
                stream = Ok((open, address.ip()));
                break;
            }
            Err(why) => stream = Err(away(format!("{address}: {why}"))),
        }
    }
    let (stream, pbx) = stream?;
    // the socket works without this option too
    let _ = stream.set_nodelay(true);
    let url = format!(
        "{}/ari/events?app={}&subscribeAll=false",
        target.base.replacen("http", "ws", 1),
        encoded(app)
    );
    let mut request = url.into_client_request().map_err(|e| away(e.to_string()))?;
    let password = target.password.expose_secret();
    let basic = BASE64.encode(format!("{}:{password}", target.username));
    if let Ok(mut value) = HeaderValue::from_str(&format!("Basic {basic}")) {
        value.set_sensitive(true);
        request.headers_mut().insert("Authorization", value);
    }
    let config = WebSocketConfig::default()
        .read_buffer_size(64 * 1024)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let connector = match &target.tls {
        Some(tls) => Connector::Rustls(Arc::clone(tls)),
        None => Connector::Plain,
    };
    match client_async_tls_with_config(request, stream, Some(config), Some(connector)).await {
        Ok((socket, _)) => Ok((socket, pbx.to_canonical())),
        Err(tungstenite::Error::Http(response)) => Err(refusal(target, response.status().as_u16())),
        Err(error) => Err(away(error.to_string())),
    }
}

impl Link {
    /// Returns the next event's text. Cancel-safe.
    ///
    /// # Errors
    /// Returns the reason why the socket is no longer usable.
    pub async fn next(&mut self) -> Result<String, String> {
        loop {
            let message = self.socket.next().await;
            self.heard = Instant::now();
            match message {
                Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                Some(Ok(Message::Close(_))) => return Err("closed by the PBX".to_owned()),
                // the library answers pings; ARI sends no binary messages
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("closed".to_owned()),
            }
        }
    }

    /// Closes the socket cleanly and waits until the PBX has closed it too. After that, the
    /// dialplan no longer finds our application.
    pub async fn close(mut self: Box<Self>) {
        let whole = async {
            let _ = self.socket.close(None).await;
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let _ = timeout(CLOSE_LIMIT, whole).await;
    }

    /// True if the socket was open long enough that a lost one is reopened at once.
    pub fn has_lived(&self) -> bool {
        self.opened.elapsed() >= MIN_LIFETIME
    }

    pub fn next_timeout(&self) -> Instant {
        self.next_ping.min(self.heard + SILENCE_LIMIT)
    }

    /// Sends a ping if one is due.
    ///
    /// # Errors
    /// Returns an error if no message has arrived for too long.
    pub fn on_timeout(&mut self, now: Instant) -> Result<(), String> {
        if now >= self.heard + SILENCE_LIMIT {
            return Err(format!("nothing received for {SILENCE_LIMIT:?}"));
        }
        if now >= self.next_ping {
            self.next_ping = now + PING_INTERVAL;
            // only a few bytes: what the kernel does not accept now is sent with the next ping
            let _ = self.socket.send(Message::Ping(Vec::new().into())).now_or_never();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_start_at_once_and_are_rare_after_a_refusal() {
        let pause = |error: Option<&LinkError>, tries| LinkError::pause(error, tries, 255);
        assert_eq!(pause(None, 0), Duration::ZERO);
        let away = LinkError::Away("x".into());
        assert!(pause(Some(&away), 1) <= Duration::from_millis(100));
        assert!(pause(Some(&away), 1_000_000) <= MAX_PAUSE);
        assert!(LinkError::pause(Some(&away), 9, 0) >= MAX_PAUSE / 2);
        let password = LinkError::Password("x".into());
        assert_eq!(pause(Some(&password), 3), REFUSED_PAUSE);
    }
}
