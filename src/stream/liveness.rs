//! Detects an AI that no longer runs although its connection is up: its kernel acknowledges, or
//! its program reads, but nothing comes back. After a quiet time a ping is sent. Any data counts as
//! an answer, because an AI that is busy, for instance loading a model, may send its pong late.
//! Also limits the time for receiving one message, which is kept in memory until its end.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

/// Time for an answer to a ping.
pub const ANSWER: Duration = Duration::from_secs(10);

/// Time for one message, from its first byte to its last.
const MESSAGE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Liveness {
    /// A ping is sent after this long without received data; zero = never.
    quiet: Duration,
    /// When data was last received.
    heard: Instant,
    /// When the ping was due that has not been answered yet.
    pinged: Option<Instant>,
}

impl Liveness {
    pub fn new(now: Instant, quiet: Duration) -> Liveness {
        Liveness { quiet, heard: now, pinged: None }
    }

    /// Notes that data was received.
    pub fn on_data(&mut self, now: Instant) {
        (self.heard, self.pinged) = (now, None);
    }

    /// Notes that this process stood still for `time`, in which an answer could not be read.
    pub fn stood_still(&mut self, now: Instant, time: Duration) {
        self.heard = now.min(self.heard + time);
        self.pinged = self.pinged.map(|at| now.min(at + time));
    }

    /// Returns when the next ping is due, or when the AI counts as dead.
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.quiet.is_zero() {
            return None;
        }
        Some(self.pinged.map_or(self.heard + self.quiet, |at| at + ANSWER))
    }

    /// Returns true if a ping is to be sent now. The time for the answer begins even if the kernel
    /// does not accept the ping yet: an AI that reads nothing does not answer either.
    pub fn takes_ping(&mut self, now: Instant) -> bool {
        let due = self.pinged.is_none() && self.next_timeout().is_some_and(|at| at <= now);
        if due {
            self.pinged = Some(now);
        }
        due
    }

    pub fn is_dead(&self, now: Instant) -> bool {
        self.pinged.is_some() && self.next_timeout().is_some_and(|at| at <= now)
    }
}

/// The message that is being received.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// The number of messages before it, and when its first bytes were read.
    since: Option<(u64, Instant)>,
}

impl Unfinished {
    /// Notes the state after reading: the number of messages received so far, and true if part of
    /// another one is held.
    pub fn note(&mut self, now: Instant, messages: u64, partial: bool) {
        let same = self.since.filter(|(number, _)| *number == messages);
        self.since = partial.then(|| same.unwrap_or((messages, now)));
    }

    /// Notes that this process stood still for `time`, in which nothing could be read.
    pub fn stood_still(&mut self, now: Instant, time: Duration) {
        self.since = self.since.map(|(number, at)| (number, now.min(at + time)));
    }

    /// Returns when the message must be complete.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.since.map(|(_, at)| at + MESSAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    const QUIET: Duration = Duration::from_secs(10);

    /// Runs for `seconds` with data at the times in `data` (in ms). Returns the times of the pings
    /// and of the death, in ms.
    fn run(quiet: Duration, data: &[u64], seconds: u64) -> (Vec<u64>, Option<u64>) {
        let start = start();
        let mut life = Liveness::new(start, quiet);
        let mut pings = Vec::new();
        for ms in 0..seconds * 1000 {
            let now = start + Duration::from_millis(ms);
            if data.contains(&ms) {
                life.on_data(now);
            }
            if life.takes_ping(now) {
                pings.push(ms);
            }
            if life.is_dead(now) {
                return (pings, Some(ms));
            }
        }
        (pings, None)
    }

    #[test]
    fn an_ai_that_goes_quiet_is_dead_after_20_s() {
        assert_eq!(run(QUIET, &[], 60), (vec![10_000], Some(20_000)));
        assert_eq!(run(QUIET, &[3_000], 60), (vec![13_000], Some(23_000)));
    }

    #[test]
    fn a_late_answer_counts() {
        // pongs, or anything else, 9 s after each ping
        assert_eq!(run(QUIET, &[19_000, 38_000], 50), (vec![10_000, 29_000, 48_000], None));
        assert_eq!(run(QUIET, &[19_999], 29), (vec![10_000], None));
        assert_eq!(run(QUIET, &[20_001], 40), (vec![10_000], Some(20_000)));
    }

    #[test]
    fn a_standstill_of_this_process_is_not_the_silence_of_the_ai() {
        let t0 = start();
        let mut life = Liveness::new(t0, QUIET);
        assert!(life.takes_ping(t0 + QUIET));
        let later = t0 + Duration::from_secs(60);
        life.stood_still(later, Duration::from_secs(45));
        assert!(!life.is_dead(later));
        assert!(life.is_dead(later + Duration::from_secs(5)));
    }

    #[test]
    fn no_ping_is_sent_while_data_arrives_or_without_a_quiet_time() {
        let data: Vec<u64> = (0..60).map(|n| n * 1000).collect();
        assert_eq!(run(QUIET, &data, 60), (vec![], None));
        assert_eq!(run(Duration::ZERO, &[], 120), (vec![], None));
    }

    #[test]
    fn after_a_stall_of_this_process_the_ai_still_has_its_time() {
        let start = start();
        let mut life = Liveness::new(start, QUIET);
        let late = start + Duration::from_secs(60);
        assert!(!life.is_dead(late));
        assert!(life.takes_ping(late));
        assert!(!life.is_dead(late) && life.is_dead(late + ANSWER));
    }

    #[test]
    fn a_message_must_be_complete_ten_seconds_after_its_first_byte() {
        let begin = start();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut message = Unfinished::default();
        assert_eq!(message.next_timeout(), None);
        message.note(at(0), 5, true);
        message.note(at(9), 5, true);
        assert_eq!(message.next_timeout(), Some(at(10)));
        message.stood_still(at(9), Duration::from_secs(4));
        assert_eq!(message.next_timeout(), Some(at(14)));
        // the next one has begun
        message.note(at(12), 6, true);
        assert_eq!(message.next_timeout(), Some(at(22)));
        message.note(at(13), 7, false);
        assert_eq!(message.next_timeout(), None);
    }
}
