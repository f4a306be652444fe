//! Keeps the caller's track beside the AI's when their clocks differ.
//!
//! The AI's track is paced by our clock, the caller's frames come by his: at 100 ppm they are 60 ms
//! apart after ten minutes. A frame belongs where it ended when it came; each is late by some
//! transit time, and the least of two seconds does not depend on jitter. When that has moved by
//! more than a frame for ten seconds, so is the track, where the caller is quiet if he soon is.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::media::frame::{FRAME_TIME, Samples};
use crate::media::g711::Law;

const FRAME_US: i64 = FRAME_TIME.as_micros() as i64;
/// Heard frames whose least is taken, and such parts that are judged together; the first time one.
const PART: u32 = 100;
const PARTS: u32 = 5;
/// What the first judgement may be off: where in its frame the first packet came.
const BIAS_US: i64 = FRAME_US / 2;
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

/// Frames that are being judged.
#[derive(Debug, Default)]
struct Window {
    frames: u32,
    parts: u32,
    /// Of this part.
    least: Option<i64>,
    /// Of the parts before it: the extremes of their leasts.
    span: Option<(i64, i64)>,
}

impl Window {
    fn add(&mut self, late_us: i64) {
        self.frames += 1;
        let least = self.least.map_or(late_us, |least| least.min(late_us));
        self.least = Some(least);
        if self.frames.is_multiple_of(PART) {
            self.parts += 1;
            self.least = None;
            self.span = Some(match self.span {
                Some((low, high)) => (low.min(least), high.max(least)),
                None => (least, least),
            });
        }
    }
}

#[derive(Debug, Default)]
pub struct Aligner {
    shift: i64,
    reference: Option<i64>,
    window: Window,
    /// Frames that are due to be put in, or, below zero, left out; and how long they have waited.
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
            let at_us = at.as_micros() as i64;
            let late_us = at_us - (index as i64 + self.shift + 1) * FRAME_US;
            // a recording that begins in mid-call: what has gathered so far is taken out at once
            let apart = self.reference.is_none() && self.window.frames == 0 && self.steps == 0;
            if apart && late_us.abs() > 3 * FRAME_US {
                self.shift += late_us / FRAME_US;
            }
            self.judge(at_us - (index as i64 + self.shift + 1) * FRAME_US);
        }
        let step = if self.due == 0 { 0 } else { self.step(law, samples) };
        self.shift += step;
        let at = u64::try_from(index as i64 + self.shift).unwrap_or(0);
        match step {
            0 => Place::At(at),
            1.. => Place::Twice(at),
            _ => Place::Nowhere,
        }
    }

    /// The track is so far behind that its place is written already: it goes on from here.
    pub fn move_on(&mut self, frames: u64) {
        self.shift += frames as i64;
        (self.window, self.due) = (Window::default(), 0);
    }

    fn judge(&mut self, late_us: i64) {
        self.window.add(late_us);
        let parts = if self.reference.is_none() { 1 } else { PARTS };
        if self.window.parts < parts {
            return;
        }
        let Some((low, high)) = std::mem::take(&mut self.window).span else { return };
        let reference = *self.reference.get_or_insert(low.clamp(-BIAS_US, BIAS_US));
        // what was so for a while only is over, or will pass
        self.offset_us = if low > reference { low - reference } else { (high - reference).min(0) };
        // steps that are due already are not asked for twice
        if self.offset_us.abs() > FRAME_US && self.due == 0 {
            (self.due, self.waited) = (self.offset_us / FRAME_US, 0);
        }
    }

    fn step(&mut self, law: Law, samples: &Samples) -> i64 {
        self.waited += 1;
        let quiet = samples.iter().all(|s| law.decode(*s).saturating_abs() < QUIET);
        if !quiet && self.waited < PATIENCE {
            return 0;
        }
        // what was judged before the step says nothing any more
        self.window = Window::default();
        // time is put in at once, and left out a frame at a time
        let step = if self.due > 0 { self.due } else { -1 };
        self.due -= step;
        self.steps += step.unsigned_abs() as u32;
        self.offset_us -= step * FRAME_US;
        step
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
        assert_eq!(aligner.place(11, None, Law::Mu, &[0xff; 160]), Place::At(12));
        aligner.due = -1;
        assert_eq!(aligner.place(12, None, Law::A, &[0xd5; 160]), Place::Nowhere);
        assert_eq!(aligner.place(13, None, Law::A, &[0xd5; 160]), Place::At(13));
    }

    /// What a drifting clock has done before the recording began.
    #[test]
    fn one_that_begins_in_mid_call_is_right_from_the_first_frame() {
        for behind_ms in [-250i64, -90, 90, 250, 2000] {
            let mut aligner = Aligner::default();
            for index in 60_000..63_000u64 {
                let said_us = index as i64 * FRAME_US + behind_ms * 1000;
                let at = Duration::from_micros((said_us + FRAME_US + 5_000) as u64);
                let place = aligner.place(index, Some(at), Law::Mu, &LOUD);
                let (Place::At(place) | Place::Twice(place)) = place else { continue };
                let off = place as i64 * FRAME_US - said_us;
                assert!(off.abs() <= 2 * FRAME_US, "{behind_ms} ms: {off} us");
            }
            assert!(aligner.offset_us.abs() <= FRAME_US, "{behind_ms}: {aligner:?}");
        }
    }
}
