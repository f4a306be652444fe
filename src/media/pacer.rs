//! The send schedule: when each frame to the caller is due.
//!
//! Silence keeps to the grid of the call: frame n at time 0 + n · 20 ms. Speech starts immediately,
//! even between two ticks, and then has a slot every 20 ms. While the AI paces its audio in real
//! time, a frame leaves when its message arrives, up to half a frame before its slot; the slots
//! follow if the AI's messages shift as a whole. A late frame is sent when it arrives: silence is
//! not put inside speech before the frame is [`GRACE`] late. The silence after speech then catches
//! up with the grid, with contiguous timestamps.
//!
//! ```text
//! grid     |    .    .    .    .    .    .    .    .
//! AI            f  f   f  f                            f = a frame's message
//! sent     s    f  f   f  f          sss  s    s       s = silence
//! ```
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::media::frame::FRAME_TIME;

/// A frame later than this means that the process was stalled: continue from now, do not catch up.
const STALL: Duration = Duration::from_millis(200);
/// How late the next frame of speech may be before silence takes its place. Phones' jitter buffers
/// absorb this.
pub const GRACE: Duration = Duration::from_millis(40);
/// The least time between packets of silence that catch up with the grid. If speech continues soon,
/// few of them have come between.
const CATCH_UP: Duration = Duration::from_millis(10);
/// How long before its slot a frame may be sent.
const EARLY: Duration = Duration::from_millis(10);
/// A message that arrives this soon after a frame was sent belongs to a burst. This is well below
/// [`EARLY`], so that messages which do not move the slots never count as a burst, which would wait
/// for them.
const BURST: Duration = Duration::from_millis(5);
/// Packets stay at most this far ahead of the grid: one frame because speech may begin right after
/// silence, and one because the slots then follow the AI.
const AHEAD: Duration = Duration::from_millis(40);
/// Messages after which the slots may follow the AI.
const FOLLOW_AFTER: u32 = 16;
/// Speech that is this far behind the grid is padded where it is quiet.
const LAG: Duration = Duration::from_millis(60);

/// The send schedule of one call.
#[derive(Debug)]
pub struct Pacer {
    /// Time 0 of the call.
    start: Instant,
    /// How long the first frame of a talkspurt waits for more.
    prebuffer: Duration,
    /// Number of the next frame; its RTP timestamp follows from it.
    index: u64,
    /// The slot of the last frame, and whether it was speech.
    last: Option<(Instant, bool)>,
    /// When the last frame of speech was sent, which may be after its slot.
    spoken: Option<Instant>,
    /// When the frame that waits first is due, if it arrived while none was waiting.
    due: Option<Instant>,
    /// True if a frame of silence is due at once, because speech is behind the grid.
    padding: bool,
    arrivals: Arrivals,
    /// True if the process stood still, and the next frame continues from now.
    stood_still: bool,
}

/// Arrival times of messages relative to their slots, in microseconds.
#[derive(Debug, Default)]
struct Arrivals {
    count: u32,
    earliest: i64,
    latest: i64,
}

impl Arrivals {
    /// Adds an arrival. After a number of them, returns by how much the slots should shift: all
    /// messages were late, or all were too early to be sent at once. The one nearest to its slot is
    /// on time then.
    fn add(&mut self, late_us: i64) -> i64 {
        let first = self.count == 0;
        self.earliest = if first { late_us } else { self.earliest.min(late_us) };
        self.latest = if first { late_us } else { self.latest.max(late_us) };
        self.count += 1;
        if self.count < FOLLOW_AFTER {
            return 0;
        }
        self.count = 0;
        let early = EARLY.as_micros() as i64;
        match (self.earliest, self.latest) {
            (earliest, _) if earliest > early => earliest,
            (_, latest) if latest < -early => latest,
            _ => 0,
        }
    }
}

/// Returns the time from `earlier` to `later` in microseconds; negative if it is the other way
/// round.
fn micros_between(earlier: Instant, later: Instant) -> i64 {
    match later.checked_duration_since(earlier) {
        Some(time) => time.as_micros() as i64,
        None => -(earlier.saturating_duration_since(later).as_micros() as i64),
    }
}

/// The slot for one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub index: u64,
    /// First frame of a talkspurt, or after a step of the timestamps: set RTP's marker (RFC 3551
    /// §4.1).
    pub marker: bool,
    /// The frame has to be silence, even if speech is waiting.
    pub silence: bool,
}

impl Pacer {
    /// `start`: time 0 of the call, when the first frame is due. `prebuffer`: how long the first
    /// frame of a talkspurt waits.
    pub fn new(start: Instant, prebuffer: Duration) -> Pacer {
        Pacer {
            start,
            prebuffer,
            index: 0,
            last: None,
            spoken: None,
            due: None,
            padding: false,
            arrivals: Arrivals::default(),
            stood_still: false,
        }
    }

    /// Notes that this process stood still: the next frame continues from now.
    pub fn stood_still(&mut self) {
        self.stood_still = true;
    }

    /// Number of the next frame.
    pub fn index(&self) -> u64 {
        self.index
    }

    fn grid(&self) -> Instant {
        self.start + FRAME_TIME * u32::try_from(self.index).unwrap_or(u32::MAX)
    }

    /// Notes that audio has arrived while none was waiting.
    pub fn on_arrival(&mut self, now: Instant) {
        let due = match self.last {
            Some((at, true)) => {
                let late_us = micros_between(at + FRAME_TIME, now);
                // with a prebuffer, and in a burst, each frame keeps to its slot
                let burst = self.spoken.is_some_and(|at| now < at + BURST);
                match (self.prebuffer.is_zero(), burst) {
                    (false, _) => now.max(at + FRAME_TIME),
                    (true, true) => now.max(self.follow(at, late_us) + FRAME_TIME),
                    (true, false) => now.max(self.follow(at, late_us) + FRAME_TIME - EARLY),
                }
            }
            Some((at, false)) => at.max(now + self.prebuffer),
            None => now + self.prebuffer,
        };
        self.due = Some(due);
    }

    /// Counts the arrival of a message. Returns the last slot, `at`, moved if the slots follow the
    /// AI now.
    fn follow(&mut self, at: Instant, late_us: i64) -> Instant {
        let by_us = self.arrivals.add(late_us);
        let by = Duration::from_micros(by_us.unsigned_abs());
        let moved = if by_us < 0 { at.checked_sub(by).unwrap_or(at) } else { at + by };
        self.last = Some((moved, true));
        moved
    }

    /// When the next frame is due. `audio_waits`: there is speech to send, not silence.
    pub fn deadline(&self, audio_waits: bool) -> Instant {
        match self.last {
            Some((at, _)) if self.padding => at,
            Some((at, true)) if audio_waits => self.due.unwrap_or(at + FRAME_TIME),
            // while the first frame of a talkspurt waits for more, silence continues
            Some((at, false)) if audio_waits => self.due.unwrap_or(at).min(self.next_silence(at)),
            Some((at, true)) => {
                let spoken = self.spoken.map_or(at, |spoken| spoken.max(at));
                self.grid().max(spoken + FRAME_TIME + GRACE)
            }
            Some((at, false)) => self.next_silence(at),
            None => self.grid(),
        }
    }

    /// When silence is due after silence that was due at `at`.
    fn next_silence(&self, at: Instant) -> Instant {
        self.grid().max(at + CATCH_UP)
    }

    /// Takes the slot that is due now. A frame must then be sent in it.
    pub fn take(&mut self, now: Instant, audio: bool) -> Slot {
        let due = self.deadline(audio);
        let speaks = self.speaks();
        let audio = audio && (speaks || self.due.is_none_or(|due| due <= now));
        let stood_still = std::mem::take(&mut self.stood_still);
        let stalled = stood_still || now.saturating_duration_since(due) > STALL;
        if stalled {
            let passed = now.saturating_duration_since(self.start).as_micros();
            self.index = self.index.max((passed / FRAME_TIME.as_micros()) as u64);
        }
        let index = self.index;
        if std::mem::take(&mut self.padding) {
            self.index += 1;
            return Slot { index, marker: false, silence: true };
        }
        let talkspurt = audio && !speaks;
        let at = match self.last {
            _ if stalled => now,
            // slots follow the arrival, even if the first frame is sent a little later
            _ if talkspurt && self.prebuffer.is_zero() => {
                due.max(now.checked_sub(FRAME_TIME).unwrap_or(now))
            }
            // a frame that is sent early or late keeps its slot
            Some((at, true)) if audio => {
                (at + FRAME_TIME).max(self.grid().checked_sub(AHEAD).unwrap_or(at))
            }
            _ => due,
        };
        if audio {
            (self.due, self.spoken) = (None, Some(now));
        }
        if talkspurt {
            self.arrivals = Arrivals::default();
        }
        self.index += 1;
        self.last = Some((at, audio));
        Slot { index, marker: talkspurt || stalled, silence: !audio }
    }

    /// True if the last frame was speech.
    pub fn speaks(&self) -> bool {
        matches!(self.last, Some((_, true)))
    }

    /// True if silence is about to follow speech.
    pub fn ends_speech(&self, now: Instant) -> bool {
        self.speaks() && self.deadline(false) <= now
    }

    /// True if speech has fallen so far behind the grid that it should be padded where it is quiet.
    pub fn lags(&self) -> bool {
        self.last.is_some_and(|(at, speech)| speech && at >= self.grid() + LAG)
    }

    /// Makes a frame of silence due at once, after a quiet frame of speech.
    pub fn pad(&mut self) {
        self.padding = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    /// A frame that was sent: when in milliseconds, its index, and whether it was speech.
    type Sent = (f64, u64, bool);

    /// Runs to `until` ms; `arrivals` has the times at which frames arrive, and how many.
    fn run(arrivals: &[(f64, usize)], until: f64) -> Vec<Sent> {
        prebuffered(arrivals, until, 0)
    }

    fn prebuffered(arrivals: &[(f64, usize)], until: f64, prebuffer: u64) -> Vec<Sent> {
        woken_late(arrivals, until, prebuffer, |_| 0.0)
    }

    /// `late(n)`: by how much the thread wakes up late for the n-th frame, in milliseconds.
    fn woken_late(
        arrivals: &[(f64, usize)],
        until: f64,
        prebuffer: u64,
        late: impl Fn(u32) -> f64,
    ) -> Vec<Sent> {
        let t0 = start();
        let mut pacer = Pacer::new(t0, Duration::from_millis(prebuffer));
        let (mut out, mut waiting) = (Vec::new(), 0);
        let mut arrivals = arrivals.iter().peekable();
        for step in 0..(until * 10.0) as u64 {
            let now = t0 + Duration::from_micros(step * 100);
            let ms = step as f64 / 10.0;
            while let Some((_, count)) = arrivals.next_if(|(at, _)| *at <= ms) {
                if waiting == 0 {
                    pacer.on_arrival(now);
                }
                waiting += count;
            }
            let late = |n: usize| Duration::from_secs_f64(late(n as u32) / 1000.0);
            while pacer.deadline(waiting > 0) + late(out.len()) <= now {
                let slot = pacer.take(now, waiting > 0);
                out.push((ms, slot.index, !slot.silence));
                waiting -= usize::from(!slot.silence);
            }
        }
        assert!(out.windows(2).all(|w| w[1].1 == w[0].1 + 1), "a timestamp was skipped");
        out
    }

    /// Returns the number of silences between the first and the last frame of speech.
    fn holes(sent: &[Sent]) -> usize {
        let first = sent.iter().position(|s| s.2).unwrap();
        let last = sent.iter().rposition(|s| s.2).unwrap();
        sent[first..last].iter().filter(|s| !s.2).count()
    }

    /// Returns the longest time from arrival to sending, for frames that arrive one by one.
    fn longest_delay(arrivals: &[(f64, usize)], sent: &[Sent]) -> f64 {
        let speech = sent.iter().filter(|s| s.2).map(|s| s.0);
        arrivals.iter().zip(speech).map(|((at, _), sent)| sent - at).fold(0.0, f64::max)
    }

    /// Real-time arrivals: frame n at `phase` + 20 n + `late(n)`, in order as over TCP.
    fn paced(phase: f64, count: u32, late: impl Fn(u32) -> f64) -> Vec<(f64, usize)> {
        let mut last = 0.0f64;
        let at = |n: u32| {
            last = last.max(phase + 20.0 * f64::from(n) + late(n));
            (last, 1)
        };
        (0..count).map(at).collect()
    }

    /// A repeatable sequence between 0 and 1.
    fn noise(n: u32) -> f64 {
        f64::from(n.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 24)
    }

    #[test]
    fn silence_keeps_to_the_grid() {
        let times: Vec<f64> = run(&[], 100.0).iter().map(|s| s.0).collect();
        assert_eq!(times, [0.0, 20.0, 40.0, 60.0, 80.0]);
    }

    #[test]
    fn speech_starts_at_once_and_silence_catches_up_with_the_grid() {
        let out = run(&[(47.0, 3)], 200.0);
        let times: Vec<(f64, bool)> = out.iter().map(|(t, _, a)| (*t, *a)).collect();
        let speech = [(40.0, false), (47.0, true), (67.0, true), (87.0, true)];
        assert_eq!(times[2..6], speech);
        // the first silence is due 20 ms after the last speech, and waits for the grace
        let silence = [147.0, 157.0, 167.0, 180.0].map(|ms| (ms, false));
        assert_eq!(times[6..], silence);
    }

    #[test]
    fn lateness_below_the_grace_leaves_no_hole_at_any_phase() {
        for phase in 0..40 {
            for late_ms in [2.0, 5.0, 15.0, 25.0, 39.0] {
                let arrivals = paced(100.0 + f64::from(phase) / 2.0, 200, |n| {
                    late_ms * noise(n) * f64::from(n.min(1))
                });
                let sent = run(&arrivals, 4400.0);
                assert_eq!(holes(&sent), 0, "phase {phase}, {late_ms} ms late");
                assert_eq!(sent.iter().filter(|s| s.2).count(), 200);
            }
        }
    }

    /// A message that is too late costs about the silence that it was late by.
    #[test]
    fn a_late_message_leaves_a_short_hole() {
        for late_ms in [45.0, 60.0, 80.0] {
            for before in [0.0, 25.0] {
                // the message before it may be late as well
                let late = |n: u32| match n {
                    99 => before,
                    100 => late_ms,
                    _ => 0.0,
                };
                let holes = holes(&run(&paced(105.0, 200, late), 4400.0));
                let most = ((late_ms - 40.0) / 10.0) as usize + 1;
                assert!(holes <= most, "{holes} holes, {late_ms} ms late after {before} ms");
            }
        }
    }

    #[test]
    fn a_paced_frame_leaves_when_its_message_arrives() {
        for phase in 0..40 {
            let arrivals = paced(100.0 + f64::from(phase) / 2.0, 200, |n| 5.0 * noise(n));
            let delay = longest_delay(&arrivals, &run(&arrivals, 4400.0));
            assert!(delay <= 0.2, "{delay} ms at phase {phase}");
        }
    }

    #[test]
    fn slots_follow_an_ai_that_shifts() {
        // 30 ms later from frame 50 on, and 12 ms of jitter from frame 100 on
        let late = |n: u32| match n {
            0..50 => 0.0,
            50..100 => 30.0,
            _ => 30.0 + 20.0 * noise(n),
        };
        let arrivals = paced(100.0, 200, late);
        let sent = run(&arrivals, 4400.0);
        assert_eq!(holes(&sent), 0);
        assert!(longest_delay(&arrivals, &sent) <= 0.2);
        // earlier by 18 ms from frame 50 on: after a while, frames wait no longer
        let arrivals = paced(100.0, 200, |n| if n < 50 { 18.0 } else { 0.0 });
        let sent = run(&arrivals, 4400.0);
        let speech: Vec<f64> = sent.iter().filter(|s| s.2).map(|s| s.0).collect();
        assert!(speech[199] - arrivals[199].0 < 0.2, "{} ms", speech[199] - arrivals[199].0);
    }

    #[test]
    fn drift_of_the_ai_adds_no_delay_and_no_hole() {
        // the audio of a fast AI waits once packets are a frame ahead of the clock
        for (ppm, longest) in [(-300.0, 30.0), (300.0, 0.2)] {
            let arrivals = paced(105.0, 5000, |n| f64::from(n) * 20.0 * ppm / 1e6);
            let sent = run(&arrivals, 100_500.0);
            assert_eq!(holes(&sent), 0, "{ppm} ppm");
            let delay = longest_delay(&arrivals, &sent);
            assert!(delay <= longest, "{ppm} ppm: {delay} ms");
            let after_10_s = longest_delay(&arrivals[..500], &sent);
            assert!(after_10_s <= 0.2, "{ppm} ppm: {after_10_s} ms");
        }
    }

    /// After a burst, the AI's messages may arrive at any time before their slots. The slots follow
    /// them, although the thread wakes up a little late.
    #[test]
    fn a_paced_frame_waits_for_no_slot_after_a_burst() {
        for phase in 0..200 {
            let mut arrivals = vec![(100.0, 2)];
            arrivals.extend(paced(120.0 + f64::from(phase) / 10.0, 200, |n| 0.5 * noise(n)));
            let sent = woken_late(&arrivals, 4400.0, 0, |n| 0.3 * noise(n + 7));
            assert_eq!(holes(&sent), 0, "phase {phase}");
            let speech: Vec<f64> = sent.iter().filter(|s| s.2).map(|s| s.0).collect();
            let late = arrivals[60..].iter().zip(&speech[61..]).map(|((at, _), sent)| sent - at);
            let delay = late.fold(0.0, f64::max);
            assert!(delay <= 1.0, "{delay} ms at phase {phase}");
        }
    }

    #[test]
    fn a_burst_is_sent_in_slots_of_20_ms() {
        let out = run(&[(47.0, 50), (500.0, 50)], 2000.0);
        let times: Vec<f64> = out.iter().filter(|s| s.2).map(|s| s.0).collect();
        assert!(times.windows(2).all(|w| (w[1] - w[0] - 20.0).abs() < 0.11), "{times:?}");
    }

    #[test]
    fn a_prebuffer_delays_the_first_frame_and_absorbs_jitter() {
        let arrivals = paced(107.0, 200, |n| 100.0 * noise(n));
        let sent = prebuffered(&arrivals, 4600.0, 100);
        let speech: Vec<f64> = sent.iter().filter(|s| s.2).map(|s| s.0).collect();
        assert_eq!((holes(&sent), speech[0] - arrivals[0].0 >= 99.9), (0, true));
        assert!(speech.windows(2).all(|w| (w[1] - w[0] - 20.0).abs() < 0.11));
        // the silence before does not pause
        let before: Vec<f64> = sent.iter().take_while(|s| !s.2).map(|s| s.0).collect();
        assert_eq!(before, (0..11).map(|n| f64::from(n) * 20.0).collect::<Vec<_>>());
    }

    #[test]
    fn many_short_bursts_never_run_ahead() {
        let bursts: Vec<(f64, usize)> = (0..100).map(|n| (f64::from(n) * 93.0 + 7.0, 1)).collect();
        for (ms, index, _) in run(&bursts, 9400.0) {
            assert!(index as f64 * 20.0 <= ms + 20.0, "{index} at {ms}");
        }
    }

    #[test]
    fn a_stall_is_not_caught_up() {
        let t0 = start();
        let mut pacer = Pacer::new(t0, Duration::ZERO);
        pacer.on_arrival(t0);
        pacer.take(t0, true);
        let later = t0 + Duration::from_secs(2);
        let slot = pacer.take(later, true);
        assert_eq!((slot.index, slot.marker), (100, true));
        assert_eq!(pacer.deadline(true), later + FRAME_TIME);
    }
}
