//! Conversion between the caller's mu-law and the 16-bit linear audio of models that use another
//! sample rate. Adds a delay of 10 ms in each direction.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler as _};

use crate::media::frame::{FRAME_SAMPLES, RATE, SILENCE, Samples};
use crate::media::g711;

/// The sample rates that are supported.
const RATES: [usize; 5] = [16_000, 22_050, 24_000, 44_100, 48_000];
/// Frames per second.
const FRAME_RATE: usize = RATE as usize / FRAME_SAMPLES;
/// Length of a frame of 20 ms at the highest rate, in bytes.
pub const MAX_FRAME_BYTES: usize = 2 * 48_000 / FRAME_RATE;
/// Capacity that the buffer of received samples may keep after a long message.
const KEPT_BYTES: usize = 64 * 1024;

/// One direction: fixed pieces of 20 ms become pieces of 20 ms.
struct Rates {
    fft: Fft<f32>,
    /// A part of a piece.
    input: Vec<f32>,
    /// Length of a piece.
    length: usize,
    output: Vec<f32>,
}

impl Rates {
    fn new(from: usize, to: usize) -> Option<Rates> {
        let [length, made] = [from, to].map(|rate| rate / FRAME_RATE);
        let fft = Fft::new(from, to, length, 1, FixedSync::Both).ok()?;
        if (fft.input_frames_next(), fft.output_frames_next()) != (length, made) {
            return None;
        }
        Some(Rates { fft, input: Vec::with_capacity(length), length, output: vec![0.0; made] })
    }

    /// Adds a sample. Returns a piece of output when the input is a whole one.
    fn push(&mut self, sample: f32) -> Option<&[f32]> {
        self.input.push(sample);
        if self.input.len() < self.length {
            return None;
        }
        let made = self.output.len();
        let input = InterleavedSlice::new(&self.input, 1, self.length);
        let output = InterleavedSlice::new_mut(&mut self.output, 1, made);
        if let (Ok(input), Ok(mut output)) = (input, output) {
            // the sizes are those that the library asked for
            let _ = self.fft.process_into_buffer(&input, &mut output, None);
        }
        self.input.clear();
        Some(&self.output)
    }

    fn reset(&mut self) {
        self.fft.reset();
        self.input.clear();
    }
}

/// Converts the caller's audio to the rate of a model.
pub struct Up(Rates);

/// Converts the audio of a model to the caller's.
pub struct Down {
    rates: Rates,
    /// Received bytes.
    bytes: Vec<u8>,
}

impl fmt::Debug for Up {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Up")
    }
}

impl fmt::Debug for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Down")
    }
}

impl Up {
    /// Returns `None` if the rate is not supported.
    pub fn new(rate: usize) -> Option<Up> {
        RATES.contains(&rate).then(|| Rates::new(RATE as usize, rate)).flatten().map(Up)
    }

    /// Converts 20 ms to 16-bit samples, little-endian. Returns their length in bytes.
    pub fn frame(&mut self, samples: &Samples, out: &mut [u8; MAX_FRAME_BYTES]) -> usize {
        let mut length = 0;
        for sample in samples {
            let Some(piece) = self.0.push(f32::from(g711::decode(*sample))) else { continue };
            for (sample, pair) in piece.iter().zip(out.as_chunks_mut().0) {
                *pair = linear(*sample).to_le_bytes();
                length += 2;
            }
        }
        length
    }
}

impl Down {
    /// Returns `None` if the rate is not supported.
    pub fn new(rate: usize) -> Option<Down> {
        let rates = RATES.contains(&rate).then(|| Rates::new(rate, RATE as usize)).flatten()?;
        Some(Down { rates, bytes: Vec::new() })
    }

    /// Converts 16-bit samples, little-endian, to mu-law in place. What is less than 20 ms follows
    /// with the next message.
    pub fn convert(&mut self, audio: &mut Vec<u8>) {
        self.bytes.extend_from_slice(audio);
        audio.clear();
        let whole = self.bytes.len() / 2 * 2;
        for pair in self.bytes[..whole].as_chunks::<2>().0 {
            let sample = f32::from(i16::from_le_bytes(*pair));
            if let Some(piece) = self.rates.push(sample) {
                audio.extend(piece.iter().map(|sample| g711::encode(linear(*sample))));
            }
        }
        self.bytes.drain(..whole);
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes.shrink_to(KEPT_BYTES);
        }
    }

    /// Forgets what waits for the next message.
    pub fn reset(&mut self) {
        self.rates.reset();
        self.bytes.clear();
    }
}

fn linear(sample: f32) -> i16 {
    // out of range, `as` takes the nearest value
    sample.round() as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tone at `rate`, as 16-bit samples.
    fn tone(hz: f64, rate: usize, seconds: f64) -> Vec<i16> {
        let step = std::f64::consts::TAU * hz / rate as f64;
        (0..(seconds * rate as f64) as usize)
            .map(|n| (8000.0 * (step * n as f64).sin()).round() as i16)
            .collect()
    }

    /// The ratio of a tone to everything else, in decibels.
    fn snr(samples: &[i16], hz: f64, rate: usize) -> f64 {
        let step = std::f64::consts::TAU * hz / rate as f64;
        let n = samples.len() as f64;
        let sum = |wave: fn(f64) -> f64| -> f64 {
            let of = |(n, s): (usize, &i16)| wave(step * n as f64) * f64::from(*s);
            samples.iter().enumerate().map(of).sum()
        };
        let (sin, cos) = (2.0 * sum(f64::sin) / n, 2.0 * sum(f64::cos) / n);
        let signal = (sin * sin + cos * cos) / 2.0;
        let all = samples.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / n;
        10.0 * (signal / (all - signal).max(1e-9)).log10()
    }

    #[test]
    fn a_tone_stays_a_tone_at_each_rate() {
        for rate in RATES {
            // mu-law alone has about 38 dB
            let mut up = Up::new(rate).unwrap();
            let caller: Vec<u8> = tone(1000.0, 8000, 1.0).into_iter().map(g711::encode).collect();
            let mut out = [0; MAX_FRAME_BYTES];
            let mut samples = Vec::new();
            for frame in caller.as_chunks::<FRAME_SAMPLES>().0 {
                let length = up.frame(frame, &mut out);
                assert_eq!(length, 2 * rate / 50, "{rate}");
                samples.extend(out[..length].as_chunks().0.iter().map(|s| i16::from_le_bytes(*s)));
            }
            let snr_up = snr(&samples[rate / 5..], 1000.0, rate);
            assert!(snr_up > 34.0, "{rate}: {snr_up}");

            let mut down = Down::new(rate).unwrap();
            let model: Vec<u8> =
                tone(1000.0, rate, 1.0).into_iter().flat_map(i16::to_le_bytes).collect();
            let mut heard = Vec::new();
            // pieces that end within a sample
            for piece in model.chunks(1001) {
                let mut audio = piece.to_vec();
                down.convert(&mut audio);
                heard.extend(audio);
            }
            assert_eq!(heard.len(), 8000, "{rate}");
            let heard: Vec<i16> = heard.into_iter().map(g711::decode).collect();
            let snr_down = snr(&heard[1600..], 1000.0, 8000);
            assert!(snr_down > 34.0, "{rate}: {snr_down}");
        }
    }

    #[test]
    fn what_the_caller_cannot_hear_does_not_fold_back() {
        let mut down = Down::new(24_000).unwrap();
        let mut audio: Vec<u8> =
            tone(7000.0, 24_000, 1.0).into_iter().flat_map(i16::to_le_bytes).collect();
        down.convert(&mut audio);
        let peak = audio[1600..].iter().map(|s| g711::decode(*s).unsigned_abs()).max();
        assert!(peak < Some(40), "{peak:?}");
    }

    #[test]
    fn silence_stays_silence_and_a_reset_forgets() {
        assert!(Up::new(8000).is_none() && Down::new(11_025).is_none());
        let mut down = Down::new(16_000).unwrap();
        let mut loud = vec![0x40; 639];
        down.convert(&mut loud);
        assert_eq!(loud.len(), 0);
        down.reset();
        let mut silence = vec![0; 6400];
        down.convert(&mut silence);
        assert_eq!(silence, vec![SILENCE; 1600]);
        // numbers beyond 16 bits are cut, not wrapped
        assert_eq!((linear(40_000.0), linear(-40_000.0)), (i16::MAX, i16::MIN));
    }
}
