//! Session timers (RFC 4028): the refresher, the time of the refresh, and the expiry.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::sip::header::{find_param, option_tags, parse_number, parse_seconds};
use crate::sip::message::Message;
use crate::sip::uri::Param;

/// Smallest session interval we accept, in seconds (RFC 4028 §5 recommends at least 90 s).
pub const MIN_SE: u32 = 90;
/// The same for an interval that the peer would not raise: it has no session timers, or has chosen
/// the interval in its 2xx.
const MIN_FOREIGN_SE: u32 = 10;

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
    /// that names no refresher keeps the roles. If the peer does not support session timers, a
    /// proxy added this one, and we are the refresher (RFC 4028 §9, table 2).
    pub fn asked(request: &Message, was: Option<&SessionTimer>, now: Instant) -> Asked {
        let Some(value) = request.get("Session-Expires") else { return Asked::Nothing };
        let Some((interval_s, params)) = parse_seconds(value) else { return Asked::Nothing };
        let tags = request.all("Supported").chain(request.all("Require"));
        let supported = option_tags(tags).iter().any(|tag| tag == "timer");
        if supported && interval_s < MIN_SE {
            return Asked::TooSmall;
        }
        if interval_s < MIN_FOREIGN_SE {
            return Asked::Nothing; // an answer may not be longer than what was asked for
        }
        let refresher = match refresher(&params).as_deref() {
            _ if !supported => Refresher::Us,
            Some("uas") => Refresher::Us,
            Some("uac") => Refresher::Peer,
            _ => was.map_or(Refresher::Peer, |w| w.refresher),
        };
        Asked::Timer(SessionTimer { interval_s, refresher, since: now, retry_at: None })
    }

    /// Reads the timer from a 2xx to our INVITE, re-INVITE or UPDATE, where we are the `uac`.
    pub fn from_response(response: &Message, now: Instant) -> Option<SessionTimer> {
        let (interval_s, params) = parse_seconds(response.get("Session-Expires")?)?;
        let peer = refresher(&params).as_deref() == Some("uas");
        let refresher = if peer { Refresher::Peer } else { Refresher::Us };
        Some(SessionTimer {
            interval_s: interval_s.max(MIN_FOREIGN_SE),
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
        request.push("Min-SE", MIN_SE.min(self.interval_s).to_string());
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

/// Returns the value of `refresher` in lower case: parameter values are case-insensitive (RFC 3261
/// §7.3.1).
fn refresher(params: &[Param]) -> Option<String> {
    find_param(params, "refresher").map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    fn invite(value: &str) -> Message {
        let invite = Message::request("INVITE", "sip:a@b").with("Supported", "replaces, Timer");
        invite.with("Session-Expires", value)
    }

    #[test]
    fn the_peer_refreshes_unless_it_asks_us_to() {
        let now = start();
        let table = [
            ("1800", Refresher::Peer),
            ("1800;refresher=uac", Refresher::Peer),
            ("1800;refresher=uas", Refresher::Us),
            ("1800;Refresher=UAS", Refresher::Us),
            ("1800 ; refresher = \"UAC\";", Refresher::Peer),
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
    fn we_refresh_if_the_peer_does_not_support_session_timers() {
        let now = start();
        let table = [("1800", 1800), ("90;refresher=uac", 90), ("30", 30), ("10", 10)];
        for (value, expected) in table {
            let invite = Message::request("INVITE", "sip:a@b").with("Session-Expires", value);
            let was = SessionTimer::from_response(&invite, now);
            for was in [None, was.as_ref()] {
                let Asked::Timer(timer) = SessionTimer::asked(&invite, was, now) else {
                    panic!("{value}")
                };
                assert_eq!((timer.interval_s, timer.refresher), (expected, Refresher::Us));
            }
            let short = Message::request("INVITE", "sip:a@b").with("Session-Expires", "9");
            assert_eq!(SessionTimer::asked(&short, None, now), Asked::Nothing);
            let required = invite.with("Require", "timer");
            let timer = SessionTimer::asked(&required, None, now);
            assert_ne!(timer, SessionTimer::asked(&Message::request("A", "sip:b"), None, now));
        }
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
