//! G.711: mu-law and A-law, by tables made once.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::LazyLock;

use audio_codec_algorithms::{
    convert_alaw_to_ulaw, convert_ulaw_to_alaw, decode_ulaw, encode_ulaw,
};

/// What an RTP payload carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Law {
    Mu,
    A,
}

static FROM_A: LazyLock<[u8; 256]> = LazyLock::new(|| table(convert_alaw_to_ulaw));
static TO_A: LazyLock<[u8; 256]> = LazyLock::new(|| table(convert_ulaw_to_alaw));
static LINEAR: LazyLock<[i16; 256]> =
    LazyLock::new(|| std::array::from_fn(|i| decode_ulaw(i as u8)));

fn table(convert: fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|i| convert(i as u8))
}

/// Mu-law to 16-bit linear.
pub fn decode(sample: u8) -> i16 {
    LINEAR[usize::from(sample)]
}

/// 16-bit linear to mu-law.
pub fn encode(sample: i16) -> u8 {
    encode_ulaw(sample)
}

/// Turns A-law into mu-law in place.
pub fn a_to_mu(samples: &mut [u8]) {
    samples.iter_mut().for_each(|s| *s = FROM_A[usize::from(*s)]);
}

/// Turns mu-law into A-law in place.
pub fn mu_to_a(samples: &mut [u8]) {
    samples.iter_mut().for_each(|s| *s = TO_A[usize::from(*s)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_stays_silence() {
        let mut samples = [0xff, 0x7f];
        mu_to_a(&mut samples);
        a_to_mu(&mut samples);
        assert!(samples.iter().all(|s| decode(*s).abs() <= 8), "{samples:?}");
        assert_eq!(decode(encode(1000)).abs_diff(1000) / 40, 0);
    }
}
