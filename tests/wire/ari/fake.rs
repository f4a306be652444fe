//! The fake's sockets: one port, where `/ari/events` is a WebSocket and all other requests are
//! forwarded byte by byte to a [`MockServer`]. Requests, answers and events are delayed
//! independently.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use wiremock::{Mock, MockServer, Respond, ResponseTemplate};

use crate::ari::ask::{Ask, Verb, user};
use crate::ari::world::{External, Item, Pace, Random, World};
use crate::log::{Log, pass};
use crate::media::Media;
use crate::strict::{field, linger_zero, read_head, refusing, switching};

/// Longer than any client waits for an answer.
const NEVER: Duration = Duration::from_secs(60);
/// The delay of [`Trouble::Late`].
const LATE: Duration = Duration::from_secs(1);

/// A client's request, and the status of the answer.
#[derive(Debug, Clone)]
pub struct Seen {
    pub ask: Ask,
    pub status: u16,
}

/// The treatment of new events sockets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    Open,
    /// The TCP connection stays open, without a handshake for now.
    Held,
    /// Opened and closed at once.
    Closing,
    /// Refused with this status.
    Refused(u16),
}

/// How one request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trouble {
    /// Answered with this status, not carried out.
    Status(u16),
    /// Answered with this status, because the caller or the object disappears just now.
    Gone(u16),
    /// Neither carried out nor answered.
    Lost,
    /// Carried out, but never answered.
    Unanswered,
    /// Carried out, and answered late.
    Late,
    /// Carried out, but answered with this status and an error.
    Botched(u16),
}

impl Trouble {
    /// True if no answer ever comes.
    pub fn is_silent(self) -> bool {
        matches!(self, Trouble::Lost | Trouble::Unanswered)
    }
}

struct Shared {
    world: Mutex<World>,
    /// Requests so far, including those for events sockets.
    seen: Log<Seen>,
    /// Applies to new events sockets.
    gate: watch::Sender<Gate>,
    /// The mock server's address.
    rest: SocketAddr,
    /// The number of events sockets so far.
    sockets: AtomicU64,
}

pub struct Fake {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: MockServer,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
        if !std::thread::panicking() {
            let wrong = self.world().wrong.clone();
            assert!(wrong.is_empty(), "{wrong:?}");
        }
    }
}

impl Fake {
    pub async fn start(ip: IpAddr) -> Fake {
        Fake::at(SocketAddr::new(ip, 0), 1).await
    }

    /// `seed` is for the random delays, once there are any.
    pub async fn at(address: SocketAddr, seed: u64) -> Fake {
        let server = MockServer::builder().disable_request_recording().start().await;
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (runtime, ip) = (Handle::current(), address.ip());
        let open_media = move || {
            let _inside = runtime.enter();
            Arc::new(Media::bind(ip))
        };
        let shared = Arc::new(Shared {
            world: Mutex::new(World::new(Random::new(seed), Box::new(open_media))),
            seen: Log::new(),
            gate: watch::Sender::new(Gate::Open),
            rest: *server.address(),
            sockets: AtomicU64::new(0),
        });
        let model = Answers { shared: shared.clone(), trouble: None };
        Mock::given(wiremock::matchers::any()).respond_with(model).mount(&server).await;
        let task = tokio::spawn(serve(listener, shared.clone()));
        Fake { address, shared, server, task }
    }

    /// Starts serving at another address too.
    pub async fn also_at(&self, ip: IpAddr) -> SocketAddr {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, self.shared.clone()));
        address
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap()
    }

    pub fn pace(&self, pace: Pace) {
        self.world().pace = pace;
    }

    pub fn gate(&self, gate: Gate) {
        self.shared.gate.send_replace(gate);
    }

    /// Makes the next request of this kind by this user fail like this.
    pub async fn trouble(&self, user: &str, verb: Verb, trouble: Trouble) {
        let user = user.to_owned();
        let hit = move |request: &wiremock::Request| {
            Ask::read(request).is_some_and(|ask| ask.user == user && ask.verb == verb)
        };
        let answers = Answers { shared: self.shared.clone(), trouble: Some(trouble) };
        let mock = Mock::given(hit).respond_with(answers).up_to_n_times(1).with_priority(1);
        self.server.register(mock).await;
    }

    /// Loses all further requests of this kind.
    pub async fn stall(&self, verb: Verb) {
        let hit = move |request: &wiremock::Request| {
            Ask::read(request).is_some_and(|ask| ask.verb == verb)
        };
        let answers = Answers { shared: self.shared.clone(), trouble: Some(Trouble::Lost) };
        self.server.register(Mock::given(hit).respond_with(answers).with_priority(1)).await;
    }

    /// Refuses every request that would change something, as long as the returned value exists.
    /// (wiremock's own guards remove the wrong mock where priorities have reordered them.)
    pub async fn refuse(&self, status: u16) -> Arc<()> {
        let refusal = Arc::new(());
        let refused = Arc::downgrade(&refusal);
        let hit = move |request: &wiremock::Request| {
            refused.strong_count() > 0 && request.method.as_str() != "GET"
        };
        let trouble = Some(Trouble::Status(status));
        let answers = Answers { shared: self.shared.clone(), trouble };
        self.server.register(Mock::given(hit).respond_with(answers).with_priority(1)).await;
        refusal
    }

    /// Waits until `see` returns something for the world. Checked whenever a request arrives.
    pub async fn until<R>(&self, what: &str, see: impl Fn(&World) -> Option<R>) -> R {
        self.shared.seen.wait(what, |_| see(&self.world())).await
    }

    /// Like [`Fake::until`], but with this limit instead of a panic.
    pub async fn within<R>(&self, limit: Duration, see: impl Fn(&World) -> Option<R>) -> Option<R> {
        self.shared.seen.within(limit, |_| see(&self.world())).await
    }

    /// The number of such requests so far; an empty `id` stands for any.
    pub fn count(&self, verb: Verb, id: &str) -> usize {
        let same = |s: &&Seen| s.ask.verb == verb && (id.is_empty() || s.ask.id == id);
        self.shared.seen.look(|seen| seen.iter().filter(same).count())
    }

    /// Waits for the request number `times` of this kind and returns it; an empty `id` stands for
    /// any.
    pub async fn asked(&self, verb: Verb, id: &str, times: usize) -> Seen {
        let same = |s: &&Seen| s.ask.verb == verb && (id.is_empty() || s.ask.id == id);
        let what = format!("{verb:?} {id}, {times} times");
        let enough = |seen: &mut Vec<Seen>| seen.iter().filter(same).nth(times - 1).cloned();
        self.shared.seen.wait(&what, enough).await
    }

    /// Returns all requests so far and forgets them.
    pub fn take_seen(&self) -> Vec<Seen> {
        self.shared.seen.look(std::mem::take)
    }

    /// Waits until nothing is left of this application's calls.
    pub async fn is_clean(&self, app: &str) {
        let clean = |w: &World| w.left(app).is_empty().then_some(());
        self.until("nothing is left", clean).await;
    }

    /// Waits for the only external media channel.
    pub async fn external(&self) -> External {
        let external = |w: &World| w.channels.values().find_map(|c| c.external.clone());
        self.until("external media", external).await
    }

    /// Ends the events socket of `app` now; events until the next one opens are lost.
    pub fn cut(&self, app: &str, how: Item) {
        let socket = self.world().sockets.remove(app).expect("an events socket");
        let _ = socket.items.send(how);
    }

    /// Sends a raw message on the events socket of `app`.
    pub fn say(&self, app: &str, message: Message) {
        let world = self.world();
        let socket = world.sockets.get(app).expect("an events socket");
        let _ = socket.items.send(Item::Message(Instant::now(), message));
    }
}

struct Answers {
    shared: Arc<Shared>,
    trouble: Option<Trouble>,
}

impl Respond for Answers {
    fn respond(&self, request: &wiremock::Request) -> ResponseTemplate {
        let mut world = self.shared.world.lock().unwrap();
        let Some(ask) = Ask::read(request) else {
            world.wrong.push(format!("{} {}", request.method, request.url));
            return ResponseTemplate::new(404);
        };
        let changes = request.method.as_str() != "GET";
        if changes && !ask.is_about_own() {
            world.wrong.push(format!("not {}'s: {ask:?}", ask.user));
        }
        world.maybe_hang_up(&ask.user);
        let (status, body) = world.meet(&ask, self.trouble);
        world.maybe_hang_up(&ask.user);
        let pace = world.pace.answer;
        let delay = match self.trouble {
            Some(trouble) if trouble.is_silent() => NEVER,
            Some(Trouble::Late) => LATE,
            _ => world.delay(pace),
        };
        drop(world);
        self.shared.seen.push(Seen { ask, status });
        let answer = ResponseTemplate::new(status).set_delay(delay);
        if body.is_null() { answer } else { answer.set_body_json(body) }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((tcp, _)) = listener.accept().await {
        tcp.set_nodelay(true).unwrap();
        let shared = shared.clone();
        tokio::spawn(async move {
            const EVENTS: &[u8] = b"GET /ari/events";
            let mut head = [0u8; EVENTS.len()];
            loop {
                match tcp.peek(&mut head).await {
                    Ok(0) | Err(_) => return,
                    Ok(n) if n == head.len() => break,
                    Ok(_) => tokio::task::yield_now().await,
                }
            }
            match head == EVENTS {
                true => serve_events(tcp, &shared).await,
                false => serve_rest(tcp, &shared).await,
            }
        });
    }
}

async fn serve_rest(client: TcpStream, shared: &Shared) {
    // the mock server ends before its last client does
    let Ok(server) = TcpStream::connect(shared.rest).await else { return };
    server.set_nodelay(true).unwrap();
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    tokio::select! {
        () = forward_late(from_client, to_server, shared) => {}
        _ = copy(&mut from_server, &mut to_client) => {}
    }
}

async fn forward_late(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) {
    let mut buffer = [0u8; 8192];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let delay = {
            let mut world = shared.world.lock().unwrap();
            let late = world.pace.request;
            world.delay(late)
        };
        if !delay.is_zero() {
            pass(delay).await;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn serve_events(mut tcp: TcpStream, shared: &Shared) {
    let mut gate = shared.gate.subscribe();
    let gate = *gate.wait_for(|gate| *gate != Gate::Held).await.unwrap();
    let Some(head) = read_head(&mut tcp).await else { return };
    let app = head.split(['?', '&', ' ']).find_map(|pair| pair.strip_prefix("app="));
    let app = app.expect("events of an application").to_owned();
    let user = field(&head, "Authorization").and_then(user);
    let status = match (gate, &user) {
        (Gate::Refused(status), _) => status,
        (_, None) => 401,
        (_, Some(_)) => 101,
    };
    let answer = if status == 101 { switching(&head) } else { refusing(&format!("{status} No")) };
    if tcp.write_all(answer.as_bytes()).await.is_err() {
        return;
    }
    let number = shared.sockets.fetch_add(1, Ordering::Relaxed);
    let (items, mut waiting) = mpsc::unbounded_channel();
    if gate == Gate::Closing {
        items.send(Item::Close).unwrap();
    } else if status == 101 {
        shared.world.lock().unwrap().connect(&app, number, items);
    }
    let (user, query) = (user.unwrap_or_default(), HashMap::new());
    let ask = Ask { user, verb: Verb::Events, id: app.clone(), query, body: Vec::new() };
    shared.seen.push(Seen { ask, status });
    if status == 101 {
        let socket = WebSocketStream::from_raw_socket(tcp, Role::Server, None).await;
        send_events(socket, &mut waiting).await;
    }
    let mut world = shared.world.lock().unwrap();
    if world.sockets.get(&app).is_some_and(|s| s.number == number) {
        world.sockets.remove(&app);
    }
}

/// Sends events until either side ends the connection.
async fn send_events(
    mut socket: WebSocketStream<TcpStream>,
    items: &mut mpsc::UnboundedReceiver<Item>,
) {
    let mut more = true;
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message)) if !message.is_close() => {}
                _ => return,
            },
            item = items.recv(), if more => match item {
                Some(Item::Message(at, message)) => {
                    let early = at.saturating_duration_since(Instant::now());
                    if !early.is_zero() {
                        pass(early).await;
                    }
                    if socket.send(message).await.is_err() {
                        return;
                    }
                }
                Some(Item::Close) => drop(socket.close(None).await),
                Some(Item::Reset) => {
                    linger_zero(socket.get_ref());
                    return;
                }
                None => more = false,
            },
        }
    }
}
