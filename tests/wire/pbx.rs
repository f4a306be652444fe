//! A scripted PBX: it answers requests and keeps every message it receives.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, UdpSocket};
use trunkless::sip::message::Message;
use trunkless::sip::stream::{Frame, Framer};

use crate::bridge::Bridge;
use crate::call::Call;
use crate::log::Log;

/// Decides the answer to a request; `None` sends none.
pub type Answer = Box<dyn FnMut(&Message) -> Option<Message> + Send>;

/// The SIP transport.
#[derive(Clone)]
pub enum Wire {
    Udp(Arc<UdpSocket>),
    /// The bridge's connection, once it has opened one.
    Tcp(Arc<tokio::sync::Mutex<Option<OwnedWriteHalf>>>),
}

impl Wire {
    pub async fn send(&self, to: SocketAddr, text: &[u8]) {
        match self {
            Wire::Udp(socket) => {
                socket.send_to(text, to).await.unwrap();
            }
            Wire::Tcp(writer) => {
                let mut writer = writer.lock().await;
                writer.as_mut().expect("a connection").write_all(text).await.unwrap();
            }
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Wire::Udp(_) => "UDP",
            Wire::Tcp(_) => "TCP",
        }
    }
}

/// State shared between the PBX's task and the test.
pub struct Shared {
    /// Messages received and not yet taken by the test, responses included.
    pub inbox: Log<Message>,
    /// Answers each request except ACK.
    answer: Mutex<Answer>,
    /// While true, incoming messages are neither answered nor kept.
    silent: AtomicBool,
    /// TCP connections opened by the bridge so far.
    connections: AtomicU32,
}

pub struct Pbx {
    pub address: SocketAddr,
    wire: Wire,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Pbx {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pbx {
    pub async fn udp(ip: IpAddr) -> Pbx {
        Pbx::udp_at(SocketAddr::new(ip, 0)).await
    }

    pub async fn udp_at(address: SocketAddr) -> Pbx {
        let socket = Arc::new(UdpSocket::bind(address).await.unwrap());
        let (address, shared) = (socket.local_addr().unwrap(), Shared::new());
        let wire = Wire::Udp(socket.clone());
        let task = tokio::spawn(serve_udp(socket, wire.clone(), shared.clone()));
        Pbx { address, wire, shared, task }
    }

    pub async fn tcp(ip: IpAddr) -> Pbx {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Shared::new());
        let wire = Wire::Tcp(Arc::default());
        let task = tokio::spawn(serve_tcp(listener, wire.clone(), shared.clone()));
        Pbx { address, wire, shared, task }
    }

    /// Answers all further requests with `answer`.
    pub fn answer_with(&self, answer: impl FnMut(&Message) -> Option<Message> + Send + 'static) {
        *self.shared.answer.lock().unwrap() = Box::new(answer);
    }

    /// Sends these bytes to the bridge.
    pub async fn send(&self, bytes: &[u8], bridge: SocketAddr) {
        self.wire.send(bridge, bytes).await;
    }

    /// While `silent` is true, ignores everything that arrives.
    pub fn be_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    pub fn connections(&self) -> u32 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits for the next request with this method and takes it out of the inbox. The PBX has
    /// already answered it.
    pub async fn request(&self, method: &str) -> Message {
        let wanted = |m: &Message| m.method() == Some(method);
        self.shared.inbox.wait(method, |inbox| take(inbox, wanted)).await
    }

    /// Takes a request with this method out of the inbox, if there is one.
    pub fn next_request(&self, method: &str) -> Option<Message> {
        self.shared.inbox.look(|inbox| take(inbox, |m| m.method() == Some(method)))
    }

    /// True if no request with this method arrives within `time`.
    pub async fn none_of(&self, method: &str, time: Duration) -> bool {
        let wanted = |m: &Message| m.method() == Some(method);
        self.shared.inbox.within(time, |inbox| take(inbox, wanted)).await.is_none()
    }

    /// True if the inbox is empty and stays so for `time`.
    pub async fn hears_nothing(&self, time: Duration) -> bool {
        self.shared.inbox.within(time, |inbox| inbox.pop()).await.is_none()
    }

    /// Sends a request to the bridge and returns the status of the response.
    pub async fn ask(&self, request: &Message, bridge: &Bridge) -> u16 {
        self.send(&request.to_bytes(), bridge.address()).await;
        let wanted = |m: &Message| m.code().is_some() && m.call_id() == request.call_id();
        let response = self.shared.inbox.wait("a response", |inbox| take(inbox, wanted)).await;
        response.code().unwrap()
    }

    /// Waits for the next REGISTER.
    pub async fn registered(&self) -> Message {
        self.request("REGISTER").await
    }

    /// Returns a call to the bridge whose INVITE has not been sent yet.
    pub async fn call(&self, bridge: &Bridge) -> Call {
        Call::new(self.wire.clone(), self.shared.clone(), self.address, bridge.address()).await
    }

    /// Same as [`Pbx::call`], to a bridge that is a process of its own.
    pub async fn call_to(&self, bridge: SocketAddr) -> Call {
        Call::new(self.wire.clone(), self.shared.clone(), self.address, bridge).await
    }

    /// Returns a call of this PBX that forges the Call-ID, tags and target of another PBX's call.
    pub async fn forge(&self, of: &Call) -> Call {
        let (wire, shared) = (self.wire.clone(), self.shared.clone());
        let mut call = Call::new(wire, shared, self.address, of.bridge).await;
        call.take_names(of);
        call
    }
}

impl Shared {
    fn new() -> Arc<Shared> {
        Arc::new(Shared {
            inbox: Log::new(),
            answer: Mutex::new(Box::new(accept)),
            silent: AtomicBool::new(false),
            connections: AtomicU32::new(0),
        })
    }

    async fn on_message(&self, wire: &Wire, from: SocketAddr, data: &[u8]) {
        if self.silent.load(Ordering::Relaxed) || data.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let (message, fault) = Message::parse(data).expect("the bridge sends SIP");
        assert_eq!(fault, None, "{}", String::from_utf8_lossy(data));
        let response = match message.method() {
            Some("ACK") | None => None,
            Some(_) => (*self.answer.lock().unwrap())(&message),
        };
        if let Some(response) = response {
            wire.send(from, &response.to_bytes()).await;
        }
        self.inbox.push(message);
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, wire: Wire, shared: Arc<Shared>) {
    let mut buffer = vec![0u8; 65_536];
    while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
        shared.on_message(&wire, from, &buffer[..n]).await;
    }
}

async fn serve_tcp(listener: TcpListener, wire: Wire, shared: Arc<Shared>) {
    let Wire::Tcp(writer) = &wire else { return };
    while let Ok((stream, from)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let (mut reader, half) = stream.into_split();
        *writer.lock().await = Some(half);
        let (mut framer, mut buffer) = (Framer::default(), [0u8; 4096]);
        while let Ok(n @ 1..) = reader.read(&mut buffer).await {
            framer.push(&buffer[..n]);
            while let Some(frame) = framer.next_frame().expect("the bridge sends SIP") {
                let Frame::Message(message) = frame else { panic!("stray bytes") };
                shared.on_message(&wire, from, &message).await;
            }
        }
    }
}

/// Accepts every request with a 200.
pub fn accept(request: &Message) -> Option<Message> {
    let mut response = Message::response(request, 200, "OK", "pbx");
    if request.method() == Some("REGISTER") {
        let expires = request.get("Expires").unwrap_or("60");
        let contact = request.get("Contact").unwrap_or("");
        if expires != "0" {
            response.push("Contact", format!("{contact};expires={expires}"));
        }
    }
    Some(response)
}

pub fn take(inbox: &mut Vec<Message>, wanted: impl Fn(&Message) -> bool) -> Option<Message> {
    let at = inbox.iter().position(wanted)?;
    Some(inbox.remove(at))
}
