//! Floods: more than one call, one AI or one stranger is entitled to.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use trunkless::peer::pattern;
use trunkless::peer::phone::PhoneCommand;

use crate::rig::{Bystanders, Rig, Site, pass};

const SECOND: Duration = Duration::from_secs(1);

/// Writes `frames` over and over for `time`, as fast as the bridge accepts them, and always
/// completes the last round. Reads and discards what the bridge sends.
fn flood(mut stream: &TcpStream, frames: &[u8], time: Duration) {
    let (begin, mut at, mut buffer) = (Instant::now(), 0, vec![0u8; 65_536]);
    while begin.elapsed() < time || at > 0 {
        match stream.write(&frames[at..]) {
            Ok(n) => at = (at + n) % frames.len(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        match stream.read(&mut buffer) {
            Ok(n) => assert_ne!(n, 0, "the bridge has closed the stream"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

/// One AI floods, first with pings, then with empty fragments of a message.
#[tokio::test]
async fn an_ai_floods() {
    let fault = async |rig: &Rig| {
        let (phone, stream) = rig.fault_call().await;
        let pings = [0x89, 0].repeat(10_000);
        let mut fragments = vec![0x01, 0];
        fragments.extend([0x00, 0].repeat(10_000));
        fragments.extend([0x80, 0]);
        let stream = rig.attack(move || {
            flood(&stream, &pings, SECOND);
            flood(&stream, &fragments, SECOND);
            stream
        });
        let stream = stream.await;
        phone.command(PhoneCommand::Hangup);
        // the end of the stream is awaited by the rig, which compares the sockets
        drop(stream);
    };
    Bystanders::new(Site::direct("")).during(fault).await;
}

/// Thousands of marks due at once mean megabytes of answers.
#[tokio::test]
async fn an_ai_asks_for_thousands_of_marks_at_once() {
    const MARKS: usize = 9_000;
    // each control character in the name takes six bytes in JSON
    let name = |n: usize| format!("{n}{}", "\u{1}".repeat(500));
    let exchange = async move |stream: TcpStream| {
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        let (mut sink, mut source) = socket.split();
        let text = |value: Value| Message::Text(value.to_string().into());
        let audio: Vec<u8> = (0..250).flat_map(|n| pattern::frame(2, n)).collect();
        let media = json!({"payload": BASE64.encode(audio)});
        let ask = async {
            sink.feed(text(json!({"event": "media", "media": media}))).await.expect("sent");
            for n in 0..MARKS {
                let mark = json!({"event": "mark", "mark": {"name": name(n)}});
                sink.feed(text(mark)).await.expect("sent");
            }
            sink.send(text(json!({"event": "clear"}))).await.expect("sent");
        };
        let read = async {
            let mut expected = 0;
            while expected < MARKS {
                let message = source.next().await.expect("a message").expect("no error");
                let value: Value =
                    serde_json::from_str(message.to_text().expect("text")).expect("JSON");
                if value["event"] == "mark" {
                    assert_eq!(value["mark"]["name"], name(expected));
                    expected += 1;
                }
            }
        };
        // an AI that sends for seconds without reading would be given up
        tokio::join!(ask, read);
    };
    let fault = async |rig: &Rig| {
        let (phone, stream) = rig.fault_call().await;
        let marks = rig.attack(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(exchange(stream));
        });
        marks.await;
        phone.command(PhoneCommand::Hangup);
    };
    Bystanders::new(Site::direct("")).repeated().during(fault).await;
}

/// A stranger sends RTP and garbage to every port of the bridge, SIP's included, and so does a
/// misconfigured PBX from an address whose SIP is accepted.
#[tokio::test]
async fn strangers_flood_every_port() {
    let fault = async |rig: &Rig| {
        let (ip, ports) = (rig.bridge().ip(), rig.udp_ports());
        let (stranger, pbx) = (Ipv4Addr::new(127, 8, 8, 8), rig.offender());
        rig.attack(move || {
            for from in [stranger.into(), pbx] {
                let garbage = garbage(ip, from);
                let socket = UdpSocket::bind((from, 0)).expect("a socket");
                let begin = Instant::now();
                // a short pause per round: the kernel's buffers must not be full of this alone
                let pause = socket.set_read_timeout(Some(Duration::from_micros(500)));
                pause.expect("a socket option");
                while begin.elapsed() < SECOND {
                    for (port, packet) in
                        ports.iter().flat_map(|p| garbage.iter().map(move |g| (p, g)))
                    {
                        let _ = socket.send_to(packet, SocketAddr::new(ip, *port));
                    }
                    let _ = socket.recv_from(&mut [0; 2048]);
                }
            }
        })
        .await;
    };
    Bystanders::new(Site::direct("")).during(fault).await;
}

/// Packets that are nearly right: RTP of a stranger, SIP without an end, and noise.
fn garbage(bridge: IpAddr, from: IpAddr) -> Vec<Vec<u8>> {
    let mut rtp = vec![0x80, 0, 0, 1, 0, 0, 0, 160, 0, 0, 0, 7];
    rtp.extend(pattern::frame(9, 9));
    let invite = format!(
        "INVITE sip:ai@{bridge}:5070 SIP/2.0\r\nVia: SIP/2.0/UDP {from};branch=z9hG4bK7\r\n\
         From: <sip:x@{from}>;tag=1\r\nTo: <sip:ai@{bridge}>\r\n"
    );
    vec![rtp, invite.into_bytes(), vec![0; 40], vec![0xff; 1400]]
}

/// The PBX floods: 10,000 OPTIONS, then 3,000 of 60 kB. Calls that arrive during the flood and
/// directly after it are answered.
#[tokio::test]
async fn a_pbx_floods_with_options() {
    let fault = async |rig: &Rig| {
        let (bridge, from) = (rig.bridge(), rig.offender());
        let flood = rig.attack(move || {
            let small = options(bridge, from, 10_000, 20);
            small + options(bridge, from, 3_000, 60_000)
        });
        let call = async {
            pass(SECOND / 5).await;
            rig.fault_call().await
        };
        let (answers, during) = tokio::join!(flood, call);
        assert!(answers > 9_000, "{answers} of 13,000 OPTIONS are answered");
        let after = rig.fault_call().await;
        for (phone, _) in [during, after] {
            phone.command(PhoneCommand::Hangup);
        }
    };
    Bystanders::new(Site::direct("")).repeated().during(fault).await;
}

/// Sends OPTIONS, each with a Call-ID of `length` bytes and a branch of its own. Returns the number
/// of answers.
fn options(bridge: SocketAddr, from: IpAddr, count: u32, length: usize) -> usize {
    let socket = UdpSocket::bind((from, 0)).expect("a socket");
    let pause = socket.set_read_timeout(Some(Duration::from_millis(20)));
    pause.expect("a socket option");
    let (call_id, mut answers) = ("x".repeat(length), 0);
    let mut buffer = vec![0; 65_536];
    for n in 0..count {
        let message = format!(
            "OPTIONS sip:ai@{bridge} SIP/2.0\r\nVia: SIP/2.0/UDP {from};rport;branch=z9hG4bK{n}\r\n\
             From: <sip:x@{from}>;tag=1\r\nTo: <sip:ai@{bridge}>\r\nCall-ID: {n}{call_id}\r\n\
             CSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
        );
        socket.send_to(message.as_bytes(), bridge).expect("sent");
        // as many as the bridge answers: more would only fill the socket's buffer
        answers += usize::from(socket.recv_from(&mut buffer).is_ok());
    }
    answers
}

/// 1,000 connections to the HTTP server, half of them idle, the others with half a request.
#[tokio::test]
async fn http_connections_are_left_open() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
    let http = free.expect("an address");
    let fault = async |rig: &Rig| {
        let id = rig.id();
        rig.attack(move || {
            let before = descriptors(id);
            let mut idle = Vec::new();
            for n in 0..1_000 {
                let mut stream = TcpStream::connect(http).expect("accepted");
                if n % 2 == 0 {
                    stream.write_all(b"GET /healthz HTTP/1.1\r\nHo").expect("sent");
                }
                idle.push(stream);
                if n % 100 == 99 {
                    assert!(health(http).starts_with("HTTP/1.0 200"), "after {n} connections");
                }
            }
            let after = descriptors(id);
            assert!(after < before + 100, "{after} descriptors instead of {before}");
        })
        .await;
    };
    let config = format!("[http]\nlisten = \"{http}\"");
    Bystanders::new(Site::direct(&config)).repeated().during(fault).await;
}

/// 1,000 clients send requests without reading the responses.
#[tokio::test]
async fn http_responses_are_never_read() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
    let http = free.expect("an address");
    let fault = async |rig: &Rig| {
        let id = rig.id();
        rig.attack(move || {
            let before = descriptors(id);
            let requests = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
            let mut clients = Vec::new();
            let mut most = 0;
            for n in 0..1_000 {
                let mut stream = TcpStream::connect(http).expect("accepted");
                // the connection may have been closed before the last request
                let _ = stream.write_all(requests.as_bytes());
                clients.push(stream);
                if n % 50 == 49 {
                    most = most.max(descriptors(id));
                }
            }
            // those that are being closed are still counted
            assert!(most < before + 300, "{most} descriptors instead of {before}");
            assert!(health(http).starts_with("HTTP/1.0 200"));
        })
        .await;
    };
    let config = format!("[http]\nlisten = \"{http}\"");
    Bystanders::new(Site::direct(&config)).calls(4).repeated().during(fault).await;
}

/// One AI uses up the budget that all calls share.
#[tokio::test]
async fn an_ai_sends_far_ahead() {
    let fault = async |rig: &Rig| {
        let (phone, stream) = rig.fault_call().await;
        let audio: Vec<u8> = (0..50).flat_map(|n| pattern::frame(2, n)).collect();
        let text = json!({"event": "media", "media": {"payload": BASE64.encode(audio)}});
        let text = text.to_string();
        let mut frame = vec![0x81, 126];
        frame.extend((text.len() as u16).to_be_bytes());
        frame.extend(text.as_bytes());
        // 300 s of audio are more than a megabyte
        let frames = frame.repeat(300);
        let stream = rig.attack(move || {
            flood(&stream, &frames, 2 * SECOND);
            stream
        });
        let stream = stream.await;
        phone.command(PhoneCommand::Hangup);
        drop(stream);
    };
    Bystanders::new(Site::direct("[calls]\nplayout_budget_mb = 1")).during(fault).await;
}

fn health(http: SocketAddr) -> String {
    let mut stream = TcpStream::connect(http).expect("accepted");
    stream.set_read_timeout(Some(SECOND)).expect("a socket option");
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn descriptors(id: u32) -> usize {
    std::fs::read_dir(format!("/proc/{id}/fd")).expect("the bridge runs").count()
}

/// A PBX leaves 300 connections open, all without a message.
#[tokio::test]
async fn sip_connections_are_left_open() {
    let fault = async |rig: &Rig| {
        let (id, bridge, from) = (rig.id(), rig.bridge(), rig.offender());
        let idle = rig.attack(move || {
            let before = descriptors(id);
            let idle: Vec<TcpStream> = (0..300).map(|_| connect(from, bridge)).collect();
            let mut stream = connect(from, bridge);
            let message = format!(
                "OPTIONS sip:ai@{bridge} SIP/2.0\r\nVia: SIP/2.0/TCP {from};branch=z9hG4bK1\r\n\
                 From: <sip:x@{from}>;tag=1\r\nTo: <sip:ai@{bridge}>\r\nCall-ID: 1\r\n\
                 CSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
            );
            stream.write_all(message.as_bytes()).expect("sent");
            stream.set_read_timeout(Some(SECOND)).expect("a socket option");
            let mut answer = [0; 11];
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(&answer, b"SIP/2.0 200");
            // the oldest ones are closed, each by a task of its own
            let begin = Instant::now();
            while descriptors(id) >= before + 280 {
                let after = descriptors(id);
                assert!(begin.elapsed() < 3 * SECOND, "{after} descriptors instead of {before}");
                std::thread::park_timeout(Duration::from_millis(10));
            }
            idle
        });
        let idle = idle.await;
        let (phone, _) = rig.fault_call().await;
        phone.command(PhoneCommand::Hangup);
        drop(idle);
    };
    Bystanders::new(Site::direct("")).repeated().during(fault).await;
}

fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.bind(&SocketAddr::new(from, 0).into()).expect("an address");
    socket.connect(&to.into()).expect("accepted");
    socket.into()
}
