//! WAV with mu-law samples (format tag 7), 8 kHz: the header, and reading a file back.
//! Source: Microsoft's RIFF specification, "fact" chunk for non-PCM formats.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::media::g711;

pub const HEADER_BYTES: usize = 58;
const MU_LAW: u16 = 7;

/// The header of a file with `data_bytes` of interleaved mu-law samples.
pub fn header(channels: u16, data_bytes: u32) -> [u8; HEADER_BYTES] {
    let rate: u32 = 8000;
    let mut out = [0u8; HEADER_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(b"RIFF");
    put(&(HEADER_BYTES as u32 - 8).saturating_add(data_bytes).to_le_bytes());
    put(b"WAVEfmt ");
    put(&18u32.to_le_bytes());
    put(&MU_LAW.to_le_bytes());
    put(&channels.to_le_bytes());
    put(&rate.to_le_bytes());
    put(&(rate * u32::from(channels)).to_le_bytes());
    put(&channels.to_le_bytes());
    put(&8u16.to_le_bytes());
    put(&0u16.to_le_bytes());
    put(b"fact");
    put(&4u32.to_le_bytes());
    put(&(data_bytes / u32::from(channels.max(1))).to_le_bytes());
    put(b"data");
    put(&data_bytes.to_le_bytes());
    out
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WavError {
    #[error("not a WAV file")]
    NotWav,
    #[error(
        "only 8 kHz mu-law or 16-bit PCM can be used; make one with: \
         sox IN -r 8000 -c 1 -e mu-law OUT.wav"
    )]
    Format,
}

/// One channel's mu-law samples for each channel of a file: 8 kHz, mu-law or 16-bit PCM.
///
/// # Errors
/// [`WavError`] for anything else.
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
                    (MU_LAW, 8) => body.to_vec(),
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
    fn what_is_written_is_read() {
        let mut file = header(2, 6).to_vec();
        file.extend_from_slice(&[1, 9, 2, 8, 3, 7]);
        assert_eq!(read(&file).unwrap(), [[1, 2, 3], [9, 8, 7]]);
    }

    #[test]
    fn cut_and_foreign_files() {
        let file = header(1, 100).to_vec();
        for n in 0..HEADER_BYTES {
            assert!(read(&file[..n]).is_err() || n >= HEADER_BYTES, "{n}");
        }
        assert_eq!(read(b"OggS"), Err(WavError::NotWav));
        let mut fast = header(1, 0);
        fast[24..28].copy_from_slice(&44_100u32.to_le_bytes());
        assert_eq!(read(&fast), Err(WavError::Format));
    }
}
