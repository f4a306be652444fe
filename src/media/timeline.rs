//! The caller's timeline: turns ordered packets into frames without gaps.
//!
//! While RTP flows, its timestamps are the clock: one frame in, one frame out, so the sender's
//! drift needs no correction. After 100 ms without RTP, our own clock takes over and fills with
//! silence up to 40 ms before now. If RTP then returns with timestamps that do not show how long it
//! was away, our clock decides, to within a frame. Audio for time that was already filled is late.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::media::frame::{FRAME_SAMPLES, Frame, Kind, RATE, SILENCE, Samples, samples_in};
use crate::media::g711::Law;

/// After this long without RTP, our clock takes over.
const FILL_AFTER: Duration = Duration::from_millis(100);
/// How far behind now our clock fills, to leave time for packets that are on their way.
const FILL_BEHIND: Duration = Duration::from_millis(40);
/// A timestamp step is believed if it exceeds the time that has passed by no more than this.
const TOLERANCE: Duration = Duration::from_millis(100);
/// If packets stay late for longer than this, the network delay has grown: they are played, and the
/// timeline shifts. The burst that follows a stall is over sooner.
const LATE_LIMIT: Duration = Duration::from_secs(1);
/// The same limit for packets that are late by more than [`FAR`]: there the sender's clock stood
/// still.
const FAR_LATE_LIMIT: Duration = Duration::from_millis(100);
/// Half a second, in samples.
const FAR: i64 = RATE as i64 / 2;
/// The largest loss that is concealed, in samples (2 s).
const MAX_LOSS: i64 = 2 * RATE as i64;
/// Gains for concealment: the last frame is repeated, fading out, and then silence follows.
const FADE: [f32; 3] = [0.7, 0.4, 0.15];

/// The audio of one packet as the sequencer delivers it, in the timeline's law.
#[derive(Debug, Clone, Copy)]
pub struct Audio<'a> {
    pub marker: bool,
    pub timestamp: u32,
    pub samples: &'a [u8],
    pub lost: u32,
    pub restarted: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub heard_samples: u64,
    pub concealed_samples: u64,
    pub silence_samples: u64,
    /// Packets for time that was already filled.
    pub late: u64,
}

/// The timeline of one caller.
#[derive(Debug)]
pub struct Timeline {
    /// Complete frames not read yet.
    frames: VecDeque<Frame>,
    /// The law of the audio being received.
    law: Law,
    /// The frame being filled.
    partial: Samples,
    /// Samples in `partial` so far.
    partial_len: usize,
    partial_kind: Kind,
    /// The last frame heard, which concealment repeats.
    last: Samples,
    /// Timestamp directly after the last audio heard.
    next_timestamp: Option<u32>,
    /// Samples that our clock has filled since the last audio heard.
    filled: i64,
    /// When the present run of late packets began.
    late_since: Option<Instant>,
    /// Samples on the timeline so far.
    position: u64,
    /// When audio last arrived (time 0 if none has), and `position` at that moment.
    anchor: Option<(Instant, u64)>,
    /// Time 0, and `position` at that moment.
    origin: Option<(Instant, u64)>,
    pub counts: Counts,
}

impl Default for Timeline {
    fn default() -> Self {
        Timeline {
            frames: VecDeque::new(),
            law: Law::Mu,
            partial: [SILENCE; FRAME_SAMPLES],
            partial_len: 0,
            partial_kind: Kind::Silence,
            last: [SILENCE; FRAME_SAMPLES],
            next_timestamp: None,
            filled: 0,
            late_since: None,
            position: 0,
            anchor: None,
            origin: None,
            counts: Counts::default(),
        }
    }
}

impl Timeline {
    /// Starts the timeline at time 0 of the call: from then on there is a frame for every 20 ms.
    pub fn start(&mut self, now: Instant) {
        self.anchor.get_or_insert((now, self.position));
        self.origin.get_or_insert((now, self.position));
    }

    /// Sets the law of the audio that follows.
    pub fn set_law(&mut self, law: Law) {
        let before = std::mem::replace(&mut self.law, law);
        before.convert(law, &mut self.partial);
        before.convert(law, &mut self.last);
    }

    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front();
        if frame.is_none() {
            self.frames.clear(); // restart at the front, which is in the cache
        }
        frame
    }

    /// When audio last arrived, or time 0 if none has.
    pub fn last_heard(&self) -> Option<Instant> {
        self.anchor.map(|(at, _)| at)
    }

    /// Adds the audio of a packet, after filling or concealing the gap before it.
    pub fn push(&mut self, now: Instant, audio: Audio<'_>) {
        let mut samples = audio.samples;
        let elapsed =
            self.anchor.map_or(Duration::ZERO, |(at, _)| now.saturating_duration_since(at));
        let believed = samples_in(elapsed + TOLERANCE) as i64;
        let restarted = audio.restarted || (audio.marker && self.filled > 0);
        // samples from the end of the last audio heard to the start of this
        let ahead = match self.next_timestamp {
            Some(next) if !restarted => i64::from(audio.timestamp.wrapping_sub(next) as i32),
            Some(_) if self.filled == 0 => 0,
            _ => self.filled + self.frames_missing(now, samples.len()) as i64,
        };
        let gap = ahead - self.filled;
        if gap > 0 {
            let loss = audio.lost > 0 && ahead <= MAX_LOSS && self.filled == 0;
            if loss {
                self.conceal(gap as usize);
            } else if ahead <= believed {
                self.append_silence(gap as usize);
            } // else the timestamps have jumped: no time has passed
        } else if gap < 0 && ahead >= 0 && self.filled > 0 {
            let since = *self.late_since.get_or_insert(now);
            let limit = if gap < -FAR { FAR_LATE_LIMIT } else { LATE_LIMIT };
            if now.saturating_duration_since(since) <= limit {
                let overlap = ((-gap) as usize).min(samples.len());
                if overlap == samples.len() {
                    self.counts.late += 1;
                    return;
                }
                samples = &samples[overlap..];
            }
        }
        self.late_since = None;
        self.append(samples, Kind::Heard);
        self.next_timestamp = Some(audio.timestamp.wrapping_add(audio.samples.len() as u32));
        self.filled = 0;
        self.anchor = Some((now, self.position));
    }

    /// Processes a telephone-event packet. It has no audio, but the stream's time advances for as
    /// long as the event lasts.
    pub fn push_event(&mut self, now: Instant, timestamp: u32, duration: u16) {
        let (Some(next), Some((at, _))) = (self.next_timestamp, self.anchor) else { return };
        let end = timestamp.wrapping_add(u32::from(duration));
        let ahead = i64::from(end.wrapping_sub(next) as i32);
        let believed = samples_in(now.saturating_duration_since(at) + TOLERANCE) as i64;
        if ahead > self.filled && ahead <= believed {
            self.append_silence((ahead - self.filled) as usize);
            (self.next_timestamp, self.filled) = (Some(end), 0);
            self.anchor = Some((now, self.position));
        }
    }

    /// How much time has passed without being filled, in samples, rounded down to a frame boundary.
    /// Audio of `length` samples has just arrived, so it began that long ago.
    fn frames_missing(&self, now: Instant, length: usize) -> u64 {
        // counted from time 0: counted per pause, each would lose a part of a frame
        let Some((at, position)) = self.origin else { return 0 };
        let passed = samples_in(now.saturating_duration_since(at));
        let missing = (position + passed).saturating_sub(self.position + length as u64);
        let to_end = (FRAME_SAMPLES - self.partial_len) as u64 % FRAME_SAMPLES as u64;
        if missing < to_end {
            return 0;
        }
        missing - (missing - to_end) % FRAME_SAMPLES as u64
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        let (at, position) = self.anchor?;
        let wanted = self.position + self.missing() as u64 - position;
        let reached = at + FILL_BEHIND + Duration::from_micros(wanted * 1_000_000 / RATE);
        Some(reached.max(at + FILL_AFTER))
    }

    /// Fills the time for which nothing arrived with silence.
    pub fn on_timeout(&mut self, now: Instant) {
        while self.next_timeout().is_some_and(|at| at <= now) {
            let missing = self.missing();
            self.append_silence(missing);
            self.filled += missing as i64;
        }
    }

    /// Samples up to the end of the frame being filled.
    fn missing(&self) -> usize {
        FRAME_SAMPLES - self.partial_len
    }

    fn append(&mut self, mut samples: &[u8], kind: Kind) {
        match kind {
            Kind::Heard => self.counts.heard_samples += samples.len() as u64,
            Kind::Concealed => self.counts.concealed_samples += samples.len() as u64,
            Kind::Silence => self.counts.silence_samples += samples.len() as u64,
        }
        self.position += samples.len() as u64;
        // the usual case: one packet is one frame
        if self.partial_len == 0
            && let Ok(whole) = Samples::try_from(samples)
        {
            return self.finish(whole, kind);
        }
        while !samples.is_empty() {
            let take = self.missing().min(samples.len());
            self.partial[self.partial_len..self.partial_len + take]
                .copy_from_slice(&samples[..take]);
            self.partial_kind = match (self.partial_len, self.partial_kind, kind) {
                (0, _, kind) => kind,
                (_, Kind::Heard, _) | (_, _, Kind::Heard) => Kind::Heard,
                (_, before, _) => before,
            };
            self.partial_len += take;
            samples = &samples[take..];
            if self.partial_len == FRAME_SAMPLES {
                self.partial_len = 0;
                self.finish(self.partial, self.partial_kind);
            }
        }
    }

    fn finish(&mut self, samples: Samples, kind: Kind) {
        if kind == Kind::Heard {
            self.last = samples;
        }
        self.frames.push_back(Frame { samples, law: self.law, kind });
    }

    fn append_silence(&mut self, mut count: usize) {
        while count > 0 {
            let take = count.min(FRAME_SAMPLES);
            self.append(&[self.law.silence(); FRAME_SAMPLES][..take], Kind::Silence);
            count -= take;
        }
    }

    /// Conceals `count` lost samples by repeating the last frame, fading out.
    fn conceal(&mut self, mut count: usize) {
        let (last, law) = (self.last, self.law);
        let mut step = 0;
        while count > 0 {
            let take = count.min(FRAME_SAMPLES);
            let gain = FADE.get(step).copied().unwrap_or(0.0);
            let faded: Samples = last.map(|s| law.encode((f32::from(law.decode(s)) * gain) as i16));
            self.append(&faded[..take], Kind::Concealed);
            count -= take;
            step += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    struct Rig {
        timeline: Timeline,
        now: Instant,
        t0: Instant,
    }

    impl Rig {
        fn new() -> Rig {
            let t0 = start();
            let mut timeline = Timeline::default();
            timeline.start(t0);
            Rig { timeline, now: t0, t0 }
        }

        fn at(&mut self, ms: u64) -> &mut Rig {
            let until = self.t0 + Duration::from_millis(ms);
            while let Some(at) = self.timeline.next_timeout().filter(|at| *at <= until) {
                self.timeline.on_timeout(at);
            }
            self.now = until;
            self
        }

        /// One packet of 20 ms whose samples are all `byte`.
        fn push(&mut self, timestamp: u32, byte: u8, lost: u32, restarted: bool) -> &mut Rig {
            let samples = [byte; 160];
            let audio = Audio { marker: false, timestamp, samples: &samples, lost, restarted };
            self.timeline.push(self.now, audio);
            self
        }

        /// First byte and kind of each frame.
        fn frames(&mut self) -> Vec<(u8, Kind)> {
            std::iter::from_fn(|| self.timeline.pop()).map(|f| (f.samples[0], f.kind)).collect()
        }

        fn silences(&mut self) -> usize {
            self.frames().iter().filter(|(_, k)| *k == Kind::Silence).count()
        }
    }

    #[test]
    fn packets_of_any_size_keep_every_sample() {
        let mut rig = Rig::new();
        let all: Vec<u8> = (0..=255).cycle().take(1600).collect();
        let mut at = 0;
        for (i, size) in [80, 240, 160, 480, 400, 160, 80].into_iter().enumerate() {
            let audio = Audio {
                marker: false,
                timestamp: at as u32,
                samples: &all[at..at + size],
                lost: 0,
                restarted: i == 0,
            };
            rig.timeline.push(rig.now, audio);
            at += size;
        }
        let out: Vec<u8> =
            std::iter::from_fn(|| rig.timeline.pop()).flat_map(|f| f.samples).collect();
        assert_eq!(out, all);
    }

    #[test]
    fn before_the_first_packet_our_clock_fills() {
        let mut rig = Rig::new();
        assert_eq!(rig.at(99).frames(), []);
        assert_eq!(rig.at(100).silences(), 3);
        assert_eq!(rig.at(120).silences(), 1);
        assert_eq!(rig.at(1040).silences(), 46);
        rig.push(5_000_000, 1, 0, true);
        // the packet ends now, so the 20 ms before it are filled as well
        assert_eq!(rig.frames(), [(SILENCE, Kind::Silence), (1, Kind::Heard)]);
    }

    #[test]
    fn the_first_packet_is_placed_where_it_was_spoken() {
        for (at_ms, silent) in [(0, 0), (19, 0), (20, 0), (39, 0), (40, 1), (85, 3)] {
            let mut rig = Rig::new();
            rig.at(at_ms).push(7_000, 1, 0, true);
            assert_eq!(rig.frames().len(), silent + 1, "{at_ms} ms");
        }
    }

    /// A phone that suppresses silence, and resumes with a marker or with another SSRC.
    #[test]
    fn pauses_do_not_shorten_the_timeline() {
        for restarted in [false, true] {
            let mut rig = Rig::new();
            let (mut ms, mut frames) = (0, 0);
            for talk in 0..200u32 {
                for n in 0..50 {
                    ms += 20;
                    let audio = Audio {
                        marker: n == 0,
                        timestamp: talk * 8000 + n * 160,
                        samples: &[1; 160],
                        lost: 0,
                        restarted: restarted && n == 0,
                    };
                    rig.at(ms);
                    let now = rig.now;
                    rig.timeline.push(now, audio);
                }
                ms += 490 + u64::from(talk % 20);
                frames += rig.frames().len() as u64;
            }
            rig.at(ms);
            frames += rig.frames().len() as u64;
            assert!((frames * 20).abs_diff(ms) <= 60, "{frames} frames in {ms} ms");
        }
    }

    #[test]
    fn loss_is_concealed_and_fades() {
        let mut rig = Rig::new();
        rig.push(0, 0x80, 0, true).at(99).push(5 * 160, 0x81, 4, false);
        let frames = rig.frames();
        assert_eq!(frames.iter().filter(|(_, k)| *k == Kind::Concealed).count(), 4);
        assert_eq!((frames[0], frames[5]), ((0x80, Kind::Heard), (0x81, Kind::Heard)));
        assert_eq!(frames[4].0, SILENCE);
        assert_eq!(rig.timeline.counts.concealed_samples, 640);
    }

    #[test]
    fn a_pause_shown_by_timestamps_keeps_its_length() {
        let mut rig = Rig::new();
        rig.push(0, 1, 0, true).at(1000).push(8000, 2, 0, false);
        let frames = rig.frames();
        assert_eq!(frames.len(), 51);
        assert_eq!(frames[50], (2, Kind::Heard));
    }

    #[test]
    fn after_a_stall_packets_for_filled_time_are_late() {
        let mut rig = Rig::new();
        rig.push(0, 1, 0, true).at(300);
        let filled = rig.silences();
        // 15 packets arrive at once: those for filled time are dropped, the rest are kept
        for n in 1..=15 {
            rig.push(n * 160, 2, 0, false);
        }
        assert_eq!(rig.timeline.counts.late as usize, filled);
        assert_eq!(rig.frames().len(), 15 - filled);
    }

    #[test]
    fn a_sender_whose_clock_stood_still_is_followed() {
        let mut rig = Rig::new();
        rig.push(0, 1, 0, true).at(2000);
        rig.frames();
        for n in 1..=50 {
            rig.at(2000 + u64::from(n) * 20).push(n * 160, 2, 0, false);
        }
        let heard = rig.frames().iter().filter(|(_, k)| *k == Kind::Heard).count();
        assert!(heard >= 43, "{heard}");
    }

    #[test]
    fn a_marker_after_a_pause_resumes_at_once() {
        let mut rig = Rig::new();
        rig.push(0, 1, 0, true).at(2000);
        rig.frames();
        let audio =
            Audio { marker: true, timestamp: 160, samples: &[2; 160], lost: 0, restarted: false };
        rig.timeline.push(rig.now, audio);
        assert_eq!(rig.frames(), [(2, Kind::Heard)]);
    }

    #[test]
    fn a_key_press_fills_its_own_time() {
        let mut rig = Rig::new();
        rig.push(0, 1, 0, true);
        for n in 1..=7u16 {
            rig.at(u64::from(n) * 20);
            rig.timeline.push_event(rig.now, 160, n * 160);
            assert_eq!(rig.frames().len(), if n == 1 { 2 } else { 1 });
        }
        rig.at(160).push(8 * 160, 2, 0, false);
        assert_eq!(rig.frames(), [(2, Kind::Heard)]);
    }

    #[test]
    fn timestamp_jumps_add_no_time() {
        let mut rig = Rig::new();
        rig.push(0, 1, 0, true).at(20).push(800_000, 2, 0, false).at(40).push(160, 3, 0, false);
        assert_eq!(rig.frames().len(), 3);
    }

    #[test]
    fn drift_is_followed_not_corrected() {
        let mut rig = Rig::new();
        for n in 0..3000u32 {
            // a sender 200 ppm slow
            rig.at(u64::from(n) * 20 + u64::from(n) * 20 / 5000).push(n * 160, 1, 0, n == 0);
        }
        assert_eq!(rig.frames().len(), 3000);
    }
}
