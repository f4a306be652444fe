//! The RTP source filter: packets are accepted only from addresses that the PBX has named.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// For this long after time 0, one more port on a known IP address may be learned.
pub const LEARNING: Duration = Duration::from_millis(200);
/// After this long without RTP, another port may be learned.
const DEAF: Duration = Duration::from_secs(2);
/// At most this many named addresses are kept. Each re-INVITE that moves the media names a new one.
const MAX_NAMED: usize = 16;

/// The sources accepted for the RTP of one call.
#[derive(Debug, Clone)]
pub struct SourceLock {
    /// Every address named by an accepted SDP of this dialog. Earlier ones stay valid, because with
    /// direct media the PBX moves the stream away and back, and packets from both ends are still
    /// arriving when the signalling does.
    named: Vec<SocketAddr>,
    /// The address named last.
    latest: Option<SocketAddr>,
    /// The PBX's signalling address, from which a port may be learned as well.
    signalling: IpAddr,
    /// The one source that was learned.
    learned: Option<SocketAddr>,
    /// End of the learning period; `None` before time 0.
    learn_until: Option<Instant>,
    /// When RTP was last heard; `None` if never.
    heard: Option<Instant>,
    /// The source of the last RTP heard.
    current: Option<SocketAddr>,
    /// The last source that was refused.
    refused: Option<SocketAddr>,
}

impl SourceLock {
    pub fn new(signalling: IpAddr) -> SourceLock {
        SourceLock {
            named: Vec::new(),
            latest: None,
            signalling,
            learned: None,
            learn_until: None,
            heard: None,
            current: None,
            refused: None,
        }
    }

    /// Accepts `address` from now on. If the list is full, the oldest entry is dropped.
    pub fn name(&mut self, address: SocketAddr) {
        // RTP does not go to the source of a stream that has moved
        if self.latest.replace(address) != Some(address) {
            self.current = None;
        }
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
        if !related || !self.learns(now) {
            self.refused = Some(source);
            return false;
        }
        self.learned = Some(source);
        true
    }

    /// Returns true if a port may be learned now: while nothing has been heard, because a PBX
    /// behind NAT sends from a port that it cannot know; briefly after time 0; and if the call has
    /// heard no RTP for 2 s.
    fn learns(&self, now: Instant) -> bool {
        let Some(until) = self.learn_until else { return false };
        match self.heard {
            None => true,
            Some(_) if self.learned.is_none() && now < until => true,
            Some(at) => now.saturating_duration_since(at) >= DEAF,
        }
    }

    /// Notes that RTP was heard from an accepted source.
    pub fn heard(&mut self, now: Instant, source: SocketAddr) {
        (self.heard, self.current) = (Some(now), Some(source));
    }

    /// The source of the last RTP heard.
    pub fn current(&self) -> Option<SocketAddr> {
        self.current
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

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn named_sources_always_pass_related_ones_briefly_strangers_never() {
        let now = start();
        let mut lock = SourceLock::new("10.0.0.2".parse().unwrap());
        lock.name(at("10.0.0.3:4000"));
        lock.start(now);
        assert!(!lock.accepts(now, at("10.9.9.9:4000")));
        assert!(lock.accepts(now, at("10.0.0.3:4000")));
        lock.heard(now, at("10.0.0.3:4000"));
        assert!(lock.accepts(now, at("10.0.0.2:5000")), "another port of the PBX");
        assert!(!lock.accepts(now, at("10.0.0.2:5002")), "only one port is learned");
        let later = now + LEARNING;
        assert!(lock.accepts(later, at("10.0.0.2:5000")));
        lock.heard(later, at("10.0.0.2:5000"));
        assert_eq!(lock.current(), Some(at("10.0.0.2:5000")));
        let mut late = SourceLock::new("10.0.0.2".parse().unwrap());
        late.start(now);
        late.heard(now, at("10.0.0.2:4000"));
        assert!(!late.accepts(later, at("10.0.0.2:5000")));
        late.name(at("10.0.0.7:1")); // direct media
        assert!(late.accepts(later, at("10.0.0.7:1")));
    }

    /// A PBX behind NAT that is silent at first, and one whose port changes in mid-call.
    #[test]
    fn a_call_that_hears_nothing_learns_at_any_time() {
        let now = start();
        let mut lock = SourceLock::new("10.0.0.2".parse().unwrap());
        lock.name(at("10.0.0.2:4000"));
        lock.start(now);
        let later = now + Duration::from_secs(20);
        assert!(!lock.accepts(later, at("10.9.9.9:4000")));
        assert!(lock.accepts(later, at("10.0.0.2:6000")));
        lock.heard(later, at("10.0.0.2:6000"));
        assert!(!lock.accepts(later + DEAF / 2, at("10.0.0.2:7000")));
        assert!(lock.accepts(later + DEAF, at("10.0.0.2:7000")));
        lock.heard(later + DEAF, at("10.0.0.2:7000"));
        assert!(!lock.accepts(later + DEAF, at("10.0.0.2:6000")), "the port before");
    }
}
