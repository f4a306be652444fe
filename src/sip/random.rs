//! Tags, branches, cnonces: a counter hashed with a secret key, so that they are unpredictable
//! with a random key and repeatable in tests with a fixed one.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use sha2::{Digest, Sha256};

/// A deterministic generator: SHA-256 over a secret key and a counter.
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

    /// 16 lower-case hex digits: 64 bits, as From and To tags, Call-IDs and cnonces need
    /// (RFC 3261 §19.3 asks for at least 32).
    pub fn token(&mut self) -> String {
        format!("{:016x}", self.next_u64())
    }

    /// A Via branch with RFC 3261's magic cookie.
    pub fn branch(&mut self) -> String {
        format!("z9hG4bK{}", self.token())
    }

    /// A number in `low..high`; `low` when the range is empty.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        if high <= low { low } else { low + self.next_u64() % (high - low) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_repeatable_and_does_not_repeat_itself() {
        let (mut a, mut b) = (Random::new([7; 32]), Random::new([7; 32]));
        let tokens: Vec<String> = (0..100).map(|_| a.token()).collect();
        assert!(tokens.iter().all(|t| *t == b.token()));
        let mut unique = tokens.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), 100);
    }
}
