//! The playout queue: the AI's audio for the caller, in pieces of any size, with cues in between.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::media::frame::{FRAME_SAMPLES, SILENCE, Samples, samples_in};
use crate::media::g711::Law;
use crate::media::quiet::QuietRun;
use crate::media::standing::Standing;

/// At most this many cues are queued. Beyond that, the oldest comes due early, so that none is lost
/// and the order remains.
const MAX_CUES: usize = 10_000;
/// Standstills of this process that add up to more than this make the audio of an AI that sends in
/// real time stale. After less, all of it is played.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// Audio that the AI sent during a standstill arrives within this time.
const STALE: Duration = Duration::from_secs(1);
/// An empty queue keeps at most this much memory: 2 s of audio.
const KEPT_BYTES: usize = 16 * 1024;

/// Each call may queue this much outside of the shared budget: 5 s of audio. Otherwise, one AI that
/// sends far ahead would silence all other calls.
const OWN_BYTES: usize = 40_000;

/// Something that is due when the audio queued before it has been played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cue {
    /// A mark, which returns to the AI.
    Mark(String),
    /// The order with this number, which is then carried out.
    Order(u32),
}

impl Cue {
    /// Bytes of a mark's name.
    fn bytes(&self) -> usize {
        match self {
            Cue::Mark(name) => name.len(),
            Cue::Order(_) => 0,
        }
    }
}

/// A cue that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub cue: Cue,
    /// True if audio before it was discarded.
    pub cleared: bool,
}

/// The shared limit on what all calls together have queued beyond [`OWN_BYTES`] each, audio and
/// names of marks, in bytes.
#[derive(Debug, Clone)]
pub struct Budget {
    used: Arc<AtomicUsize>,
    limit: Arc<AtomicUsize>,
}

impl Budget {
    pub fn new(limit: usize) -> Budget {
        Budget { used: Arc::new(AtomicUsize::new(0)), limit: Arc::new(AtomicUsize::new(limit)) }
    }

    /// Changes the limit for all clones. What is reserved already stays.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Reserves `bytes`. Returns false, reserving nothing, if that would exceed the limit.
    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.limit.load(Ordering::Relaxed) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The playout queue of one call.
#[derive(Debug)]
pub struct Playout {
    /// The queued audio, in one ring buffer that is reused.
    audio: VecDeque<u8>,
    /// Bytes played, left out or discarded so far.
    passed: u64,
    /// Queued cues; each comes due when `passed` reaches its number.
    cues: VecDeque<(u64, Cue)>,
    /// Bytes of the names of the marks in `cues`.
    name_bytes: usize,
    /// The most that this call may queue.
    limit_bytes: usize,
    budget: Budget,
    /// Bytes taken from the budget.
    reserved: usize,
    /// Cues that are due but not taken yet, in order.
    due: VecDeque<Due>,
    /// Bytes played of the present utterance.
    played: u64,
    standing: Standing,
    quiet: QuietRun,
    /// How long this process stood still since the queue was last short, and until when.
    stood_still: (Duration, Option<Instant>),
    /// True if the AI sent in real time before that.
    real_time: bool,
    /// Audio to be left out after a standstill, in bytes, and until when.
    stale: Option<(Instant, usize)>,
    /// Frames left out: quiet ones, to work off a standing delay, and stale ones.
    pub left_out: u64,
    /// Audio discarded because the queue or the budget was full.
    pub discarded_bytes: u64,
}

impl Playout {
    /// `limit_bytes`: the most audio that this call may queue (on Twilio, 10 minutes).
    pub fn new(limit_bytes: usize, budget: Budget) -> Playout {
        Playout {
            audio: VecDeque::new(),
            passed: 0,
            cues: VecDeque::new(),
            name_bytes: 0,
            limit_bytes,
            budget,
            reserved: 0,
            due: VecDeque::new(),
            played: 0,
            standing: Standing::default(),
            quiet: QuietRun::default(),
            stood_still: (Duration::ZERO, None),
            real_time: false,
            stale: None,
            left_out: 0,
            discarded_bytes: 0,
        }
    }

    /// Queues mu-law audio. Returns false if any of it was discarded because the queue or the
    /// budget is full.
    pub fn push_audio(&mut self, now: Instant, audio: &[u8]) -> bool {
        let room = self.limit_bytes.saturating_sub(self.audio.len());
        let mut taken = &audio[..audio.len().min(room)];
        if !self.reserve(taken.len()) {
            taken = &taken[..taken.len().min(OWN_BYTES.saturating_sub(self.used()))];
        }
        self.discarded_bytes += (audio.len() - taken.len()) as u64;
        self.standing.arrived(now, taken.len(), self.audio.len());
        self.audio.extend(taken);
        taken.len() == audio.len()
    }

    /// Bytes queued by this call.
    fn used(&self) -> usize {
        self.audio.len() + self.name_bytes
    }

    /// Takes what `more` bytes need from the budget. Returns false if the budget is used up.
    fn reserve(&mut self, more: usize) -> bool {
        let wanted = (self.used() + more).saturating_sub(OWN_BYTES);
        let missing = wanted.saturating_sub(self.reserved);
        let taken = missing == 0 || self.budget.take(missing);
        self.reserved += if taken { missing } else { 0 };
        taken
    }

    /// Gives back what the queue no longer needs.
    fn release(&mut self) {
        let needed = self.used().saturating_sub(OWN_BYTES);
        let spare = self.reserved.saturating_sub(needed);
        self.reserved -= spare;
        if spare > 0 {
            self.budget.give_back(spare);
        }
    }

    /// Queues a cue. It comes due when all audio before it has been played, or at once if there is
    /// none. If the limits leave no room for it, older ones come due early.
    pub fn push_cue(&mut self, cue: Cue) {
        if self.audio.is_empty() {
            return self.due.push_back(Due { cue, cleared: false });
        }
        let bytes = cue.bytes();
        while self.cues.len() >= MAX_CUES
            || self.name_bytes + bytes > self.limit_bytes
            || !self.reserve(bytes)
        {
            // with no older one left, there is no room for this one at all
            if !self.oldest_cue_due(false) {
                return self.due.push_back(Due { cue, cleared: false });
            }
        }
        self.name_bytes += bytes;
        self.cues.push_back((self.passed + self.audio.len() as u64, cue));
    }

    /// Makes a mark due whose audio was left out.
    pub fn return_mark(&mut self, name: String) {
        self.due.push_back(Due { cue: Cue::Mark(name), cleared: true });
    }

    /// Makes the oldest cue due; false if there is none.
    fn oldest_cue_due(&mut self, cleared: bool) -> bool {
        let Some((_, cue)) = self.cues.pop_front() else { return false };
        self.name_bytes -= cue.bytes();
        self.release();
        self.due.push_back(Due { cue, cleared });
        true
    }

    /// Drops all marks.
    pub fn forget_marks(&mut self) {
        self.cues.retain(|(_, cue)| matches!(cue, Cue::Order(_)));
        self.due.retain(|due| matches!(due.cue, Cue::Order(_)));
        self.name_bytes = 0;
        self.release();
    }

    /// Notes that an utterance begins.
    pub fn begin_utterance(&mut self) {
        self.played = 0;
    }

    /// Bytes played of the present utterance.
    pub fn played(&self) -> u64 {
        self.played
    }

    /// Counts audio that is not queued at all as taken out of the queue, which is empty.
    pub fn leave_out(&mut self, bytes: usize) {
        self.passed += bytes as u64;
    }

    /// Discards all audio; all cues come due (Twilio's `clear`). Returns the number of bytes played
    /// of the utterance that this ends, and of bytes discarded.
    pub fn clear(&mut self) -> (u64, usize) {
        let discarded = self.audio.len();
        while discarded > 0 && self.oldest_cue_due(true) {}
        self.pass(discarded);
        self.standing.emptied();
        (std::mem::take(&mut self.played), discarded)
    }

    pub fn has_audio(&self) -> bool {
        !self.audio.is_empty()
    }

    /// All audio that was taken out of the queue so far, in bytes.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// All audio that was queued so far, in bytes.
    pub fn end(&self) -> u64 {
        self.passed + self.audio.len() as u64
    }

    pub fn queued_bytes(&self) -> usize {
        self.audio.len()
    }

    /// The least audio that was queued in the last two seconds of streaming, in bytes.
    pub fn floor_bytes(&self) -> u64 {
        self.standing.floor()
    }

    /// Notes that this process stood still for `time`. If that adds up to a second and the AI sends
    /// in real time, its audio of that time is left out, because otherwise the caller would hear
    /// everything that much later.
    pub fn stood_still(&mut self, now: Instant, time: Duration) {
        // shortly after a standstill, the AI is not in real time yet
        if self.stood_still.1.is_none() {
            self.real_time = self.standing.is_real_time();
        }
        let real_time = self.real_time;
        self.stood_still = (self.stood_still.0 + time, Some(now));
        let queued = self.audio.len().saturating_sub(self.standing.ahead());
        let missed = samples_in(time) as usize;
        let is_stale = real_time && self.stood_still.0 > STALE_AFTER;
        if is_stale {
            self.stale = Some((now + STALE, queued + missed));
        }
        let (owed, stale) = if is_stale { (0, queued) } else { (missed, 0) };
        self.standing.restart(now, real_time, owed, stale);
    }

    fn leave_out_stale(&mut self, now: Instant) {
        let Some((until, stale)) = &mut self.stale else { return };
        let kept = self.standing.ahead().max(1);
        let frames = (*stale).min(self.audio.len().saturating_sub(kept)) / FRAME_SAMPLES;
        *stale -= frames * FRAME_SAMPLES;
        if *stale < FRAME_SAMPLES || now > *until {
            self.stale = None;
        }
        self.left_out += frames as u64;
        self.standing.discarded(frames * FRAME_SAMPLES);
        self.pass(frames * FRAME_SAMPLES);
    }

    /// Takes the next 20 ms of audio, padded with silence if the queue has less. Returns `None` if
    /// it is empty. Cues up to the end of the audio taken come due. Quiet frames are left out
    /// while there is a standing delay.
    pub fn next_frame(&mut self, now: Instant) -> Option<Samples> {
        self.leave_out_stale(now);
        let mut frame = self.front()?;
        let over = self.stood_still.1.is_some_and(|at| now > at + STALE);
        if over && self.audio.len() <= FRAME_SAMPLES {
            self.stood_still = (Duration::ZERO, None);
        }
        if !self.standing.has_surplus() {
            self.quiet.reset();
        }
        while self.standing.has_surplus() && self.audio.len() > FRAME_SAMPLES {
            let hidden = self.quiet.hides_step(Law::Mu, &frame, false);
            if !((hidden || self.standing.is_stale()) && self.standing.leaves_out()) {
                break;
            }
            self.left_out += 1;
            self.pass(FRAME_SAMPLES);
            frame = self.front()?;
        }
        let bytes = self.audio.len().min(FRAME_SAMPLES);
        self.played += bytes as u64;
        self.pass(bytes);
        self.standing.played(now, self.audio.len());
        Some(frame)
    }

    /// Returns the first frame of the queue, padded with silence; `None` if the queue is empty.
    fn front(&self) -> Option<Samples> {
        let length = self.audio.len().min(FRAME_SAMPLES);
        if length == 0 {
            return None;
        }
        let mut frame = [SILENCE; FRAME_SAMPLES];
        let (front, back) = self.audio.as_slices();
        let from_front = front.len().min(length);
        frame[..from_front].copy_from_slice(&front[..from_front]);
        frame[from_front..length].copy_from_slice(&back[..length - from_front]);
        Some(frame)
    }

    /// Removes the first `count` bytes, which are being played, left out or discarded.
    fn pass(&mut self, count: usize) {
        self.audio.drain(..count);
        self.passed += count as u64;
        self.release();
        if self.audio.is_empty() {
            match self.audio.capacity() > KEPT_BYTES {
                true => self.audio = VecDeque::new(),
                false => self.audio.clear(), // restart at the front, which is in the cache
            }
        } else if self.audio.capacity() > KEPT_BYTES.max(4 * self.audio.len()) {
            self.audio.shrink_to(2 * self.audio.len());
        }
        while self.cues.front().is_some_and(|(at, _)| *at <= self.passed) {
            self.oldest_cue_due(false);
        }
    }

    /// Takes the next cue that is due.
    pub fn next_cue(&mut self) -> Option<Due> {
        self.due.pop_front()
    }
}

impl Drop for Playout {
    fn drop(&mut self) {
        self.budget.give_back(self.reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    fn playout() -> Playout {
        Playout::new(1000, Budget::new(1500))
    }

    fn marks(playout: &mut Playout) -> Vec<String> {
        let name = |due: Due| match due.cue {
            Cue::Mark(name) => name,
            Cue::Order(number) => panic!("order {number}"),
        };
        std::iter::from_fn(|| playout.next_cue()).map(name).collect()
    }

    fn mark(name: &str) -> Cue {
        Cue::Mark(name.to_owned())
    }

    #[test]
    fn audio_of_any_size_becomes_frames_and_the_last_is_padded() {
        let mut playout = playout();
        let all: Vec<u8> = (0..=199).collect();
        for piece in all.chunks(7) {
            assert!(playout.push_audio(start(), piece));
        }
        assert_eq!(playout.next_frame(start()).unwrap()[..], all[..160]);
        let last = playout.next_frame(start()).unwrap();
        assert_eq!(last[..40], all[160..]);
        assert!(last[40..].iter().all(|s| *s == SILENCE));
        assert_eq!(playout.next_frame(start()), None);
    }

    #[test]
    fn marks_come_due_with_the_last_byte_before_them() {
        let mut playout = playout();
        playout.push_cue(mark("idle"));
        assert_eq!(marks(&mut playout), ["idle"]);
        playout.push_audio(start(), &[1; 160]);
        playout.push_cue(mark("a"));
        playout.push_audio(start(), &[2; 100]);
        playout.push_cue(mark("b"));
        playout.push_audio(start(), &[3; 100]);
        playout.push_cue(mark("c"));
        assert!(marks(&mut playout).is_empty());
        playout.next_frame(start());
        assert_eq!(marks(&mut playout), ["a"]);
        playout.next_frame(start());
        assert_eq!(marks(&mut playout), ["b"]);
        playout.next_frame(start());
        assert_eq!(marks(&mut playout), ["c"]);
    }

    #[test]
    fn clear_returns_all_marks_in_order() {
        let mut playout = playout();
        playout.push_audio(start(), &[1; 500]);
        playout.push_cue(mark("a"));
        playout.push_cue(mark("b"));
        playout.clear();
        assert_eq!(marks(&mut playout), ["a", "b"]);
        assert_eq!(playout.next_frame(start()), None);
    }

    #[test]
    fn the_limits_per_call_and_for_all_calls_hold() {
        let budget = Budget::new(1500);
        let mut one = Playout::new(OWN_BYTES + 1000, budget.clone());
        let mut two = Playout::new(OWN_BYTES + 1000, budget.clone());
        assert!(one.push_audio(start(), &[1; OWN_BYTES + 900]));
        assert!(!one.push_audio(start(), &[1; 200]));
        assert_eq!((one.queued_bytes(), one.discarded_bytes), (OWN_BYTES + 1000, 100));
        assert!(!two.push_audio(start(), &[1; OWN_BYTES + 600]));
        assert_eq!(two.queued_bytes(), OWN_BYTES);
        drop(one);
        assert!(two.push_audio(start(), &[1; 600]));
        two.clear();
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_used_up_budget_takes_no_audio_and_no_mark_from_a_call_that_is_little_ahead() {
        let budget = Budget::new(1000);
        let mut greedy = Playout::new(1 << 20, budget.clone());
        greedy.push_audio(start(), &[1; OWN_BYTES + 1000]);
        assert!(!greedy.push_audio(start(), &[1; 160]));
        let mut other = Playout::new(1 << 20, budget.clone());
        assert!(other.push_audio(start(), &[1; OWN_BYTES - 100]));
        other.push_cue(mark("a"));
        assert!(marks(&mut other).is_empty());
        drop((greedy, other));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_oldest_marks_come_due_early_when_there_are_too_many() {
        let mut playout = Playout::new(1 << 20, Budget::new(1 << 21));
        playout.push_audio(start(), &[1; 160]);
        (0..MAX_CUES + 3).for_each(|n| playout.push_cue(mark(&n.to_string())));
        assert_eq!(marks(&mut playout), ["0", "1", "2"]);
        playout.next_frame(start());
        let rest = marks(&mut playout);
        assert_eq!((rest.len(), rest[0].as_str()), (MAX_CUES, "3"));
        // names count towards the limits
        playout.push_audio(start(), &[1; 160]);
        let long = |n: u8| char::from(n).to_string().repeat(600 * 1024);
        playout.push_cue(Cue::Mark(long(b'a')));
        playout.push_cue(Cue::Mark(long(b'b')));
        assert_eq!(marks(&mut playout), [long(b'a')]);
        let budget = playout.budget.clone();
        assert_eq!(budget.used.load(Ordering::Relaxed), 600 * 1024 + 160 - OWN_BYTES);
        drop(playout);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    /// Plays ten seconds of an AI that sends a frame every 20 ms, with `before` frames ahead of
    /// that and a stall of `stall` frames, after which it sends what is due at once. Every fifth
    /// half second is quiet. Returns the frames queued at the end, and those left out.
    fn stream(before: usize, stall: u64) -> (usize, u64) {
        let mut playout = Playout::new(1 << 20, Budget::new(1 << 20));
        let t0 = start();
        let frame = |n: u64| if n / 25 % 5 == 4 { [SILENCE; 160] } else { [0x10; 160] };
        (0..before).for_each(|_| {
            playout.push_audio(t0, &[0x10; 160]);
        });
        for n in 0..500 + stall {
            let now = t0 + Duration::from_millis(20 * n);
            match n {
                n if n < 100 => {
                    playout.push_audio(now, &frame(n));
                }
                n if n < 100 + stall => {}
                n if n == 100 + stall => {
                    (100..=n).for_each(|n| {
                        playout.push_audio(now, &frame(n));
                    });
                }
                n => {
                    playout.push_audio(now, &frame(n));
                }
            }
            playout.next_frame(now);
        }
        (playout.queued_bytes() / 160, playout.left_out)
    }

    #[test]
    fn a_delay_left_by_a_stall_is_worked_off_in_quiet_frames() {
        let (queued, left_out) = stream(0, 20);
        assert!(queued <= 3 && left_out >= 17, "{queued} queued, {left_out} left out");
        assert_eq!(stream(0, 0), (0, 0));
    }

    /// A process that stood still for `stall` frames reads what the AI sent meanwhile, over two
    /// ticks. Returns the frames queued half a second later, and those left out.
    fn standstill(ahead: usize, stall: u64, noticed: u64) -> (usize, u64) {
        standstills(ahead, &[(stall, noticed, 125)])
    }

    /// Standstills, each with its length, the length that is noticed, and the time until the next,
    /// in frames.
    fn standstills(ahead: usize, all: &[(u64, u64, u64)]) -> (usize, u64) {
        let mut playout = Playout::new(1 << 20, Budget::new(1 << 20));
        let t0 = start();
        let push = |playout: &mut Playout, now, count: u64| {
            (0..count).for_each(|_| assert!(playout.push_audio(now, &[0x10; 160])));
        };
        let run = |playout: &mut Playout, from: u64, count: u64, mut late: u64| {
            for n in 0..count {
                let now = t0 + Duration::from_millis(20 * (from + n));
                // what has arrived is read in two pieces
                let part = if n == 0 { late.min(32) } else { late };
                push(playout, now, part + 1);
                late -= part;
                playout.next_frame(now);
            }
        };
        push(&mut playout, t0, ahead as u64);
        run(&mut playout, 0, 250, 0);
        let mut at = 250;
        for (stall, noticed, pause) in all {
            at += stall;
            let now = t0 + Duration::from_millis(20 * at);
            playout.stood_still(now, Duration::from_millis(20 * noticed));
            run(&mut playout, at, *pause, *stall);
            at += pause;
        }
        (playout.queued_bytes() / 160, playout.left_out)
    }

    #[test]
    fn after_a_long_standstill_stale_audio_is_left_out() {
        assert_eq!(standstill(0, 100, 100), (0, 100));
        // audio that the AI had sent ahead is still ahead
        assert_eq!(standstill(30, 100, 100), (30, 100));
        // the standstill began a little before it could be noticed
        assert_eq!(standstill(0, 103, 100), (0, 103));
    }

    #[test]
    fn after_many_standstills_stale_audio_is_left_out() {
        for count in 2..6 {
            let mut all = vec![(47, 47, 15); count];
            // the last one began a little before it could be noticed
            *all.last_mut().unwrap() = (49, 47, 125);
            assert_eq!(standstills(0, &all), (0, 47 * count as u64 + 2), "{count}");
        }
        assert_eq!(standstill(0, 47, 47), (47, 0));
    }

    #[test]
    fn audio_sent_ahead_is_played_whole() {
        assert_eq!(stream(100, 0), (100, 0));
    }

    /// An utterance sent ahead, a pause of the AI, and then a stream in real time behind it.
    #[test]
    fn audio_sent_ahead_is_played_whole_although_the_ai_paused() {
        let mut playout = Playout::new(1 << 20, Budget::new(1 << 20));
        let t0 = start();
        (0..500).for_each(|n| {
            let frame = if n % 50 < 25 { [SILENCE; 160] } else { [0x10; 160] };
            playout.push_audio(t0, &frame);
        });
        for n in 0..480 {
            let now = t0 + Duration::from_millis(20 * n);
            if n >= 250 {
                playout.push_audio(now, &[0x10; 160]);
            }
            playout.next_frame(now);
        }
        assert_eq!((playout.left_out, playout.floor_bytes()), (0, 0));
    }
}
