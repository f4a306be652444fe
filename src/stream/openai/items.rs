//! How much of each utterance of the model the caller has heard, in bytes of mu-law. Utterances are
//! played one after the other, so each one has a place in all audio of the stream.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;

/// Bytes per millisecond.
const BYTES_PER_MS: u64 = 8;
/// Utterances that are kept. Those before them were heard long ago.
const MAX_ITEMS: usize = 256;
/// Interruptions that may be unanswered at once.
const MAX_CLEARS: usize = 64;

/// The end of what the model is to remember of an utterance.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Truncation {
    pub item_id: String,
    pub content_index: u64,
    pub end_ms: u64,
}

/// A piece of audio without a gap: an utterance, or part of one.
#[derive(Debug)]
struct Item {
    id: String,
    content_index: u64,
    /// Its place in the stream.
    start: u64,
    bytes: u64,
    /// Bytes of the same utterance before it.
    before: u64,
    /// True if more of it arrived after an interruption, and was not played.
    cut: bool,
    /// How much of it was heard, once that is final.
    heard: Option<u64>,
    truncated: bool,
}

impl Item {
    fn truncation(&mut self, heard: u64) -> Truncation {
        self.truncated = true;
        let end_ms = (self.before + heard) / BYTES_PER_MS;
        Truncation { item_id: self.id.clone(), content_index: self.content_index, end_ms }
    }
}

/// The utterances of a stream.
#[derive(Debug, Default)]
pub(super) struct Items {
    items: VecDeque<Item>,
    /// All audio so far that is played, or waits for it.
    end: u64,
    /// The value of `end` at each interruption of which the outcome is not known.
    clears: VecDeque<u64>,
    /// Audio for which the playout queue had no room.
    lost: u64,
    /// The response that was interrupted last. What it still sends is not played.
    interrupted: Option<String>,
}

impl Items {
    /// Adds audio. Returns false if it must not be played, because it was interrupted.
    pub fn add(&mut self, response: &str, id: &str, content_index: u64, bytes: usize) -> bool {
        let is_played = self.interrupted.as_deref() != Some(response);
        let same = |item: &Item| item.id == id && item.content_index == content_index;
        if self.items.back().is_none_or(|last| !same(last) || last.heard.is_some()) {
            let earlier = self.items.iter_mut().rev().find(|item| same(item));
            match earlier {
                Some(earlier) if !is_played => {
                    earlier.cut = true;
                    return false;
                }
                earlier => {
                    let before = earlier.map_or(0, |item| item.before + item.bytes);
                    self.push(id, content_index, before);
                }
            }
        }
        if let Some(last) = self.items.back_mut() {
            match is_played {
                true => last.bytes += bytes as u64,
                false => last.cut = true,
            }
        }
        self.end += if is_played { bytes as u64 } else { 0 };
        is_played
    }

    fn push(&mut self, id: &str, content_index: u64, before: u64) {
        if self.items.len() >= MAX_ITEMS {
            self.items.pop_front();
        }
        let item = Item {
            id: id.to_owned(),
            content_index,
            start: self.end,
            bytes: 0,
            before,
            cut: false,
            heard: None,
            truncated: false,
        };
        self.items.push_back(item);
    }

    /// Notes that the caller has interrupted `response`, and that the playout queue is cleared.
    pub fn clear(&mut self, response: Option<&str>) {
        if let Some(response) = response {
            self.interrupted = Some(response.to_owned());
        }
        if self.clears.len() >= MAX_CLEARS {
            self.clears.pop_front();
        }
        self.clears.push_back(self.end);
    }

    /// The same for an interruption that is over already: audio was queued up to `end`.
    pub fn interrupted(&mut self, response: Option<&str>, end: u64) {
        if let Some(response) = response {
            self.interrupted = Some(response.to_owned());
        }
        // its outcome follows at once
        self.clears.push_front(end + self.lost);
    }

    /// Takes the outcome of an interruption: `at` bytes of the stream had been played before, and
    /// `discarded` will not be. Returns the utterances that were not heard to their end.
    pub fn cleared(&mut self, at: u64, discarded: u64) -> Vec<Truncation> {
        let end = self.clears.pop_front().unwrap_or(self.end);
        let played = at + self.lost;
        // the queue is empty now, which shows how much was not queued at all
        self.lost = end.saturating_sub(at + discarded);
        let mut truncations: Vec<Truncation> = Vec::new();
        for item in self.items.iter_mut().filter(|item| item.heard.is_none()) {
            if item.start >= end && !item.cut {
                continue;
            }
            let heard = played.saturating_sub(item.start).min(item.bytes);
            item.heard = Some(heard);
            let known = truncations
                .iter()
                .any(|t| t.item_id == item.id && t.content_index == item.content_index);
            if (heard < item.bytes || item.cut) && !known {
                truncations.push(item.truncation(heard));
            }
        }
        self.forget();
        truncations
    }

    /// Notes that a response is complete. Returns what it still sent of interrupted utterances.
    pub fn response_done(&mut self) -> Vec<Truncation> {
        if !self.clears.is_empty() {
            // the outcome of the interruption shows all of them
            return Vec::new();
        }
        let late = self.items.iter_mut().filter(|item| item.cut && !item.truncated);
        let truncations = late
            .map(|item| {
                let heard = *item.heard.get_or_insert(item.bytes);
                item.truncation(heard)
            })
            .collect();
        self.items.retain(|item| item.heard.is_none());
        truncations
    }

    /// Drops what is final. The last one stays, because more of it may arrive.
    fn forget(&mut self) {
        while self.items.len() > 1 && self.items.front().is_some_and(|item| item.heard.is_some()) {
            self.items.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truncation(id: &str, end_ms: u64) -> Truncation {
        Truncation { item_id: id.to_owned(), content_index: 0, end_ms }
    }

    #[test]
    fn what_was_not_heard_is_truncated_to_the_millisecond() {
        // two utterances of 1 s and 0.5 s; how much was played; what is truncated
        for (played, expected) in [
            (0, vec![truncation("a", 0), truncation("b", 0)]),
            (7, vec![truncation("a", 0), truncation("b", 0)]),
            (1600, vec![truncation("a", 200), truncation("b", 0)]),
            (7999, vec![truncation("a", 999), truncation("b", 0)]),
            (8000, vec![truncation("b", 0)]),
            (9600, vec![truncation("b", 200)]),
            (11_999, vec![truncation("b", 499)]),
            (12_000, vec![]),
        ] {
            let mut items = Items::default();
            for _ in 0..10 {
                assert!(items.add("r", "a", 0, 800));
            }
            assert!(items.add("r", "b", 0, 4000));
            items.clear(None);
            // these belong to the next answer
            assert!(items.add("r2", "c", 0, 800));
            assert_eq!(items.cleared(played, 12_000 - played), expected, "{played}");
            items.clear(None);
            assert_eq!(items.cleared(12_080, 720), [truncation("c", 10)]);
        }
    }

    #[test]
    fn late_audio_is_not_played_and_not_remembered() {
        let mut items = Items::default();
        assert!(items.add("r", "a", 0, 800));
        items.clear(Some("r"));
        assert!(!items.add("r", "a", 0, 800));
        assert!(!items.add("r", "b", 0, 800));
        // all that arrived in time was heard, but not what came after it
        assert_eq!(items.cleared(800, 0), [truncation("a", 100), truncation("b", 0)]);
        assert_eq!(items.response_done(), []);
        assert!(items.add("r2", "c", 0, 800));
        items.clear(None);
        assert_eq!(items.cleared(1600, 0), []);

        // the outcome of the interruption is known first
        let mut items = Items::default();
        assert!(items.add("r", "a", 0, 800));
        items.clear(Some("r"));
        assert_eq!(items.cleared(800, 0), []);
        assert!(!items.add("r", "a", 0, 800));
        assert!(!items.add("r", "b", 0, 800));
        assert_eq!(items.response_done(), [truncation("a", 100), truncation("b", 0)]);
        assert_eq!(items.response_done(), []);
    }

    #[test]
    fn an_interruption_before_the_answer_to_the_one_before() {
        let mut items = Items::default();
        assert!(items.add("r", "a", 0, 800));
        items.clear(Some("r"));
        assert!(items.add("r2", "b", 0, 800));
        items.clear(Some("r2"));
        assert_eq!(items.cleared(160, 640), [truncation("a", 20)]);
        assert_eq!(items.cleared(960, 640), [truncation("b", 20)]);
    }

    /// Audio beyond the limits of the playout queue counts as not heard, and the next utterance is
    /// exact again.
    #[test]
    fn audio_that_was_not_queued_is_not_remembered() {
        let mut items = Items::default();
        assert!(items.add("r", "a", 0, 8000));
        items.clear(None);
        // 5000 bytes were queued, of which 4000 were played
        assert_eq!(items.cleared(4000, 1000), [truncation("a", 500)]);
        assert!(items.add("r", "b", 0, 8000));
        items.clear(None);
        assert_eq!(items.cleared(5800, 7200), [truncation("b", 100)]);
    }

    #[test]
    fn parts_of_an_utterance_count_together() {
        let mut items = Items::default();
        assert!(items.add("r", "a", 0, 800) && items.add("r", "b", 0, 800));
        assert!(items.add("r", "a", 0, 800));
        items.clear(None);
        assert_eq!(items.cleared(2000, 400), [truncation("a", 150)]);
        // what is kept is bounded
        for n in 0..1000 {
            items.add("r", &n.to_string(), 0, 8);
            items.clear(Some("x"));
        }
        assert!(items.items.len() <= MAX_ITEMS && items.clears.len() <= MAX_CLEARS);
    }
}
