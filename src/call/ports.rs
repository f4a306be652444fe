//! The pool of RTP ports: even/odd pairs, rested after a call so that its last packets do not reach
//! the next one. Owns sockets.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a pair rests after a call.
pub const REST: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Pairs {
    free: VecDeque<u16>,
    resting: VecDeque<(Instant, u16)>,
    in_use: usize,
}

/// Shared by all calls.
#[derive(Debug, Clone)]
pub struct PortPool {
    ip: IpAddr,
    pairs: Arc<Mutex<Pairs>>,
}

#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("no RTP port pair is free: widen [media] ports")]
    Exhausted,
    #[error("cannot open RTP port {0}: {1}")]
    Bind(SocketAddr, io::Error),
}

/// A pair of bound sockets that never wait; the ports go back to rest when it is dropped.
#[derive(Debug)]
pub struct PortPair {
    pub rtp: UdpSocket,
    pub rtcp: UdpSocket,
    port: u16,
    ipv6: bool,
    pairs: Arc<Mutex<Pairs>>,
}

impl PortPool {
    /// `first..=last`; sockets are bound to `ip`.
    pub fn new(ip: IpAddr, first: u16, last: u16) -> PortPool {
        let even = first + first % 2;
        let free = (even..last).step_by(2).collect();
        let pairs = Pairs { free, resting: VecDeque::new(), in_use: 0 };
        PortPool { ip, pairs: Arc::new(Mutex::new(pairs)) }
    }

    /// What the sockets are bound to; unspecified = every address of this host.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Pairs in use now.
    pub fn in_use(&self) -> usize {
        lock(&self.pairs).in_use
    }

    /// Binds a pair, skipping ports that another program has.
    ///
    /// # Errors
    /// When all pairs are in use, at rest or taken by others, or the descriptors are used up.
    pub fn lease(&self, now: Instant) -> Result<PortPair, PortError> {
        let tries = {
            let mut pairs = lock(&self.pairs);
            while let Some((until, port)) = pairs.resting.front().copied() {
                if until > now {
                    break;
                }
                pairs.resting.pop_front();
                pairs.free.push_back(port);
            }
            pairs.free.len()
        };
        for _ in 0..tries {
            let Some(port) = lock(&self.pairs).free.pop_front() else { break };
            match self.bind(port) {
                Ok((rtp, rtcp)) => {
                    lock(&self.pairs).in_use += 1;
                    return Ok(PortPair {
                        rtp,
                        rtcp,
                        port,
                        ipv6: self.ip.is_ipv6(),
                        pairs: self.pairs.clone(),
                    });
                }
                Err(error) => {
                    lock(&self.pairs).free.push_back(port);
                    if error.kind() != io::ErrorKind::AddrInUse {
                        return Err(PortError::Bind(SocketAddr::new(self.ip, port), error));
                    }
                }
            }
        }
        Err(PortError::Exhausted)
    }

    fn bind(&self, port: u16) -> io::Result<(UdpSocket, UdpSocket)> {
        Ok((bind(SocketAddr::new(self.ip, port))?, bind(SocketAddr::new(self.ip, port + 1))?))
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    // Expedited Forwarding (RFC 4594); not all systems allow it, and nothing depends on it
    if address.is_ipv4() {
        let _ = socket2::SockRef::from(&socket).set_tos_v4(0xb8);
    }
    Ok(socket)
}

/// A panic elsewhere does not make the list of ports wrong.
fn lock(pairs: &Mutex<Pairs>) -> std::sync::MutexGuard<'_, Pairs> {
    pairs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl PortPair {
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The RTP port; RTCP's is the next.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PortPair {
    fn drop(&mut self) {
        let mut pairs = lock(&self.pairs);
        pairs.in_use -= 1;
        pairs.resting.push_back((Instant::now() + REST, self.port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_rest_and_foreign_ports_are_skipped() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let base = 31_000 + (std::process::id() % 400) as u16 * 4;
        let pool = PortPool::new(ip, base + 1, base + 5);
        let now = Instant::now();
        let foreign = std::net::UdpSocket::bind((ip, base + 2)).unwrap();
        let pair = pool.lease(now).unwrap();
        assert_eq!((pair.port(), pool.in_use()), (base + 4, 1));
        assert!(matches!(pool.lease(now), Err(PortError::Exhausted)));
        drop((pair, foreign));
        assert_eq!(pool.lease(Instant::now()).unwrap().port(), base + 2);
        let later = Instant::now() + REST + Duration::from_secs(1);
        assert_eq!(pool.lease(later).unwrap().port(), base + 4);
    }
}
