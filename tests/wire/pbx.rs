//! A PBX of the tests' own: raw SIP text over UDP or TCP, and RTP.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, UdpSocket};
use trunkless::sip::message::Message;
use trunkless::sip::stream::Framer;

use crate::bridge::Bridge;
use crate::log::Log;
use crate::media::{Media, Talker};

/// The call number of what the PBX says, in numbered audio.
pub const CALLER: u32 = 1;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// Decides what a request is answered with.
pub type Answer = Box<dyn FnMut(&Message) -> Option<Message> + Send>;

#[derive(Clone)]
enum Wire {
    Udp(Arc<UdpSocket>),
    /// The one connection that the bridge has made.
    Tcp(Arc<tokio::sync::Mutex<Option<OwnedWriteHalf>>>),
}

impl Wire {
    async fn send(&self, to: SocketAddr, text: &[u8]) {
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

    fn name(&self) -> &'static str {
        match self {
            Wire::Udp(_) => "UDP",
            Wire::Tcp(_) => "TCP",
        }
    }
}

/// What the PBX's task shares with the test.
struct Shared {
    inbox: Log<Message>,
    answer: Mutex<Answer>,
    silent: AtomicBool,
    /// TCP connections that the bridge has made.
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

    /// From now on requests are answered with what `answer` gives.
    pub fn answer_with(&self, answer: impl FnMut(&Message) -> Option<Message> + Send + 'static) {
        *self.shared.answer.lock().unwrap() = Box::new(answer);
    }

    /// Neither hears nor answers anything while this is true.
    pub fn be_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    pub fn connections(&self) -> u32 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Takes the next request with this method out of what has come; it has been answered already.
    pub async fn request(&self, method: &str) -> Message {
        let wanted = |m: &Message| m.method() == Some(method);
        self.shared.inbox.wait(method, |inbox| take(inbox, wanted)).await
    }

    /// Whether none with this method comes for `time`.
    pub async fn none_of(&self, method: &str, time: Duration) -> bool {
        let wanted = |m: &Message| m.method() == Some(method);
        self.shared.inbox.within(time, |inbox| take(inbox, wanted)).await.is_none()
    }

    /// Whether nothing comes that has not been taken out yet, for `time`.
    pub async fn hears_nothing(&self, time: Duration) -> bool {
        self.shared.inbox.within(time, |inbox| inbox.pop()).await.is_none()
    }

    /// Waits for the next REGISTER.
    pub async fn registered(&self) -> Message {
        self.request("REGISTER").await
    }

    /// A call to the bridge, not sent yet.
    pub async fn call(&self, bridge: &Bridge) -> Call {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let media = Media::open(self.address.ip()).await;
        Call {
            wire: self.wire.clone(),
            shared: self.shared.clone(),
            bridge: bridge.address,
            local: self.address,
            id: format!("call-{number}-{}@pbx", std::process::id()),
            tag: format!("tag{number}"),
            to_tag: String::new(),
            target: format!("sip:ai@{}", bridge.address),
            cseq: 0,
            invite_branch: String::new(),
            headers: String::new(),
            offer: Some(sdp(media.address(), "0 8 101", "sendrecv")),
            rtp: None,
            talker: Talker::new(number),
            media,
        }
    }
}

impl Pbx {
    /// A call with the names of another one, which is not ours.
    pub async fn forge(&self, of: &Call) -> Call {
        Call {
            wire: self.wire.clone(),
            shared: self.shared.clone(),
            bridge: of.bridge,
            local: self.address,
            id: of.id.clone(),
            tag: of.tag.clone(),
            to_tag: of.to_tag.clone(),
            target: of.target.clone(),
            cseq: of.cseq + 10,
            invite_branch: of.invite_branch.clone(),
            headers: String::new(),
            offer: None,
            rtp: of.rtp,
            talker: of.talker.clone(),
            media: Media::open(self.address.ip()).await,
        }
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
            while let Some(message) = framer.next_message().expect("the bridge sends SIP") {
                shared.on_message(&wire, from, &message).await;
            }
        }
    }
}

/// The PBX that has nothing against anything.
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

fn take(inbox: &mut Vec<Message>, wanted: impl Fn(&Message) -> bool) -> Option<Message> {
    let at = inbox.iter().position(wanted)?;
    Some(inbox.remove(at))
}

/// One audio stream at `address`; `formats` as in the m= line.
pub fn sdp(address: SocketAddr, formats: &str, direction: &str) -> String {
    let (ip, port) = (address.ip(), address.port());
    let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
    let names = [("0", "PCMU"), ("8", "PCMA"), ("101", "telephone-event")];
    let offered = names.iter().filter(|(pt, _)| formats.split(' ').any(|f| f == *pt));
    let maps: String = offered.map(|(pt, n)| format!("a=rtpmap:{pt} {n}/8000\r\n")).collect();
    format!(
        "v=0\r\no=- 1 1 IN {family} {ip}\r\ns=pbx\r\nc=IN {family} {ip}\r\nt=0 0\r\n\
         m=audio {port} RTP/AVP {formats}\r\n{maps}a=ptime:20\r\na={direction}\r\n"
    )
}

/// The address that an SDP names.
pub fn media_address(sdp: &[u8]) -> SocketAddr {
    let text = std::str::from_utf8(sdp).unwrap();
    let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).expect(name);
    let ip = value("c=IN ").split(' ').nth(1).unwrap().parse().unwrap();
    let port = value("m=audio ").split(' ').next().unwrap().parse().unwrap();
    SocketAddr::new(ip, port)
}

/// One call of the PBX to the bridge.
pub struct Call {
    wire: Wire,
    shared: Arc<Shared>,
    bridge: SocketAddr,
    local: SocketAddr,
    pub id: String,
    tag: String,
    pub to_tag: String,
    /// Request-URI: the bridge's Contact, once it is known.
    pub target: String,
    pub cseq: u32,
    invite_branch: String,
    /// Further header lines of the INVITE.
    pub headers: String,
    /// SDP of the INVITE.
    pub offer: Option<String>,
    /// Where the bridge takes RTP.
    pub rtp: Option<SocketAddr>,
    pub talker: Talker,
    pub media: Media,
}

impl Call {
    /// The text of a request of this dialog.
    fn text(&self, method: &str, cseq: u32, branch: &str, headers: &str, body: &str) -> String {
        let (local, wire, id) = (self.local, self.wire.name(), &self.id);
        let (ip, tag, target, bridge) = (local.ip(), &self.tag, &self.target, self.bridge);
        let host = if ip.is_ipv4() { ip.to_string() } else { format!("[{ip}]") };
        let to_tag = match self.to_tag.as_str() {
            "" => String::new(),
            tag => format!(";tag={tag}"),
        };
        let kind = match body {
            "" => "",
            _ if headers.contains("Content-Type") => "",
            _ => "Content-Type: application/sdp\r\n",
        };
        format!(
            "{method} {target} SIP/2.0\r\n\
             Via: SIP/2.0/{wire} {local};branch={branch};rport\r\n\
             Max-Forwards: 70\r\n\
             From: \"Alice\" <sip:5550100@{host}>;tag={tag}\r\n\
             To: <sip:ai@{bridge}>{to_tag}\r\n\
             Call-ID: {id}\r\n\
             CSeq: {cseq} {method}\r\n\
             Contact: <sip:pbx@{local}>\r\n\
             Allow: INVITE, ACK, CANCEL, OPTIONS, BYE, INFO, UPDATE\r\n\
             Supported: timer, replaces\r\n\
             {headers}{kind}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn new_branch() -> String {
        format!("z9hG4bK{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends a request within the dialog and does not wait for its answer; returns its CSeq.
    pub async fn send(&mut self, method: &str, headers: &str, body: &str) -> u32 {
        self.cseq += 1;
        let branch = Call::new_branch();
        let text = self.text(method, self.cseq, &branch, headers, body);
        if method == "INVITE" {
            self.invite_branch = branch;
        }
        self.wire.send(self.bridge, text.as_bytes()).await;
        self.cseq
    }

    /// Sends a request and waits for its final answer.
    pub async fn request(&mut self, method: &str, headers: &str, body: &str) -> Message {
        let cseq = self.send(method, headers, body).await;
        self.response(cseq, method, 200).await
    }

    /// The answer with a status of at least `code` to the request with this number.
    pub async fn response(&self, cseq: u32, method: &str, code: u16) -> Message {
        let ours = |m: &Message| {
            m.code().is_some_and(|c| c >= code)
                && m.call_id() == self.id
                && m.cseq() == Some((cseq, method))
        };
        let what = format!("an answer to {method}");
        self.shared.inbox.wait(&what, |inbox| take(inbox, ours)).await
    }

    /// Sends the INVITE.
    pub async fn invite(&mut self) {
        let (headers, offer) = (self.headers.clone(), self.offer.clone().unwrap_or_default());
        self.send("INVITE", &headers, &offer).await;
    }

    /// Waits for the 200, takes it in and acknowledges it.
    pub async fn answered(&mut self) -> Message {
        let response = self.answered_without_ack().await;
        self.ack("").await;
        response
    }

    pub async fn answered_without_ack(&mut self) -> Message {
        let response = self.response(self.cseq, "INVITE", 200).await;
        assert_eq!(response.code(), Some(200), "{response:?}");
        self.to_tag = response.to().unwrap().tag().unwrap().to_owned();
        self.target = response.contact().unwrap().uri;
        self.rtp = Some(media_address(&response.body));
        response
    }

    /// The ACK of a 200, a request of its own.
    pub async fn ack(&mut self, body: &str) {
        let text = self.text("ACK", self.cseq, &Call::new_branch(), "", body);
        self.wire.send(self.bridge, text.as_bytes()).await;
    }

    /// Waits for a refusal and acknowledges it.
    pub async fn refused(&mut self) -> Message {
        let response = self.response(self.cseq, "INVITE", 200).await;
        assert!(response.code() >= Some(300), "{response:?}");
        let before = std::mem::take(&mut self.to_tag);
        self.to_tag = response.to().unwrap().tag().unwrap().to_owned();
        let text = self.text("ACK", self.cseq, &self.invite_branch, "", "");
        self.to_tag = before;
        self.wire.send(self.bridge, text.as_bytes()).await;
        response
    }

    /// A re-INVITE that is accepted; returns the 200.
    pub async fn reinvite(&mut self, headers: &str, sdp: &str) -> Message {
        self.send("INVITE", headers, sdp).await;
        self.answered().await
    }

    pub async fn cancel(&mut self) {
        let text = self.text("CANCEL", self.cseq, &self.invite_branch, "", "");
        self.wire.send(self.bridge, text.as_bytes()).await;
    }

    /// The caller hangs up.
    pub async fn bye(&mut self) {
        let response = self.request("BYE", "", "").await;
        assert_eq!(response.code(), Some(200), "{response:?}");
    }

    /// Waits for the bridge's BYE, which has been answered, and returns its Reason.
    pub async fn hung_up(&self) -> String {
        let ours = |m: &Message| m.method() == Some("BYE") && m.call_id() == self.id;
        let bye = self.shared.inbox.wait("BYE", |inbox| take(inbox, ours)).await;
        bye.get("Reason").unwrap_or("none").to_owned()
    }

    /// Says frames `frames` of the caller's numbered audio.
    pub async fn say(&mut self, frames: std::ops::Range<u32>) {
        let to = self.rtp.expect("the call is answered");
        self.media.say(to, &mut self.talker, CALLER, frames).await;
    }

    /// Sends a packet of the caller's stream.
    pub async fn send_rtp(&self, packet: &[u8]) {
        self.media.send(self.rtp.expect("the call is answered"), packet).await;
    }
}
