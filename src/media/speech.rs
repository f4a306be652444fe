//! Voice activity: when a person begins and stops speaking, found within 60 ms, even in noise.
//!
//! Two detectors work together. A small neural network (the crate earshot) knows voices from noise,
//! hum and clicks, but also takes music for a voice; the level detector of [`Voice`] gets used to
//! music after two seconds. Speech begins where both agree, and lasts while the network hears it.
//! Single tones, such as ringing, are never speech.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::media::frame::{FRAME_SAMPLES, FRAME_TIME, Samples};
use crate::media::g711::Law;
use crate::media::quiet::energy;
use crate::media::tone;
use crate::media::voice::Voice;

/// The network takes 16 ms at 16 kHz at a time. It is given each sample twice: without the image
/// above 4 kHz that this adds, it takes loud noise for voices.
const WINDOW: usize = 256;
/// The network's score, from 0 to 1, from which on a window is voice. Words are found up to 40 ms
/// earlier than with the usual 0.5, with as few errors.
const VOICE: f32 = 0.35;
/// Speech is louder than −50 dBFS.
const SPOKEN: u64 = 104 * 104 * FRAME_SAMPLES as u64;
/// This many frames of voice in a row are speech. One alone is a click.
const CERTAIN: u32 = 2;
/// For 200 ms nothing is speech, because the noise of the line begins with the stream.
const BEGIN: u32 = 10;
/// Steady sound, such as music, is no longer speech once the level detector has not heard a voice
/// in it for this many frames, 3 s.
const STEADY: u32 = 150;

/// A change with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Speech has begun one or two frames before this one.
    Started,
    /// Speech has stopped, as many frames ago as the pause is long.
    Stopped,
}

/// Finds speech in one stream of frames.
pub struct Speech {
    network: Box<earshot::Detector>,
    window: [i16; WINDOW],
    filled: usize,
    /// The highest score of the windows that ended with the last frame.
    score: f32,
    /// Frames so far, up to [`BEGIN`].
    frames: u32,
    level: Voice,
    /// Frames since the level detector heard a voice.
    unheard: u32,
    /// Frames with voice in a row, in silence.
    voiced: u32,
    /// Frames without voice that end speech.
    pause: u32,
    /// Frames since the last one with voice.
    silent: u32,
    /// Frames since speech began; `None` in silence.
    speaking: Option<u32>,
}

impl Speech {
    /// `pause`: the silence after which speech has stopped.
    pub fn new(pause: std::time::Duration) -> Speech {
        let pause = pause.as_micros().div_ceil(FRAME_TIME.as_micros());
        Speech {
            network: earshot::Detector::default_boxed(),
            window: [0; WINDOW],
            filled: 0,
            score: 0.0,
            frames: 0,
            level: Voice::default(),
            unheard: 0,
            voiced: 0,
            pause: u32::try_from(pause).unwrap_or(u32::MAX).max(1),
            silent: 0,
            speaking: None,
        }
    }

    /// Adds the next frame. `echo`: it is only what the other side says, coming back.
    pub fn hears(&mut self, law: Law, samples: &Samples, echo: bool) -> Option<Change> {
        let energy = energy(law, samples);
        let loud = self.level.hears(energy) && !echo;
        self.unheard = if loud { 0 } else { self.unheard.saturating_add(1) };
        let voice = self.network_hears(law, samples) && energy > SPOKEN && !echo;
        self.frames = (self.frames + 1).min(BEGIN);
        let counts = voice && loud && self.frames == BEGIN;
        self.voiced = if counts { self.voiced + 1 } else { 0 };
        match &mut self.speaking {
            None if self.voiced >= CERTAIN => {
                // it takes the network a frame to hear a voice at all
                (self.speaking, self.voiced, self.silent) = (Some(CERTAIN + 1), 0, 0);
                Some(Change::Started)
            }
            None => None,
            Some(frames) => {
                *frames = frames.saturating_add(1);
                let speaks = voice && self.unheard < STEADY;
                self.silent = if speaks { 0 } else { self.silent + 1 };
                (self.silent >= self.pause).then(|| {
                    self.speaking = None;
                    Change::Stopped
                })
            }
        }
    }

    /// How long speech has lasted, up to its last frame with voice; `None` in silence.
    pub fn speaking(&self) -> Option<std::time::Duration> {
        self.speaking.map(|frames| FRAME_TIME * frames.saturating_sub(self.silent))
    }

    /// True if the last frame was speech.
    pub fn speaks_now(&self) -> bool {
        self.speaking.is_some() && self.silent == 0
    }

    /// Ends speech without a pause. Returns true if there was any.
    pub fn stop(&mut self) -> bool {
        self.speaking.take().is_some()
    }

    /// Returns true if the network hears a voice in this frame.
    fn network_hears(&mut self, law: Law, samples: &Samples) -> bool {
        let mut best = None::<f32>;
        for sample in samples {
            if let Some([first, second]) = self.window.get_mut(self.filled..self.filled + 2) {
                (*first, *second) = (law.decode(*sample), law.decode(*sample));
            }
            self.filled += 2;
            if self.filled >= WINDOW {
                self.filled = 0;
                let score = self.network.predict_i16(&self.window);
                best = Some(best.map_or(score, |best| best.max(score)));
            }
        }
        self.score = best.unwrap_or(self.score);
        self.score >= VOICE && tone::pure(law, samples).is_none()
    }
}
