//! The frames that are due: from announcements, keys and the AI's audio to RTP packets.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::call::RemoteMedia;
use crate::call::playing::{Announcement, DueFrame, Keys, Playing};
use crate::command::PAUSE;
use crate::media::frame::{FRAME_SAMPLES, FRAME_TIME, SILENCE, Samples};
use crate::media::g711::{self, Law};
use crate::media::pacer::Pacer;
use crate::media::playout::{Cue, Due};
use crate::media::sender::AudioPacket;

/// Slots of silence after a key press, and in a pause between keys.
const AFTER_KEY: usize = 3;
const KEY_PAUSE: usize = 25;

impl Playing {
    /// When the next frame is due.
    pub(super) fn next_slot(&self) -> Option<Instant> {
        if self.held_audio_since.is_some() {
            return self.held_until;
        }
        match &self.early {
            Some(early) => Some(early.deadline(false)),
            None => self.pacer.as_ref().map(|pacer| pacer.deadline(self.frame_waits(pacer))),
        }
    }

    /// Returns the next frame if it is due.
    pub fn next_frame(&mut self, now: Instant) -> Option<DueFrame> {
        if self.held_until.is_some_and(|until| until <= now) {
            self.release(now);
        }
        if self.next_slot().is_none_or(|at| at > now) {
            return None;
        }
        if let Some(early) = &mut self.early {
            let index = early.take(now, false).index;
            return Some(DueFrame {
                index,
                marker: false,
                samples: [SILENCE; FRAME_SAMPLES],
                is_audio: false,
                is_own: false,
                key: None,
            });
        }
        let pacer = self.pacer.as_ref()?;
        // the rest of a message goes out where silence would follow it
        let rest = pacer.speaks() && self.has_audio() && !self.held;
        let waits = self.frame_waits(pacer) || rest;
        let pacer = self.pacer.as_mut()?;
        let slot = pacer.take(now, waits);
        let (lags, is_audio) = (pacer.lags(), !slot.silence);
        self.next_index = slot.index + 1;
        let (mut samples, mut key) = ([SILENCE; FRAME_SAMPLES], None);
        let is_own = is_audio && self.has_own_audio();
        if is_audio {
            match self.keys.is_empty() {
                true => samples = self.next_samples(now),
                false => key = self.next_key(now, slot.index),
            }
            let played_at = now + FRAME_TIME;
            self.played_at = Some(played_at);
            self.collect_cues(played_at);
            if is_own && !self.has_own_audio() {
                let orders = std::mem::take(&mut self.after_own);
                orders.into_iter().for_each(|order| self.complete(order, played_at));
            }
            if !lags {
                self.quiet.reset();
            } else if self.quiet.hides_step(Law::Mu, &samples, false) {
                self.pacer.iter_mut().for_each(Pacer::pad);
            }
        }
        Some(DueFrame { index: slot.index, marker: slot.marker, samples, is_audio, is_own, key })
    }

    pub fn first_ai_audio(&self) -> Option<Instant> {
        self.first_ai_audio
    }

    fn next_samples(&mut self, now: Instant) -> Samples {
        let mut samples = [SILENCE; FRAME_SAMPLES];
        let Some(announcement) = self.announcements.front_mut() else {
            let frame = self.playout.next_frame(now);
            if frame.is_some() && self.first_ai_audio.is_none() {
                self.first_ai_audio = Some(now);
            }
            return frame.unwrap_or(samples);
        };
        let audio = &mut announcement.audio;
        let part = audio.split_to(audio.len().min(FRAME_SAMPLES));
        samples[..part.len()].copy_from_slice(&part);
        if audio.is_empty()
            && let Some(Announcement { order: Some(order), .. }) = self.announcements.pop_front()
        {
            self.complete(order, now + FRAME_TIME);
        }
        samples
    }

    /// Returns what is sent in the slot of frame `index` while keys are pressed.
    fn next_key(&mut self, now: Instant, index: u64) -> Option<Vec<u8>> {
        let keys = self.keys.front_mut()?;
        if keys.slots.is_empty() {
            match keys.left.pop_front() {
                Some(PAUSE) => keys.slots.extend(std::iter::repeat_n(None, KEY_PAUSE)),
                Some(digit) => {
                    let packets = self.sender.key_press(keys.payload_type, digit, index);
                    keys.slots.extend(packets.into_iter().map(Some));
                    keys.slots.extend(std::iter::repeat_n(None, AFTER_KEY));
                }
                None => {}
            }
        }
        let packet = keys.slots.pop_front().flatten();
        if keys.slots.is_empty()
            && keys.left.is_empty()
            && let Some(Keys { order, .. }) = self.keys.pop_front()
        {
            self.complete(order, now + FRAME_TIME);
        }
        packet
    }

    /// Makes the cue of an order due at `at`.
    fn complete(&mut self, order: u32, at: Instant) {
        self.cues.push_back((at, Due { cue: Cue::Order(order), cleared: false }));
        self.untapped += 1;
    }

    /// Notes that a frame is not sent, because the PBX has the call on hold.
    pub fn skip_packet(&mut self) {
        self.resumes = true;
    }

    /// Builds the RTP packet of a frame, in the PBX's codec.
    pub fn packet(&mut self, remote: &RemoteMedia, frame: &DueFrame) -> AudioPacket {
        // RTP that begins, or resumes with a step in its timestamps
        let marker = frame.marker | std::mem::take(&mut self.resumes);
        let payload_type = remote.format.payload_type;
        match remote.format.law {
            Law::Mu => self.sender.audio(payload_type, frame.index, &frame.samples, marker),
            Law::A => {
                let mut samples = frame.samples;
                g711::mu_to_a(&mut samples);
                self.sender.audio(payload_type, frame.index, &samples, marker)
            }
        }
    }
}
