//! Hold and resume: re-INVITEs that change the direction of the audio, and further attempts if the
//! peer cannot take one now (RFC 3261 §14.1).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::sip::agent::{Agent, Call, CallKey, CallState, Event, TimerKey};
use crate::sip::header::parse_seconds;
use crate::sip::message::Message;
use crate::sip::sdp::{self, Direction};

/// Maximum number of re-INVITEs for one change of direction.
const MAX_TRIES: u32 = 10;
/// Longest Retry-After that is respected, in seconds.
const MAX_RETRY_AFTER_S: u32 = 10;

/// A change of direction that the peer has not accepted yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Directing {
    /// The direction that the peer knows.
    before: Direction,
    wanted: Direction,
    /// Number of re-INVITEs sent for it.
    tries: u32,
    /// Time of the next re-INVITE; `None` while one is open.
    pub retry_at: Option<Instant>,
}

impl Agent {
    pub(super) fn change_direction(&mut self, now: Instant, key: CallKey, direction: Direction) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        if call.state != CallState::Up {
            return self.event(Event::Directed { call: key, accepted: false });
        }
        if !call.may_refresh() {
            call.next_direction = Some(direction);
            return;
        }
        let Some(before) = call.direct(direction) else { return };
        match &mut call.directing {
            // the next re-INVITE is due after a pause
            Some(waiting) => (waiting.wanted, waiting.tries) = (direction, 0),
            None => {
                let wanted = direction;
                call.directing = Some(Directing { before, wanted, tries: 0, retry_at: None });
                self.send_direction(now, key);
            }
        }
    }

    /// Sends the re-INVITE of the present change of direction.
    fn send_direction(&mut self, now: Instant, key: CallKey) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        let Some(directing) = &mut call.directing else { return };
        directing.tries += 1;
        directing.retry_at = None;
        let wanted = directing.wanted;
        // the peer's offer may have limited the direction meanwhile
        call.direct(wanted);
        self.send_reinvite(now, key);
    }

    /// Makes the change of direction that had to wait.
    pub(super) fn direct_next(&mut self, now: Instant, key: CallKey) {
        let Some(call) = self.calls.get_mut(&key).filter(|call| call.may_refresh()) else { return };
        let retry_at = call.directing.and_then(|directing| directing.retry_at);
        if let Some(direction) = call.next_direction.take() {
            self.change_direction(now, key, direction);
        } else if retry_at.is_some_and(|at| at <= now) {
            self.send_direction(now, key);
        }
        self.arm(TimerKey::Call(key));
    }

    /// True if the open re-INVITE changes the direction.
    pub(super) fn is_directing(&self, key: CallKey) -> bool {
        let directing = self.calls.get(&key).and_then(|call| call.directing);
        directing.is_some_and(|directing| directing.retry_at.is_none())
    }

    /// Reports the outcome of a change of direction, and takes the change back if it was refused.
    /// If another change is to follow, its outcome is reported instead.
    pub(super) fn directed(&mut self, key: CallKey, accepted: bool) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        let Some(done) = call.directing.take_if(|directing| directing.retry_at.is_none()) else {
            return;
        };
        if !accepted {
            call.direct(done.before);
        }
        if call.next_direction.is_none() {
            self.event(Event::Directed { call: key, accepted });
        }
    }

    /// Schedules another re-INVITE for the direction that is wanted, after one that the peer could
    /// not take. Returns false if none is wanted, or after too many of them.
    pub(super) fn direct_later(
        &mut self,
        now: Instant,
        key: CallKey,
        response: Option<&Message>,
    ) -> bool {
        let owner = self.calls.get(&key).is_some_and(|call| call.dial.is_some());
        let (shortest, longest) = if owner { (210, 400) } else { (0, 200) };
        let pause = Duration::from_millis(10 * self.random.range(shortest, longest + 1));
        let asked = response.and_then(|response| parse_seconds(response.get("Retry-After")?));
        let asked = asked.map_or(0, |(seconds, _)| seconds.min(MAX_RETRY_AFTER_S));
        let pause = pause.max(Duration::from_secs(asked.into()));
        let Some(call) = self.calls.get_mut(&key) else { return false };
        let present = call.directing;
        let again = present.filter(|directing| directing.tries < MAX_TRIES);
        let again = again.map(|directing| (directing.wanted, directing.tries));
        let next = call.next_direction.take().map(|direction| (direction, 0));
        let Some((wanted, tries)) = next.or(again) else { return false };
        let Some(before) = call.direct(wanted) else { return false };
        let before = present.map_or(before, |directing| directing.before);
        call.directing = Some(Directing { before, wanted, tries, retry_at: Some(now + pause) });
        self.arm(TimerKey::Call(key));
        true
    }
}

impl Call {
    /// Makes an offer with this direction; returns the one before. Everything else is as it was
    /// negotiated (RFC 3264 §8): the m= lines, and the payload types.
    fn direct(&mut self, direction: Direction) -> Option<Direction> {
        let local = self.local.as_mut()?;
        let before = std::mem::replace(&mut local.direction, direction);
        if sdp::redirect(&self.sdp, local) != self.sdp {
            local.version += 1;
            self.sdp = sdp::redirect(&self.sdp, local);
        }
        Some(before)
    }
}
