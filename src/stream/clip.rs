//! A piece of audio that is whole in one message: linear, as it is or in a WAV file.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::Range;

use crate::media::frame::RATE;
use crate::media::g711;
use crate::media::resample::Resampler;

/// Silence behind a clip, in ms: what the filter of another sample rate still holds.
const TAIL_MS: u32 = 10;
/// The highest sample rate of a clip.
const MAX_RATE: u32 = 64_000;

/// Why a clip cannot be played.
const RATE_UNKNOWN: &str = "playAudio: the sample rate is not a multiple of 200 Hz up to 64 kHz";
const WAV_UNKNOWN: &str = "playAudio: not a WAV file with 16-bit PCM and one channel";

/// Converts linear audio at `rate` to mu-law, in place.
///
/// # Errors
/// Returns the reason if the rate is not supported.
pub(super) fn raw(audio: &mut Vec<u8>, rate: u32) -> Result<(), &'static str> {
    let end = audio.len();
    convert(audio, 0..end, rate)
}

/// Converts the audio of a WAV file to mu-law, in place.
///
/// # Errors
/// Returns the reason if the file is not supported.
pub(super) fn wav(audio: &mut Vec<u8>) -> Result<(), &'static str> {
    let (rate, data) = header(audio).ok_or(WAV_UNKNOWN)?;
    convert(audio, data, rate)
}

fn convert(audio: &mut Vec<u8>, part: Range<usize>, rate: u32) -> Result<(), &'static str> {
    let raw = audio.len();
    let same = u64::from(rate) == RATE;
    let resampler = Some(rate).filter(|rate| (RATE as u32..=MAX_RATE).contains(rate));
    let mut resampler = resampler.and_then(|rate| Resampler::new(rate, RATE as u32));
    if resampler.is_none() {
        return Err(RATE_UNKNOWN);
    }
    audio.reserve(part.len());
    let (first, last) = (part.start, part.end.min(raw));
    for at in (first..last.saturating_sub(1)).step_by(2) {
        let sample = i16::from_le_bytes([audio[at], audio[at + 1]]);
        match resampler.as_mut().filter(|_| !same) {
            None => audio.push(g711::encode(sample)),
            Some(down) => down.push(sample, &mut |sample| audio.push(g711::encode(sample))),
        }
    }
    if let Some(down) = resampler.as_mut().filter(|_| !same) {
        let tail = rate / 1000 * TAIL_MS;
        (0..tail).for_each(|_| down.push(0, &mut |sample| audio.push(g711::encode(sample))));
    }
    audio.drain(..raw);
    Ok(())
}

/// Returns the sample rate of a WAV file, and the place of its audio.
fn header(file: &[u8]) -> Option<(u32, Range<usize>)> {
    let word = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_le_bytes(*file.get(at..)?.first_chunk()?));
    if file.get(..4)? != b"RIFF" || file.get(8..12)? != b"WAVE" {
        return None;
    }
    let (mut at, mut rate) = (12, None);
    loop {
        let (name, length) = (file.get(at..at + 4)?, word(at + 4)? as usize);
        let body = at + 8;
        match name {
            b"fmt " => {
                // PCM, one channel, 16 bits
                let format = (half(body)?, half(body + 2)?, half(body + 14)?);
                rate = Some(word(body + 4)?).filter(|_| format == (1, 1, 16));
            }
            b"data" => {
                // a file that was written as a stream has no length
                return Some((rate?, body..body.saturating_add(length).min(file.len())));
            }
            _ => {}
        }
        // chunks begin at even places
        at = body.checked_add(length)?.checked_add(length % 2)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(rate: u32, format: (u16, u16, u16), samples: &[i16]) -> Vec<u8> {
        let mut out = b"RIFF\0\0\0\0WAVEjunk\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
        out.extend(format.0.to_le_bytes());
        out.extend(format.1.to_le_bytes());
        out.extend(rate.to_le_bytes());
        out.extend([0; 6]);
        out.extend(format.2.to_le_bytes());
        out.extend(b"data\xff\xff\xff\xff");
        out.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
        out
    }

    #[test]
    fn clips_become_mu_law() {
        let mut audio: Vec<u8> = [0i16, 1000, -1000].iter().flat_map(|s| s.to_le_bytes()).collect();
        assert_eq!(raw(&mut audio, 8000), Ok(()));
        assert_eq!(audio, [0, 1000, -1000].map(g711::encode));
        let mut audio = file(8000, (1, 1, 16), &[7000; 3]);
        assert_eq!(wav(&mut audio), Ok(()));
        assert_eq!(audio, [g711::encode(7000); 3]);
        // all of it is heard, and silence behind it
        let mut audio = file(24_000, (1, 1, 16), &[7000; 2400 + 7]);
        assert_eq!(wav(&mut audio), Ok(()));
        let loud = audio.iter().filter(|sample| g711::decode(**sample) > 6000).count();
        assert!((790..=810).contains(&loud) && audio.ends_with(&[0xff; 20]), "{loud}");
    }

    #[test]
    fn other_clips_are_refused() {
        assert_eq!(raw(&mut vec![0; 4], 11_025), Err(RATE_UNKNOWN));
        assert_eq!(raw(&mut vec![0; 4], 96_000), Err(RATE_UNKNOWN));
        for format in [(7, 1, 8), (1, 2, 16), (1, 1, 8), (3, 1, 32)] {
            assert_eq!(wav(&mut file(8000, format, &[1])), Err(WAV_UNKNOWN), "{format:?}");
        }
        let whole = file(8000, (1, 1, 16), &[1, 2]);
        for length in 0..whole.len() {
            let mut cut = whole[..length].to_vec();
            let _ = wav(&mut cut);
        }
        assert_eq!(wav(&mut b"RIFF\0\0\0\0WAVEdata\xff\xff\xff\xff".to_vec()), Err(WAV_UNKNOWN));
    }
}
