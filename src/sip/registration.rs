//! One registration (RFC 3261 §10.2) and the monitoring of its registrar.
//!
//! ```text
//!           ┌────────── 5xx ────────────> Waiting (about 2 s) ──┐
//! Asking ───┤                                                   ├──> Asking
//!   ^ │     └─ wrong password, 403, 404 … > Waiting (minutes) ──┘
//!   │ └─ silence: again every second, and the next address after three
//!   v 200          OPTIONS unanswered or port closed
//! Registered ────────────────────────────────────────> Asking (Return)
//! ```
//! After a loss, the contact is first removed with `Expires: 0` ([`Step`]). Asterisk keeps a
//! contact that it found unreachable marked as unavailable until the next qualify; removing the
//! contact and adding it again makes it available at once.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod refusals;
mod words;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;

use crate::faults::registration_refused;
use crate::sip::challenges::Challenges;
use crate::sip::contact::Bindings;
use crate::sip::digest::{Credentials, Signed};
use crate::sip::header::{find_param, parse_number};
use crate::sip::message::Message;
use crate::sip::random::Random;
use crate::sip::uri::Uri;

pub use words::{Action, Settings, Status};

/// The registrar counts as lost if an OPTIONS stays unanswered for this long.
const SILENCE: Duration = Duration::from_secs(1);
/// An address counts as silent if it has not answered REGISTER for this long. In this time, three
/// copies or three new REGISTERs are sent.
const PATIENCE: Duration = Duration::from_secs(3);
/// Interval between REGISTERs while the registrar is silent or lost.
const AGAIN: Duration = Duration::from_secs(1);
/// Number of REGISTERs to a silent registrar between two lookups of its name.
const LOOKUP: u32 = 9;

/// The purpose of an outstanding REGISTER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Find out if a lost registrar answers again; [`Step::Remove`] follows.
    Return,
    /// Remove the contact; [`Step::Add`] follows.
    Remove,
    /// Before a refresh, ask for the contacts; [`Step::Add`] follows. Only this shows that another
    /// device replaced ours: the response to a refresh lists ours again.
    Query,
    /// Add or refresh the contact.
    Add,
    /// Remove the contact for good.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The registrar's address is not known yet, or is being looked up again.
    Idle,
    /// A REGISTER is outstanding.
    Asking {
        step: Step,
        /// Time of the next REGISTER.
        again: Instant,
        /// When the present address counts as silent.
        silent_at: Instant,
        /// Number of REGISTERs until the name is looked up again.
        lookup_in: u32,
    },
    Registered {
        refresh: Instant,
    },
    /// The last attempt failed.
    Waiting {
        until: Instant,
    },
    Stopped,
}

pub struct Registration {
    settings: Settings,
    state: State,
    /// Actions to be returned by [`Registration::poll`].
    actions: VecDeque<Action>,
    /// The challenges of the registrar and of proxies before it.
    challenges: Challenges,
    /// Refusals in a row that were followed by a long wait.
    refusals: u32,
    /// True once a refusal was ignored since the registrar was lost.
    excused: bool,
    /// True if the registrar listed our contact when it accepted it.
    is_listed: bool,
    /// False once the registrar left a query unanswered or refused it.
    may_query: bool,
    /// The contact that had replaced ours before the last refresh.
    replaced_by: Option<String>,
    /// True once we have been registered: the credentials are good.
    was_registered: bool,
    /// True if we register again as soon as the removal of the registration is over.
    resuming: bool,
    /// Number of `stale=true` challenges in this cycle.
    stale: u32,
    /// Number of challenges in this cycle.
    answered: u32,
    /// The expiry we ask for; a 423 may raise it.
    expires_s: u32,
    /// Errors in a row.
    errors: u32,
    /// The status last reported.
    status: Option<Status>,
    /// Time of the next OPTIONS.
    keepalive_at: Option<Instant>,
    /// Time of the first OPTIONS that is still unanswered.
    options_sent: Option<Instant>,
    /// Our address as the registrar sees it (`received` and `rport` of the Via).
    seen_as: Option<(String, String)>,
    /// The address there that was last reported as another than ours.
    reported: Option<IpAddr>,
}

impl Registration {
    pub fn new(settings: Settings) -> Registration {
        Registration {
            expires_s: settings.expires_s,
            settings,
            state: State::Idle,
            actions: VecDeque::new(),
            challenges: Challenges::default(),
            refusals: 0,
            excused: false,
            is_listed: false,
            may_query: true,
            replaced_by: None,
            was_registered: false,
            resuming: false,
            stale: 0,
            answered: 0,
            errors: 0,
            status: None,
            keepalive_at: None,
            options_sent: None,
            seen_as: None,
            reported: None,
        }
    }

    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
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
    pub fn on_resolved(&mut self, now: Instant, random: &mut Random) {
        if self.state == State::Idle {
            self.ask(now, Step::Add, random);
        }
    }

    pub fn on_resolve_failed(&mut self, now: Instant, why: String, random: &mut Random) {
        if self.state == State::Idle {
            self.wait(now, random);
            self.change(Status::Failing { why });
        }
    }

    /// The name no longer resolves to the address in use: registers at the new one at once. After a
    /// refusal, the wait continues.
    pub fn on_address_changed(&mut self, now: Instant, random: &mut Random) {
        match &mut self.state {
            State::Registered { .. } => {
                self.status = None; // so that the registration there is reported
                self.ask(now, Step::Add, random);
            }
            State::Asking { step, again, silent_at, .. } if *step != Step::Stop => {
                (*again, *silent_at) = (now, now + PATIENCE);
            }
            _ => {}
        }
    }

    /// Sends `Expires: 0` if we are, or may be, registered.
    pub fn stop(&mut self, now: Instant, random: &mut Random) {
        self.resuming = false;
        if matches!(self.state, State::Stopped | State::Asking { step: Step::Stop, .. }) {
            return;
        }
        self.stop_keepalive();
        // an outstanding REGISTER may have been accepted, and a lost registrar may still have our
        // contact
        if self.is_registered() || matches!(self.state, State::Asking { .. }) {
            self.ask(now, Step::Stop, random);
        } else {
            self.state = State::Stopped;
        }
    }

    /// Takes other settings, such as a new password, and registers with them at once.
    pub fn renew(&mut self, now: Instant, settings: Settings, random: &mut Random) {
        self.expires_s = settings.expires_s;
        self.settings = settings;
        self.challenges = Challenges::default();
        (self.refusals, self.errors, self.stale, self.answered) = (0, 0, 0, 0);
        // the new credentials have to prove themselves
        (self.was_registered, self.excused) = (false, false);
        match self.state {
            State::Idle | State::Stopped | State::Asking { step: Step::Stop, .. } => {}
            State::Waiting { .. } => self.resume_now(),
            State::Asking { .. } | State::Registered { .. } => {
                self.stop_keepalive();
                self.status = None; // so that the outcome is reported
                self.ask(now, Step::Add, random);
            }
        }
    }

    /// True if the registrar has refused the last attempt.
    pub fn is_refused(&self) -> bool {
        matches!(self.status, Some(Status::Refused { .. }))
    }

    /// Registers again after [`Registration::stop`].
    pub fn resume(&mut self) {
        match self.state {
            State::Stopped => self.resume_now(),
            // a response to the removal would be taken for one to the new registration
            State::Asking { step: Step::Stop, .. } => self.resuming = true,
            _ => {}
        }
    }

    fn resume_now(&mut self) {
        self.resuming = false;
        self.state = State::Idle;
        self.actions.push_back(Action::Resolve);
    }

    /// The removal of the registration is over, whether or not it succeeded.
    fn stopped(&mut self) {
        self.state = State::Stopped;
        self.change(Status::Unregistered);
        if self.resuming {
            self.resume_now();
        }
    }

    /// Handles a response to one of our REGISTERs.
    pub fn on_response(
        &mut self,
        now: Instant,
        response: &Message,
        contact: &str,
        random: &mut Random,
    ) {
        let code = response.code().unwrap_or(0);
        let State::Asking { step, again, silent_at, .. } = &mut self.state else { return };
        (*again, *silent_at) = (now + PATIENCE, now + PATIENCE);
        let step = *step;
        if code < 200 {
            return;
        }
        self.notice_address(response);
        match code {
            200..300 => self.on_accepted(now, step, response, contact, random),
            401 | 407 => self.on_challenge(now, step, response, random),
            423 => match response.get("Min-Expires").and_then(parse_number) {
                Some(minimum @ 1..=7200) if minimum > self.expires_s => {
                    self.expires_s = minimum.max(20);
                    self.register(step, random);
                }
                _ => self.refuse(now, code, "the 423 has no usable Min-Expires".to_owned(), random),
            },
            _ if step == Step::Query => self.skip_query(now, random),
            408 | 480 | 500 | 502..600 => self.on_error(now, step, response, random),
            _ => {
                let hint = registration_refused(code, &self.settings.auth_username);
                self.refuse(now, code, hint, random);
            }
        }
    }

    /// Handles a REGISTER without a response within 64·T1.
    pub fn on_register_timeout(&mut self) {
        if let State::Asking { step: Step::Stop, .. } = self.state {
            self.stopped();
        }
    }

    /// Handles a response to our OPTIONS. Any response shows that the registrar is running.
    pub fn on_options_answered(&mut self, response: &Message) {
        self.options_sent = None;
        if self.notice_address(response) && matches!(self.state, State::Registered { .. }) {
            // a NAT gave us another port, or our address changed, so calls would go to the old one;
            // the route is looked up again because the Contact depends on it
            self.state = State::Idle;
            self.actions.push_back(Action::Resolve);
        }
    }

    /// Handles an ICMP port unreachable or a failed TCP connection. `has_next`: the name has an
    /// address that was not tried in this round. `gone`: see [`Status::Lost`].
    pub fn on_unreachable(&mut self, now: Instant, has_next: bool, gone: bool) {
        let why = if gone { "its port is closed" } else { "its connection timed out" };
        match &mut self.state {
            State::Stopped | State::Idle => {}
            // no registrar is running that could still have our contact
            State::Asking { step: Step::Stop, .. } => self.stopped(),
            State::Asking { again, silent_at, .. } => {
                *again = if has_next { now } else { (*again).min(now + AGAIN) };
                *silent_at = now + PATIENCE;
                if self.was_registered {
                    self.change(Status::Lost { why, gone });
                } else {
                    self.change(Status::Failing { why: why.to_owned() });
                }
            }
            // after a refusal, the wait continues
            State::Waiting { .. } if self.refusals > 0 => {}
            State::Registered { .. } | State::Waiting { .. } => self.lose(now, why, gone),
        }
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        let state = match self.state {
            State::Registered { refresh } => Some(refresh),
            State::Waiting { until } => Some(until),
            State::Asking { step: Step::Stop, .. } => None,
            State::Asking { again, silent_at, .. } => Some(again.min(silent_at)),
            State::Idle | State::Stopped => None,
        };
        let silence = self.options_sent.map(|sent| sent + SILENCE);
        [state, silence, self.keepalive_at].into_iter().flatten().min()
    }

    pub fn on_timeout(&mut self, now: Instant, random: &mut Random) {
        if self.options_sent.is_some_and(|sent| sent + SILENCE <= now) {
            self.lose(now, "it does not answer OPTIONS", false);
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            self.keepalive_at = Some(now + self.settings.keepalive);
            self.options_sent.get_or_insert(now);
            self.actions.push_back(Action::Options);
        }
        match self.state {
            State::Registered { refresh } if refresh <= now => {
                let step = if self.is_listed && self.may_query { Step::Query } else { Step::Add };
                self.ask(now, step, random);
            }
            State::Waiting { until } if until <= now => {
                // the name may resolve to another address by now
                self.state = State::Idle;
                self.actions.push_back(Action::Resolve);
            }
            State::Asking { step, .. } if step != Step::Stop => self.ask_again(now, random),
            _ => {}
        }
    }

    /// Sends the first REGISTER of a cycle.
    fn ask(&mut self, now: Instant, step: Step, random: &mut Random) {
        self.begin_cycle();
        let wait = if step == Step::Return { AGAIN } else { PATIENCE };
        let (again, silent_at) = (now + wait, now + PATIENCE);
        self.state = State::Asking { step, again, silent_at, lookup_in: LOOKUP };
        self.register(step, random);
    }

    /// Repeats an unanswered REGISTER, and turns to the next address if this one is silent.
    fn ask_again(&mut self, now: Instant, random: &mut Random) {
        let State::Asking { step, again, silent_at, lookup_in } = &mut self.state else { return };
        if *step == Step::Query {
            // otherwise OPTIONS is due
            if (*again).min(*silent_at) <= now {
                self.skip_query(now, random);
            }
            return;
        }
        let step = *step;
        let silent = *silent_at <= now;
        if silent {
            *silent_at = now + PATIENCE;
            self.actions.push_back(Action::Silent);
        }
        if *again <= now || silent {
            *again = now + AGAIN;
            if *lookup_in == 0 {
                // the registrar may have come back at another address
                self.actions.push_back(Action::Resolve);
            }
            *lookup_in = lookup_in.checked_sub(1).unwrap_or(LOOKUP);
            self.begin_cycle();
            self.register(step, random);
        }
        if silent {
            self.stop_keepalive();
            if !matches!(self.status, Some(Status::Lost { .. })) {
                self.status = Some(Status::Silent);
            }
        }
    }

    /// Refreshes without a query, which this registrar does not answer.
    fn skip_query(&mut self, now: Instant, random: &mut Random) {
        self.may_query = false;
        self.ask(now, Step::Add, random);
    }

    fn begin_cycle(&mut self) {
        (self.stale, self.answered) = (0, 0);
        self.challenges.begin();
    }

    fn register(&mut self, step: Step, random: &mut Random) {
        let settings = &self.settings;
        let expires_s = match step {
            Step::Query => None,
            Step::Remove | Step::Stop => Some(0),
            Step::Return | Step::Add => Some(self.expires_s),
        };
        let signed = Signed { method: "REGISTER", uri: &settings.registrar_uri, body: "" };
        let password = settings.password.expose_secret();
        let who = Credentials { username: &settings.auth_username, password };
        let authorization = self.challenges.answers(signed, who, &random.token());
        self.actions.push_back(Action::Register { expires_s, authorization });
    }

    fn on_accepted(
        &mut self,
        now: Instant,
        step: Step,
        response: &Message,
        contact: &str,
        random: &mut Random,
    ) {
        let seen = self.seen_as.as_ref().map(|(ip, port)| (ip.as_str(), port.as_str()));
        let bindings = Bindings::read(response, contact, seen);
        match step {
            Step::Query => {
                self.replaced_by = bindings.instead().map(str::to_owned);
                return self.ask(now, Step::Add, random);
            }
            Step::Return => return self.ask(now, Step::Remove, random),
            Step::Remove => return self.ask(now, Step::Add, random),
            Step::Stop => {
                return self.stopped();
            }
            Step::Add => {}
        }
        let granted = bindings.granted().unwrap_or(self.expires_s);
        if granted == 0 {
            self.wait(now, random);
            self.change(Status::Failing { why: "the registrar granted an expiry of 0".to_owned() });
            return;
        }
        (self.errors, self.refusals) = (0, 0);
        (self.excused, self.was_registered) = (false, true);
        // a random 70–80 % of the granted time, so that many registrations do not refresh at once
        let part = u64::from(granted) * 1000 * random.range(70, 80) / 100;
        self.state = State::Registered { refresh: now + Duration::from_millis(part) };
        if !self.settings.keepalive.is_zero() && self.keepalive_at.is_none() {
            self.keepalive_at = Some(now + self.settings.keepalive);
        }
        self.is_listed = bindings.has_ours();
        let foreign = bindings.foreign().map(str::to_owned);
        let replaced_by = self.replaced_by.take();
        match foreign.or(replaced_by) {
            Some(contact) => self.change(Status::Conflict { contact }),
            None => self.change(Status::Registered { expires_s: granted }),
        }
        self.compare_address(contact);
    }

    /// Reports that calls may not reach the address in our contact.
    fn compare_address(&mut self, contact: &str) {
        let seen =
            self.seen_as.as_ref().and_then(|(ip, _)| ip.trim_matches(['[', ']']).parse().ok());
        let ours = Uri::parse(contact).ok().and_then(|uri| uri.host.ip());
        if let (Some(seen), Some(ours)) = (seen, ours)
            && seen != ours
            && self.reported != Some(seen)
        {
            self.reported = Some(seen);
            self.actions.push_back(Action::AddressDiffers { ours, seen });
        }
    }

    fn lose(&mut self, now: Instant, why: &'static str, gone: bool) {
        if matches!(self.state, State::Asking { step: Step::Stop, .. } | State::Stopped) {
            return;
        }
        self.stop_keepalive();
        self.excused = false;
        self.replaced_by = None;
        // a registrar that restarted would take an answer to its old challenge for a wrong password
        self.challenges = Challenges::default();
        // the first REGISTER goes out at once
        let silent_at = now + PATIENCE;
        self.state = State::Asking { step: Step::Return, again: now, silent_at, lookup_in: LOOKUP };
        self.change(Status::Lost { why, gone });
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
            // one log line per pause is enough for repeated attempts
            (
                Some(Status::Refused { code: a, retry: before, .. }),
                Status::Refused { code: b, retry, .. },
            ) => a == b && before == retry,
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
