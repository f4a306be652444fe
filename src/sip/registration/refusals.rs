//! The responses to REGISTER that are not a 2xx: challenges, errors and refusals, and the wait that
//! follows.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::faults::registration_refused;
use crate::sip::challenges::{Challenges, Verdict};
use crate::sip::header::parse_seconds;
use crate::sip::message::Message;
use crate::sip::random::Random;
use crate::sip::registration::{AGAIN, Action, Registration, State, Status, Step};

/// First wait after an error; doubles up to [`BACKOFF`].
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF: Duration = Duration::from_millis(1500);
/// After this many errors in a row, about four minutes, the wait is [`BACKOFF_LONG`].
const ERRORS: u32 = 150;
const BACKOFF_LONG: Duration = Duration::from_secs(30);
/// First wait after a refusal that will not go away without a change of configuration. It triples
/// with each further one, up to [`REFUSED_MAX`]: a filter such as fail2ban blocks an address after
/// five refusals in ten minutes.
const REFUSED: Duration = Duration::from_secs(60);
const REFUSED_MAX: Duration = Duration::from_secs(1800);
/// Wait after the first refusal by a registrar that was lost, because it may be starting.
const STARTING: Duration = Duration::from_secs(2);
/// Longest `Retry-After` that is honoured.
const RETRY_AFTER_MAX_S: u32 = 300;
/// Number of `stale=true` challenges that are answered in one cycle.
const STALE: u32 = 2;
/// Number of challenges that are answered in one cycle: a registrar's and those of proxies before
/// it, each also with a nonce that has expired.
const ANSWERS: u32 = 4;

impl Registration {
    pub(super) fn on_challenge(
        &mut self,
        now: Instant,
        step: Step,
        response: &Message,
        random: &mut Random,
    ) {
        let code = response.code().unwrap_or(401);
        // a second answer makes sense only while the password may be right
        let tries = if self.was_registered || self.refusals > 0 { 1 } else { 2 };
        self.answered += 1;
        let wrong = match self.challenges.take(response, self.settings.realm.as_deref()) {
            Err(error) => return self.refuse(now, code, error.to_string(), random),
            Ok(Verdict::Stale) => {
                self.stale += 1;
                self.stale > STALE
            }
            Ok(Verdict::New) => false,
            Ok(Verdict::Rejected(times)) => times >= tries,
        };
        if wrong || self.answered > ANSWERS {
            self.challenges = Challenges::default();
            let hint = registration_refused(code, &self.settings.auth_username);
            return self.refuse(now, code, hint, random);
        }
        if step == Step::Return
            && let State::Asking { step, .. } = &mut self.state
        {
            *step = Step::Remove;
        }
        let step = if step == Step::Return { Step::Remove } else { step };
        self.register(step, random);
    }

    /// Handles an error that may pass without a change of configuration.
    pub(super) fn on_error(
        &mut self,
        now: Instant,
        step: Step,
        response: &Message,
        random: &mut Random,
    ) {
        self.actions.push_back(Action::NextAddress);
        if let State::Asking { step: Step::Return, again, .. } = &mut self.state {
            *again = now + AGAIN; // the PBX may still be starting
            return;
        }
        let after = response.get("Retry-After").and_then(parse_seconds).map(|(s, _)| s);
        self.wait(now, random);
        if let (Some(seconds), State::Waiting { until }) = (after, &mut self.state) {
            let jitter = Duration::from_millis(random.range(0, 1000));
            let asked = Duration::from_secs(u64::from(seconds.min(RETRY_AFTER_MAX_S)));
            *until = (*until).max(now + asked + jitter);
        }
        if step != Step::Stop {
            let code = response.code().unwrap_or(0);
            self.change(Status::Failing { why: format!("the registrar answered {code}") });
        }
    }

    pub(super) fn refuse(&mut self, now: Instant, code: u16, hint: String, random: &mut Random) {
        let lost = matches!(self.status, Some(Status::Lost { .. }));
        match &mut self.state {
            State::Asking { step: Step::Stop, .. } => return self.stopped(),
            // a PBX that is starting may not know its users yet
            State::Asking { step, again, .. } if lost && !self.excused => {
                self.excused = true;
                (*step, *again) = (Step::Return, now + STARTING);
                return;
            }
            _ => {}
        }
        let pause = (REFUSED * 3u32.pow(self.refusals.min(8))).min(REFUSED_MAX);
        self.refusals += 1;
        let until = now + pause + Duration::from_millis(random.range(0, 5000));
        self.state = State::Waiting { until };
        self.stop_keepalive();
        self.actions.push_back(Action::NextAddress);
        self.change(Status::Refused { code, hint, retry: pause });
    }

    pub(super) fn wait(&mut self, now: Instant, random: &mut Random) {
        if let State::Asking { step: Step::Stop, .. } = self.state {
            self.stopped();
            return;
        }
        let base = match self.errors {
            ERRORS.. => BACKOFF_LONG,
            few => (BACKOFF_MIN * (1 << few.min(8))).min(BACKOFF),
        };
        self.errors += 1;
        let jitter = random.range(0, base.as_millis() as u64 / 4);
        self.state = State::Waiting { until: now + base + Duration::from_millis(jitter) };
        self.stop_keepalive();
    }
}
