//! Watches a registrar's UDP port from a connected socket, because only that is told of ICMP
//! errors: a PBX that is restarted may be away for less than the interval of OPTIONS. Owns a
//! socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval};

/// How often the port is knocked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// What is sent then: a keep-alive (RFC 5626 §3.5.1), which every SIP server ignores.
const KEEP_ALIVE: &[u8] = b"\r\n";

/// Calls `closed` whenever the port turns out to be closed, for ever; false ends it.
pub async fn knock(remote: SocketAddr, closed: impl Fn() -> bool) {
    let any: IpAddr = if remote.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let Ok(socket) = UdpSocket::bind((any, 0)).await else { return };
    if socket.connect(remote).await.is_err() {
        return;
    }
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = [0u8; 64];
    loop {
        ticks.tick().await;
        let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
        let sent = socket.try_send(KEEP_ALIVE);
        let heard = socket.try_recv(&mut buffer);
        if (sent.is_err_and(refused) || heard.is_err_and(refused)) && !closed() {
            return;
        }
    }
}
