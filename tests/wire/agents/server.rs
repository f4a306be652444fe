//! A server that stands in for a vendor's: a protocol of its own decides what the client may send.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use trunkless::media::frame::SILENCE;
use trunkless::peer::pattern;
use trunkless::sip::message::Message as Sip;

use crate::bridge::{Bridge, Net};
use crate::call::{CALLER, Call, sdp};
use crate::log::Log;
use crate::media::{Heard, indices, read_linear};
use crate::pbx::{Pbx, accept};
use crate::stream::AGENT;
use crate::strict::{field, linger_zero, read_head, switching};

/// The rules of a vendor.
pub trait Protocol: Default + Send + 'static {
    const PATH: &str;
    /// The header field with the key.
    const KEY: (&str, &str);

    /// True if audio is linear on its way.
    const LINEAR: bool = false;

    /// Checks a message of the client. Returns its audio as mu-law, or `None` if it is another one.
    ///
    /// # Errors
    /// Returns why the vendor would refuse the message.
    fn check(&mut self, message: &Message) -> Result<Option<Vec<u8>>, String>;

    /// Notes what the server sends.
    fn sends(&mut self, message: &Value);
}

/// Checks the members of an object.
pub fn members(value: &Value, required: &[&str], optional: &[&str]) -> Result<(), String> {
    let all = value.as_object().ok_or_else(|| format!("not an object: {value}"))?;
    let missing = required.iter().find(|name| !all.contains_key(**name));
    let known = |name: &&String| required.iter().chain(optional).any(|other| other == name);
    match (missing, all.keys().find(|name| !known(name))) {
        (None, None) => Ok(()),
        (missing, unknown) => Err(format!("missing: {missing:?}, unknown: {unknown:?} in {value}")),
    }
}

/// One thing received, and when.
#[derive(Debug, Clone, PartialEq)]
enum What {
    Text(Value),
    /// Audio, as mu-law.
    Audio(Vec<u8>),
    Closed(Option<u16>),
    End,
    Wrong(String),
}

pub struct Session<P: Protocol> {
    protocol: Arc<Mutex<P>>,
    told: Arc<Log<What>>,
    writer: SplitSink<WebSocketStream<TcpStream>, Message>,
    raw: std::net::TcpStream,
    reader: JoinHandle<()>,
}

impl<P: Protocol> Drop for Session<P> {
    fn drop(&mut self) {
        self.reader.abort();
        if !std::thread::panicking() {
            self.check();
        }
    }
}

impl<P: Protocol> Session<P> {
    fn check(&self) {
        let wrong = |told: &mut Vec<What>| {
            let mut wrong = told.iter().filter(|what| matches!(what, What::Wrong(_)));
            wrong.next().cloned()
        };
        assert_eq!(self.told.look(wrong), None, "the vendor would refuse this");
    }

    /// Waits until `see` returns something for one of the things received.
    async fn find<R>(&self, what: &str, see: impl Fn(&What) -> Option<R>) -> R {
        let found = self.told.wait(what, |told| {
            let wrong = told.iter().any(|what| matches!(what, What::Wrong(_)));
            let found = told.iter().find_map(&see);
            (wrong || found.is_some()).then_some(found)
        });
        let found = found.await;
        self.check();
        found.expect("nothing is wrong, so it was found")
    }

    /// Waits for a message in JSON whose member `name` is `value`.
    pub async fn text(&self, name: &str, value: &str) -> Value {
        let see = |what: &What| match what {
            What::Text(text) if text[name] == value => Some(text.clone()),
            _ => None,
        };
        self.find(value, see).await
    }

    /// Waits until `see` returns something for one of the messages in JSON.
    pub async fn json<R>(&self, what: &str, see: impl Fn(&Value) -> Option<R>) -> R {
        let of = |told: &What| match told {
            What::Text(text) => see(text),
            _ => None,
        };
        self.find(what, of).await
    }

    /// Waits for a message in JSON that has this member.
    pub async fn with(&self, name: &str) -> Value {
        self.json(name, |text| text.pointer(name).map(|_| text.clone())).await
    }

    /// Waits until `count` numbered frames of the caller have arrived, and returns the numbers.
    pub async fn heard(&self, count: usize) -> Vec<u32> {
        let numbers = |told: &mut Vec<What>| {
            let frames = told.iter().filter_map(|what| match what {
                What::Audio(frame) if frame.iter().any(|s| *s != SILENCE) => Some(frame),
                _ => None,
            });
            let read = if P::LINEAR { read_linear } else { pattern::read };
            let number = |frame: &Vec<u8>| match read(frame) {
                Some((CALLER, index)) => index,
                other => panic!("frame {other:?}: {frame:02x?}"),
            };
            let numbers: Vec<u32> = frames.map(number).collect();
            (numbers.len() >= count).then_some(numbers)
        };
        let numbers = self.told.wait("frames of the caller", numbers).await;
        self.check();
        numbers
    }

    /// Waits for a frame of the caller.
    pub async fn hears(&self, frame: &[u8]) {
        let wanted = What::Audio(frame.to_vec());
        self.find("a frame of the caller", |what| (*what == wanted).then_some(())).await;
    }

    pub async fn send(&mut self, message: Message) {
        self.writer.send(message).await.unwrap();
    }

    pub async fn say(&mut self, value: &Value) {
        self.protocol.lock().unwrap().sends(value);
        self.send(Message::text(value.to_string())).await;
    }

    /// The same in a binary message.
    pub async fn say_binary(&mut self, value: &Value) {
        self.protocol.lock().unwrap().sends(value);
        self.send(Message::binary(value.to_string())).await;
    }

    pub async fn close(&mut self, code: u16) {
        self.close_with(code, "").await;
    }

    pub async fn close_with(&mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        self.send(Message::Close(Some(frame))).await;
    }

    /// Waits for the regular end by the bridge.
    pub async fn closed(&self) {
        self.find("a close frame", |what| (*what == What::Closed(Some(1000))).then_some(())).await;
        self.find("the end", |what| (*what == What::End).then_some(())).await;
    }

    /// Resets the connection.
    pub fn reset(self) {
        linger_zero(&self.raw);
    }
}

/// A PBX, a vendor's server and the bridge between them.
pub struct Scene {
    pub pbx: Pbx,
    pub bridge: Bridge,
    listener: TcpListener,
    linear: bool,
}

/// The keys of `[ai]`, and tables of the rest of the configuration. `ADDRESS` there becomes that of
/// the server.
pub struct Config<'a> {
    pub dialect: &'a str,
    pub ai: &'a str,
    pub rest: &'a str,
}

impl Scene {
    pub async fn new<P: Protocol>(config: &Config<'_>) -> Scene {
        let net = Net::new();
        let (pbx, (listener, address)) = (Pbx::udp(net.pbx()).await, listen(net.ai()).await);
        let path = P::PATH.split('?').next().unwrap();
        let Config { dialect, ai, rest } = config;
        let text = format!(
            "[ai]\nurl = \"ws://{address}{path}\"\ndialect = \"{dialect}\"\n\
             auth_token = \"a-key\"\n{ai}\n{rest}\n"
        );
        let text = text.replace("ADDRESS", &address.to_string());
        let bridge = Bridge::start(net, pbx.address, address, &text).await;
        pbx.registered().await;
        Scene { pbx, bridge, listener, linear: P::LINEAR }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Accepts the bridge's next connection.
    pub async fn session<P: Protocol>(&self) -> Session<P> {
        let accepted = timeout(Duration::from_secs(10), self.listener.accept()).await;
        let (mut tcp, _) = accepted.expect("the bridge dials the AI").unwrap();
        tcp.set_nodelay(true).unwrap();
        let head = read_head(&mut tcp).await.expect("a request");
        assert_eq!(head.lines().next(), Some(&*format!("GET {} HTTP/1.1", P::PATH)));
        assert_eq!(field(&head, P::KEY.0), Some(P::KEY.1));
        tcp.write_all(switching(&head).as_bytes()).await.unwrap();
        let raw = tcp.into_std().unwrap();
        let tcp = TcpStream::from_std(raw.try_clone().unwrap()).unwrap();
        let socket = WebSocketStream::from_raw_socket(tcp, Role::Server, None).await;
        let (writer, mut messages) = socket.split();
        let (protocol, told) = (Arc::new(Mutex::new(P::default())), Arc::new(Log::new()));
        let (rules, log) = (protocol.clone(), told.clone());
        let end = raw.try_clone().unwrap();
        let reader = tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                log.push(match &message {
                    Message::Close(frame) => What::Closed(frame.as_ref().map(|f| f.code.into())),
                    Message::Ping(_) | Message::Pong(_) => continue,
                    _ => match (rules.lock().unwrap().check(&message), &message) {
                        (Err(why), _) => What::Wrong(why),
                        (Ok(Some(audio)), _) => What::Audio(audio),
                        (Ok(None), Message::Text(text)) => {
                            What::Text(serde_json::from_str(text).unwrap())
                        }
                        (Ok(None), other) => What::Wrong(format!("{other:?}")),
                    },
                });
            }
            let _ = end.shutdown(std::net::Shutdown::Both);
            log.push(What::End);
        });
        Session { protocol, told, writer, raw, reader }
    }

    /// A call whose INVITE has been sent.
    pub async fn invited(&self) -> Call {
        let mut call = self.pbx.call(&self.bridge).await;
        call.media.linear.store(self.linear, Ordering::Relaxed);
        call.invite().await;
        call
    }

    /// The target of a transfer is busy. Everything else is accepted.
    pub fn be_busy(&self, call: &Call) {
        let address = call.media.address();
        self.pbx.answer_with(move |request: &Sip| {
            let again = request.to().is_some_and(|to| to.tag().is_some());
            match request.method() {
                Some("INVITE") if again => {
                    let held = String::from_utf8_lossy(&request.body).contains("a=sendonly");
                    let direction = if held { "recvonly" } else { "sendrecv" };
                    let answer = sdp(address, "0 101", direction);
                    Some(accept(request)?.with_body("application/sdp", answer))
                }
                Some("INVITE") => Some(Sip::response(request, 486, "Busy Here", "pbx")),
                _ => accept(request),
            }
        });
    }
}

/// Waits until the caller has been taken off hold after a transfer that failed.
pub async fn resumed(scene: &Scene) {
    loop {
        let invite = scene.pbx.request("INVITE").await;
        let again = invite.to().is_some_and(|to| to.tag().is_some());
        if again && String::from_utf8_lossy(&invite.body).contains("a=sendrecv") {
            return;
        }
    }
}

async fn listen(ip: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Presses a key at the caller's telephone.
pub async fn press(call: &mut Call, key: char) {
    let kind = "Content-Type: application/dtmf-relay\r\n";
    let body = format!("Signal={key}\r\nDuration=160\r\n");
    assert_eq!(call.request("INFO", kind, &body).await.code(), Some(200));
}

/// Waits until the caller has heard the agent's frames in this order, and nothing else. Keys do not
/// count.
pub async fn hears(call: &Call, frames: Range<u32>) {
    let audio = |heard: &mut Vec<Heard>| {
        let audio: Vec<Heard> = heard.iter().filter(|h| h.payload_type != 101).cloned().collect();
        let numbers = indices(&audio, AGENT);
        (numbers.len() >= frames.len()).then_some(numbers)
    };
    let heard = call.media.heard.wait("the agent's audio", audio).await;
    assert_eq!(heard, Vec::from_iter(frames));
}

/// The frames of the agent that the caller heard after `at`.
pub fn heard_after(call: &Call, at: Instant) -> usize {
    let late = |heard: &&Heard| heard.at > at && !heard.is_silence();
    call.media.packets().iter().filter(late).count()
}
