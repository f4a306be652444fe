//! The pool of RTP ports: even/odd pairs, which are quarantined after a call so that its last
//! packets do not reach the next call. Owns sockets.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a pair is quarantined after a call.
pub const REST: Duration = Duration::from_secs(30);

/// The state of the pool. A pair is listed by its even port.
#[derive(Debug)]
struct Pairs {
    /// Ready for use.
    free: VecDeque<u16>,
    /// In quarantine until the given time, the earliest first.
    quarantined: VecDeque<(Instant, u16)>,
    /// Number of pairs in use.
    in_use: usize,
}

/// The pool of port pairs. Clones share it.
#[derive(Debug, Clone)]
pub struct PortPool {
    /// The address that sockets are bound to.
    ip: IpAddr,
    pairs: Arc<Mutex<Pairs>>,
}

#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("no free RTP port pair: widen [media] ports")]
    Exhausted,
    #[error("cannot open RTP port {0}: {1}")]
    Bind(SocketAddr, io::Error),
}

/// A pair of bound, non-blocking sockets. Dropping it puts its ports into quarantine.
#[derive(Debug)]
pub struct PortPair {
    pub rtp: UdpSocket,
    pub rtcp: UdpSocket,
    /// The RTP port.
    port: u16,
    /// True if the sockets are bound to an IPv6 address.
    ipv6: bool,
    /// The pool that the ports go back to.
    pairs: Arc<Mutex<Pairs>>,
}

impl PortPool {
    /// Creates a pool of the pairs within `first..=last`. Sockets are bound to `ip`.
    pub fn new(ip: IpAddr, first: u16, last: u16) -> PortPool {
        let even = first + first % 2;
        let free = (even..last).step_by(2).collect();
        let pairs = Pairs { free, quarantined: VecDeque::new(), in_use: 0 };
        PortPool { ip, pairs: Arc::new(Mutex::new(pairs)) }
    }

    /// The address that sockets are bound to. The unspecified address means all of this host's.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The number of pairs in use.
    pub fn in_use(&self) -> usize {
        lock(&self.pairs).in_use
    }

    /// The number of pairs that could be used now.
    pub fn free(&self, now: Instant) -> usize {
        let pairs = lock(&self.pairs);
        let rested = pairs.quarantined.iter().take_while(|(until, _)| *until <= now);
        pairs.free.len() + rested.count()
    }

    /// Binds a free pair, skipping ports that another program uses.
    ///
    /// # Errors
    /// Returns [`PortError::Exhausted`] if no pair is free, and [`PortError::Bind`] if a socket
    /// cannot be opened, for example because descriptors have run out.
    pub fn lease(&self, now: Instant) -> Result<PortPair, PortError> {
        let tries = {
            let mut pairs = lock(&self.pairs);
            while let Some((until, port)) = pairs.quarantined.front().copied() {
                if until > now {
                    break;
                }
                pairs.quarantined.pop_front();
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
    // Expedited Forwarding (RFC 4594); some systems do not allow it, but it is not essential
    if address.is_ipv4() {
        let _ = socket2::SockRef::from(&socket).set_tos_v4(0xb8);
    }
    Ok(socket)
}

/// A panic in another thread leaves the pool consistent, so poisoning is ignored.
fn lock(pairs: &Mutex<Pairs>) -> std::sync::MutexGuard<'_, Pairs> {
    pairs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl PortPair {
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The RTP port. The RTCP port is the next one.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PortPair {
    fn drop(&mut self) {
        let mut pairs = lock(&self.pairs);
        pairs.in_use -= 1;
        pairs.quarantined.push_back((Instant::now() + REST, self.port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_pairs_are_quarantined_and_foreign_ports_skipped() {
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
