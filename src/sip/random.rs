//! Generates tags, branches and cnonces by hashing a counter with a secret key. They are
//! unpredictable with a random key, and repeatable in tests with a fixed one.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use sha2::{Digest, Sha256};

/// A deterministic generator that computes SHA-256 over a secret key and a counter.
#[derive(Clone)]
pub struct Random {
    key: [u8; 32],
    counter: u64,
}

impl Random {
    pub fn new(key: [u8; 32]) -> Self {
        Random { key, counter: 0 }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.counter += 1;
        let digest = Sha256::new()
            .chain_update(self.key)
            .chain_update(self.counter.to_be_bytes())
            .finalize();
        let mut word = [0u8; 8];
        word.copy_from_slice(&digest[..8]);
        u64::from_be_bytes(word)
    }

    /// Returns 16 lower-case hex digits (64 bits) for a From or To tag, a Call-ID or a cnonce.
    /// RFC 3261 §19.3 requires at least 32 bits.
    pub fn token(&mut self) -> String {
        format!("{:016x}", self.next_u64())
    }

    /// Returns a To tag that is always the same for the same transaction, so that requests can be
    /// answered without state (RFC 3261 §8.2.7).
    pub fn tag(&self, transaction: &str) -> String {
        let digest = Sha256::new().chain_update(self.key).chain_update(transaction).finalize();
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns a Via branch with RFC 3261's magic cookie.
    pub fn branch(&mut self) -> String {
        format!("z9hG4bK{}", self.token())
    }

    /// Returns a number in `low..high`, or `low` if the range is empty.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        if high <= low { low } else { low + self.next_u64() % (high - low) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_gives_the_same_distinct_tokens() {
        let (mut a, mut b) = (Random::new([7; 32]), Random::new([7; 32]));
        let tokens: Vec<String> = (0..100).map(|_| a.token()).collect();
        assert!(tokens.iter().all(|t| *t == b.token()));
        let mut unique = tokens.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), 100);
    }
}
