//! One registration (RFC 3261 §10.2) and the monitoring of its registrar.
//!
//! ```text
//!             ┌──────── 5xx, timeout ─────────> Waiting (backoff) ──┐
//! Registering ┤                                                     ├──> Registering
//!   ^         └─ wrong password, 403, 404 … ──> Waiting (slow) ─────┘
//!   │ 200
//!   v         OPTIONS unanswered or port closed
//! Registered ──────────────────────────────> Lost: REGISTER once a second
//!   ^                                          │ 2xx or challenge
//!   └── Registering (add) <── Removing <───────┘
//! ```
//! After a loss, the contact is first removed with `Expires: 0`. Asterisk keeps a contact that it
//! found unreachable marked as unavailable until the next qualify; removing the contact and adding
//! it again makes it available at once.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};

use crate::sip::contact::{foreign_contact, granted};
use crate::sip::digest::{Challenge, Credentials, Session, Signed};
use crate::sip::header::{find_param, parse_number, parse_seconds};
use crate::sip::message::Message;
use crate::sip::random::Random;

/// The registrar counts as lost if an OPTIONS stays unanswered for this long.
const SILENCE: Duration = Duration::from_secs(1);
/// Interval between REGISTERs while the registrar is lost.
const LOST_RETRY: Duration = Duration::from_secs(1);
/// Number of REGISTERs to a lost registrar between two lookups of its name.
const LOST_LOOKUP: u32 = 9;
/// First wait after an error; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Wait after a refusal that will not go away without a change of configuration.
const SLOW_RETRY: Duration = Duration::from_secs(60);
/// Longest `Retry-After` that is honoured.
const RETRY_AFTER_MAX_S: u32 = 300;
/// Number of 403s and 404s from a lost registrar that are ignored, because it may be starting.
const STARTING: u32 = 10;
/// Number of times that credentials are offered in one cycle before they count as wrong.
const TRIES: u32 = 2;

#[derive(Clone)]
pub struct Settings {
    /// Request-URI of REGISTER, as in `sip:pbx.example:5060`.
    pub registrar_uri: String,
    pub auth_username: String,
    pub password: SecretString,
    /// If set, only challenges for this realm are answered.
    pub realm: Option<String>,
    pub expires_s: u32,
    /// Interval between OPTIONS to the registrar; zero disables them.
    pub keepalive: Duration,
}

/// The status of the registration, for the log and the rest of the program. Reported only when it
/// changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Registered {
        expires_s: u32,
    },
    /// The registrar refused the REGISTER; the next attempt follows after `retry`.
    Refused {
        code: u16,
        hint: String,
        retry: Duration,
    },
    /// The registrar's name cannot be resolved, or it answers with an error or not at all.
    Failing {
        why: String,
    },
    /// The registrar answered before and has stopped answering.
    Lost {
        why: &'static str,
    },
    /// Another device is registered as the same user.
    Conflict {
        contact: String,
    },
    Unregistered,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Register {
        expires_s: u32,
        authorization: Option<(&'static str, String)>,
    },
    Options,
    /// Resolve the registrar's name again.
    Resolve,
    Changed(Status),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The registrar's address is not known yet, or is being looked up again.
    Idle,
    /// A REGISTER is outstanding.
    Registering,
    Registered {
        refresh: Instant,
    },
    /// The last attempt failed.
    Waiting {
        until: Instant,
    },
    Lost {
        /// Time of the next REGISTER.
        next: Instant,
        /// Number of REGISTERs until the name is looked up again.
        lookup_in: u32,
    },
    /// A REGISTER with `Expires: 0` is outstanding, to be followed by a normal one.
    Removing,
    /// A REGISTER with `Expires: 0` is outstanding, after which the registration stops.
    Stopping,
    Stopped,
}

pub struct Registration {
    settings: Settings,
    state: State,
    /// Actions to be returned by [`Registration::poll`].
    actions: VecDeque<Action>,
    /// The header field for our credentials and the challenge they answer.
    auth: Option<(&'static str, Session)>,
    /// Number of times that our credentials were rejected in this cycle.
    refused: u32,
    /// Number of 403s and 404s since the registrar was lost.
    refusals_lost: u32,
    /// Number of `stale=true` challenges in this cycle.
    stale: u32,
    /// The expiry we ask for; a 423 may raise it.
    expires_s: u32,
    /// Wait after the next error.
    backoff: Duration,
    /// The status last reported.
    status: Option<Status>,
    /// Time of the next OPTIONS.
    keepalive_at: Option<Instant>,
    /// Time of the first OPTIONS that is still unanswered.
    options_sent: Option<Instant>,
    /// Our address as the registrar sees it (`received` and `rport` of the Via).
    seen_as: Option<(String, String)>,
}

impl Registration {
    pub fn new(settings: Settings) -> Registration {
        Registration {
            expires_s: settings.expires_s,
            settings,
            state: State::Idle,
            actions: VecDeque::new(),
            auth: None,
            refused: 0,
            refusals_lost: 0,
            stale: 0,
            backoff: BACKOFF_MIN,
            status: None,
            keepalive_at: None,
            options_sent: None,
            seen_as: None,
        }
    }

    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub fn registrar_uri(&self) -> &str {
        &self.settings.registrar_uri
    }

    pub fn is_registered(&self) -> bool {
        matches!(self.status, Some(Status::Registered { .. } | Status::Conflict { .. }))
    }

    pub fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// Starts to register when the registrar's address is known, unless an attempt is in progress.
    pub fn on_resolved(&mut self, random: &mut Random) {
        if self.state == State::Idle {
            self.register(self.expires_s, random);
            self.state = State::Registering;
        }
    }

    pub fn on_resolve_failed(&mut self, now: Instant, why: String, random: &mut Random) {
        if self.state == State::Idle {
            self.wait(now, random);
            self.change(Status::Failing { why });
        }
    }

    /// Sends `Expires: 0` if we are, or may be, registered.
    pub fn stop(&mut self, random: &mut Random) {
        (self.refused, self.stale) = (0, 0);
        self.stop_keepalive();
        // an outstanding REGISTER may have been accepted, and a lost registrar may still have our
        // contact
        let perhaps =
            matches!(self.state, State::Registering | State::Removing | State::Lost { .. });
        if self.is_registered() || perhaps {
            self.register(0, random);
            self.state = State::Stopping;
        } else {
            self.state = State::Stopped;
        }
    }

    /// Handles a final response to one of our REGISTERs.
    pub fn on_response(
        &mut self,
        now: Instant,
        response: &Message,
        contact: &str,
        random: &mut Random,
    ) {
        let code = response.code().unwrap_or(0);
        if code < 200 || matches!(self.state, State::Idle | State::Stopped | State::Waiting { .. })
        {
            return;
        }
        self.notice_address(response);
        match code {
            200..300 => self.on_accepted(now, response, contact, random),
            401 | 407 => self.on_challenge(now, response, random),
            423 => match response.get("Min-Expires").and_then(parse_number) {
                Some(minimum @ 1..=7200) if minimum > self.expires_s => {
                    self.expires_s = minimum.max(20);
                    self.register(self.expires_s, random);
                }
                _ => self.refuse(now, code, "the 423 has no usable Min-Expires".to_owned(), random),
            },
            // a PBX that is starting may not know its users yet
            403 | 404 if self.is_starting() => {}
            300..=399 | 403 | 404 | 405 | 416 | 420 | 501 | 600.. => {
                let who = &self.settings.auth_username;
                let hint = match code {
                    403 => format!("the PBX refuses user \"{who}\": check username and password"),
                    404 => format!("the PBX does not know user \"{who}\""),
                    405 | 501 => "that address is not a registrar".to_owned(),
                    _ => "check the registrar's address and user".to_owned(),
                };
                self.refuse(now, code, hint, random);
            }
            // the PBX may still be starting; the next REGISTER follows within a second
            _ if matches!(self.state, State::Lost { .. }) => {}
            _ => {
                let after = response.get("Retry-After").and_then(parse_seconds).map(|(s, _)| s);
                self.wait(now, random);
                if let (Some(seconds), State::Waiting { until }) = (after, &mut self.state) {
                    let jitter = Duration::from_millis(random.range(0, 1000));
                    let asked = Duration::from_secs(u64::from(seconds.min(RETRY_AFTER_MAX_S)));
                    *until = (*until).max(now + asked + jitter);
                }
                self.change(Status::Failing { why: format!("the registrar answered {code}") });
            }
        }
    }

    /// Handles a REGISTER without a response within 64·T1.
    pub fn on_register_timeout(&mut self, now: Instant, random: &mut Random) {
        match self.state {
            State::Registering | State::Removing => {
                self.wait(now, random);
                self.change(Status::Failing { why: "the registrar does not answer".to_owned() });
            }
            State::Stopping => self.state = State::Stopped,
            _ => {}
        }
    }

    /// Handles a response to our OPTIONS. Any response shows that the registrar is running.
    pub fn on_options_answered(&mut self, response: &Message) {
        self.options_sent = None;
        if self.notice_address(response) && matches!(self.state, State::Registered { .. }) {
            // a NAT gave us another port, or our address changed, so calls would go to the old one;
            // the route is looked up again because the Contact depends on it
            self.state = State::Idle;
            (self.refused, self.stale) = (0, 0);
            self.actions.push_back(Action::Resolve);
        }
    }

    /// Handles an ICMP port unreachable or a failed TCP connection.
    pub fn on_unreachable(&mut self, now: Instant) {
        match self.state {
            State::Lost { .. } | State::Stopped | State::Idle => {}
            // no registrar is running that could still have our contact
            State::Stopping => self.state = State::Stopped,
            _ => self.lose(now, "its port is closed"),
        }
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        let state = match self.state {
            State::Registered { refresh } => Some(refresh),
            State::Waiting { until } => Some(until),
            State::Lost { next, .. } => Some(next),
            _ => None,
        };
        let silence = self.options_sent.map(|sent| sent + SILENCE);
        [state, silence, self.keepalive_at].into_iter().flatten().min()
    }

    pub fn on_timeout(&mut self, now: Instant, random: &mut Random) {
        if self.options_sent.is_some_and(|sent| sent + SILENCE <= now) {
            self.lose(now, "it does not answer OPTIONS");
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            self.keepalive_at = Some(now + self.settings.keepalive);
            self.options_sent.get_or_insert(now);
            self.actions.push_back(Action::Options);
        }
        match self.state {
            State::Registered { refresh } if refresh <= now => self.begin(random),
            State::Waiting { until } if until <= now => {
                // the name may resolve to another address by now
                self.state = State::Idle;
                self.actions.push_back(Action::Resolve);
            }
            State::Lost { next, lookup_in } if next <= now => {
                if lookup_in == 0 {
                    // the registrar may have come back at another address
                    self.actions.push_back(Action::Resolve);
                }
                let lookup_in = lookup_in.checked_sub(1).unwrap_or(LOST_LOOKUP);
                self.state = State::Lost { next: now + LOST_RETRY, lookup_in };
                (self.refused, self.stale) = (0, 0);
                self.register(self.expires_s, random);
            }
            _ => {}
        }
    }

    fn begin(&mut self, random: &mut Random) {
        (self.refused, self.stale) = (0, 0);
        self.register(self.expires_s, random);
        self.state = State::Registering;
    }

    fn register(&mut self, expires_s: u32, random: &mut Random) {
        let settings = &self.settings;
        let authorization = self.auth.as_mut().map(|(header, session)| {
            let signed = Signed { method: "REGISTER", uri: &settings.registrar_uri, body: "" };
            let password = settings.password.expose_secret();
            let who = Credentials { username: &settings.auth_username, password };
            (*header, session.authorize(signed, who, &random.token()))
        });
        self.actions.push_back(Action::Register { expires_s, authorization });
    }

    fn on_accepted(
        &mut self,
        now: Instant,
        response: &Message,
        contact: &str,
        random: &mut Random,
    ) {
        (self.refused, self.stale) = (0, 0);
        match self.state {
            State::Lost { .. } => {
                self.register(0, random);
                self.state = State::Removing;
                return;
            }
            State::Removing => {
                self.register(self.expires_s, random);
                self.state = State::Registering;
                return;
            }
            State::Stopping => {
                self.state = State::Stopped;
                self.change(Status::Unregistered);
                return;
            }
            _ => {}
        }
        let granted = granted(response, contact).unwrap_or(self.expires_s);
        if granted == 0 {
            self.wait(now, random);
            self.change(Status::Failing { why: "the registrar granted an expiry of 0".to_owned() });
            return;
        }
        self.backoff = BACKOFF_MIN;
        // a random 70–80 % of the granted time, so that many registrations do not refresh at once
        let part = u64::from(granted) * 1000 * random.range(70, 80) / 100;
        self.state = State::Registered { refresh: now + Duration::from_millis(part) };
        if !self.settings.keepalive.is_zero() && self.keepalive_at.is_none() {
            self.keepalive_at = Some(now + self.settings.keepalive);
        }
        match foreign_contact(response, contact) {
            Some(contact) => self.change(Status::Conflict { contact }),
            None => self.change(Status::Registered { expires_s: granted }),
        }
    }

    fn on_challenge(&mut self, now: Instant, response: &Message, random: &mut Random) {
        let code = response.code().unwrap_or(401);
        let (ask, answer) = match code {
            407 => ("Proxy-Authenticate", "Proxy-Authorization"),
            _ => ("WWW-Authenticate", "Authorization"),
        };
        let challenge = match Challenge::best(response.all(ask), self.settings.realm.as_deref()) {
            Ok(challenge) => challenge,
            Err(error) => return self.refuse(now, code, error.to_string(), random),
        };
        if challenge.stale {
            self.stale += 1;
        } else if self.auth.is_some() {
            self.refused += 1;
        }
        if self.refused >= TRIES || self.stale > TRIES {
            self.auth = None;
            let who = &self.settings.auth_username;
            let hint = format!("wrong password for user \"{who}\" (or the PBX does not know it)");
            return self.refuse(now, code, hint, random);
        }
        self.auth = Some((answer, Session::new(challenge)));
        match self.state {
            State::Stopping | State::Removing => self.register(0, random),
            State::Lost { .. } => {
                self.register(0, random);
                self.state = State::Removing;
            }
            _ => self.register(self.expires_s, random),
        }
    }

    fn refuse(&mut self, now: Instant, code: u16, hint: String, random: &mut Random) {
        if self.state == State::Stopping {
            self.state = State::Stopped;
            return;
        }
        let retry = SLOW_RETRY + Duration::from_millis(random.range(0, 5000));
        self.state = State::Waiting { until: now + retry };
        self.stop_keepalive();
        self.change(Status::Refused { code, hint, retry: SLOW_RETRY });
    }

    fn wait(&mut self, now: Instant, random: &mut Random) {
        if self.state == State::Stopping {
            self.state = State::Stopped;
            return;
        }
        let base = self.backoff;
        self.backoff = (base * 2).min(BACKOFF_MAX);
        let jitter = random.range(0, base.as_millis() as u64 / 2);
        self.state = State::Waiting { until: now + base + Duration::from_millis(jitter) };
        self.stop_keepalive();
    }

    fn lose(&mut self, now: Instant, why: &'static str) {
        if matches!(self.state, State::Stopping | State::Stopped) {
            return;
        }
        self.stop_keepalive();
        self.refusals_lost = 0;
        // the first REGISTER goes out at once
        self.state = State::Lost { next: now, lookup_in: LOST_LOOKUP };
        self.change(Status::Lost { why });
    }

    /// Counts a 403 or 404. True for the first ones after the registrar was lost.
    fn is_starting(&mut self) -> bool {
        self.refusals_lost += 1;
        matches!(self.state, State::Lost { .. }) && self.refusals_lost <= STARTING
    }

    /// Sends no OPTIONS until we are registered again.
    fn stop_keepalive(&mut self) {
        (self.keepalive_at, self.options_sent) = (None, None);
    }

    /// Stores our address as the registrar sees it. Returns true if it changed.
    fn notice_address(&mut self, response: &Message) -> bool {
        let Some(via) = response.top_via() else { return false };
        let value = |name| find_param(&via.params, name).unwrap_or("").to_owned();
        let seen = (value("received"), value("rport"));
        let moved = self.seen_as.as_ref().is_some_and(|before| *before != seen);
        self.seen_as = Some(seen);
        moved
    }

    /// Reports a new status.
    fn change(&mut self, status: Status) {
        let same = match (&self.status, &status) {
            // one log line is enough for repeated attempts
            (Some(Status::Refused { code: a, .. }), Status::Refused { code: b, .. }) => a == b,
            (Some(Status::Registered { .. }), Status::Registered { .. }) => true,
            (Some(before), after) => before == after,
            (None, _) => false,
        };
        if !same {
            self.actions.push_back(Action::Changed(status.clone()));
            self.status = Some(status);
        }
    }
}

#[cfg(test)]
mod tests;
