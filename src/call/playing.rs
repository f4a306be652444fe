//! The audio to the caller: announcements, the AI's audio, and silence, sent as RTP at the pacer's
//! times.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use crate::call::words::Seeds;
use crate::call::{CallConfig, RemoteMedia};
use crate::media::frame::{FRAME_SAMPLES, SILENCE, Samples};
use crate::media::g711::{self, Law};
use crate::media::pacer::Pacer;
use crate::media::playout::Playout;
use crate::media::sender::{AudioPacket, Sender};

/// A frame that is now due to be sent to the caller.
pub(super) struct DueFrame {
    /// Number of the frame. The RTP timestamp is computed from it.
    pub index: u64,
    /// Value of RTP's marker bit: true for the first frame of a talkspurt.
    pub marker: bool,
    pub samples: Samples,
    /// False for silence.
    pub is_audio: bool,
}

/// The audio on its way to the caller.
pub(super) struct Playing {
    /// The AI's audio and marks.
    pub playout: Playout,
    pub sender: Sender,
    /// Paces the call's frames from time 0 on.
    pacer: Option<Pacer>,
    /// Paces the silence before time 0, for a PBX that expects RTP by then.
    early: Option<Pacer>,
    /// The unplayed part of each announcement, mu-law. Announcements play before the AI's audio.
    announcements: VecDeque<Bytes>,
    /// Number of the next frame to the caller.
    next_index: u64,
}

impl Playing {
    pub fn new(config: &CallConfig, seeds: Seeds) -> Playing {
        Playing {
            playout: Playout::new(config.playout_bytes, config.playout_budget.clone()),
            sender: Sender::new(seeds.ssrc, seeds.sequence, seeds.timestamp),
            pacer: None,
            early: None,
            announcements: VecDeque::new(),
            next_index: 0,
        }
    }

    /// Sends silence from now until [`Playing::start`].
    pub fn start_early(&mut self, now: Instant) {
        if self.early.is_none() && self.pacer.is_none() {
            self.early = Some(Pacer::new(now));
        }
    }

    /// True while silence is sent before time 0.
    pub fn is_early(&self) -> bool {
        self.early.is_some()
    }

    /// Time 0: frames are counted from here; RTP timestamps continue from the early silence.
    pub fn start(&mut self, now: Instant) {
        if let Some(early) = self.early.take() {
            self.sender.rebase(early.index());
        }
        self.pacer = Some(Pacer::new(now));
    }

    /// Queues an announcement. The AI's `clear` does not remove it.
    pub fn announce(&mut self, announcement: &Bytes) {
        if !announcement.is_empty() {
            self.announcements.push_back(announcement.clone());
        }
    }

    /// Drops the AI's queued audio and marks.
    pub fn drop_ai_audio(&mut self) {
        self.playout.clear();
        while self.playout.next_mark().is_some() {}
    }

    pub fn has_audio(&self) -> bool {
        !self.announcements.is_empty() || self.playout.has_audio()
    }

    pub fn next_index(&self) -> u64 {
        self.next_index
    }

    /// When the next frame is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        match &self.early {
            Some(early) => Some(early.deadline(false)),
            None => self.pacer.as_ref().map(|pacer| pacer.deadline(self.has_audio())),
        }
    }

    /// Returns the next frame if it is due.
    pub fn next_frame(&mut self, now: Instant) -> Option<DueFrame> {
        if self.next_timeout().is_none_or(|at| at > now) {
            return None;
        }
        if let Some(early) = &mut self.early {
            let index = early.take(now, false).index;
            let samples = [SILENCE; FRAME_SAMPLES];
            return Some(DueFrame { index, marker: false, samples, is_audio: false });
        }
        let is_audio = self.has_audio();
        let slot = self.pacer.as_mut()?.take(now, is_audio);
        self.next_index = slot.index + 1;
        let samples = self.next_samples();
        Some(DueFrame { index: slot.index, marker: slot.marker, samples, is_audio })
    }

    fn next_samples(&mut self) -> Samples {
        let mut samples = [SILENCE; FRAME_SAMPLES];
        let Some(announcement) = self.announcements.front_mut() else {
            return self.playout.next_frame().unwrap_or(samples);
        };
        let part = announcement.split_to(announcement.len().min(FRAME_SAMPLES));
        samples[..part.len()].copy_from_slice(&part);
        if announcement.is_empty() {
            self.announcements.pop_front();
        }
        samples
    }

    /// Builds the RTP packet of a frame, in the PBX's codec.
    pub fn packet(&mut self, remote: &RemoteMedia, frame: &DueFrame) -> AudioPacket {
        let marker = frame.marker || self.sender.packets() == 0;
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
