//! Finds the places where a frame can be left out, or played twice, without taking any speech from
//! the listener.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::media::frame::{FRAME_SAMPLES, Samples};
use crate::media::g711::Law;

/// A frame with a level (RMS) below this is silent: −56 dBFS, of 32768.
const SILENT: u64 = 52;
/// A frame below this is quiet: −50 dBFS. It may be the soft end of a word.
const QUIET: u64 = 104;
/// A quiet stretch of more than this many frames, 200 ms, is a pause.
const PAUSE: u32 = 10;

/// Follows the level of one stream.
#[derive(Debug, Default)]
pub struct QuietRun {
    /// Quiet frames in a row, up to the last one.
    frames: u32,
}

impl QuietRun {
    /// Adds the next frame. Returns true if a step may be hidden at it: it is silent and follows
    /// another quiet frame, or a pause has lasted for a while. With `urgent`, the first silent
    /// frame serves too.
    pub fn hides_step(&mut self, law: Law, samples: &Samples, urgent: bool) -> bool {
        let energy = energy(law, samples);
        if energy >= limit(QUIET) {
            self.frames = 0;
            return false;
        }
        self.frames += 1;
        self.frames > PAUSE || (energy < limit(SILENT) && (self.frames > 1 || urgent))
    }

    /// Begins again, after frames that were not looked at.
    pub fn reset(&mut self) {
        self.frames = 0;
    }
}

/// True if the frame is quiet: no speech, unless it is very soft.
pub fn is_quiet(law: Law, samples: &Samples) -> bool {
    energy(law, samples) < limit(QUIET)
}

/// The energy of a frame: the sum of its squared samples.
pub fn energy(law: Law, samples: &[u8]) -> u64 {
    let squares = law.squares();
    samples.iter().map(|s| u64::from(squares[usize::from(*s)])).sum()
}

/// The energy of a frame with this level.
fn limit(level: u64) -> u64 {
    level.pow(2) * FRAME_SAMPLES as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::frame::SILENCE;

    /// Returns the number of frames that can be left out of 30 with one level.
    fn hidden(level: i16, urgent: bool) -> usize {
        let mut run = QuietRun::default();
        let samples = [Law::Mu.encode(level); FRAME_SAMPLES];
        (0..30).filter(|_| run.hides_step(Law::Mu, &samples, urgent)).count()
    }

    #[test]
    fn silence_is_left_out_at_once_and_soft_sounds_only_in_pauses() {
        assert_eq!((hidden(0, false), hidden(0, true)), (29, 30));
        assert_eq!((hidden(80, false), hidden(80, true)), (20, 20));
        assert_eq!((hidden(200, false), hidden(200, true)), (0, 0));
        let a_law = [Law::A.silence(); FRAME_SAMPLES];
        assert!(QuietRun::default().hides_step(Law::A, &a_law, true));
    }

    #[test]
    fn speech_begins_a_new_run() {
        let mut run = QuietRun::default();
        assert!(!run.hides_step(Law::Mu, &[SILENCE; FRAME_SAMPLES], false));
        assert!(!run.hides_step(Law::Mu, &[0x10; FRAME_SAMPLES], true));
        assert!(!run.hides_step(Law::Mu, &[SILENCE; FRAME_SAMPLES], false));
    }
}
