//! Keeps the caller's track beside the AI's when their clocks differ.
//!
//! The AI's track is paced by our clock, the caller's frames come by his: at 100 ppm they are 60 ms
//! apart after ten minutes. Each heard frame is late by some transit time; the least of ten seconds
//! does not depend on jitter. When it has moved by more than a frame since the call's beginning,
//! the track is moved by a frame, where the caller is quiet if he soon is.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::media::frame::{FRAME_TIME, Samples};
use crate::media::g711::Law;

const FRAME_US: i64 = FRAME_TIME.as_micros() as i64;
/// Heard frames that are judged together.
const WINDOW: u32 = 500;
/// A quieter frame than this (of 32768) hides the step.
const QUIET: i16 = 400;
/// So many frames are waited for a quiet one.
const PATIENCE: u32 = 250;

/// Where a frame of the caller's belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    At(u64),
    /// There, and in the frame before it: time was missing.
    Twice(u64),
    /// Left out: there was too much time.
    Nowhere,
}

#[derive(Debug, Default)]
pub struct Aligner {
    shift: i64,
    reference: Option<i64>,
    least: Option<i64>,
    judged: u32,
    /// A step that is due, +1 or -1, and how long it has waited.
    due: i64,
    waited: u32,
    /// Steps taken.
    pub steps: u32,
    /// How far the caller's track was from its place at the last judgement, in microseconds.
    pub offset_us: i64,
}

impl Aligner {
    /// `index`: the frame's number on the caller's timeline. `heard_at`: when it came, after the
    /// call's time 0, for frames that were heard.
    pub fn place(
        &mut self,
        index: u64,
        heard_at: Option<Duration>,
        law: Law,
        samples: &Samples,
    ) -> Place {
        if let Some(at) = heard_at {
            let end = (index as i64 + self.shift + 1) * FRAME_US;
            self.judge(at.as_micros() as i64 - end);
        }
        let step = if self.due == 0 { 0 } else { self.step(law, samples) };
        self.shift += step;
        let at = u64::try_from(index as i64 + self.shift).unwrap_or(0);
        match step {
            0 => Place::At(at),
            1 => Place::Twice(at),
            _ => Place::Nowhere,
        }
    }

    fn judge(&mut self, late_us: i64) {
        self.least = Some(self.least.map_or(late_us, |least| least.min(late_us)));
        self.judged += 1;
        if self.judged < WINDOW {
            return;
        }
        self.judged = 0;
        let Some(least) = self.least.take() else { return };
        let reference = *self.reference.get_or_insert(least);
        self.offset_us = least - reference;
        // a step that is due already is not asked for twice
        if self.offset_us.abs() > FRAME_US && self.due == 0 {
            (self.due, self.waited) = (self.offset_us.signum(), 0);
        }
    }

    fn step(&mut self, law: Law, samples: &Samples) -> i64 {
        self.waited += 1;
        let quiet = samples.iter().all(|s| law.decode(*s).saturating_abs() < QUIET);
        if !quiet && self.waited < PATIENCE {
            return 0;
        }
        // what was judged before the step says nothing any more
        (self.least, self.judged) = (None, 0);
        self.steps += 1;
        self.offset_us -= self.due * FRAME_US;
        std::mem::take(&mut self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOUD: Samples = [0x10; 160];

    /// Where the last frames of a call are placed, off from where they belong, in microseconds.
    fn drift(ppm: i64, minutes: u64, samples: &Samples) -> (i64, u32) {
        let mut aligner = Aligner::default();
        let mut worst = 0;
        for index in 0..minutes * 3000 {
            let sent = index as i64 * FRAME_US + index as i64 * FRAME_US / 1_000_000 * ppm;
            let jitter = (index * 7919 % 31) as i64 * 1000;
            let at = Duration::from_micros((sent + FRAME_US + jitter) as u64);
            if let Place::At(place) | Place::Twice(place) =
                aligner.place(index, Some(at), Law::Mu, samples)
            {
                worst = worst.max((sent - place as i64 * FRAME_US).abs());
            }
        }
        (worst, aligner.steps)
    }

    #[test]
    fn one_clock_is_never_corrected() {
        assert_eq!(drift(0, 60, &LOUD), (0, 0));
    }

    #[test]
    fn two_clocks_stay_within_a_frame_or_so() {
        for ppm in [-200, -50, 50, 200] {
            let (worst, steps) = drift(ppm, 60, &LOUD);
            assert!(worst < 2 * FRAME_US, "{ppm} ppm: {worst} us");
            assert!(steps as u64 >= 3600 * ppm.unsigned_abs() / 20_000 - 2, "{ppm}: {steps}");
        }
    }

    #[test]
    fn a_quiet_frame_is_preferred() {
        let mut aligner = Aligner { due: 1, ..Aligner::default() };
        for index in 0..10 {
            assert_eq!(aligner.place(index, None, Law::Mu, &LOUD), Place::At(index));
        }
        assert_eq!(aligner.place(10, None, Law::Mu, &[0xff; 160]), Place::Twice(11));
        aligner.due = -1;
        assert_eq!(aligner.place(11, None, Law::A, &[0xd5; 160]), Place::Nowhere);
        assert_eq!(aligner.place(12, None, Law::A, &[0xd5; 160]), Place::At(12));
    }
}
