//! The AIs of all calls: those that fail, each in its own way, and those that take over.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use trunkless::media::frame::SILENCE;

use super::table::{Case, Failure};
use super::voice::{self, Voice};
use crate::log::{Log, pass};
use crate::stream::agent_frames;
use crate::strict::{field, linger_zero, read_head, refusing, switching};

/// An AI fails in mid-call once it has heard this many frames.
const FRAMES: usize = 5;
/// The same for an AI that is silent for long: 3 s.
const LONG: usize = 150;
/// More than the AI may send ahead: `playout_minutes` is 1.
const TOO_MUCH: usize = 65 * 8000;
/// A handshake that takes most of the time that there is for another connection.
const SLOW: Duration = Duration::from_secs(3);
/// The end of a connection is due this long after the AI has done its part.
const LINGER: Duration = Duration::from_secs(15);

/// An event of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// The AI has failed.
    Failed,
    /// The AI that takes over has heard this frame.
    Heard(Voice, u32),
    /// The AI has heard it that continues in spite of a failure.
    HeardAfter(u32),
}

/// The events of a call, each with its time.
pub type Events = Log<(Instant, Event)>;

#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    address: SocketAddr,
    cases: Vec<Case>,
    /// By the number of the caller's audio.
    calls: Mutex<HashMap<u32, Arc<Events>>>,
    /// How often the AI at each path was dialled.
    dialled: Mutex<HashMap<String, usize>>,
}

type Writer = SplitSink<WebSocketStream<TcpStream>, Message>;
type Reader = SplitStream<WebSocketStream<TcpStream>>;

/// The AI's next step after a failure in mid-call.
enum After {
    /// The connection is read to its end.
    Linger,
    Drop,
    /// The AI continues to talk.
    Talk,
}

/// A WebSocket, and its connection for bytes that are none.
struct Socket {
    writer: Writer,
    reader: Reader,
    raw: std::net::TcpStream,
}

impl Server {
    pub async fn start(ip: IpAddr, cases: Vec<Case>) -> Server {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (calls, dialled) = (Mutex::default(), Mutex::default());
        let server = Server(Arc::new(Shared { address, cases, calls, dialled }));
        let all = server.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(all.clone().serve(tcp));
            }
        });
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The events of a call.
    pub fn call(&self, number: u32) -> Arc<Events> {
        let mut calls = self.0.calls.lock().unwrap();
        calls.entry(number).or_insert_with(|| Arc::new(Log::new())).clone()
    }

    /// How often the AI at this path has been dialled.
    pub fn dialled(&self, path: &str) -> usize {
        self.0.dialled.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    fn note(&self, call: u32, event: Event) {
        self.call(call).push((Instant::now(), event));
    }

    async fn serve(self, mut tcp: TcpStream) {
        tcp.set_nodelay(true).unwrap();
        let Some(head) = read_head(&mut tcp).await else { return };
        let path = head.split([' ', '?']).nth(1).unwrap_or_default().to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let number = |at: usize| parts[at].parse::<usize>().expect("a number");
        if head.starts_with("POST") && parts[1] == "good" {
            return self.create(tcp, &head, &path).await;
        }
        if parts[1] == "good" {
            return self.take_over(Socket::open(tcp, &head).await, voice::ALL[number(2)]).await;
        }
        let case = self.0.cases[number(2)];
        let creates = matches!(case.failure, Failure::Create(_) | Failure::CreateUnanswered);
        let earlier = self.dialled(&path);
        if creates || !head.starts_with("POST") {
            *self.0.dialled.lock().unwrap().entry(path.clone()).or_default() += 1;
        }
        match (head.starts_with("POST"), case.failure) {
            (true, Failure::Create(status)) => answer(tcp, &refusing(status)).await,
            (true, Failure::CreateUnanswered) => ended(&mut tcp).await,
            (true, _) => self.create(tcp, &head, &path).await,
            (_, Failure::Status(status)) => answer(tcp, &refusing(status)).await,
            (_, Failure::Unanswered) => ended(&mut tcp).await,
            (_, Failure::AgainUnanswered) if earlier > 0 && !case.voice.has_session() => {
                ended(&mut tcp).await;
            }
            (_, Failure::ResumedUnready) if earlier % 2 == 1 => {
                pass(SLOW).await;
                self.fail(Socket::open(tcp, &head).await, case, earlier).await;
            }
            _ => self.fail(Socket::open(tcp, &head).await, case, earlier).await,
        }
    }

    /// Answers the request before the socket.
    async fn create(&self, mut tcp: TcpStream, head: &str, path: &str) {
        let length = field(head, "Content-Length").and_then(|length| length.parse().ok());
        tcp.read_exact(&mut vec![0; length.unwrap_or(0)]).await.unwrap();
        let body = json!({"joinUrl": format!("ws://{}{path}", self.address())}).to_string();
        let head = "HTTP/1.1 201 Created\r\nContent-Type: application/json";
        let length = body.len();
        answer(tcp, &format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}")).await;
    }

    /// Talks with the caller of another AI that has failed.
    async fn take_over(&self, mut socket: Socket, voice: Voice) {
        socket.welcome(voice).await;
        let mut spoken = false;
        while let Some(message) = socket.next().await {
            if let Some(answer) = voice.accepts(&message) {
                socket.send(answer).await;
            }
            if let Some((call, frame)) = voice.hears(&message) {
                self.note(call, Event::Heard(voice, frame));
                if !std::mem::replace(&mut spoken, true) {
                    socket.say(voice, &agent_frames(0..10)).await;
                }
            }
        }
    }

    /// Fails as the case says.
    async fn fail(&self, mut socket: Socket, case: Case, earlier: usize) {
        let Case { voice, failure, .. } = case;
        match failure {
            Failure::ClosesEarly => {
                socket.close(1011).await;
                return socket.linger().await;
            }
            Failure::NeverReady => return socket.linger().await,
            Failure::AgainUnanswered if earlier > 0 => return socket.linger().await,
            _ => {}
        }
        socket.welcome(voice).await;
        let (mut heard, mut acted) = (0, failure == Failure::Again && earlier > 0);
        while let Some(message) = socket.next().await {
            let resumed = message.to_text().is_ok_and(|text| text.contains(r#""handle":"#));
            match voice.accepts(&message) {
                Some(_) if failure == Failure::Refuses => {
                    socket.send(voice.error().expect("an error")).await;
                    return socket.linger().await;
                }
                Some(_) if resumed && failure == Failure::NotResumed => {
                    socket.close(1011).await;
                    return socket.linger().await;
                }
                Some(_) if resumed => return socket.linger().await,
                Some(answer) => socket.send(answer).await,
                None => {}
            }
            let Some((call, frame)) = voice.hears(&message) else { continue };
            heard += 1;
            if acted {
                self.note(call, Event::HeardAfter(frame));
            }
            match failure {
                _ if heard > 1 => {}
                Failure::Silent => {}
                Failure::Unusable => socket.send(Message::text("{\"event\":7}")).await,
                Failure::ToolFirst => socket.send(voice.tool().expect("a tool")).await,
                _ => socket.say(voice, &[SILENCE; 160]).await,
            }
            let enough = if failure == Failure::ToolFirst { LONG } else { FRAMES };
            if heard == enough && !acted {
                self.note(call, Event::Failed);
                match socket.act(case).await {
                    After::Drop => return,
                    After::Linger => return socket.linger().await,
                    After::Talk => acted = true,
                }
            }
        }
    }
}

async fn answer(mut tcp: TcpStream, text: &str) {
    let _ = tcp.write_all(text.as_bytes()).await;
    let _ = tcp.shutdown().await;
    ended(&mut tcp).await;
}

/// Waits for the end of the connection.
async fn ended(tcp: &mut TcpStream) {
    let _ = tokio::io::copy(tcp, &mut tokio::io::sink()).await;
}

impl Socket {
    async fn open(mut tcp: TcpStream, head: &str) -> Socket {
        let _ = tcp.write_all(switching(head).as_bytes()).await;
        let raw = tcp.into_std().unwrap();
        let tcp = TcpStream::from_std(raw.try_clone().unwrap()).unwrap();
        let socket = WebSocketStream::from_raw_socket(tcp, Role::Server, None).await;
        let (writer, reader) = socket.split();
        Socket { writer, reader, raw }
    }

    /// The next message; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Message> {
        self.reader.next().await?.ok().filter(|message| !message.is_close())
    }

    async fn send(&mut self, message: Message) {
        // the bridge may have closed
        let _ = self.writer.send(message).await;
    }

    async fn say(&mut self, voice: Voice, mu_law: &[u8]) {
        for message in voice.say(mu_law) {
            self.send(message).await;
        }
    }

    async fn welcome(&mut self, voice: Voice) {
        if let Some(message) = voice.welcome() {
            self.send(message).await;
        }
    }

    async fn close(&mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        self.send(Message::Close(Some(frame))).await;
    }

    fn write(&mut self, bytes: &[u8]) {
        use std::io::Write as _;
        // the bridge may have closed
        let _ = self.raw.write_all(bytes);
    }

    /// Reads to the end of the connection.
    async fn linger(mut self) {
        let rest = async { while let Some(Ok(_)) = self.reader.next().await {} };
        let _ = tokio::time::timeout(LINGER, rest).await;
        let _ = self.raw.shutdown(std::net::Shutdown::Both);
    }

    /// Fails in mid-call.
    async fn act(&mut self, case: Case) -> After {
        let Case { voice, failure, .. } = case;
        match failure {
            Failure::Close(code) => self.close(code).await,
            Failure::Again | Failure::AgainUnanswered => self.close(1000).await,
            Failure::Reset => {
                linger_zero(&self.raw);
                return After::Drop;
            }
            Failure::End => self.raw.shutdown(std::net::Shutdown::Write).unwrap(),
            Failure::NotWebSocket => self.write(&[0xff; 40]),
            Failure::NotUtf8 => self.write(&[0x81, 2, 0xc3, 0x28]),
            Failure::Oversize => self.write(&[0x81, 127, 0, 0, 0, 0, 1, 0, 0, 0]),
            Failure::Endless => {
                self.write(&[0x01, 1, b'x']);
                let mut ticks = tokio::time::interval(Duration::from_millis(500));
                loop {
                    tokio::select! {
                        _ = ticks.tick() => self.write(&[0x00, 1, b'x']),
                        message = self.reader.next() => match message {
                            Some(Ok(_)) => {}
                            _ => break,
                        },
                    }
                }
            }
            // reads nothing and answers nothing
            Failure::Hang => pass(LINGER).await,
            Failure::Silent | Failure::Unusable => {}
            Failure::Error => self.send(voice.error().expect("an error")).await,
            Failure::Disconnect => self.send(Message::text(r#"{"type":"disconnect"}"#)).await,
            Failure::Expires => {
                let error = json!({"code": "session_expired", "message": "60 minutes."});
                let event = json!({"type": "error", "error": error});
                self.send(Message::text(event.to_string())).await;
            }
            Failure::NotResumed | Failure::ResumedUnready => {
                let update = json!({"newHandle": "h", "resumable": true});
                let update = json!({ "sessionResumptionUpdate": update });
                self.send(Message::binary(update.to_string())).await;
                // behind the update, so that it has arrived
                self.close(1011).await;
            }
            Failure::Garbage => {
                for garbage in ["", "{", "no JSON", r#"{"type":1,"event":null}"#, "[]"] {
                    self.send(Message::text(garbage)).await;
                }
                return After::Talk;
            }
            Failure::Binary => {
                self.send(Message::binary(vec![0xff; 1000])).await;
                return After::Talk;
            }
            Failure::TooMuch => {
                self.say(voice, &vec![SILENCE; TOO_MUCH]).await;
                return After::Talk;
            }
            Failure::ToolFirst => return After::Talk,
            Failure::Warning => {
                self.send(voice.warning().expect("a warning")).await;
                return After::Talk;
            }
            _ => unreachable!("{failure:?} is not one of mid-call"),
        }
        After::Linger
    }
}
