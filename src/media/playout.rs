//! What the AI wants the caller to hear: a queue of audio of any size and of marks between it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::media::frame::{FRAME_SAMPLES, SILENCE, Samples};

/// Most marks that may wait; over it the oldest come back unplayed, so that none is lost.
const MAX_MARKS: usize = 10_000;

/// Bytes of audio that all calls together may have queued.
#[derive(Debug, Clone)]
pub struct Budget {
    used: Arc<AtomicUsize>,
    limit: usize,
}

impl Budget {
    pub fn new(limit: usize) -> Budget {
        Budget { used: Arc::new(AtomicUsize::new(0)), limit }
    }

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

#[derive(Debug)]
enum Item {
    Audio(Bytes),
    Mark(String),
}

#[derive(Debug)]
pub struct Playout {
    queue: VecDeque<Item>,
    queued_bytes: usize,
    queued_marks: usize,
    limit_bytes: usize,
    budget: Budget,
    /// Marks that have come due, in order.
    due: VecDeque<String>,
    /// Audio thrown away because the queue was full.
    pub discarded_bytes: u64,
}

impl Playout {
    /// `limit_bytes`: how much audio one call may have queued (10 minutes on Twilio).
    pub fn new(limit_bytes: usize, budget: Budget) -> Playout {
        Playout {
            queue: VecDeque::new(),
            queued_bytes: 0,
            queued_marks: 0,
            limit_bytes,
            budget,
            due: VecDeque::new(),
            discarded_bytes: 0,
        }
    }

    /// Queues mu-law audio. False when it was discarded because too much is queued already.
    pub fn push_audio(&mut self, mut audio: Bytes) -> bool {
        let room = self.limit_bytes.saturating_sub(self.queued_bytes);
        let wanted = audio.len();
        audio.truncate(room);
        if !audio.is_empty() && !self.budget.take(audio.len()) {
            audio.clear();
        }
        self.discarded_bytes += (wanted - audio.len()) as u64;
        let complete = audio.len() == wanted;
        if !audio.is_empty() {
            self.queued_bytes += audio.len();
            self.queue.push_back(Item::Audio(audio));
        }
        complete
    }

    /// Queues a mark: due when all audio before it has been played; at once when there is none.
    pub fn push_mark(&mut self, name: String) {
        if self.queued_bytes == 0 || self.queued_marks >= MAX_MARKS {
            self.due.push_back(name);
        } else {
            self.queued_marks += 1;
            self.queue.push_back(Item::Mark(name));
        }
    }

    /// Throws all audio away; all marks come due (Twilio's `clear`).
    pub fn clear(&mut self) {
        self.budget.give_back(self.queued_bytes);
        (self.queued_bytes, self.queued_marks) = (0, 0);
        for item in self.queue.drain(..) {
            if let Item::Mark(name) = item {
                self.due.push_back(name);
            }
        }
    }

    pub fn has_audio(&self) -> bool {
        self.queued_bytes > 0
    }

    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// The next 20 ms: audio, filled up with silence where the queue runs dry. `None` when it is
    /// empty. Marks after the last byte taken come due.
    pub fn next_frame(&mut self) -> Option<Samples> {
        if self.queued_bytes == 0 {
            return None;
        }
        let mut frame = [SILENCE; FRAME_SAMPLES];
        let mut filled = 0;
        while filled < FRAME_SAMPLES {
            match self.queue.front_mut() {
                Some(Item::Audio(audio)) => {
                    let part = audio.split_to(audio.len().min(FRAME_SAMPLES - filled));
                    frame[filled..filled + part.len()].copy_from_slice(&part);
                    filled += part.len();
                    if audio.is_empty() {
                        self.queue.pop_front();
                    }
                }
                Some(Item::Mark(_)) => self.pop_mark(),
                None => break,
            }
        }
        while matches!(self.queue.front(), Some(Item::Mark(_))) {
            self.pop_mark();
        }
        self.queued_bytes -= filled;
        self.budget.give_back(filled);
        Some(frame)
    }

    fn pop_mark(&mut self) {
        if let Some(Item::Mark(name)) = self.queue.pop_front() {
            self.queued_marks -= 1;
            self.due.push_back(name);
        }
    }

    /// A mark to be sent back.
    pub fn next_mark(&mut self) -> Option<String> {
        self.due.pop_front()
    }
}

impl Drop for Playout {
    fn drop(&mut self) {
        self.budget.give_back(self.queued_bytes);
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
    fn any_size_becomes_frames_and_the_rest_is_padded() {
        let mut playout = playout();
        let all: Vec<u8> = (0..=199).collect();
        for piece in all.chunks(7) {
            assert!(playout.push_audio(Bytes::copy_from_slice(piece)));
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
        playout.push_audio(Bytes::from_static(&[1; 160]));
        playout.push_mark("a".into());
        playout.push_audio(Bytes::from_static(&[2; 100]));
        playout.push_mark("b".into());
        playout.push_audio(Bytes::from_static(&[3; 100]));
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
    fn clear_gives_all_marks_back_in_order() {
        let mut playout = playout();
        playout.push_audio(Bytes::from_static(&[1; 500]));
        playout.push_mark("a".into());
        playout.push_mark("b".into());
        playout.clear();
        assert_eq!(marks(&mut playout), ["a", "b"]);
        assert_eq!(playout.next_frame(), None);
    }

    #[test]
    fn limits_of_a_call_and_of_all() {
        let budget = Budget::new(1500);
        let mut one = Playout::new(1000, budget.clone());
        let mut two = Playout::new(1000, budget.clone());
        assert!(one.push_audio(Bytes::from(vec![1; 900])));
        assert!(!one.push_audio(Bytes::from(vec![1; 200])));
        assert_eq!((one.queued_bytes(), one.discarded_bytes), (1000, 100));
        assert!(!two.push_audio(Bytes::from(vec![1; 600])));
        drop(one);
        assert!(two.push_audio(Bytes::from(vec![1; 600])));
        two.clear();
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
