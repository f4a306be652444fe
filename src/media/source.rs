//! Whose RTP is heard: only addresses that the PBX has named.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long after time 0 another port of a named address may be learned.
pub const LEARNING: Duration = Duration::from_millis(200);
/// Addresses kept; a dialog names a new one with each re-INVITE that moves the media.
const MAX_NAMED: usize = 16;

#[derive(Debug, Clone)]
pub struct SourceLock {
    /// Every address that an accepted SDP of this dialog has named: with direct media the PBX moves
    /// the stream there and back, and packets of both ends cross with the signalling.
    named: Vec<SocketAddr>,
    signalling: IpAddr,
    learned: Option<SocketAddr>,
    learn_until: Option<Instant>,
    /// The last source that was not heard.
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

    pub fn name(&mut self, address: SocketAddr) {
        if !self.named.contains(&address) {
            if self.named.len() == MAX_NAMED {
                self.named.remove(0);
            }
            self.named.push(address);
        }
    }

    /// Time 0 of the call.
    pub fn start(&mut self, now: Instant) {
        self.learn_until = Some(now + LEARNING);
    }

    /// Whether a packet from `source` is to be heard.
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

    /// The last source that was not heard, and the one that the PBX has named last.
    pub fn refused(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.refused?, *self.named.last()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    #[test]
    fn named_always_related_for_a_moment_strangers_never() {
        let now = start();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut lock = SourceLock::new("10.0.0.2".parse().unwrap());
        lock.name(at("10.0.0.3:4000"));
        lock.start(now);
        assert!(!lock.accepts(now, at("10.9.9.9:4000")));
        assert!(lock.accepts(now, at("10.0.0.3:4000")));
        assert!(lock.accepts(now, at("10.0.0.2:5000")), "another port of the PBX");
        assert!(!lock.accepts(now, at("10.0.0.2:5002")), "but one only");
        let later = now + LEARNING;
        assert!(lock.accepts(later, at("10.0.0.2:5000")));
        let mut late = SourceLock::new("10.0.0.2".parse().unwrap());
        late.start(now);
        assert!(!late.accepts(later, at("10.0.0.2:5000")));
        late.name(at("10.0.0.7:1")); // direct media
        assert!(late.accepts(later, at("10.0.0.7:1")));
    }
}
