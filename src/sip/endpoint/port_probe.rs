//! Probes a registrar's UDP port from a connected socket, because the kernel reports ICMP errors
//! only to connected sockets. OPTIONS alone could miss a restart of the PBX, which may take less
//! than the interval between them. Owns a socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval};

/// Interval between probes.
const INTERVAL: Duration = Duration::from_millis(250);
/// The port counts as open after this many consecutive probes without an ICMP error. The kernel
/// reports the error for one probe at the next, so every other probe of a closed port looks fine.
const OPEN: u32 = 2;
/// The probe: a keep-alive (RFC 5626 §3.5.1), which every SIP server ignores.
const KEEP_ALIVE: &[u8] = b"\r\n";

/// Calls `closed` each time the port is found closed, passing true if it has ever been open.
/// Runs until `closed` returns false.
pub async fn probe(remote: SocketAddr, closed: impl Fn(bool) -> bool) {
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
            // one probe without an error proves little: the ICMP error may still be on its way
            open += 1;
            was_open |= open >= OPEN;
        }
    }
}
