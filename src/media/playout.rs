//! The playout queue: the AI's audio for the caller, in pieces of any size, with marks in between.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::media::frame::{FRAME_SAMPLES, SILENCE, Samples};

/// At most this many marks are queued. Beyond that, a new mark comes due at once, so that none is
/// lost.
const MAX_MARKS: usize = 10_000;
/// An empty queue keeps at most this much memory: 2 s of audio.
const KEPT_BYTES: usize = 16 * 1024;

/// The shared limit on the audio that all calls together have queued, in bytes.
#[derive(Debug, Clone)]
pub struct Budget {
    used: Arc<AtomicUsize>,
    limit: usize,
}

impl Budget {
    pub fn new(limit: usize) -> Budget {
        Budget { used: Arc::new(AtomicUsize::new(0)), limit }
    }

    /// Reserves `bytes`. Returns false, reserving nothing, if that would exceed the limit.
    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.limit {
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
    /// Bytes played or discarded so far.
    passed: u64,
    /// Queued marks; each comes due when `passed` reaches its number.
    marks: VecDeque<(u64, String)>,
    /// The most audio that this call may queue.
    limit_bytes: usize,
    budget: Budget,
    /// Marks that are due but not yet sent back, in order.
    due: VecDeque<String>,
    /// Audio discarded because the queue or the budget was full.
    pub discarded_bytes: u64,
}

impl Playout {
    /// `limit_bytes`: the most audio that this call may queue (on Twilio, 10 minutes).
    pub fn new(limit_bytes: usize, budget: Budget) -> Playout {
        Playout {
            audio: VecDeque::new(),
            passed: 0,
            marks: VecDeque::new(),
            limit_bytes,
            budget,
            due: VecDeque::new(),
            discarded_bytes: 0,
        }
    }

    /// Queues mu-law audio. Returns false if any of it was discarded because the queue or the
    /// budget is full.
    pub fn push_audio(&mut self, audio: &[u8]) -> bool {
        let room = self.limit_bytes.saturating_sub(self.audio.len());
        let mut taken = &audio[..audio.len().min(room)];
        if !taken.is_empty() && !self.budget.take(taken.len()) {
            taken = &[];
        }
        self.discarded_bytes += (audio.len() - taken.len()) as u64;
        self.audio.extend(taken);
        taken.len() == audio.len()
    }

    /// Queues a mark. It comes due when all audio before it has been played, or at once if there is
    /// none.
    pub fn push_mark(&mut self, name: String) {
        if self.audio.is_empty() || self.marks.len() >= MAX_MARKS {
            self.due.push_back(name);
        } else {
            self.marks.push_back((self.passed + self.audio.len() as u64, name));
        }
    }

    /// Discards all audio; all marks come due (Twilio's `clear`).
    pub fn clear(&mut self) {
        self.pass(self.audio.len());
    }

    pub fn has_audio(&self) -> bool {
        !self.audio.is_empty()
    }

    pub fn queued_bytes(&self) -> usize {
        self.audio.len()
    }

    /// Takes the next 20 ms of audio, padded with silence if the queue has less. Returns `None` if
    /// it is empty. Marks up to the end of the audio taken come due.
    pub fn next_frame(&mut self) -> Option<Samples> {
        let length = self.audio.len().min(FRAME_SAMPLES);
        if length == 0 {
            return None;
        }
        let mut frame = [SILENCE; FRAME_SAMPLES];
        let (front, back) = self.audio.as_slices();
        let from_front = front.len().min(length);
        frame[..from_front].copy_from_slice(&front[..from_front]);
        frame[from_front..length].copy_from_slice(&back[..length - from_front]);
        self.pass(length);
        Some(frame)
    }

    /// Removes the first `count` bytes, which have been played or are to be discarded.
    fn pass(&mut self, count: usize) {
        self.audio.drain(..count);
        self.passed += count as u64;
        self.budget.give_back(count);
        if self.audio.is_empty() {
            match self.audio.capacity() > KEPT_BYTES {
                true => self.audio = VecDeque::new(),
                false => self.audio.clear(), // restart at the front, which is in the cache
            }
        } else if self.audio.capacity() > KEPT_BYTES.max(4 * self.audio.len()) {
            self.audio.shrink_to(2 * self.audio.len());
        }
        while self.marks.front().is_some_and(|(at, _)| *at <= self.passed) {
            self.due.extend(self.marks.pop_front().map(|(_, name)| name));
        }
    }

    /// The next mark to send back to the AI.
    pub fn next_mark(&mut self) -> Option<String> {
        self.due.pop_front()
    }
}

impl Drop for Playout {
    fn drop(&mut self) {
        self.budget.give_back(self.audio.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn playout() -> Playout {
        Playout::new(1000, Budget::new(1500))
    }

    fn marks(playout: &mut Playout) -> Vec<String> {
        std::iter::from_fn(|| playout.next_mark()).collect()
    }

    #[test]
    fn audio_of_any_size_becomes_frames_and_the_last_is_padded() {
        let mut playout = playout();
        let all: Vec<u8> = (0..=199).collect();
        for piece in all.chunks(7) {
            assert!(playout.push_audio(piece));
        }
        assert_eq!(playout.next_frame().unwrap()[..], all[..160]);
        let last = playout.next_frame().unwrap();
        assert_eq!(last[..40], all[160..]);
        assert!(last[40..].iter().all(|s| *s == SILENCE));
        assert_eq!(playout.next_frame(), None);
    }

    #[test]
    fn marks_come_due_with_the_last_byte_before_them() {
        let mut playout = playout();
        playout.push_mark("idle".into());
        assert_eq!(marks(&mut playout), ["idle"]);
        playout.push_audio(&[1; 160]);
        playout.push_mark("a".into());
        playout.push_audio(&[2; 100]);
        playout.push_mark("b".into());
        playout.push_audio(&[3; 100]);
        playout.push_mark("c".into());
        assert!(marks(&mut playout).is_empty());
        playout.next_frame();
        assert_eq!(marks(&mut playout), ["a"]);
        playout.next_frame();
        assert_eq!(marks(&mut playout), ["b"]);
        playout.next_frame();
        assert_eq!(marks(&mut playout), ["c"]);
    }

    #[test]
    fn clear_returns_all_marks_in_order() {
        let mut playout = playout();
        playout.push_audio(&[1; 500]);
        playout.push_mark("a".into());
        playout.push_mark("b".into());
        playout.clear();
        assert_eq!(marks(&mut playout), ["a", "b"]);
        assert_eq!(playout.next_frame(), None);
    }

    #[test]
    fn the_limits_per_call_and_for_all_calls_hold() {
        let budget = Budget::new(1500);
        let mut one = Playout::new(1000, budget.clone());
        let mut two = Playout::new(1000, budget.clone());
        assert!(one.push_audio(&[1; 900]));
        assert!(!one.push_audio(&[1; 200]));
        assert_eq!((one.queued_bytes(), one.discarded_bytes), (1000, 100));
        assert!(!two.push_audio(&[1; 600]));
        drop(one);
        assert!(two.push_audio(&[1; 600]));
        two.clear();
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
