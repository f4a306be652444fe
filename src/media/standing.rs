//! Finds the standing delay of a playout queue: audio that waits although the AI sends in real
//! time, left behind by a stall or by clock drift.
//!
//! Over windows of 2 s, the queue's floor is the least that was queued. A floor under a stream that
//! arrives in real time is delay without a purpose, unless the AI has sent that much ahead.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::media::frame::{FRAME_SAMPLES, samples_in};

const WINDOW: Duration = Duration::from_secs(2);
/// A longer pause between two messages is not real-time pacing.
const MAX_PAUSE: Duration = Duration::from_millis(300);
/// A floor up to this is left alone: 60 ms, in samples.
const TOLERATED: i64 = 3 * FRAME_SAMPLES as i64;
/// In real time, a window's audio differs from its length by less than this: 100 ms, in samples.
const SLACK: i64 = 5 * FRAME_SAMPLES as i64;

/// The measurement for one queue. All amounts are in samples.
#[derive(Debug, Default)]
pub struct Standing {
    /// The current window; `None` while the AI sends nothing.
    window: Option<Window>,
    /// Audio sent ahead of real time so far; negative after pauses.
    ahead: i64,
    /// The standing delay of the last whole window; 0 if the AI did not send in real time.
    floor: i64,
    /// Audio that remains to be left out.
    surplus: i64,
    /// True if that audio is left out even where it is not quiet.
    is_stale: bool,
    /// True if the AI sent in real time during the last whole window.
    real_time: bool,
    /// True in the first window after a standstill whose audio is not played. What still waits then
    /// is the rest of that audio.
    after_standstill: bool,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    arrived: i64,
    /// The least that was queued, and since it was that low: how often it was, how many messages
    /// have arrived, and how many frames were taken.
    floor: i64,
    drained: u32,
    messages: u32,
    taken: u32,
    last_arrival: Instant,
    longest_pause: Duration,
}

impl Window {
    fn new(now: Instant, last_arrival: Instant) -> Window {
        Window {
            since: now,
            arrived: 0,
            floor: i64::MAX,
            drained: 0,
            messages: 0,
            taken: 0,
            last_arrival,
            longest_pause: Duration::ZERO,
        }
    }

    /// True if the audio up to the last arrival came in real time, perhaps with frames missing;
    /// `None` if that was too short.
    fn was_real_time(&self) -> Option<bool> {
        let passed = self.last_arrival.saturating_duration_since(self.since);
        let real_time = samples_in(passed) as i64;
        let enough = passed > MAX_PAUSE || self.arrived >= real_time + SLACK;
        let paced = (real_time * 3 / 4..real_time + SLACK).contains(&self.arrived);
        enough.then_some(paced && self.longest_pause <= MAX_PAUSE)
    }

    /// Measures the floor from here on.
    fn forget_floor(&mut self) {
        self.floor = i64::MAX;
        (self.drained, self.messages, self.taken) = (0, 0, 0);
    }

    /// Notes that `queued` samples remain after a frame was taken.
    fn remains(&mut self, queued: i64) {
        if queued + FRAME_SAMPLES as i64 <= self.floor {
            self.forget_floor();
        }
        self.floor = self.floor.min(queued);
        self.taken += 1;
        self.drained += u32::from(queued < self.floor + FRAME_SAMPLES as i64);
    }

    /// The delay of nearly all messages: with jitter, the queue may go below that now and then.
    fn usual_floor(&self) -> i64 {
        let usual = self.drained * 10 >= self.messages.min(self.taken) * 9;
        self.floor + if usual { 0 } else { FRAME_SAMPLES as i64 }
    }

    fn pause(&mut self, now: Instant) {
        let pause = now.saturating_duration_since(self.last_arrival);
        self.longest_pause = self.longest_pause.max(pause);
    }
}

impl Standing {
    /// Notes that audio has arrived, when `queued` samples were still waiting.
    pub fn arrived(&mut self, now: Instant, samples: usize, queued: usize) {
        // after a long silence of the AI, the count begins again
        let idle = |w: &Window| now.saturating_duration_since(w.last_arrival) > WINDOW;
        if self.window.as_ref().is_none_or(idle) {
            (self.window, self.ahead) = (None, queued as i64);
        }
        let window = self.window.get_or_insert_with(|| Window::new(now, now));
        window.pause(now);
        window.last_arrival = now;
        window.arrived += samples as i64;
        window.messages += 1;
    }

    /// Notes that a frame was taken for playing and `queued` samples remain.
    pub fn played(&mut self, now: Instant, queued: usize) {
        let Some(window) = &mut self.window else { return };
        window.remains(queued as i64);
        let passed = now.saturating_duration_since(window.since);
        if passed < WINDOW {
            return;
        }
        window.pause(now);
        let excess = window.arrived - samples_in(passed) as i64;
        let rest = self.after_standstill.then(|| window.usual_floor());
        let stale = rest.unwrap_or(0).min(SLACK);
        let real_time = (excess - stale).abs() < SLACK && window.longest_pause <= MAX_PAUSE;
        self.real_time = real_time;
        if !real_time {
            self.ahead = (self.ahead + excess).max(-(samples_in(WINDOW) as i64));
        }
        let standing = rest.unwrap_or(window.floor) - self.ahead.max(0);
        self.floor = if real_time { standing.max(0) } else { 0 };
        let kept = match rest.is_some() {
            true => 0,
            false if standing > TOLERATED => FRAME_SAMPLES as i64,
            false => standing,
        };
        self.surplus = if real_time { standing - kept } else { 0 };
        (self.is_stale, self.after_standstill) = (rest.is_some(), false);
        self.window = (window.arrived > 0).then(|| Window::new(now, window.last_arrival));
    }

    /// Notes that nothing is queued any more.
    pub fn emptied(&mut self) {
        (self.surplus, self.floor) = (0, 0);
        self.window.iter_mut().for_each(|window| window.floor = 0);
    }

    /// Returns true if a quiet frame should be left out, and counts it as left out.
    pub fn leaves_out(&mut self) -> bool {
        let frame = FRAME_SAMPLES as i64;
        let leaves_out = self.surplus >= frame;
        if leaves_out {
            self.surplus -= frame;
        }
        leaves_out
    }

    /// Begins to measure again, after a standstill of this process. `real_time`: the AI sent in
    /// real time before. `owed`: samples still to arrive that will be played late. `stale`: samples
    /// queued that will not be played.
    pub fn restart(&mut self, now: Instant, real_time: bool, owed: usize, stale: usize) {
        let arrived = stale as i64 - owed as i64;
        self.window = Some(Window { arrived, ..Window::new(now, now) });
        (self.floor, self.surplus, self.real_time) = (0, 0, real_time);
        (self.is_stale, self.after_standstill) = (false, real_time && owed == 0);
    }

    /// Notes that audio that arrived in this window is not played. More of it may follow, so the
    /// queue's floor is measured from here on.
    pub fn discarded(&mut self, samples: usize) {
        if let Some(window) = self.window.as_mut().filter(|_| samples > 0) {
            window.arrived -= samples as i64;
            window.forget_floor();
        }
    }

    /// Audio that the AI has sent ahead of real time.
    pub fn ahead(&self) -> usize {
        usize::try_from(self.ahead).unwrap_or(0)
    }

    /// True if the AI sent in real time until now.
    pub fn is_real_time(&self) -> bool {
        let window = self.window.as_ref().and_then(Window::was_real_time);
        window.unwrap_or(self.real_time)
    }

    /// True if what is to be left out need not be quiet.
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// True if there is something to be left out.
    pub fn has_surplus(&self) -> bool {
        self.surplus >= FRAME_SAMPLES as i64
    }

    /// The standing delay of the last whole window; 0 if the AI did not send in real time.
    pub fn floor(&self) -> u64 {
        self.floor.max(0) as u64
    }
}
