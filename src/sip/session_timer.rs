//! Session timers (RFC 4028): the refresher, the time of the refresh, and the expiry.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::sip::header::{find_param, parse_number, parse_seconds};
use crate::sip::message::Message;

/// Smallest session interval we accept, in seconds (RFC 4028 §5 recommends at least 90 s).
pub const MIN_SE: u32 = 90;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresher {
    Us,
    Peer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionTimer {
    pub interval_s: u32,
    pub refresher: Refresher,
    /// Time of the last refresh.
    since: Instant,
    /// Time of the next attempt, after a refresh that failed.
    retry_at: Option<Instant>,
}

/// The session timer that an INVITE or UPDATE asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Nothing,
    /// The interval is below [`MIN_SE`]: answer 422 with `Min-SE`.
    TooSmall,
    Timer(SessionTimer),
}

/// The action that is due when a timer fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Nothing,
    Refresh,
    Expired,
}

impl SessionTimer {
    /// Reads the timer from an incoming request. `was` is the dialog's present timer: a refresh
    /// that names no refresher keeps the roles.
    pub fn asked(request: &Message, was: Option<&SessionTimer>, now: Instant) -> Asked {
        let Some(value) = request.get("Session-Expires") else { return Asked::Nothing };
        let Some((interval_s, params)) = parse_seconds(value) else { return Asked::Nothing };
        if interval_s < MIN_SE {
            return Asked::TooSmall;
        }
        let refresher = match find_param(&params, "refresher") {
            Some("uas") => Refresher::Us,
            Some("uac") => Refresher::Peer,
            _ => was.map_or(Refresher::Peer, |w| w.refresher),
        };
        Asked::Timer(SessionTimer { interval_s, refresher, since: now, retry_at: None })
    }

    /// Reads the timer from a 2xx to our INVITE, re-INVITE or UPDATE, where we are the `uac`.
    pub fn from_response(response: &Message, now: Instant) -> Option<SessionTimer> {
        let (interval_s, params) = parse_seconds(response.get("Session-Expires")?)?;
        let peer = find_param(&params, "refresher") == Some("uas");
        let refresher = if peer { Refresher::Peer } else { Refresher::Us };
        Some(SessionTimer {
            interval_s: interval_s.max(MIN_SE),
            refresher,
            since: now,
            retry_at: None,
        })
    }

    /// Adds the header fields required in a 2xx to the peer's request (RFC 4028 §9).
    pub fn add_to_response(&self, response: &mut Message) {
        match self.refresher {
            Refresher::Us => {
                response.push("Session-Expires", format!("{};refresher=uas", self.interval_s));
            }
            Refresher::Peer => {
                response.push("Require", "timer");
                response.push("Session-Expires", format!("{};refresher=uac", self.interval_s));
            }
        }
    }

    /// Adds the header fields required in our refresh, in which we remain the refresher.
    pub fn add_to_request(&self, request: &mut Message) {
        request.push("Session-Expires", format!("{};refresher=uac", self.interval_s));
        request.push("Min-SE", MIN_SE.to_string());
    }

    pub fn refreshed(&mut self, now: Instant) {
        (self.since, self.retry_at) = (now, None);
    }

    /// Raises the interval to the Min-SE of a 422 to our refresh (RFC 4028 §7.3), up to one day.
    /// Returns false if that is not longer than the present interval.
    pub fn raise_to(&mut self, response: &Message) -> bool {
        let minimum = response.get("Min-SE").and_then(|v| parse_number(v.split(';').next()?));
        let minimum = minimum.unwrap_or(0).min(86_400);
        let raised = minimum > self.interval_s;
        self.interval_s = self.interval_s.max(minimum);
        raised
    }

    /// Schedules another attempt after a refresh that failed, for instance with 491. The expiry
    /// does not change.
    pub fn postpone(&mut self, now: Instant) {
        self.retry_at = Some(now + Duration::from_secs(3));
    }

    fn refresh_at(&self) -> Instant {
        let half = self.since + Duration::from_secs(u64::from(self.interval_s)) / 2;
        self.retry_at.map_or(half, |retry| retry.max(half))
    }

    /// Returns the time at which the session expires: before the end of the interval (RFC 4028
    /// §10), by a third of it but at most 32 s.
    pub fn expires_at(&self) -> Instant {
        let interval = Duration::from_secs(u64::from(self.interval_s));
        self.since + interval - (interval / 3).min(Duration::from_secs(32))
    }

    pub fn next_timeout(&self) -> Instant {
        match self.refresher {
            Refresher::Us => self.refresh_at().min(self.expires_at()),
            Refresher::Peer => self.expires_at(),
        }
    }

    pub fn on_timeout(&self, now: Instant) -> Due {
        match self.refresher {
            _ if now >= self.expires_at() => Due::Expired,
            Refresher::Us if now >= self.refresh_at() => Due::Refresh,
            _ => Due::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    fn invite(value: &str) -> Message {
        Message::request("INVITE", "sip:a@b").with("Session-Expires", value)
    }

    #[test]
    fn the_peer_refreshes_unless_it_asks_us_to() {
        let now = start();
        let table = [
            ("1800", Refresher::Peer),
            ("1800;refresher=uac", Refresher::Peer),
            ("1800;refresher=uas", Refresher::Us),
        ];
        for (value, refresher) in table {
            let Asked::Timer(timer) = SessionTimer::asked(&invite(value), None, now) else {
                panic!("{value}")
            };
            assert_eq!((timer.interval_s, timer.refresher), (1800, refresher));
        }
        assert_eq!(SessionTimer::asked(&invite("30"), None, now), Asked::TooSmall);
        let none = Message::request("INVITE", "sip:a@b");
        assert_eq!(SessionTimer::asked(&none, None, now), Asked::Nothing);
    }

    #[test]
    fn refreshes_at_half_the_interval_and_expires_before_its_end() {
        let now = start();
        let at = |s| now + Duration::from_secs(s);
        let ours =
            SessionTimer { interval_s: 90, refresher: Refresher::Us, since: now, retry_at: None };
        assert_eq!(ours.next_timeout(), at(45));
        assert_eq!(ours.on_timeout(at(45)), Due::Refresh);
        let theirs =
            SessionTimer { interval_s: 90, refresher: Refresher::Peer, since: now, retry_at: None };
        assert_eq!(theirs.next_timeout(), at(60));
        assert_eq!(theirs.on_timeout(at(59)), Due::Nothing);
        assert_eq!(theirs.on_timeout(at(60)), Due::Expired);
    }
}
