//! [`Stasis`] behind HTTP: REST requests and the events WebSocket on one port. Owns a listener, a
//! thread and its runtime.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};
use axum::serve::Listener;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Url;
use rustix::event::{EventfdFlags, eventfd};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server;

use crate::bench::callers;
use crate::bench::signalling::{Change, Signalling};
use crate::bench::stasis::Stasis;

/// Start of a request for the events WebSocket.
const EVENTS: &[u8] = b"GET /ari/events";

/// State shared by the callers' thread and the server.
struct Shared {
    stasis: Mutex<Stasis>,
    /// Signalled when events are queued.
    events: Notify,
    /// An eventfd that is readable when something has happened to a call.
    bell: OwnedFd,
    /// The required value of the Authorization header.
    authorization: String,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stasis> {
        self.stasis.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the event socket and the callers' thread if a change has produced something for them.
    fn notify(&self, stasis: &Stasis) {
        if !stasis.events.is_empty() {
            self.events.notify_one();
        }
        if !stasis.changes.is_empty() {
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    fn is_authorized(&self, authorization: Option<&header::HeaderValue>) -> bool {
        authorization.is_some_and(|field| field == &self.authorization)
    }
}

/// The callers' handle on the ARI server.
pub struct Ari(Arc<Shared>);

impl Ari {
    /// Starts serving, in a thread that ends with the process. The thread's CPU time counts as the
    /// callers'.
    ///
    /// # Errors
    /// Returns an error if the listener cannot be used or the thread cannot be started.
    pub fn start(listener: TcpListener, username: &str, password: &str) -> io::Result<Ari> {
        listener.set_nonblocking(true)?;
        let basic = BASE64.encode(format!("{username}:{password}"));
        let shared = Arc::new(Shared {
            stasis: Mutex::default(),
            events: Notify::new(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            authorization: format!("Basic {basic}"),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = shared.clone();
        let named = std::thread::Builder::new().name(callers::THREAD.to_owned());
        named.spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                serve(listener, serving).await;
            });
        })?;
        Ok(Ari(shared))
    }
}

impl Signalling for Ari {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    fn is_ready(&self) -> bool {
        self.0.lock().is_open()
    }

    fn next_timeout(&self) -> Option<Instant> {
        None
    }

    fn on_timeout(&mut self, _now: Instant) {}

    fn on_readable(&mut self, _now: Instant) {
        let _ = rustix::io::read(&self.0.bell, &mut [0u8; 8]);
    }

    fn dial(&mut self, _now: Instant, number: u32, line: usize, rtp: SocketAddr) -> bool {
        let mut stasis = self.0.lock();
        if !stasis.is_open() {
            return false;
        }
        stasis.enter(number, line, rtp);
        self.0.notify(&stasis);
        true
    }

    fn hang_up(&mut self, _now: Instant, number: u32) {
        let mut stasis = self.0.lock();
        stasis.hang_up(number);
        self.0.notify(&stasis);
    }

    fn next_change(&mut self) -> Option<Change> {
        self.0.lock().changes.pop_front()
    }
}

async fn serve(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    let (rest, connections) = mpsc::channel(64);
    let router = axum::Router::new().fallback(answer).with_state(shared.clone());
    let address = listener.local_addr();
    tokio::spawn(async move {
        let _ = axum::serve(Connections(connections, address), router).await;
    });
    while let Ok((tcp, from)) = listener.accept().await {
        let (shared, rest) = (shared.clone(), rest.clone());
        tokio::spawn(async move {
            let mut head = [0; EVENTS.len()];
            // on loopback the request head arrives in one piece
            if tcp.set_nodelay(true).is_err() || tcp.peek(&mut head).await.is_err() {
                return;
            }
            match head == EVENTS {
                true => serve_events(tcp, &shared).await,
                false => drop(rest.send((tcp, from)).await),
            }
        });
    }
}

/// The REST connections, as a listener for axum, and the local address.
struct Connections(mpsc::Receiver<(TcpStream, SocketAddr)>, io::Result<SocketAddr>);

impl Listener for Connections {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        match self.0.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.1.as_ref().map(|address| *address).map_err(|error| error.kind().into())
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    if !shared.is_authorized(request.headers().get(header::AUTHORIZATION)) {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        return response;
    }
    let (status, body) = match Url::parse(&format!("http://ari{}", request.uri())) {
        Ok(url) => {
            let path: Vec<&str> = url.path().split('/').skip(2).collect();
            let query: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
            let mut stasis = shared.lock();
            let reply = stasis.ask(request.method().as_str(), &path, &query);
            shared.notify(&stasis);
            reply
        }
        Err(_) => (400, serde_json::Value::Null),
    };
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    if !body.is_null() {
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        *response.body_mut() = Body::from(body.to_string());
    }
    response
}

/// Serves the events WebSocket until it closes.
async fn serve_events(tcp: TcpStream, shared: &Shared) {
    let mut app = None;
    // the size of the error type is up to tungstenite
    #[expect(clippy::result_large_err)]
    let look = |request: &server::Request, response: server::Response| {
        if !shared.is_authorized(request.headers().get(header::AUTHORIZATION)) {
            let mut refusal = server::ErrorResponse::new(None);
            *refusal.status_mut() = StatusCode::UNAUTHORIZED;
            return Err(refusal);
        }
        let pairs = request.uri().query().unwrap_or_default().split('&');
        app = pairs.filter_map(|pair| pair.strip_prefix("app=")).next().map(str::to_owned);
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr_async(tcp, look).await else { return };
    let opened = shared.lock().open(&app.unwrap_or_default());
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message)) if !message.is_close() => {}
                _ => break,
            },
            () = shared.events.notified() => {
                let events = std::mem::take(&mut shared.lock().events);
                for event in events {
                    if socket.feed(Message::Text(event.into())).await.is_err() {
                        break;
                    }
                }
                if socket.flush().await.is_err() {
                    break;
                }
            }
        }
    }
    shared.lock().close(opened);
}
