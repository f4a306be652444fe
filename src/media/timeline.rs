//! The caller's timeline: turns ordered packets into frames without gaps.
//!
//! While RTP flows, its timestamps are the clock: one frame in, one frame out. After 100 ms without
//! RTP, our own clock takes over and fills with silence. If RTP then returns with timestamps that
//! do not show how long it was away, our clock decides, to within a frame.
//!
//! Audio for time that was already filled is late, but it is kept: the AI has no playout deadline.
//! The timeline is then ahead of real time. It returns to real time at the next pause: our clock
//! fills later, and quiet frames are left out. In the same way a timeline that has fallen behind,
//! because the network delay has grown, is extended while the caller is quiet.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::media::frame::{FRAME_SAMPLES, Frame, Kind, RATE, SILENCE, Samples, samples_in};
use crate::media::g711::Law;
use crate::media::quiet::QuietRun;

/// After this long without RTP, our clock takes over.
const FILL_AFTER: Duration = Duration::from_millis(100);
/// A timestamp step is believed if it exceeds the time that has passed by no more than this.
const TOLERANCE: Duration = Duration::from_millis(100);
/// The timeline has fallen behind if no packet within this time has caught up with real time.
const BEHIND_AFTER: Duration = Duration::from_millis(400);
/// The largest loss that is concealed, in samples (2 s).
const MAX_LOSS: i64 = 2 * RATE as i64;
/// Gains for concealment: the last frame is repeated, fading out, and then silence follows.
const FADE: [f32; 3] = [0.7, 0.4, 0.15];
/// Half a second, in samples.
const FAR: i64 = RATE as i64 / 2;
/// Samples per frame, signed.
const FRAME: i64 = FRAME_SAMPLES as i64;

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
    /// Samples that arrived for time that was already filled, and were kept.
    pub late_samples: u64,
    /// Samples dropped because they arrived when the timeline was too far ahead of real time.
    pub dropped_samples: u64,
    /// Quiet frames left out to return to real time.
    pub left_out: u64,
    /// Quiet frames repeated to return to real time.
    pub repeated: u64,
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
    /// Samples that our clock has filled beyond the last audio heard, by the caller's timestamps.
    filled: i64,
    /// Samples on the timeline so far.
    position: i64,
    /// When audio last arrived (time 0 if none has).
    anchor: Option<Instant>,
    /// Time 0, and `position` at that moment.
    origin: Option<(Instant, i64)>,
    /// Late audio is dropped if the timeline is more than this many samples ahead of real time.
    max_lead: i64,
    /// Samples by which the timeline will be ahead of real time once the current packet is on it.
    surplus: i64,
    /// Frames to be added while the caller is quiet, because the timeline has fallen behind.
    owed: i64,
    /// The furthest that the timeline was ahead of real time, and since when.
    best: Option<(Instant, i64)>,
    quiet: QuietRun,
    pub counts: Counts,
}

impl Timeline {
    /// `max_lead`: how far late audio may put the timeline ahead of real time.
    pub fn new(max_lead: Duration) -> Timeline {
        Timeline {
            frames: VecDeque::new(),
            law: Law::Mu,
            partial: [SILENCE; FRAME_SAMPLES],
            partial_len: 0,
            partial_kind: Kind::Silence,
            last: [SILENCE; FRAME_SAMPLES],
            next_timestamp: None,
            filled: 0,
            position: 0,
            anchor: None,
            origin: None,
            max_lead: samples_in(max_lead) as i64,
            surplus: 0,
            owed: 0,
            best: None,
            quiet: QuietRun::default(),
            counts: Counts::default(),
        }
    }

    /// Starts the timeline at time 0 of the call: from then on there is a frame for every 20 ms.
    pub fn start(&mut self, now: Instant) {
        self.anchor.get_or_insert(now);
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
        self.anchor
    }

    /// Adds the audio of a packet, after filling or concealing the gap before it.
    pub fn push(&mut self, now: Instant, audio: Audio<'_>) {
        let length = audio.samples.len() as i64;
        let ahead = self.ahead(now, &audio);
        // samples from the end of the timeline to the start of this audio
        let gap = ahead - self.filled;
        let late = if gap < 0 && ahead >= 0 { length.min(-gap) } else { 0 };
        let lead = self.lead(now);
        // timestamps that have jumped do not mean that time has passed
        let elapsed = self.anchor.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let tolerated = samples_in(TOLERANCE) as i64;
        let believed = ahead <= samples_in(elapsed) as i64 + tolerated
            || lead.is_some_and(|lead| lead + gap + length <= tolerated);
        let loss = audio.lost > 0 && ahead <= MAX_LOSS && self.filled == 0;
        let gap = if gap > 0 && (loss || believed) { gap } else { 0 };
        self.filled = if late > 0 { (self.filled - ahead - length).max(0) } else { 0 };
        self.next_timestamp = Some(audio.timestamp.wrapping_add(length as u32));
        self.anchor = Some(now);
        if lead.is_some_and(|lead| lead > self.max_lead) {
            self.counts.dropped_samples += length as u64;
            return;
        }
        self.counts.late_samples += late as u64;
        self.surplus = lead.map_or(0, |lead| lead + gap + length);
        match loss {
            true => self.conceal(gap as usize),
            false => self.append_silence(gap as usize),
        }
        self.append(audio.samples, Kind::Heard);
        self.look_behind(now);
    }

    /// Returns the samples from the end of the last audio heard to the start of this.
    fn ahead(&self, now: Instant, audio: &Audio<'_>) -> i64 {
        let restarted = audio.restarted || (audio.marker && self.filled > 0);
        match self.next_timestamp {
            Some(next) if !restarted => i64::from(audio.timestamp.wrapping_sub(next) as i32),
            Some(_) if self.filled == 0 => 0,
            _ => self.filled + self.frames_missing(now, audio.samples.len()) as i64,
        }
    }

    /// Returns the samples by which the timeline is ahead of real time; `None` before time 0.
    fn lead(&self, now: Instant) -> Option<i64> {
        let (at, position) = self.origin?;
        Some(self.position - position - samples_in(now.saturating_duration_since(at)) as i64)
    }

    /// Notices when the timeline has fallen behind, by the packets that were least behind.
    fn look_behind(&mut self, now: Instant) {
        let Some(lead) = self.lead(now) else { return };
        let (since, best) = self.best.map_or((now, lead), |(at, best)| (at, best.max(lead)));
        self.best = Some((since, best));
        if now.saturating_duration_since(since) >= BEHIND_AFTER {
            self.owed = (-best / FRAME).max(0);
            self.best = None;
        }
    }

    /// How much time has passed without being filled, in samples, rounded down to a frame boundary.
    /// Audio of `length` samples has just arrived, so it began that long ago.
    fn frames_missing(&self, now: Instant, length: usize) -> u64 {
        // counted from time 0: counted per pause, each would lose a part of a frame
        let Some((at, position)) = self.origin else { return 0 };
        let passed = samples_in(now.saturating_duration_since(at)) as i64;
        let missing = (position + passed - self.position - length as i64).max(0) as u64;
        let to_end = (FRAME_SAMPLES - self.partial_len) as u64 % FRAME_SAMPLES as u64;
        if missing < to_end {
            return 0;
        }
        missing - (missing - to_end) % FRAME_SAMPLES as u64
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        let (at, position) = self.origin?;
        let wanted = (self.position + self.missing() as i64 - position).max(0) as u64;
        let reached = at + Duration::from_nanos(wanted * (1_000_000_000 / RATE));
        Some(reached.max(self.anchor? + FILL_AFTER))
    }

    /// Fills the time for which nothing arrived with silence.
    pub fn on_timeout(&mut self, now: Instant) {
        while self.next_timeout().is_some_and(|at| at <= now) {
            // our clock takes the timeline to real time
            (self.surplus, self.owed, self.best) = (0, 0, None);
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
        self.position += samples.len() as i64;
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
        let frame = Frame { samples, law: self.law, kind };
        if self.surplus < FRAME && self.owed == 0 {
            self.quiet.reset();
            return self.frames.push_back(frame);
        }
        // far ahead, whole pauses are left out
        let hidden = self.quiet.hides_step(self.law, &frame.samples, self.surplus >= FAR);
        if hidden && self.surplus >= FRAME {
            self.surplus -= FRAME;
            self.position -= FRAME;
            self.counts.left_out += 1;
            return;
        }
        if hidden && self.owed > 0 {
            self.owed -= 1;
            self.position += FRAME;
            self.counts.repeated += 1;
            self.frames.push_back(Frame { kind: Kind::Silence, ..frame.clone() });
        }
        self.frames.push_back(frame);
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
            let mut timeline = Timeline::new(Duration::from_secs(1));
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
        assert_eq!(rig.at(100).silences(), 5);
        assert_eq!(rig.at(120).silences(), 1);
        assert_eq!(rig.at(1050).silences(), 46);
        rig.push(5_000_000, 1, 0, true);
        assert_eq!(rig.frames(), [(1, Kind::Heard)]);
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
        rig.at(20).push(0, 1, 0, true).at(1019).push(8000 - 160, 2, 0, false);
        let frames = rig.frames();
        assert_eq!((frames.len(), frames[50]), (51, (2, Kind::Heard)));
    }

    #[test]
    fn a_burst_after_a_stall_is_kept_and_made_up_for_in_the_next_pause() {
        let mut rig = Rig::new();
        rig.at(20).push(0, 1, 0, true).at(320);
        assert_eq!(rig.silences(), 15);
        for n in 1..=15 {
            rig.push(n * 160, 2, 0, false);
        }
        assert_eq!(rig.frames(), [(2, Kind::Heard); 15]);
        assert_eq!(rig.timeline.counts.late_samples, 15 * 160);
        // quiet audio is left out until the timeline is in real time again, except the first frame
        for n in 16..=40 {
            rig.at(20 + u64::from(n) * 20).push(n * 160, SILENCE, 0, false);
        }
        assert_eq!(rig.timeline.counts.left_out, 15);
        assert_eq!(rig.frames().len(), 10);
    }

    #[test]
    fn after_late_audio_our_clock_fills_later() {
        let mut rig = Rig::new();
        rig.at(20).push(0, 1, 0, true).at(320);
        (1..=15).for_each(|n| {
            rig.push(n * 160, 2, 0, false);
        });
        rig.frames();
        assert_eq!(rig.at(620).silences(), 0);
        assert_eq!(rig.at(640).silences(), 1);
        // the pause in the timestamps has been made up for already
        rig.push(31 * 160, 3, 0, false);
        let frames = rig.frames();
        assert!(frames.len() <= 2 && frames.last() == Some(&(3, Kind::Heard)), "{frames:?}");
    }

    #[test]
    fn audio_is_dropped_only_beyond_the_bound() {
        let heard = |max_lead: u64| {
            let mut rig = Rig::new();
            rig.timeline = Timeline::new(Duration::from_millis(max_lead));
            rig.timeline.start(rig.t0);
            rig.at(20).push(0, 1, 0, true).at(1520);
            (1..=75).for_each(|n| {
                rig.push(n * 160, 2, 0, false);
            });
            let heard = rig.frames().iter().filter(|(_, k)| *k == Kind::Heard).count() as u64;
            let dropped = rig.timeline.counts.dropped_samples / 160;
            assert_eq!(heard + dropped, 76);
            heard
        };
        assert_eq!(heard(1000), 1 + 51);
        assert_eq!(heard(100), 1 + 6);
        assert_eq!(heard(2000), 1 + 75);
    }

    /// A frame every 20 ms, with `late(n)` ms of delay and in order; then 1.1 s of quiet. Returns
    /// the frames heard, and the timeline's error at the end in ms.
    fn late(count: u32, ptime: u32, late: impl Fn(u32) -> u64) -> (usize, i64) {
        let mut rig = Rig::new();
        let (mut last, quiet) = (0, 1100 / ptime);
        for n in 0..count + quiet {
            let spoken = u64::from((n + 1) * ptime);
            last = (spoken + if n < count { late(n) } else { late(count - 1) }).max(last);
            let byte = if n < count { 1 } else { SILENCE };
            let samples = vec![byte; ptime as usize * 8];
            let timestamp = n * ptime * 8;
            rig.at(last);
            let audio =
                Audio { marker: false, timestamp, samples: &samples, lost: 0, restarted: n == 0 };
            rig.timeline.push(rig.now, audio);
        }
        let now = rig.now.duration_since(rig.t0).as_millis() as i64;
        let samples: Vec<u8> =
            std::iter::from_fn(|| rig.timeline.pop()).flat_map(|f| f.samples).collect();
        let heard = samples.iter().filter(|byte| **byte == 1).count();
        (heard / 160, rig.timeline.position / 8 - now)
    }

    #[test]
    fn nothing_is_lost_to_jitter_stalls_bursts_or_a_longer_path() {
        type Late = Box<dyn Fn(u32) -> u64>;
        let noise = |n: u32| u64::from(n.wrapping_mul(2_654_435_761) >> 8);
        for ptime in [10, 20, 30, 40, 60] {
            let each = u64::from(ptime);
            let count = 12_000 / ptime;
            let mut plans: Vec<(String, Late)> = Vec::new();
            for jitter in [50, 100, 200, 300] {
                plans.push((format!("jitter {jitter}"), Box::new(move |n| noise(n) % jitter)));
            }
            for burst in [2, 4, 6, 10] {
                let late = move |n: u32| u64::from(burst - 1 - n % burst) * each;
                plans.push((format!("bursts of {burst}"), Box::new(late)));
            }
            for longer in [60, 90, 150, 450, 900] {
                let late = move |n: u32| if n > 100 { longer } else { 0 };
                plans.push((format!("a path longer by {longer}"), Box::new(late)));
                let late = move |n: u32| if n < 100 { longer } else { 0 };
                plans.push((format!("a path shorter by {longer}"), Box::new(late)));
            }
            for stall in [100, 200, 400, 1000] {
                let late = move |n: u32| {
                    let into = u64::from(n) * each % 6000;
                    if (3000..3000 + stall).contains(&into) { 3000 + stall - into } else { 0 }
                };
                plans.push((format!("stalls of {stall}"), Box::new(late)));
            }
            for (what, plan) in plans {
                let (heard, error_ms) = late(count, ptime, plan);
                assert_eq!(heard, (count * ptime / 20) as usize, "{what}, ptime {ptime}");
                assert!(error_ms.abs() <= 20, "{what}, ptime {ptime}: {error_ms} ms");
            }
        }
    }

    #[test]
    fn a_sender_whose_clock_stood_still_is_followed() {
        let mut rig = Rig::new();
        rig.push(0, 1, 0, true).at(2000);
        rig.frames();
        for n in 1..=50 {
            rig.at(2000 + u64::from(n) * 20).push(n * 160, 2, 0, false);
        }
        let frames = rig.frames();
        assert_eq!(frames.iter().filter(|(_, k)| *k == Kind::Heard).count(), 50);
        assert!(frames.len() <= 52);
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
    fn timestamp_jumps_add_no_time() {
        let mut rig = Rig::new();
        rig.push(0, 1, 0, true).at(20).push(800_000, 2, 0, false).at(40).push(160, 3, 0, false);
        assert_eq!(rig.frames().len(), 3);
    }

    #[test]
    fn drift_loses_no_speech_and_is_corrected_in_pauses() {
        for ppm in [-300i64, 300] {
            let mut rig = Rig::new();
            let (mut heard, mut frames) = (0, 0);
            for n in 0..90_000u32 {
                let us = i64::from(n + 1) * 20_000;
                let at = (us + us * ppm / 1_000_000) as u64 / 1000;
                let byte = if n % 500 < 450 { 1 } else { SILENCE };
                rig.at(at).push(n * 160, byte, 0, n == 0);
                let new = rig.frames();
                frames += new.len() as i64;
                heard += new.iter().filter(|(byte, _)| *byte == 1).count();
                if n % 500 == 499 {
                    let error_ms = frames * 20 - at as i64;
                    assert!(error_ms.abs() <= 20, "{ppm} ppm: {error_ms} ms after frame {n}");
                }
            }
            assert_eq!(heard, 90_000 / 500 * 450);
        }
    }
}
