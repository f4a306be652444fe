//! The events WebSocket: opens it and keeps it alive. Owns I/O.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use secrecy::ExposeSecret;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use crate::ari::client::app_lock::AppLock;
use crate::ari::client::rest::{Rest, Target};
use crate::ari::request::{Outcome, RestRequest, encoded};
use crate::dns::lookup;
use crate::faults::http_refused;

/// Interval of our pings; Asterisk sends none.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// After this long without any message the socket is considered dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// A socket that seems dead is still read for this time. If the process stood still, as on a
/// suspended host, what the PBX sent meanwhile is waiting in the kernel.
const LAST_READ: Duration = Duration::from_millis(500);
/// Time limit for each step of opening the socket.
const OPEN_LIMIT: Duration = Duration::from_secs(3);
/// The next address is tried after this time without an answer.
const STAGGER: Duration = Duration::from_millis(250);
/// Maximum number of addresses tried.
const MAX_ADDRESSES: usize = 8;
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
        "the PBX refused user \"{0}\" or its password (401): compare [pbx.NAME.ari] with \
         ari.conf, and load the file if it is new: module reload res_ari.so"
    )]
    Password(String),
    #[error("user \"{0}\" has no write permission (403): set read_only = no in ari.conf")]
    ReadOnly(String),
    #[error(
        "another trunkless on this host serves application \"{0}\" of this PBX, or calls from \
         before a reload still use it: waiting for their end; to run two, give each its own \
         [pbx.NAME.ari] app"
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
    /// When to give up a socket that seems dead.
    give_up: Option<Instant>,
    next_ping: Instant,
    opened: Instant,
    /// Address of the PBX.
    pub pbx: IpAddr,
    /// Sends requests to the same address.
    pub rest: Rest,
    /// Keeps other processes from the application.
    pub lock: Arc<AppLock>,
}

/// The parameters of an attempt to open the events socket.
pub struct Opening {
    pub target: Target,
    pub rest: Rest,
    pub app: String,
    /// If set, a bridge with this id is first created and deleted, to check that commands are
    /// allowed before any caller depends on it.
    pub probe: Option<String>,
    /// The lock that we hold already.
    pub lock: Option<Arc<AppLock>>,
}

/// Resolves the PBX's name and opens its events socket, at the first of its addresses that works.
pub fn open(opening: Opening) -> BoxFuture<'static, Result<Box<Link>, LinkError>> {
    async move {
        let Target { host, port, .. } = &opening.target;
        let away = |why: String| LinkError::Away(why);
        let found = timeout(OPEN_LIMIT, lookup(host, *port)).await;
        let found = found.map_err(|_| away(format!("{host}: DNS lookup timed out")))?;
        let found = found.map_err(|e| away(format!("{host}: {e}")))?;
        let mut addresses = found;
        addresses.truncate(MAX_ADDRESSES);
        // the address that worked before comes first
        addresses.sort_by_key(|address| Some(*address) != opening.rest.address());
        let mut error = away("no address in the DNS".to_owned());
        while !addresses.is_empty() {
            let (stream, address) = connect(&addresses).await.map_err(away)?;
            match opening.at(stream, address).await {
                Err(why @ LinkError::Away(_)) => error = why,
                result => return result,
            }
            addresses.retain(|other| *other != address);
        }
        Err(error)
    }
    .boxed()
}

/// Connects to the first address that accepts. Each has its own time limit, and the next one is
/// tried soon: a broken route drops packets without an answer.
async fn connect(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), String> {
    let mut attempts: FuturesUnordered<_> = (0..)
        .zip(addresses)
        .map(|(n, address)| async move {
            sleep(STAGGER * n).await;
            let stream = match timeout(OPEN_LIMIT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => Ok((stream, *address)),
                Ok(Err(why)) if why.kind() == ErrorKind::ConnectionRefused => {
                    Err(http_refused(*address))
                }
                Ok(Err(why)) => Err(format!("{address}: {why}")),
                Err(_) => Err(format!("{address}: no answer within {OPEN_LIMIT:?}")),
            };
            (n, stream)
        })
        .collect();
    let mut failed = Vec::new();
    while let Some((n, stream)) = attempts.next().await {
        match stream {
            Ok(open) => return Ok(open),
            Err(why) => failed.push((n, why)),
        }
    }
    // in the order of the addresses, so that the log line does not change from attempt to attempt
    failed.sort();
    Err(failed.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; "))
}

impl Opening {
    async fn at(&self, stream: TcpStream, address: SocketAddr) -> Result<Box<Link>, LinkError> {
        let rest = self.rest.at(address).map_err(|why| LinkError::Away(why.to_string()))?;
        let lock = self.lock(&rest).await?;
        if let Some(id) = &self.probe {
            check(&self.target, &rest, id.clone()).await?;
        }
        let handshake = timeout(OPEN_LIMIT, socket(&self.target, stream, &self.app)).await;
        let late = |_| LinkError::Away(format!("{address}: no answer within {OPEN_LIMIT:?}"));
        let socket = handshake.map_err(late)??;
        let now = Instant::now();
        let next_ping = now + PING_INTERVAL;
        let pbx = address.ip().to_canonical();
        let heard = now;
        Ok(Box::new(Link { socket, heard, give_up: None, next_ping, opened: now, pbx, rest, lock }))
    }

    /// Takes the application's lock on this PBX, unless we hold it.
    async fn lock(&self, rest: &Rest) -> Result<Arc<AppLock>, LinkError> {
        let base = &self.target.base;
        let outcome = rest.run(&RestRequest::Info).await;
        match &outcome {
            Outcome::Answered { status: 401, .. } => return Err(refusal(&self.target, 401)),
            Outcome::Answered { .. } => {}
            other => return Err(LinkError::Away(format!("{base}: {}", other.text()))),
        }
        let pbx = outcome.identity().unwrap_or_else(|| base.clone());
        if let Some(held) = self.lock.as_ref().filter(|held| held.is_for(&pbx)) {
            return Ok(held.clone());
        }
        let taken = AppLock::take(&pbx, &self.app).map(Arc::new);
        taken.ok_or_else(|| LinkError::Held(self.app.clone()))
    }
}

/// Tries other credentials with a request that changes nothing.
///
/// # Errors
/// Returns the reason why they cannot be used.
pub async fn try_credentials(rest: &Rest, target: &Target) -> Result<Rest, LinkError> {
    let rest = rest.with(target.clone()).map_err(|why| LinkError::Away(why.to_string()))?;
    match rest.run(&RestRequest::Info).await {
        outcome if outcome.is_success() => Ok(rest),
        Outcome::Answered { status, .. } => Err(refusal(target, status)),
        other => Err(LinkError::Away(format!("{}: {}", target.base, other.text()))),
    }
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

async fn socket(target: &Target, stream: TcpStream, app: &str) -> Result<Socket, LinkError> {
    let away = |why: String| LinkError::Away(why);
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
        Ok((socket, _)) => Ok(socket),
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
            (self.heard, self.give_up) = (Instant::now(), None);
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
        self.next_ping.min(self.give_up.unwrap_or(self.heard + SILENCE_LIMIT))
    }

    /// Sends a ping if one is due.
    ///
    /// # Errors
    /// Returns an error if no message has arrived for too long.
    pub fn on_timeout(&mut self, now: Instant) -> Result<(), String> {
        if now >= self.heard + SILENCE_LIMIT && now >= *self.give_up.get_or_insert(now + LAST_READ)
        {
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
    /// An address that drops SYNs: its queue of new connections is full.
    fn silent() -> (socket2::Socket, Vec<std::net::TcpStream>, SocketAddr) {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let fill = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let queued = std::iter::from_fn(|| fill().ok()).collect();
        (socket, queued, address)
    }

    #[tokio::test]
    async fn addresses_that_drop_syns_do_not_prevent_the_others() {
        let (_first, _queued, first) = silent();
        let (_second, _queued, second) = silent();
        let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = live.local_addr().unwrap();
        let closed = SocketAddr::from(([127, 0, 0, 1], 1));
        let begin = Instant::now();
        let (_, address) = connect(&[first, second, closed, live]).await.unwrap();
        let took = begin.elapsed();
        println!("connected to the fourth address after {took:?}");
        assert!(address == live && took < Duration::from_millis(1500), "{address} {took:?}");
        // each has its own limit
        let why = connect(&[first, closed]).await.unwrap_err();
        let (a, b) = why.split_once("; ").unwrap();
        assert!(a.contains("no answer within 3s") && b.contains("refused"), "{why}");
        assert!(begin.elapsed() < Duration::from_secs(6));
    }

    /// An open link, and the PBX's end of it.
    async fn link() -> (Link, WebSocketStream<TcpStream>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Target {
            base: format!("http://{address}"),
            host: address.ip().to_string(),
            port: address.port(),
            username: "ai".into(),
            password: "secret".to_owned().into(),
            tls: None,
        };
        let pbx = async {
            let (socket, _) = listener.accept().await.unwrap();
            tokio_tungstenite::accept_async(socket).await.unwrap()
        };
        let stream = TcpStream::connect(address).await.unwrap();
        let (socket, pbx) = tokio::join!(socket(&target, stream, "ai"), pbx);
        let lock = Arc::new(AppLock::take(&address.to_string(), "link").unwrap());
        let now = Instant::now();
        let link = Link {
            socket: socket.unwrap(),
            heard: now,
            give_up: None,
            next_ping: now + PING_INTERVAL,
            opened: now,
            pbx: address.ip(),
            rest: Rest::new(target).unwrap(),
            lock,
        };
        (link, pbx)
    }

    #[tokio::test]
    async fn events_that_arrived_during_a_standstill_are_read() {
        let (mut link, mut pbx) = link().await;
        pbx.send(Message::Text("event".into())).await.unwrap();
        // the timeout is noticed before the message
        let later = Instant::now() + SILENCE_LIMIT + Duration::from_secs(2);
        assert_eq!(link.on_timeout(later), Ok(()));
        assert_eq!(link.next().await, Ok("event".to_owned()));
        assert!(link.next_timeout() < later);
        // silence ends the link all the same
        let later = Instant::now() + SILENCE_LIMIT;
        assert_eq!(link.on_timeout(later), Ok(()));
        assert!(link.next_timeout() <= later + LAST_READ);
        assert!(link.on_timeout(later + LAST_READ).is_err());
    }
}
