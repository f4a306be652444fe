//! Keeps the caller's track in step with the AI's when their clocks differ.
//!
//! The AI's track is paced by our clock, the caller's frames by the caller's: at 100 ppm the tracks
//! are 60 ms apart after ten minutes. Ideally a frame would end, in the file, at the moment it
//! arrived. Each frame is later than that by its transit time; the minimum over two seconds does
//! not depend on jitter. Once that minimum has been off by more than a frame for ten seconds, the
//! track is shifted, if possible where the caller is quiet.
//!
//! A call whose first packet was late has a small offset from the beginning, which does not grow.
//! It is removed only where the caller is quiet.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::media::frame::{FRAME_TIME, Samples};
use crate::media::g711::Law;

const FRAME_US: i64 = FRAME_TIME.as_micros() as i64;
/// Received frames per part: each part yields one minimum.
const PART: u32 = 100;
/// Parts that are judged together. The first judgement uses only one.
const PARTS: u32 = 5;
/// Largest offset that the first judgement may accept as normal: the first packet may arrive
/// anywhere within its frame.
const BIAS_US: i64 = FRAME_US / 2;
/// A frame with all samples below this (of 32768) is quiet enough to hide a step.
const QUIET: i16 = 400;
/// Frames to wait for a quiet one before stepping anyway.
const PATIENCE: u32 = 250;
/// A track that was apart from the beginning waits for quiet forever, up to this offset.
const FAR_US: i64 = 5 * FRAME_US;

/// Position of a caller frame in the track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    At(u64),
    /// Here and at the position before it, to fill in missing time.
    Twice(u64),
    /// Dropped, to remove surplus time.
    Nowhere,
}

/// Lateness of the frames since the last judgement.
#[derive(Debug, Default)]
struct Window {
    frames: u32,
    /// Finished parts.
    parts: u32,
    /// Minimum of the current part.
    least: Option<i64>,
    /// Lowest and highest minimum of the finished parts.
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

/// Measures how far the caller's clock drifts, and decides where each frame goes.
#[derive(Debug, Default)]
pub struct Aligner {
    /// Added to a frame's index to get its position in the track.
    shift: i64,
    /// Lateness that counts as aligned, from the first judgement.
    reference: Option<i64>,
    window: Window,
    /// Frames still to insert or, if negative, to drop.
    due: i64,
    /// True if the frames that are due may cost sound that is not quiet.
    hurried: bool,
    /// Frames since `due` or `hurried` was set.
    waited: u32,
    /// Frames inserted or dropped so far.
    pub steps: u32,
    /// Track offset at the last judgement, in microseconds, less the steps since.
    pub offset_us: i64,
}

impl Aligner {
    /// Returns where a frame goes. `index` is its number on the caller's timeline, `heard_at` its
    /// arrival after the call's time 0, if it was received and not made up.
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
            // a recording that starts mid-call: corrects the drift so far in one go
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

    /// Moves the track ahead by `frames`, because its position has already been written.
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
        let first = self.reference.is_none();
        let reference = *self.reference.get_or_insert(low.clamp(-BIAS_US, BIAS_US));
        // only an offset that all parts share counts: any other is over, or will pass
        self.offset_us = if low > reference { low - reference } else { (high - reference).min(0) };
        let far = self.offset_us.abs() > FAR_US;
        // steps that are already due are not scheduled twice
        if self.offset_us.abs() > FRAME_US && self.due == 0 {
            (self.due, self.waited, self.hurried) = (self.offset_us / FRAME_US, 0, far || !first);
        } else if self.offset_us.abs() <= FRAME_US && !self.hurried {
            self.due = 0; // drift has removed it
        } else if far && !self.hurried {
            (self.waited, self.hurried) = (0, true);
        }
    }

    fn step(&mut self, law: Law, samples: &Samples) -> i64 {
        self.waited += 1;
        let quiet = samples.iter().all(|s| law.decode(*s).saturating_abs() < QUIET);
        if !quiet && (self.waited < PATIENCE || !self.hurried) {
            return 0;
        }
        // measurements from before the step no longer apply
        self.window = Window::default();
        // missing time is inserted all at once, surplus is dropped one frame at a time
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

    /// Largest misplacement of a frame during a call, in microseconds, and the number of steps.
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
    fn equal_clocks_are_never_corrected() {
        assert_eq!(drift(0, 60, &LOUD), (0, 0));
    }

    #[test]
    fn drifting_clocks_stay_within_two_frames() {
        for ppm in [-200, -50, 50, 200] {
            let (worst, steps) = drift(ppm, 60, &LOUD);
            assert!(worst < 2 * FRAME_US, "{ppm} ppm: {worst} us");
            assert!(steps as u64 >= 3600 * ppm.unsigned_abs() / 20_000 - 2, "{ppm}: {steps}");
        }
    }

    #[test]
    fn steps_prefer_a_quiet_frame() {
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

    /// The first packet came 45 ms late, all others in time.
    fn late_begin(aligner: &mut Aligner, frames: u64, drift_ppm: u64, samples: &Samples) -> u64 {
        let mut dropped = 0;
        for index in 0..frames {
            let at_us = index * 20_000 - index * 20_000 / 1_000_000 * drift_ppm;
            let late_us = if index == 0 { 25_000 } else { 0 };
            let at = Duration::from_micros((at_us + late_us).saturating_sub(20_000));
            let place = aligner.place(index, Some(at), Law::Mu, samples);
            dropped += u64::from(place == Place::Nowhere);
        }
        dropped
    }

    #[test]
    fn a_late_first_packet_costs_no_sound() {
        let mut aligner = Aligner::default();
        assert_eq!(late_begin(&mut aligner, 60_000, 0, &LOUD), 0, "{aligner:?}");
        assert_eq!(aligner.due, -1, "waits for quiet");
        let mut aligner = Aligner::default();
        assert_eq!(late_begin(&mut aligner, 1000, 0, &[0xff; 160]), 1, "{aligner:?}");
        // drift on top of it does not wait forever
        let mut aligner = Aligner::default();
        assert!(late_begin(&mut aligner, 60_000, 200, &LOUD) > 5, "{aligner:?}");
    }

    /// The drift from before the recording started is corrected at once.
    #[test]
    fn a_recording_started_mid_call_is_aligned_from_the_first_frame() {
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
