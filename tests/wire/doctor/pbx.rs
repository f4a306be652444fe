//! A PBX in SIP mode with a registrar and an extension that echoes.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use trunkless::media::rtp::Packet;
use trunkless::peer::registrar::Registrar;
use trunkless::sip::message::Message;

use crate::bridge::Net;
use crate::pbx::Pbx;

pub fn registrar() -> Registrar {
    Registrar::new("ai", "secret", "nonce".to_owned())
}

/// A PBX without a fault.
pub async fn good(net: Net) -> Pbx {
    let pbx = Pbx::udp(net.pbx()).await;
    let mut registrar = registrar();
    pbx.answer_with(move |request| registrar.answer(request));
    pbx
}

/// A PBX that answers REGISTER with this status, after a challenge if `challenges`.
pub async fn refusing(net: Net, code: u16, challenges: bool) -> Pbx {
    let pbx = Pbx::udp(net.pbx()).await;
    let mut registrar = registrar();
    pbx.answer_with(move |request| {
        let first = request.get("Authorization").is_none() && challenges;
        match request.method() {
            Some("REGISTER") if !first => Some(Message::response(request, code, "No", "pbx")),
            _ => registrar.answer(request),
        }
    });
    pbx
}

/// A PBX that sees its clients at this address.
pub async fn seeing(net: Net, seen: SocketAddr) -> Pbx {
    let pbx = Pbx::udp(net.pbx()).await;
    let mut registrar = registrar();
    pbx.answer_with(move |request| {
        let mut request = request.clone();
        request.complete_via(seen);
        registrar.answer(&request)
    });
    pbx
}

/// How the RTP of a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rtp {
    Good,
    /// The PBX receives nothing.
    DropsOurs,
    /// Nothing that the PBX sends arrives.
    DropsTheirs,
    /// The SDP names an address where nothing listens.
    WrongSdp,
    /// It is sent from another address than the one in the SDP.
    FromElsewhere,
}

/// A PBX whose extension 600 echoes, until it hears the key `#`. Others are unknown.
pub async fn echoing(net: Net, rtp: Rtp) -> Pbx {
    let pbx = Pbx::udp(net.pbx()).await;
    let media = Arc::new(UdpSocket::bind((net.pbx(), 0)).await.unwrap());
    let elsewhere = Arc::new(UdpSocket::bind((net.stranger(), 0)).await.unwrap());
    let mut registrar = registrar();
    // the INVITE, once the call is up
    let invite: Arc<Mutex<Option<Message>>> = Arc::default();
    let announced = match rtp {
        Rtp::WrongSdp => SocketAddr::new(IpAddr::from([127, 255, 3, 9]), 9),
        _ => media.local_addr().unwrap(),
    };
    let (kept, address) = (invite.clone(), pbx.address);
    pbx.answer_with(move |request| match request.method() {
        Some("INVITE") if request.uri().starts_with("sip:600@") => {
            let answer = answer(request, announced, address);
            *kept.lock().unwrap() = Some(request.clone());
            Some(answer)
        }
        Some("INVITE") => Some(Message::response(request, 404, "Not Found", "pbx")),
        Some("BYE") => Some(Message::response(request, 200, "OK", "pbx")),
        _ => registrar.answer(request),
    });
    let sip = Arc::new(UdpSocket::bind((net.pbx(), 0)).await.unwrap());
    tokio::spawn(async move {
        let mut buffer = [0u8; 2048];
        while let Ok((n, from)) = media.recv_from(&mut buffer).await {
            let Some(packet) = Packet::parse(&buffer[..n]) else { continue };
            let is_key = packet.payload_type != 0 && packet.payload_type != 8;
            if rtp == Rtp::DropsOurs {
                continue;
            }
            if is_key {
                let Some(invite) = invite.lock().unwrap().take() else { continue };
                let bye = bye(&invite, sip.local_addr().unwrap());
                let to = invite.contact().unwrap().uri;
                let to = to.rsplit_once('@').unwrap().1.split(';').next().unwrap().to_owned();
                sip.send_to(&bye.to_bytes(), to).await.unwrap();
                continue;
            }
            match rtp {
                Rtp::DropsTheirs => {}
                Rtp::FromElsewhere => {
                    elsewhere.send_to(&buffer[..n], from).await.unwrap();
                }
                _ => {
                    media.send_to(&buffer[..n], from).await.unwrap();
                }
            }
        }
    });
    pbx
}

fn answer(invite: &Message, rtp: SocketAddr, address: SocketAddr) -> Message {
    let text = format!(
        "v=0\r\no=- 1 1 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\n\
         m=audio {port} RTP/AVP 0 101\r\na=rtpmap:0 PCMU/8000\r\n\
         a=rtpmap:101 telephone-event/8000\r\n",
        ip = rtp.ip(),
        port = rtp.port()
    );
    Message::response(invite, 200, "OK", "pbx")
        .with("Contact", format!("<sip:pbx@{address}>"))
        .with_body("application/sdp", text)
}

/// The PBX's own end of a call.
fn bye(invite: &Message, from: SocketAddr) -> Message {
    let to = invite.get("To").unwrap();
    Message::request("BYE", &invite.contact().unwrap().uri)
        .with("Via", format!("SIP/2.0/UDP {from};rport;branch=z9hG4bKbye"))
        .with("Max-Forwards", "70")
        .with("From", format!("{to};tag=pbx"))
        .with("To", invite.get("From").unwrap())
        .with("Call-ID", invite.call_id())
        .with("CSeq", "1 BYE")
}
