//! Conversion of linear audio between sample rates, for AIs that do not take 8 kHz. A stream keeps
//! its filter's state, so that there is no click between its pieces.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler as _, WindowFunction};

/// Blocks per second: audio is converted in blocks of 5 ms, and comes out 2.5 ms late. Shorter
/// blocks lose what is above 3 kHz.
const BLOCKS: u32 = 200;

/// Converts the audio of one stream.
pub struct Resampler {
    fft: Fft<f32>,
    /// The block that is being filled.
    input: Vec<f32>,
    filled: usize,
    output: Vec<f32>,
}

impl Resampler {
    /// Creates a converter for two rates, which must be multiples of 200 Hz; otherwise, `None`.
    pub fn new(from: u32, to: u32) -> Option<Resampler> {
        if from == 0 || to == 0 || !from.is_multiple_of(BLOCKS) || !to.is_multiple_of(BLOCKS) {
            return None;
        }
        let (length_in, length_out) = ((from / BLOCKS) as usize, (to / BLOCKS) as usize);
        // of rubato's windows, this one keeps most of the speech band at this length
        let window = WindowFunction::Hann;
        let (from, to, both) = (from as usize, to as usize, FixedSync::Both);
        let fft = Fft::new_custom(from, to, length_in, 1, 1, window, both).ok()?;
        let whole = fft.input_frames_next() == length_in && fft.output_frames_next() == length_out;
        whole.then(|| Resampler {
            fft,
            input: vec![0.0; length_in],
            filled: 0,
            output: vec![0.0; length_out],
        })
    }

    /// Adds a sample. `each` gets the samples of a block that is complete.
    pub fn push(&mut self, sample: i16, each: &mut impl FnMut(i16)) {
        if let Some(place) = self.input.get_mut(self.filled) {
            *place = f32::from(sample);
        }
        self.filled += 1;
        if self.filled < self.input.len() {
            return;
        }
        self.filled = 0;
        if self.convert().is_none() {
            self.output.fill(0.0); // the lengths always match
        }
        for sample in &self.output {
            // `as` saturates
            each(sample.round_ties_even() as i16);
        }
    }

    fn convert(&mut self) -> Option<()> {
        let (length_in, length_out) = (self.input.len(), self.output.len());
        let input = InterleavedSlice::new(&self.input[..], 1, length_in).ok()?;
        let mut output = InterleavedSlice::new_mut(&mut self.output[..], 1, length_out).ok()?;
        self.fft.process_into_buffer(&input, &mut output, None).ok().map(|_| ())
    }

    /// Forgets the audio so far.
    pub fn reset(&mut self) {
        self.fft.reset();
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;

    fn sine(hertz: f64, rate: u32, count: usize) -> Vec<i16> {
        let at = |n: usize| (hertz * TAU * n as f64 / f64::from(rate)).sin() * 20_000.0;
        (0..count).map(|n| at(n).round() as i16).collect()
    }

    fn converted(from: u32, to: u32, audio: &[i16]) -> Vec<i16> {
        let mut resampler = Resampler::new(from, to).unwrap();
        let mut out = Vec::new();
        audio.iter().for_each(|sample| resampler.push(*sample, &mut |s| out.push(s)));
        out
    }

    /// The amplitude of a tone in `audio` relative to that of [`sine`], and the ratio of the tone
    /// to everything else; both in dB. `audio` has to be a whole number of periods.
    fn measured(audio: &[i16], hertz: f64, rate: u32) -> (f64, f64) {
        let (mut sine, mut cosine, mut energy) = (0.0, 0.0, 0.0);
        for (n, sample) in audio.iter().enumerate() {
            let (angle, sample) = (hertz * TAU * n as f64 / f64::from(rate), f64::from(*sample));
            sine += sample * angle.sin();
            cosine += sample * angle.cos();
            energy += sample * sample;
        }
        let count = audio.len() as f64;
        let tone = 2.0 * (sine * sine + cosine * cosine) / count;
        let amplitude = (2.0 * tone / count).sqrt();
        (20.0 * (amplitude / 20_000.0).log10(), 10.0 * (tone / (energy - tone).max(1e-9)).log10())
    }

    #[test]
    fn tones_keep_their_level_and_stay_clean() {
        for rate in [16_000, 24_000, 32_000, 48_000] {
            for (from, to) in [(8000, rate), (rate, 8000)] {
                for hertz in [300.0, 1000.0, 2000.0, 3000.0, 3400.0] {
                    let out = converted(from, to, &sine(hertz, from, from as usize * 2 / 5));
                    assert_eq!(out.len(), to as usize * 2 / 5);
                    let (level, clean) = measured(&out[to as usize / 5..], hertz, to);
                    assert!(level.abs() < 0.3, "{from} to {to}, {hertz} Hz: {level} dB");
                    assert!(clean > 90.0, "{from} to {to}, {hertz} Hz: {clean} dB");
                }
            }
        }
    }

    #[test]
    fn what_8_khz_cannot_carry_is_removed() {
        for hertz in [4600.0, 5000.0, 7000.0] {
            let out = converted(16_000, 8000, &sine(hertz, 16_000, 3200));
            let loudest = out[800..].iter().map(|s| s.unsigned_abs()).max().unwrap();
            assert!(loudest <= 1, "{hertz} Hz: {loudest}");
        }
    }

    #[test]
    fn audio_is_2_5_ms_late() {
        for (from, to) in [(8000, 16_000), (24_000, 8000)] {
            let mut click = vec![0; from as usize / 10];
            click[from as usize / 100] = 30_000;
            let out = converted(from, to, &click);
            let loudest = out.iter().enumerate().max_by_key(|(_, s)| s.unsigned_abs()).unwrap();
            let late = loudest.0 as f64 * 1000.0 / f64::from(to) - 10.0;
            assert!((late - 2.5).abs() < 0.1, "{from} to {to}: {late} ms");
        }
    }

    #[test]
    fn a_reset_leaves_nothing_behind() {
        let mut resampler = Resampler::new(16_000, 8000).unwrap();
        sine(440.0, 16_000, 1234).iter().for_each(|s| resampler.push(*s, &mut |_| ()));
        resampler.reset();
        (0..320).for_each(|_| resampler.push(0, &mut |sample| assert_eq!(sample, 0)));
        assert!(Resampler::new(8000, 11_025).is_none());
    }
}
