//! Sends OPTIONS to the ports on which a PBX may take SIP, over UDP and TCP. Owns its sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use crate::setup::found::SipAnswer;
use crate::sip::message::{MAX_MESSAGE_BYTES, Message};

/// The usual ports: of either driver, of chan_pjsip on VICIdial, of chan_sip on FreePBX.
pub const PORTS: [u16; 3] = [5060, 5061, 5160];
/// Time limit for an answer.
const LIMIT: Duration = Duration::from_millis(1600);
/// A request over UDP may get lost.
const AGAIN: Duration = Duration::from_millis(500);

/// Asks all ports at once, over UDP, and over TCP those that do not answer over UDP.
pub async fn ask(local: IpAddr, host: IpAddr, ports: &[u16]) -> Vec<SipAnswer> {
    let each = ports.iter().map(|port| async move {
        let to = SocketAddr::new(host, *port);
        let (udp, tcp) = tokio::join!(timeout(LIMIT, udp(local, to)), timeout(LIMIT, tcp(to)));
        let good = |found: Result<io::Result<Message>, _>| found.ok()?.ok();
        let over_udp = good(udp).map(|response| SipAnswer::new(&response, *port, false));
        over_udp.or_else(|| Some(SipAnswer::new(&good(tcp)?, *port, true)))
    });
    join_all(each).await.into_iter().flatten().collect()
}

fn options(from: SocketAddr, to: SocketAddr, transport: &str) -> Message {
    let mut key = [0; 8];
    // without random bytes the ids are still unique among the requests of this run
    let _ = getrandom::fill(&mut key);
    let id = format!("{:016x}{}", u64::from_be_bytes(key), to.port());
    Message::request("OPTIONS", &format!("sip:{to}"))
        .with("Via", format!("SIP/2.0/{transport} {from};branch=z9hG4bK{id};rport"))
        .with("Max-Forwards", "70")
        .with("From", format!("<sip:trunkless@{from}>;tag={id}"))
        .with("To", format!("<sip:{to}>"))
        .with("Call-ID", id)
        .with("CSeq", "1 OPTIONS")
        .with("Contact", format!("<sip:trunkless@{from}>"))
        .with("Accept", "application/sdp")
        .with("User-Agent", "trunkless")
        .with("Content-Length", "0")
}

/// Returns the response in the data, if it is one to our request.
fn response(data: &[u8], call_id: &str) -> Option<Message> {
    let (message, _) = Message::parse(data).ok()?;
    message.code().filter(|_| message.call_id() == call_id)?;
    Some(message)
}

async fn udp(local: IpAddr, to: SocketAddr) -> io::Result<Message> {
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(to).await?;
    let request = options(socket.local_addr()?, to, "UDP");
    let (bytes, call_id) = (request.to_bytes(), request.call_id());
    let send = async {
        loop {
            let _ = socket.send(&bytes).await;
            sleep(AGAIN).await;
        }
    };
    let receive = async {
        let mut data = vec![0; MAX_MESSAGE_BYTES];
        loop {
            let length = socket.recv(&mut data).await?;
            if let Some(response) = response(&data[..length], call_id) {
                return Ok(response);
            }
        }
    };
    tokio::select! {
        never = send => never,
        received = receive => received,
    }
}

async fn tcp(to: SocketAddr) -> io::Result<Message> {
    let mut stream = TcpStream::connect(to).await?;
    let request = options(stream.local_addr()?, to, "TCP");
    stream.write_all(&request.to_bytes()).await?;
    let mut data = Vec::new();
    let mut part = [0; 4096];
    while data.len() < MAX_MESSAGE_BYTES {
        let length = stream.read(&mut part).await?;
        if length == 0 {
            break;
        }
        data.extend_from_slice(&part[..length]);
        if let Some(response) = response(&data, request.call_id()) {
            return Ok(response);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}
