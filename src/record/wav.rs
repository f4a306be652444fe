//! WAV files at 8 kHz with mu-law, A-law or 16-bit PCM samples (format tags 7, 6, 1): writes the
//! header and reads files. Source: Microsoft's RIFF specification, including the "fact" chunk of
//! non-PCM formats.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::media::frame::RATE;
use crate::media::g711::{self, Law};

/// Format of the samples in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Mu,
    A,
    Pcm16,
}

impl From<Law> for Encoding {
    fn from(law: Law) -> Encoding {
        match law {
            Law::Mu => Encoding::Mu,
            Law::A => Encoding::A,
        }
    }
}

impl Encoding {
    pub const ALL: [Encoding; 3] = [Encoding::Mu, Encoding::A, Encoding::Pcm16];

    /// Returns the name used in the sidecar.
    pub fn label(self) -> &'static str {
        match self {
            Encoding::Mu => "mulaw",
            Encoding::A => "alaw",
            Encoding::Pcm16 => "pcm16",
        }
    }

    fn tag(self) -> u16 {
        match self {
            Encoding::Mu => 7,
            Encoding::A => 6,
            Encoding::Pcm16 => 1,
        }
    }

    /// Returns the encoding with a format tag; mu-law for an unknown tag.
    pub fn of(tag: u16) -> Encoding {
        Encoding::ALL.into_iter().find(|e| e.tag() == tag).unwrap_or(Encoding::Mu)
    }

    pub fn sample_bytes(self) -> u64 {
        if self == Encoding::Pcm16 { 2 } else { 1 }
    }

    /// Returns the byte that silence consists of.
    pub fn silence(self) -> u8 {
        match self {
            Encoding::Mu => Law::Mu.silence(),
            Encoding::A => Law::A.silence(),
            Encoding::Pcm16 => 0,
        }
    }

    pub fn header_bytes(self) -> u64 {
        self.header(2, 0).len() as u64
    }

    /// Returns the header of a file with `data_bytes` of interleaved samples. Above 4 GiB, the size
    /// fields hold the largest value they can.
    pub fn header(self, channels: u16, data_bytes: u64) -> Vec<u8> {
        let (rate, size) = (RATE as u32, self.sample_bytes() as u16);
        let data = u32::try_from(data_bytes).unwrap_or(u32::MAX);
        let pcm = self == Encoding::Pcm16;
        let rest: u32 = if pcm { 36 } else { 50 };
        let mut out = Vec::with_capacity(58);
        out.extend_from_slice(b"RIFF");
        out.extend_from_slice(&rest.saturating_add(data).to_le_bytes());
        out.extend_from_slice(b"WAVEfmt ");
        out.extend_from_slice(&(if pcm { 16u32 } else { 18 }).to_le_bytes());
        out.extend_from_slice(&self.tag().to_le_bytes());
        out.extend_from_slice(&channels.to_le_bytes());
        out.extend_from_slice(&rate.to_le_bytes());
        out.extend_from_slice(&(rate * u32::from(channels * size)).to_le_bytes());
        out.extend_from_slice(&(channels * size).to_le_bytes());
        out.extend_from_slice(&(8 * size).to_le_bytes());
        if !pcm {
            out.extend_from_slice(&0u16.to_le_bytes());
            out.extend_from_slice(b"fact");
            out.extend_from_slice(&4u32.to_le_bytes());
            out.extend_from_slice(&(data / u32::from(channels.max(1))).to_le_bytes());
        }
        out.extend_from_slice(b"data");
        out.extend_from_slice(&data.to_le_bytes());
        out
    }

    /// Converts G.711 samples of `law` to this encoding.
    pub fn from_law(self, law: Law, mut samples: Vec<u8>) -> Vec<u8> {
        match self {
            Encoding::Mu => law.convert(Law::Mu, &mut samples),
            Encoding::A => law.convert(Law::A, &mut samples),
            Encoding::Pcm16 => {
                return samples.iter().flat_map(|s| law.decode(*s).to_le_bytes()).collect();
            }
        }
        samples
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WavError {
    #[error("not a WAV file")]
    NotWav,
    #[error(
        "unsupported format: use 8 kHz mu-law, A-law or 16-bit PCM, made for example with: \
         sox IN -r 8000 -c 1 -e mu-law OUT.wav"
    )]
    Format,
}

/// Reads a WAV file with 8 kHz G.711 or 16-bit PCM, and returns each channel's samples as mu-law.
///
/// # Errors
/// Returns a [`WavError`] for anything else.
pub fn read(file: &[u8]) -> Result<Vec<Vec<u8>>, WavError> {
    if file.get(..4) != Some(b"RIFF") || file.get(8..12) != Some(b"WAVE") {
        return Err(WavError::NotWav);
    }
    let mut format = None;
    let mut rest = &file[12..];
    while let Some(head) = rest.first_chunk::<8>() {
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let body = &rest[8..rest.len().min(8 + size)];
        match &head[..4] {
            b"fmt " if body.len() >= 16 => {
                let word = |at: usize| u16::from_le_bytes([body[at], body[at + 1]]);
                let rate = u32::from_le_bytes([body[4], body[5], body[6], body[7]]);
                format = Some((word(0), usize::from(word(2)), rate, word(14)));
            }
            b"data" => {
                let Some((tag, channels @ 1..=8, 8000, bits)) = format else {
                    return Err(WavError::Format);
                };
                let samples: Vec<u8> = match (tag, bits) {
                    (7, 8) => body.to_vec(),
                    (6, 8) => {
                        let mut samples = body.to_vec();
                        g711::a_to_mu(&mut samples);
                        samples
                    }
                    (1, 16) => body
                        .chunks_exact(2)
                        .map(|b| g711::encode(i16::from_le_bytes([b[0], b[1]])))
                        .collect(),
                    _ => return Err(WavError::Format),
                };
                let channel =
                    |n: usize| samples.iter().skip(n).step_by(channels).copied().collect();
                return Ok((0..channels).map(channel).collect());
            }
            _ => {}
        }
        // chunks are padded to an even length
        rest = rest.get(8 + size + size % 2..).unwrap_or(&[]);
    }
    Err(WavError::NotWav)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_files_can_be_read() {
        for encoding in Encoding::ALL {
            let data = encoding.from_law(Law::Mu, vec![0x81, 0x99, 0x82, 0x98, 0x83, 0x97]);
            let mut file = encoding.header(2, data.len() as u64);
            assert_eq!(file.len() as u64, encoding.header_bytes());
            file.extend_from_slice(&data);
            let riff = u32::from_le_bytes(file[4..8].try_into().unwrap());
            assert_eq!(riff as usize, file.len() - 8, "{encoding:?}");
            let [left, right] = &read(&file).unwrap()[..] else { panic!("not stereo") };
            let near = |a: &[u8], b: &[u8]| {
                let far = |(a, b): (&u8, &u8)| g711::decode(*a).abs_diff(g711::decode(*b)) > 1000;
                a.len() == b.len() && !a.iter().zip(b).any(far)
            };
            assert!(near(left, &[0x81, 0x82, 0x83]) && near(right, &[0x99, 0x98, 0x97]));
            let silence = encoding.from_law(Law::Mu, vec![0xff; 2]);
            assert!(encoding == Encoding::A || silence.iter().all(|b| *b == encoding.silence()));
        }
    }

    #[test]
    fn truncated_and_foreign_files_are_errors() {
        let file = Encoding::Mu.header(1, 100);
        for n in 0..file.len() {
            assert!(read(&file[..n]).is_err(), "{n}");
        }
        assert_eq!(read(b"OggS"), Err(WavError::NotWav));
        let mut fast = Encoding::Mu.header(1, 0);
        fast[24..28].copy_from_slice(&44_100u32.to_le_bytes());
        assert_eq!(read(&fast), Err(WavError::Format));
    }
}
