//! G.711: conversions between mu-law, A-law and 16-bit linear, mostly by lookup tables that are
//! built on first use.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::LazyLock;

use audio_codec_algorithms::{
    convert_alaw_to_ulaw, convert_ulaw_to_alaw, decode_alaw, decode_ulaw, encode_alaw, encode_ulaw,
};

/// The companding law of an RTP payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Law {
    Mu,
    A,
}

/// A-law to mu-law.
static FROM_A: LazyLock<[u8; 256]> = LazyLock::new(|| table(convert_alaw_to_ulaw));
/// Mu-law to A-law.
static TO_A: LazyLock<[u8; 256]> = LazyLock::new(|| table(convert_ulaw_to_alaw));
/// Mu-law to 16-bit linear.
static LINEAR: LazyLock<[i16; 256]> =
    LazyLock::new(|| std::array::from_fn(|i| decode_ulaw(i as u8)));
/// A-law to 16-bit linear.
static LINEAR_A: LazyLock<[i16; 256]> =
    LazyLock::new(|| std::array::from_fn(|i| decode_alaw(i as u8)));
/// The squares of the 16-bit values, for levels.
static SQUARES: LazyLock<[u32; 256]> = LazyLock::new(|| squares(Law::Mu));
static SQUARES_A: LazyLock<[u32; 256]> = LazyLock::new(|| squares(Law::A));

impl Law {
    /// The byte for silence. A-law has no zero, so its quietest value is used.
    pub fn silence(self) -> u8 {
        match self {
            Law::Mu => 0xff,
            Law::A => 0xd5,
        }
    }

    /// Decodes one sample to 16-bit linear.
    pub fn decode(self, sample: u8) -> i16 {
        match self {
            Law::Mu => decode(sample),
            Law::A => LINEAR_A[usize::from(sample)],
        }
    }

    /// The squares of all 16-bit values that a byte can stand for, by that byte.
    pub fn squares(self) -> &'static [u32; 256] {
        match self {
            Law::Mu => &SQUARES,
            Law::A => &SQUARES_A,
        }
    }

    /// Encodes one 16-bit linear sample.
    pub fn encode(self, sample: i16) -> u8 {
        match self {
            Law::Mu => encode(sample),
            Law::A => encode_alaw(sample),
        }
    }

    /// Converts samples from this law to `to`, in place. Does nothing if the laws are the same.
    pub fn convert(self, to: Law, samples: &mut [u8]) {
        match (self, to) {
            (Law::A, Law::Mu) => a_to_mu(samples),
            (Law::Mu, Law::A) => mu_to_a(samples),
            _ => {}
        }
    }
}

fn squares(law: Law) -> [u32; 256] {
    std::array::from_fn(|i| u32::from(law.decode(i as u8).unsigned_abs()).pow(2))
}

fn table(convert: fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|i| convert(i as u8))
}

/// Decodes one mu-law sample to 16-bit linear.
pub fn decode(sample: u8) -> i16 {
    LINEAR[usize::from(sample)]
}

/// Encodes one 16-bit linear sample as mu-law.
pub fn encode(sample: i16) -> u8 {
    encode_ulaw(sample)
}

/// Converts A-law to mu-law in place.
pub fn a_to_mu(samples: &mut [u8]) {
    samples.iter_mut().for_each(|s| *s = FROM_A[usize::from(*s)]);
}

/// Converts mu-law to A-law in place.
pub fn mu_to_a(samples: &mut [u8]) {
    samples.iter_mut().for_each(|s| *s = TO_A[usize::from(*s)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_levels_survive_conversion() {
        let mut samples = [0xff, 0x7f];
        mu_to_a(&mut samples);
        a_to_mu(&mut samples);
        assert!(samples.iter().all(|s| decode(*s).abs() <= 8), "{samples:?}");
        assert_eq!(decode(encode(1000)).abs_diff(1000) / 40, 0);
        for law in [Law::Mu, Law::A] {
            assert!(law.decode(law.silence()).abs() <= 8);
            assert!(law.decode(law.encode(1000)).abs_diff(1000) <= 40);
            let mut samples = [law.silence()];
            law.convert(Law::Mu, &mut samples);
            assert!(decode(samples[0]).abs() <= 8);
        }
    }
}
