//! The RTP source filter: packets are accepted only from addresses that the PBX has named.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// For this long after time 0, one more port on a known IP address may be learned.
pub const LEARNING: Duration = Duration::from_millis(200);
/// At most this many named addresses are kept. Each re-INVITE that moves the media names a new one.
const MAX_NAMED: usize = 16;

/// The sources accepted for the RTP of one call.
#[derive(Debug, Clone)]
pub struct SourceLock {
    /// Every address named by an accepted SDP of this dialog. Earlier ones stay valid, because with
    /// direct media the PBX moves the stream away and back, and packets from both ends are still
    /// arriving when the signalling does.
    named: Vec<SocketAddr>,
    /// The PBX's signalling address, from which a port may be learned as well.
    signalling: IpAddr,
    /// The one source that was learned.
    learned: Option<SocketAddr>,
    /// End of the learning period; `None` before time 0.
    learn_until: Option<Instant>,
    /// The last source that was refused.
    refused: Option<SocketAddr>,
}

impl SourceLock {
    pub fn new(signalling: IpAddr) -> SourceLock {
        SourceLock {
            named: Vec::new(),
            signalling,
            learned: None,
            learn_until: None,
            refused: None,
        }
    }

    /// Accepts `address` from now on. If the list is full, the oldest entry is dropped.
    pub fn name(&mut self, address: SocketAddr) {
        if !self.named.contains(&address) {
            if self.named.len() == MAX_NAMED {
                self.named.remove(0);
            }
            self.named.push(address);
        }
    }

    /// Starts the learning period at time 0 of the call.
    pub fn start(&mut self, now: Instant) {
        self.learn_until = Some(now + LEARNING);
    }

    /// Returns true if packets from `source` are accepted. May learn `source`.
    pub fn accepts(&mut self, now: Instant, source: SocketAddr) -> bool {
        if self.named.contains(&source) || self.learned == Some(source) {
            return true;
        }
        let ip = source.ip();
        let related = ip == self.signalling || self.named.iter().any(|n| n.ip() == ip);
        let learning = self.learned.is_none() && self.learn_until.is_some_and(|until| now < until);
        if related && learning {
            self.learned = Some(source);
        }
        if !(related && learning) {
            self.refused = Some(source);
        }
        related && learning
    }

    /// The last source that was refused, and the address that the PBX named last.
    pub fn refused(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.refused?, *self.named.last()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    #[test]
    fn named_sources_always_pass_related_ones_briefly_strangers_never() {
        let now = start();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut lock = SourceLock::new("10.0.0.2".parse().unwrap());
        lock.name(at("10.0.0.3:4000"));
        lock.start(now);
        assert!(!lock.accepts(now, at("10.9.9.9:4000")));
        assert!(lock.accepts(now, at("10.0.0.3:4000")));
        assert!(lock.accepts(now, at("10.0.0.2:5000")), "another port of the PBX");
        assert!(!lock.accepts(now, at("10.0.0.2:5002")), "only one port is learned");
        let later = now + LEARNING;
        assert!(lock.accepts(later, at("10.0.0.2:5000")));
        let mut late = SourceLock::new("10.0.0.2".parse().unwrap());
        late.start(now);
        assert!(!late.accepts(later, at("10.0.0.2:5000")));
        late.name(at("10.0.0.7:1")); // direct media
        assert!(late.accepts(later, at("10.0.0.7:1")));
    }
}
