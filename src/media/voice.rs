//! Voice activity in one direction of a call: a frame counts as voice if it is clearly louder than
//! the noise of the line. The noise is the quietest frame of the last one to two seconds, which
//! even fluent speech leaves between words.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::media::frame::FRAME_SAMPLES;

/// Quieter frames are never voice: −45 dBFS (RMS), of 32768.
const LEAST: u64 = 184 * 184 * FRAME_SAMPLES as u64;
/// Voice has at least this many times the energy of the noise: 9 dB.
const ABOVE_NOISE: u64 = 8;
/// Louder frames are always voice, whatever the noise: −20 dBFS.
const LOUD: u64 = 3277 * 3277 * FRAME_SAMPLES as u64;
/// The noise is found in this many blocks of this many frames: 1.6 s.
const BLOCKS: usize = 4;
const BLOCK_FRAMES: u32 = 20;

/// Finds voice in one stream of frames.
#[derive(Debug, Clone)]
pub struct Voice {
    /// The energy of the quietest frame in each of the last blocks.
    quietest: [u64; BLOCKS],
    /// The same in the present block.
    present: u64,
    /// Frames in the present block.
    frames: u32,
    /// The place of the oldest block.
    oldest: usize,
}

impl Default for Voice {
    fn default() -> Voice {
        Voice { quietest: [0; BLOCKS], present: u64::MAX, frames: 0, oldest: 0 }
    }
}

impl Voice {
    /// Adds the next frame, by its energy. Returns true if it is voice.
    pub fn hears(&mut self, energy: u64) -> bool {
        self.present = self.present.min(energy);
        self.frames += 1;
        if self.frames == BLOCK_FRAMES {
            if let Some(oldest) = self.quietest.get_mut(self.oldest) {
                *oldest = self.present;
            }
            self.oldest = (self.oldest + 1) % BLOCKS;
            (self.present, self.frames) = (u64::MAX, 0);
        }
        let noise = self.quietest.iter().fold(self.present, |least, block| least.min(*block));
        energy > LEAST.max(noise.saturating_mul(ABOVE_NOISE)).min(LOUD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn energy(level: u64) -> u64 {
        level * level * FRAME_SAMPLES as u64
    }

    #[test]
    fn voice_is_what_is_louder_than_the_line() {
        let mut voice = Voice::default();
        assert!(!(0..100).any(|_| voice.hears(energy(20))), "a quiet line");
        assert!(voice.hears(energy(1500)));
        assert!(!voice.hears(energy(100)), "soft breath");
    }

    #[test]
    fn steady_noise_is_voice_for_two_seconds_at_most() {
        let mut voice = Voice::default();
        let heard = (0..200).filter(|_| voice.hears(energy(600))).count();
        assert!(heard <= 100, "{heard}");
        assert!(voice.hears(energy(2500)), "speech in noise");
        assert!(!voice.hears(energy(900)));
    }

    /// Recorded speech, with silence before and after it, at several levels of noise.
    #[test]
    fn the_end_of_recorded_speech_is_found() {
        let speech = include_bytes!("../cli/assets/greeting.ulaw");
        for noise in [0i32, 30, 100, 300] {
            let (mut voice, mut seed, mut last) = (Voice::default(), 1u32, None);
            let silence = [[0xff; FRAME_SAMPLES]; 100];
            let words = speech.as_chunks::<FRAME_SAMPLES>().0;
            for (n, frame) in silence.iter().chain(words).chain(&silence).enumerate() {
                let samples = frame.map(|sample| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let noise = (seed >> 16) as i32 % (noise * 2 + 1) - noise;
                    i32::from(crate::media::g711::decode(sample)) + noise
                });
                let energy = samples.iter().map(|s| u64::from(s.unsigned_abs()).pow(2)).sum();
                if voice.hears(energy) && n >= 100 {
                    last = Some(n - 100);
                }
            }
            // the last word ends at frame 428 of 434
            assert!(last.is_some_and(|last| (424..=430).contains(&last)), "{noise}: {last:?}");
        }
    }

    #[test]
    fn fluent_speech_stays_voice() {
        let mut voice = Voice::default();
        // a soft frame between words now and then
        let frames = (0..1000).map(|n| if n % 25 == 0 { 60 } else { 2000 + n % 7 * 100 });
        let heard = frames.filter(|level| voice.hears(energy(*level))).count();
        assert_eq!(heard, 960);
    }
}
