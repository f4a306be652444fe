//! The audio to the caller: announcements, the AI's audio, and silence, sent as RTP at the pacer's
//! times.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::call::words::Seeds;
use crate::call::{CallConfig, RemoteMedia};
use crate::media::frame::{FRAME_SAMPLES, FRAME_TIME, SILENCE, Samples};
use crate::media::g711::{self, Law};
use crate::media::pacer::{GRACE, Pacer};
use crate::media::playout::Playout;
use crate::media::quiet::QuietRun;
use crate::media::sender::{AudioPacket, Sender};

/// Audio to the caller is held back for at most this long while the PBX has not acknowledged the
/// answer. A lost answer is sent again, and acknowledged, within this time.
const ACK_WAIT: Duration = Duration::from_millis(500);
/// A PBX joins the caller to the answered call shortly after its ACK, and drops what arrives
/// before. Audio of this time is sent at its end, and delays none of the audio behind it.
const JOIN_WAIT: Duration = FRAME_TIME;
/// Longer messages, from 200 ms on, are not the pieces of an AI that sends in real time.
const MAX_PACED: usize = 10 * FRAME_SAMPLES;

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
    /// When the AI's first audio was sent.
    first_ai_audio: Option<Instant>,
    pub sender: Sender,
    /// Paces the call's frames from time 0 on.
    pacer: Option<Pacer>,
    /// Paces the silence before time 0, for a PBX that expects RTP by then.
    early: Option<Pacer>,
    /// The unplayed part of each announcement, mu-law. Announcements play before the AI's audio.
    announcements: VecDeque<Bytes>,
    /// Number of the next frame to the caller.
    next_index: u64,
    /// See [`media::Settings::prebuffer`].
    prebuffer: Duration,
    /// When the AI's last audio message arrived, and its length in bytes.
    last_message: Option<(Instant, usize)>,
    /// When the last frame of audio will have been played.
    played_at: Option<Instant>,
    /// Marks of the audio sent so far, each with the time at which that audio has been played.
    marks: VecDeque<(Instant, String)>,
    /// How many of `marks`, at the end, are not in the recording yet.
    untapped: usize,
    /// Finds the places where silence can be added, when the AI is slower than real time.
    quiet: QuietRun,
    /// True if the next packet has to have the marker, because earlier ones were not sent.
    resumes: bool,
    /// True while silence is sent instead of audio, until the answer is acknowledged. PBXs drop RTP
    /// that arrives before they have connected the caller.
    held: bool,
    /// When audio is sent at the latest.
    held_until: Option<Instant>,
    /// When the answer was acknowledged while audio was held back.
    acknowledged: Option<Instant>,
    /// Since when audio has been held back, after that.
    held_audio_since: Option<Instant>,
}

impl Playing {
    pub fn new(config: &CallConfig, seeds: Seeds) -> Playing {
        Playing {
            playout: Playout::new(config.playout_bytes, config.playout_budget.clone()),
            first_ai_audio: None,
            sender: Sender::new(seeds.ssrc, seeds.sequence, seeds.timestamp),
            pacer: None,
            early: None,
            announcements: VecDeque::new(),
            next_index: 0,
            prebuffer: config.media.prebuffer,
            last_message: None,
            played_at: None,
            marks: VecDeque::new(),
            untapped: 0,
            quiet: QuietRun::default(),
            resumes: true,
            held: false,
            held_until: None,
            acknowledged: None,
            held_audio_since: None,
        }
    }

    /// Holds audio back until [`Playing::acknowledged`], but not for long if the PBX's address is
    /// `trusted`.
    pub fn hold(&mut self, now: Instant, trusted: bool) {
        self.held = true;
        self.held_until = trusted.then_some(now + ACK_WAIT);
    }

    /// Notes that the PBX has acknowledged the answer: audio is sent from [`JOIN_WAIT`] on.
    pub fn acknowledged(&mut self, now: Instant) {
        if self.held && self.acknowledged.is_none() {
            self.acknowledged = Some(now);
            self.held_until = Some(now + JOIN_WAIT);
            self.held_audio_since = self.whole_frame_queued().then_some(now);
        }
    }

    fn release(&mut self, now: Instant) {
        (self.held, self.held_until) = (false, None);
        let since = self.held_audio_since.take().filter(|_| self.acknowledged.is_some());
        if self.whole_frame_waits()
            && let Some(pacer) = &mut self.pacer
        {
            pacer.on_arrival(since.unwrap_or(now));
        }
    }

    /// Sends silence from now until [`Playing::start`].
    pub fn start_early(&mut self, now: Instant) {
        if self.early.is_none() && self.pacer.is_none() {
            self.early = Some(Pacer::new(now, Duration::ZERO));
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
        let mut pacer = Pacer::new(now, self.prebuffer);
        // the AI may have sent audio as soon as its stream was open
        if !self.held && self.has_audio() {
            pacer.on_arrival(now);
        }
        self.pacer = Some(pacer);
    }

    /// Notes that this process stood still for `time`.
    pub fn stood_still(&mut self, now: Instant, time: Duration) {
        self.playout.stood_still(now, time);
        self.pacer.iter_mut().for_each(Pacer::stood_still);
    }

    /// Queues audio of the AI.
    pub fn push_audio(&mut self, now: Instant, audio: &[u8]) {
        let waited = self.whole_frame_waits();
        self.playout.push_audio(now, audio);
        self.last_message = Some((now, audio.len()));
        if self.acknowledged.is_some() && self.held && self.whole_frame_queued() {
            self.held_audio_since.get_or_insert(now);
        }
        let waits = self.whole_frame_waits();
        if let (false, true, Some(pacer)) = (waited, waits, &mut self.pacer) {
            pacer.on_arrival(now);
        }
    }

    fn whole_frame_queued(&self) -> bool {
        !self.announcements.is_empty() || self.playout.queued_bytes() >= FRAME_SAMPLES
    }

    fn whole_frame_waits(&self) -> bool {
        !self.held && self.whole_frame_queued()
    }

    /// True if a frame waits to be sent. The rest of a message, shorter than a frame, waits for the
    /// next message if the AI sends in real time, but no longer than silence would.
    fn frame_waits(&self, pacer: &Pacer) -> bool {
        if self.held {
            return false;
        }
        if self.whole_frame_waits() || !self.playout.has_audio() {
            return self.has_audio();
        }
        let more_follows = self.last_message.is_some_and(|(at, bytes)| {
            let length = FRAME_TIME * bytes as u32 / FRAME_SAMPLES as u32;
            bytes < MAX_PACED && pacer.deadline(true) < at + length + GRACE
        });
        !more_follows
    }

    /// Notes that the AI sends no more audio.
    pub fn no_more_audio(&mut self) {
        self.last_message = None;
    }

    /// Marks whose audio has been sent, or that came without audio.
    pub fn marks_waiting(&self) -> usize {
        self.marks.len()
    }

    /// Queues a mark of the AI. It comes due when all audio before it has been played.
    pub fn push_mark(&mut self, now: Instant, name: String) {
        self.playout.push_mark(name);
        self.collect_marks(self.played_at.map_or(now, |at| at.max(now)));
    }

    /// Discards the AI's queued audio; all marks come due (Twilio's `clear`).
    pub fn clear(&mut self, now: Instant) {
        self.playout.clear();
        self.held_audio_since = None;
        self.marks.iter_mut().for_each(|(at, _)| *at = now);
        self.collect_marks(now);
    }

    /// Takes over the marks whose audio will have been played at `at`.
    fn collect_marks(&mut self, at: Instant) {
        while let Some(name) = self.playout.next_mark() {
            self.marks.push_back((at, name));
            self.untapped += 1;
        }
    }

    /// The marks that have been passed since the last call. In a recording, they are at the end of
    /// the last frame.
    pub fn passed_marks(&mut self) -> impl Iterator<Item = &str> {
        let first = self.marks.len() - std::mem::take(&mut self.untapped);
        self.marks.iter().skip(first).map(|(_, name)| &**name)
    }

    /// Returns the next mark whose audio has been played.
    pub fn next_mark(&mut self, now: Instant) -> Option<String> {
        self.marks.pop_front_if(|(at, _)| *at <= now).map(|(_, name)| name)
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
        self.marks.clear();
        self.untapped = 0;
    }

    pub fn has_audio(&self) -> bool {
        !self.announcements.is_empty() || self.playout.has_audio()
    }

    pub fn next_index(&self) -> u64 {
        self.next_index
    }

    /// True if silence is about to be sent after speech, because nothing more is queued.
    pub fn misses_speech(&self, now: Instant) -> bool {
        !self.whole_frame_waits() && self.pacer.as_ref().is_some_and(|p| p.ends_speech(now))
    }

    /// When the last frame of audio will have been played.
    pub fn played_at(&self) -> Option<Instant> {
        self.played_at
    }

    /// When the next frame or mark is due. `marks`: false while no mark can be returned.
    pub fn next_timeout(&self, marks: bool) -> Option<Instant> {
        let mark = self.marks.front().filter(|_| marks).map(|(at, _)| *at);
        self.next_slot().into_iter().chain(mark).chain(self.held_until).min()
    }

    /// When the next frame is due.
    fn next_slot(&self) -> Option<Instant> {
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
            let samples = [SILENCE; FRAME_SAMPLES];
            return Some(DueFrame { index, marker: false, samples, is_audio: false });
        }
        let pacer = self.pacer.as_ref()?;
        // the rest of a message goes out where silence would follow it
        let rest = pacer.speaks() && self.has_audio() && !self.held;
        let waits = self.frame_waits(pacer) || rest;
        let pacer = self.pacer.as_mut()?;
        let slot = pacer.take(now, waits);
        let (lags, is_audio) = (pacer.lags(), !slot.silence);
        self.next_index = slot.index + 1;
        let mut samples = [SILENCE; FRAME_SAMPLES];
        if is_audio {
            samples = self.next_samples(now);
            let played_at = now + FRAME_TIME;
            self.played_at = Some(played_at);
            self.collect_marks(played_at);
            if !lags {
                self.quiet.reset();
            } else if self.quiet.hides_step(Law::Mu, &samples, false) {
                self.pacer.iter_mut().for_each(Pacer::pad);
            }
        }
        Some(DueFrame { index: slot.index, marker: slot.marker, samples, is_audio })
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
        let part = announcement.split_to(announcement.len().min(FRAME_SAMPLES));
        samples[..part.len()].copy_from_slice(&part);
        if announcement.is_empty() {
            self.announcements.pop_front();
        }
        samples
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
