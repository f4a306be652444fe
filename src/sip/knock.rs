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
/// So many knocks in a row without a refusal mean an open port: a refusal is told at the one after
/// it, so at a closed port every other one seems well.
const OPEN: u32 = 2;
/// What is sent then: a keep-alive (RFC 5626 §3.5.1), which every SIP server ignores.
const KEEP_ALIVE: &[u8] = b"\r\n";

/// Calls `closed` whenever the port turns out to be closed, with whether it was open before; for
/// ever, or until that returns false.
pub async fn knock(remote: SocketAddr, closed: impl Fn(bool) -> bool) {
    let any: IpAddr = if remote.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let Ok(socket) = UdpSocket::bind((any, 0)).await else { return };
    if socket.connect(remote).await.is_err() {
        return;
    }
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = [0u8; 64];
    let (mut open, mut was_open) = (0, false);
    loop {
        ticks.tick().await;
        let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
        let sent = socket.try_send(KEEP_ALIVE);
        let heard = socket.try_recv(&mut buffer);
        if sent.is_err_and(refused) || heard.is_err_and(refused) {
            open = 0;
            if !closed(was_open) {
                return;
            }
        } else {
            // one knock without an answer says little: the refusal may be on its way
            open += 1;
            was_open |= open >= OPEN;
        }
    }
}
