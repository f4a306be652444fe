//! SIP over TCP from devices that miscount bytes, or close the connection before the response.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::bridge::{Net, Rig};
use crate::lines::Lines;
use crate::pbx::Pbx;
use crate::strict::Ai;

async fn connect(rig: &Rig) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(rig.net.pbx(), 0)).unwrap();
    socket.connect(rig.bridge.address()).await.unwrap()
}

/// A request without Content-Length, whose Via has this address.
fn head(rig: &Rig, method: &str, id: &str, via: SocketAddr) -> String {
    let to = rig.bridge.address();
    format!(
        "{method} sip:ai@{to} SIP/2.0\r\nVia: SIP/2.0/TCP {via};branch=z9hG4bK{id}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:1@pbx>;tag=a\r\nTo: <sip:ai@{to}>\r\n\
         Call-ID: {id}\r\nCSeq: 1 {method}\r\nContact: <sip:1@{via}>\r\n"
    )
}

/// Reads until there is silence. Returns the text, and true if the connection has ended.
async fn read(stream: &mut TcpStream) -> (String, bool) {
    let (mut text, mut buffer) = (String::new(), [0u8; 4096]);
    while let Ok(read) = timeout(Duration::from_millis(500), stream.read(&mut buffer)).await {
        match read {
            Ok(n @ 1..) => text += &String::from_utf8_lossy(&buffer[..n]),
            _ => return (text, true),
        }
    }
    (text, false)
}

#[tokio::test]
async fn each_framing_fault_is_answered_and_logged() {
    let (lines, rig) = (Lines::new(), Rig::new("").await);
    let large = format!("X: {}\r\nl: 0\r\n", "x".repeat(70_000));
    let table = [
        ("OPTIONS", "", "", "200", false),
        ("OPTIONS", "", "l: 0\r\nContent-Length: 0\r\n", "200", false),
        ("OPTIONS", "a=x\r\n", "l: 0\r\n", "200", false),
        ("OPTIONS", "jaK\0", "l: 0\r\n", "200", false),
        ("OPTIONS", "", "l: abc\r\n", "400", true),
        ("OPTIONS", "", "l: 0\r\nContent-Length: 1\r\n", "400", true),
        ("INVITE", "", "", "400", true),
        ("INVITE", "", &large, "400", true),
    ];
    for (i, (method, before, length, status, closed)) in table.into_iter().enumerate() {
        let mut stream = connect(&rig).await;
        let head = head(&rig, method, &format!("framing{i}"), stream.local_addr().unwrap());
        stream.write_all(format!("{before}{head}{length}\r\n").as_bytes()).await.unwrap();
        let (text, ended) = read(&mut stream).await;
        assert!(text.starts_with(&format!("SIP/2.0 {status} ")), "{i}: {text}");
        assert_eq!(ended, closed, "{i}");
    }
    lines.until("INVITE refused: Content-Length is missing").await;
    lines.until("stray bytes").await;
    let mut stream = connect(&rig).await;
    stream.write_all(b"INVITE sip:ai\r\nl: 0\r\n\r\n").await.unwrap();
    assert_eq!(read(&mut stream).await, (String::new(), true));
    lines.until("not a SIP message").await;
}

#[tokio::test]
async fn a_bye_without_a_length_ends_its_call_over_tcp() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::tcp(net.pbx()).await, Ai::start(net.ai()).await);
    let rig = Rig::with(net, pbx, ai, "[pbx.main.sip]\ntransport = \"tcp\"").await;
    let (mut call, stream) = rig.call().await;
    call.replace = Some(("Content-Length: 0\r\n".to_owned(), String::new()));
    call.bye().await;
    stream.stopped().await;
    assert_eq!(rig.pbx.connections(), 1);
}

#[tokio::test]
async fn a_response_to_a_closed_connection_goes_to_the_port_in_the_via() {
    let rig = Rig::new("").await;
    let listener = TcpListener::bind(SocketAddr::new(rig.net.pbx(), 0)).await.unwrap();
    let mut stream = connect(&rig).await;
    let head = head(&rig, "INVITE", "closed", listener.local_addr().unwrap());
    stream.write_all(format!("{head}Content-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
    let handshake = rig.ai.handshake().await;
    drop(stream);
    assert!(rig.ai.is_left_alone(Duration::from_millis(200)).await);
    let opened = handshake.open();
    let accepted = timeout(Duration::from_secs(5), listener.accept());
    let (_opened, accepted) = tokio::join!(opened, accepted);
    let (mut stream, _) = accepted.expect("a connection").unwrap();
    let (text, _) = read(&mut stream).await;
    assert!(text.starts_with("SIP/2.0 200 OK"), "{text}");
}
