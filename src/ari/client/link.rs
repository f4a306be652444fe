//! The events WebSocket: opening it, keeping it alive. Owns I/O.

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

/// Between two pings; Asterisk sends none.
const PING: Duration = Duration::from_secs(5);
/// Nothing has come for so long: dead.
const DEAD: Duration = Duration::from_secs(10);
/// One try to open it.
const LIMIT: Duration = Duration::from_secs(3);
/// A socket that is lost sooner counts as one that could not be opened.
const LIVED: Duration = Duration::from_secs(5);
/// What the PBX gets to say goodbye.
const FAREWELL: Duration = Duration::from_millis(500);
/// The largest event that is read.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// The longest pause between two tries while the PBX is away.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// After a refusal that will stay one until somebody changes something.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Why events cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("{0}")]
    Away(String),
    #[error(
        "the PBX refuses user \"{0}\" or its password (401): compare [pbx.NAME.ari] with ari.conf"
    )]
    Password(String),
    #[error("user \"{0}\" may not change anything (403): set read_only = no in ari.conf")]
    ReadOnly(String),
    #[error(
        "another trunkless on this host serves application \"{0}\" of this PBX: waiting for its \
         end; give each its own [pbx.NAME.ari] app"
    )]
    Held(String),
    #[error("there is no ARI at {0} (404): is res_ari loaded, and enabled in ari.conf?")]
    NotThere(String),
}

impl LinkError {
    /// For whoever asks over HTTP: without names and addresses.
    pub fn word(&self) -> &'static str {
        match self {
            LinkError::Away(_) => "ARI is out of reach",
            LinkError::Password(_) => "ARI refuses user or password",
            LinkError::ReadOnly(_) => "the ARI user may only read",
            LinkError::NotThere(_) => "there is no ARI",
            LinkError::Held(_) => "another trunkless has the application",
        }
    }

    /// How long to wait before try number `tries` (the first after a loss is 0); `random` spreads
    /// it.
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
    heard: Instant,
    next_ping: Instant,
    opened: Instant,
    /// The PBX's address.
    pub pbx: IpAddr,
}

/// Finds, checks and opens. `probe`: see that commands are allowed before any caller depends on it,
/// by a bridge of this id.
pub fn open(
    target: Target,
    rest: Rest,
    app: String,
    probe: Option<String>,
) -> BoxFuture<'static, Result<Box<Link>, LinkError>> {
    async move {
        let away = |why: String| LinkError::Away(why);
        let found = timeout(LIMIT, lookup_host((target.host.as_str(), target.port))).await;
        let found = found.map_err(|_| away(format!("{}: no answer of the DNS", target.host)))?;
        let found = found.map_err(|e| away(format!("{}: {e}", target.host)))?;
        let addresses: Vec<SocketAddr> = found.collect();
        if let Some(id) = probe {
            check(&target, &rest, id).await?;
        }
        let attempt = socket(&target, &addresses, &app);
        let timed_out = || away(format!("no answer within {LIMIT:?}"));
        let (socket, pbx) = timeout(LIMIT, attempt).await.map_err(|_| timed_out())??;
        let now = Instant::now();
        Ok(Box::new(Link { socket, heard: now, next_ping: now + PING, opened: now, pbx }))
    }
    .boxed()
}

fn refusal(target: &Target, status: u16) -> LinkError {
    match status {
        401 => LinkError::Password(target.username.clone()),
        403 => LinkError::ReadOnly(target.username.clone()),
        404 => LinkError::NotThere(target.base.clone()),
        other => LinkError::Away(format!("{} answers {other}", target.base)),
    }
}

/// A bridge is made and deleted: a user that may only read would be noticed by the first caller.
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
    let mut stream = Err(away("no address".to_owned()));
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
    // a socket without the option works too
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
    /// The next event's text. Cancel-safe.
    ///
    /// # Errors
    /// Why the socket is of no use any more.
    pub async fn next(&mut self) -> Result<String, String> {
        loop {
            let message = self.socket.next().await;
            self.heard = Instant::now();
            match message {
                Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                Some(Ok(Message::Close(_))) => return Err("closed by the PBX".to_owned()),
                Some(Ok(_)) => {} // pings are answered by the library; binary is nothing of ARI's
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("closed".to_owned()),
            }
        }
    }

    /// In good order, to the end: after it the dialplan does not find our application any more.
    pub async fn close(mut self: Box<Self>) {
        let whole = async {
            let _ = self.socket.close(None).await;
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let _ = timeout(FAREWELL, whole).await;
    }

    /// One that has lived so long is opened again at once.
    pub fn has_lived(&self) -> bool {
        self.opened.elapsed() >= LIVED
    }

    pub fn next_timeout(&self) -> Instant {
        self.next_ping.min(self.heard + DEAD)
    }

    /// # Errors
    /// When nothing has come for too long.
    pub fn on_timeout(&mut self, now: Instant) -> Result<(), String> {
        if now >= self.heard + DEAD {
            return Err(format!("nothing has come for {DEAD:?}"));
        }
        if now >= self.next_ping {
            self.next_ping = now + PING;
            // a few bytes: what the kernel does not take at once goes out with the next
            let _ = self.socket.send(Message::Ping(Vec::new().into())).now_or_never();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_twice_a_second_and_a_refusal_later() {
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
