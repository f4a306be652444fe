//! Key presses on their way to a model that reads only text: the keys of one entry are collected
//! and sent together, because a model answers each message.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// An entry is complete when no key has followed for this many frames (1 s), or with `#`.
const PAUSE_FRAMES: u32 = 50;
/// The keys of one message at most.
const MAX_KEYS: usize = 32;
/// How often the same keys are sent, if the model refuses them.
const ATTEMPTS: u32 = 10;

/// The keys that were pressed and not yet sent.
#[derive(Debug, Default)]
pub(super) struct Keys {
    waiting: String,
    /// Frames since the last key, or since the last refusal.
    frames: u32,
    /// The keys that were sent last.
    sent: String,
    /// How often these were refused.
    refusals: u32,
}

impl Keys {
    pub fn press(&mut self, key: char) {
        self.frames = 0;
        if self.waiting.len() < MAX_KEYS {
            self.waiting.push(key);
        }
    }

    /// Notes that 20 ms have passed.
    pub fn on_frame(&mut self) {
        self.frames = self.frames.saturating_add(1);
    }

    /// Returns the text for the model once an entry is complete.
    pub fn take(&mut self) -> Option<String> {
        let whole = self.waiting.ends_with('#') || self.waiting.len() >= MAX_KEYS;
        let paused = self.frames >= PAUSE_FRAMES;
        let again = self.refusals > 0 && !paused;
        if self.waiting.is_empty() || again || !(whole || paused) {
            return None;
        }
        self.sent = std::mem::take(&mut self.waiting);
        Some(format!("[keys pressed: {}]", self.sent))
    }

    /// Notes that the model refused the keys that were sent last, because someone was speaking.
    /// They are sent again after a pause.
    pub fn refused(&mut self) {
        if self.sent.is_empty() || self.refusals >= ATTEMPTS {
            (self.sent, self.refusals) = (String::new(), 0);
            return;
        }
        self.refusals += 1;
        self.frames = 0;
        self.waiting.insert_str(0, &std::mem::take(&mut self.sent));
    }

    /// Notes that the model has reacted to something: what was sent is not refused any more.
    pub fn accepted(&mut self) {
        self.sent.clear();
        if self.waiting.is_empty() {
            self.refusals = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Presses the keys, one per frame, and returns what is sent and after how many frames.
    fn run(keys: &mut Keys, pressed: &str, frames: u32) -> Vec<(u32, String)> {
        let mut sent = Vec::new();
        let mut pressed = pressed.chars();
        for frame in 0..frames {
            pressed.next().into_iter().filter(|key| *key != ' ').for_each(|key| keys.press(key));
            sent.extend(keys.take().map(|text| (frame, text)));
            keys.on_frame();
        }
        sent
    }

    #[test]
    fn an_entry_ends_with_a_pause_or_a_hash() {
        let entry = |frame, keys: &str| (frame, format!("[keys pressed: {keys}]"));
        assert_eq!(run(&mut Keys::default(), "1", 200), [entry(50, "1")]);
        assert_eq!(run(&mut Keys::default(), "12   3", 200), [entry(55, "123")]);
        assert_eq!(run(&mut Keys::default(), "12#4", 200), [entry(2, "12#"), entry(53, "4")]);
        let many = "5".repeat(MAX_KEYS + 1);
        let sent = run(&mut Keys::default(), &many, 200);
        assert_eq!(sent, [entry(31, &many[1..]), entry(82, "5")]);
    }

    #[test]
    fn refused_keys_are_sent_again() {
        let mut keys = Keys::default();
        assert_eq!(run(&mut keys, "1#", 5).len(), 1);
        keys.refused();
        let again = run(&mut keys, "2", 100);
        assert_eq!(again, [(50, "[keys pressed: 1#2]".to_owned())]);
        keys.accepted();
        keys.refused();
        assert_eq!(run(&mut keys, "", 100), []);
        // up to the limit
        assert_eq!(run(&mut keys, "3#", 5).len(), 1);
        for _ in 0..ATTEMPTS {
            keys.refused();
            assert_eq!(run(&mut keys, "", 100).len(), 1);
        }
        keys.refused();
        assert_eq!(run(&mut keys, "", 100), []);
    }
}
