//! The audio to the caller: announcements, the AI's audio, and silence, sent as RTP at the pacer's
//! times.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod due;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::call::CallConfig;
use crate::call::words::Seeds;
use crate::media::frame::{FRAME_SAMPLES, FRAME_TIME, Samples};
use crate::media::pacer::{GRACE, Pacer};
use crate::media::playout::{Cue, Due, Playout};
use crate::media::quiet::QuietRun;
use crate::media::sender::Sender;

/// Audio to the caller is held back for at most this long while the PBX has not acknowledged the
/// answer. A lost answer is sent again, and acknowledged, within this time.
const ACK_WAIT: Duration = Duration::from_millis(500);
/// A PBX joins the caller to the answered call shortly after its ACK, and drops what arrives
/// before. Audio of this time is sent at its end, and delays none of the audio behind it.
const JOIN_WAIT: Duration = FRAME_TIME;
/// After a pause in the AI's audio that is longer than this, the next utterance begins.
const UTTERANCE_GAP: Duration = Duration::from_millis(500);
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
    /// True for prompts, notices and keys, which are not the AI's.
    pub is_own: bool,
    /// A packet of a key press, which is sent in place of the samples.
    pub key: Option<Vec<u8>>,
}

/// Audio that plays before the AI's.
struct Announcement {
    /// The unplayed part, mu-law.
    audio: Bytes,
    /// The order that is complete once this has been played.
    order: Option<u32>,
}

/// Keys to be pressed.
struct Keys {
    /// The keys and pauses that have not begun.
    left: VecDeque<char>,
    payload_type: u8,
    /// The packets for the next slots, of the key that has begun; `None` is silence.
    slots: VecDeque<Option<Vec<u8>>>,
    order: u32,
}

/// The audio on its way to the caller.
pub(super) struct Playing {
    /// The AI's audio and cues.
    pub playout: Playout,
    /// When the AI's first audio was sent.
    first_ai_audio: Option<Instant>,
    pub sender: Sender,
    /// Paces the call's frames from time 0 on.
    pacer: Option<Pacer>,
    /// Paces the silence before time 0, for a PBX that expects RTP by then.
    early: Option<Pacer>,
    /// Keys are pressed before announcements are played, and these before the AI's audio.
    keys: VecDeque<Keys>,
    announcements: VecDeque<Announcement>,
    /// Orders that are due when `keys` and `announcements` have been played.
    after_own: Vec<u32>,
    /// Number of the next frame to the caller.
    next_index: u64,
    /// See [`media::Settings::prebuffer`].
    prebuffer: Duration,
    /// When the AI's last audio message arrived, and its length in bytes.
    last_message: Option<(Instant, usize)>,
    /// When the last frame of audio will have been played.
    played_at: Option<Instant>,
    /// Cues of the audio sent so far, each with the time at which that audio has been played.
    cues: VecDeque<(Instant, Due)>,
    /// How many of `cues`, at the end, are not in the recording yet.
    untapped: usize,
    /// Marks in `cues`.
    marks: usize,
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
    /// Position in the playout at which the AI's present stream was opened, in bytes.
    stream_began: u64,
}

impl Playing {
    pub fn new(config: &CallConfig, seeds: Seeds) -> Playing {
        Playing {
            playout: Playout::new(config.playout_bytes, config.playout_budget.clone()),
            first_ai_audio: None,
            sender: Sender::new(seeds.ssrc, seeds.sequence, seeds.timestamp),
            pacer: None,
            early: None,
            keys: VecDeque::new(),
            announcements: VecDeque::new(),
            after_own: Vec::new(),
            next_index: 0,
            prebuffer: config.media.prebuffer,
            last_message: None,
            played_at: None,
            cues: VecDeque::new(),
            untapped: 0,
            marks: 0,
            quiet: QuietRun::default(),
            resumes: true,
            held: false,
            held_until: None,
            acknowledged: None,
            held_audio_since: None,
            stream_began: 0,
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
        let paused = self.played_at.is_none_or(|at| now > at + UTTERANCE_GAP);
        if paused && !self.playout.has_audio() {
            self.playout.begin_utterance();
        }
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
        self.has_own_audio() || self.playout.queued_bytes() >= FRAME_SAMPLES
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
        self.marks
    }

    /// Queues a cue. It comes due when all audio before it has been played.
    pub fn push_cue(&mut self, now: Instant, cue: Cue) {
        self.playout.push_cue(cue);
        self.collect_cues(self.played_at.map_or(now, |at| at.max(now)));
    }

    /// Returns a mark whose audio was not queued at all.
    pub fn return_mark(&mut self, now: Instant, name: String) {
        self.playout.return_mark(name);
        self.collect_cues(now);
    }

    /// Queues the cue of an order. It comes due when everything that is queued has been played.
    pub fn push_order(&mut self, now: Instant, order: u32) {
        match self.has_own_audio() && !self.playout.has_audio() {
            true => self.after_own.push(order),
            // the AI's audio is played after our own
            false => self.push_cue(now, Cue::Order(order)),
        }
    }

    /// Notes that a stream of the AI is open: positions in its audio count from here.
    pub fn stream_opens(&mut self) {
        self.stream_began = self.playout.end();
    }

    /// Returns how many bytes of the stream's audio have left the queue.
    pub fn stream_position(&self) -> u64 {
        self.playout.passed().saturating_sub(self.stream_began)
    }

    /// Discards the AI's queued audio; all cues come due (Twilio's `clear`). Returns how long the
    /// utterance was played, and how much of it was discarded.
    pub fn clear(&mut self, now: Instant) -> (Duration, Duration) {
        let (played, discarded) = self.playout.clear();
        self.held_audio_since = None;
        self.cues.iter_mut().for_each(|(at, _)| *at = now);
        self.collect_cues(now);
        let time = |bytes: u64| Duration::from_micros(bytes * 125);
        (time(played), time(discarded as u64))
    }

    /// How much of the present utterance the caller has been sent.
    pub fn utterance_played(&self) -> Duration {
        Duration::from_micros(self.playout.played() * 125)
    }

    /// Takes over the cues whose audio will have been played at `at`.
    fn collect_cues(&mut self, at: Instant) {
        while let Some(due) = self.playout.next_cue() {
            self.marks += usize::from(matches!(due.cue, Cue::Mark(_)));
            self.cues.push_back((at, due));
            self.untapped += 1;
        }
    }

    /// The marks that have been passed since the last call. In a recording, they are at the end of
    /// the last frame.
    pub fn passed_marks(&mut self) -> impl Iterator<Item = &str> {
        let first = self.cues.len() - std::mem::take(&mut self.untapped);
        self.cues.iter().skip(first).filter_map(|(_, due)| match &due.cue {
            Cue::Mark(name) => Some(&**name),
            Cue::Order(_) => None,
        })
    }

    /// Returns the next cue whose audio has been played.
    pub fn next_cue(&mut self, now: Instant) -> Option<Due> {
        let (_, due) = self.cues.pop_front_if(|(at, _)| *at <= now)?;
        self.marks -= usize::from(matches!(due.cue, Cue::Mark(_)));
        self.untapped = self.untapped.min(self.cues.len());
        Some(due)
    }

    /// Queues an announcement. The AI's `clear` does not remove it.
    pub fn announce(&mut self, now: Instant, announcement: &Bytes, order: Option<u32>) {
        if !announcement.is_empty() {
            let audio = announcement.clone();
            self.add_own(now, |playing| {
                playing.announcements.push_back(Announcement { audio, order });
            });
        }
    }

    /// Presses keys, with RFC 4733 events of this payload type. `w` is a pause of half a second.
    pub fn press(&mut self, now: Instant, keys: &str, payload_type: u8, order: u32) {
        let (left, slots) = (keys.chars().collect(), VecDeque::new());
        self.add_own(now, |playing| {
            playing.keys.push_back(Keys { left, payload_type, slots, order });
        });
    }

    fn add_own(&mut self, now: Instant, add: impl FnOnce(&mut Playing)) {
        let waited = self.whole_frame_waits();
        add(self);
        let waits = self.whole_frame_waits();
        if let (false, true, Some(pacer)) = (waited, waits, &mut self.pacer) {
            pacer.on_arrival(now);
        }
    }

    /// Drops the AI's queued audio and marks. Nothing is left that its orders could wait for.
    pub fn drop_ai_audio(&mut self) {
        self.playout.clear();
        while self.playout.next_cue().is_some() {}
        self.forget_marks();
    }

    /// Drops the marks of an AI that is gone.
    pub fn forget_marks(&mut self) {
        self.playout.forget_marks();
        self.cues.retain(|(_, due)| matches!(due.cue, Cue::Order(_)));
        (self.untapped, self.marks) = (0, 0);
    }

    pub fn has_audio(&self) -> bool {
        self.has_own_audio() || self.playout.has_audio()
    }

    pub fn has_announcement(&self) -> bool {
        !self.announcements.is_empty()
    }

    /// True if keys or announcements wait.
    fn has_own_audio(&self) -> bool {
        !self.keys.is_empty() || !self.announcements.is_empty()
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

    /// When the next frame or cue is due. `cues`: false while no cue can be taken.
    pub fn next_timeout(&self, cues: bool) -> Option<Instant> {
        let cue = self.cues.front().filter(|_| cues).map(|(at, _)| *at);
        self.next_slot().into_iter().chain(cue).chain(self.held_until).min()
    }
}
