//! Calls that we place: their place in an offer, and the meaning of a callee who does not answer,
//! in SIP and in ARI mode.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::oneshot;

use crate::call::answering::Detection;
use crate::call::end::EndReason;
use crate::call::live::{LiveCall, State};
use crate::call::placing::{Place, Refused};

/// Receives the call once it has begun, or the reason why it does not begin.
pub type Outcome = oneshot::Sender<Result<Arc<LiveCall>, Refused>>;

/// The part of an offer that only a call has which we place.
pub struct Outgoing {
    /// The AI's name or URL in the configuration.
    pub ai: String,
    /// How long the callee's phone may ring.
    pub ring: Duration,
    /// Parameters for the AI. They replace configured ones.
    pub parameters: Vec<(String, String)>,
    /// Record the call, whatever the configuration does with others.
    pub record: bool,
    /// Find out who answers.
    pub detection: Option<Detection>,
    /// The text from which the call's ids are derived, if it was chosen with the request.
    pub sid_seed: Option<String>,
    pub callbacks: Callbacks,
    pub outcome: Option<Outcome>,
    /// Counts the call towards the limit of its PBX for as long as it exists.
    pub place: Place,
}

/// Where a call is reported to the program that has placed it.
#[derive(Debug, Clone, Default)]
pub struct Callbacks {
    /// Its progress.
    pub status: Option<Arc<StatusCallback>>,
    /// The answerer.
    pub answered_by: Option<Arc<SignedUrl>>,
}

/// Where the progress of a call is reported, as Twilio does.
#[derive(Debug, Clone)]
pub struct StatusCallback {
    pub to: SignedUrl,
    pub events: Vec<CallbackEvent>,
}

/// A URL of the program that places a call.
#[derive(Debug, Clone)]
pub struct SignedUrl {
    pub url: String,
    /// Send a GET in place of a POST.
    pub get: bool,
    /// Signs the requests.
    pub token: SecretString,
}

/// The events of a [`StatusCallback`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallbackEvent {
    Initiated,
    Ringing,
    Answered,
    Completed,
}

impl CallbackEvent {
    pub const ALL: [CallbackEvent; 4] = [
        CallbackEvent::Initiated,
        CallbackEvent::Ringing,
        CallbackEvent::Answered,
        CallbackEvent::Completed,
    ];

    /// Twilio's word.
    pub fn word(self) -> &'static str {
        match self {
            CallbackEvent::Initiated => "initiated",
            CallbackEvent::Ringing => "ringing",
            CallbackEvent::Answered => "answered",
            CallbackEvent::Completed => "completed",
        }
    }

    pub fn parse(word: &str) -> Option<CallbackEvent> {
        CallbackEvent::ALL.into_iter().find(|event| event.word() == word)
    }
}

/// Returns the end reason of a call whose INVITE was refused.
pub fn by_sip_status(code: u16) -> EndReason {
    match code {
        486 | 600 => EndReason::Busy,
        408 | 480 | 487 => EndReason::NoAnswer,
        603 | 607 | 608 => EndReason::Rejected,
        404 | 410 | 484 | 485 | 604 => EndReason::InvalidNumber,
        _ => EndReason::DialFailed,
    }
}

/// Returns the end reason of a call whose channel was destroyed before its answer. `dial`: the
/// state of the call as Asterisk last reported it, in capitals; empty if there was none.
pub fn by_cause(cause: u16, dial: &str) -> EndReason {
    match (cause, dial) {
        (17, _) | (_, "BUSY") => EndReason::Busy,
        (21, _) => EndReason::Rejected,
        (1 | 3 | 22 | 28, _) => EndReason::InvalidNumber,
        (18 | 19, _) | (_, "NOANSWER" | "CANCEL") => EndReason::NoAnswer,
        // hung up in the ordinary way, after ringing
        (0 | 16, "RINGING") => EndReason::NoAnswer,
        _ => EndReason::DialFailed,
    }
}

/// Returns Twilio's word for the status of a call.
pub fn status(state: &State, outgoing: bool) -> &'static str {
    match (&state.ended, state.answered) {
        (Some(_), Some(_)) => "completed",
        (Some((_, reason)), None) => match reason {
            EndReason::Cancelled => "canceled",
            EndReason::ApiHangup if outgoing => "canceled",
            EndReason::Busy | EndReason::Rejected => "busy",
            EndReason::NoAnswer => "no-answer",
            _ => "failed",
        },
        (None, Some(_)) => "in-progress",
        (None, None) if outgoing && state.ringing.is_none() => "queued",
        (None, None) => "ringing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_one_meaning_each() {
        let ended = |reason| State { ended: Some((Duration::ZERO, reason)), ..State::default() };
        for (code, reason, word) in [
            (486, EndReason::Busy, "busy"),
            (600, EndReason::Busy, "busy"),
            (603, EndReason::Rejected, "busy"),
            (408, EndReason::NoAnswer, "no-answer"),
            (480, EndReason::NoAnswer, "no-answer"),
            (404, EndReason::InvalidNumber, "failed"),
            (484, EndReason::InvalidNumber, "failed"),
            (604, EndReason::InvalidNumber, "failed"),
            (302, EndReason::DialFailed, "failed"),
            (401, EndReason::DialFailed, "failed"),
            (403, EndReason::DialFailed, "failed"),
            (488, EndReason::DialFailed, "failed"),
            (503, EndReason::DialFailed, "failed"),
        ] {
            assert_eq!(by_sip_status(code), reason, "{code}");
            assert_eq!(status(&ended(reason), true), word, "{code}");
        }
        for (cause, dial, reason) in [
            (17, "", EndReason::Busy),
            (16, "BUSY", EndReason::Busy),
            (19, "RINGING", EndReason::NoAnswer),
            (0, "NOANSWER", EndReason::NoAnswer),
            (16, "RINGING", EndReason::NoAnswer),
            (16, "", EndReason::DialFailed),
            (21, "RINGING", EndReason::Rejected),
            (1, "CONGESTION", EndReason::InvalidNumber),
            (38, "CHANUNAVAIL", EndReason::DialFailed),
            (34, "CONGESTION", EndReason::DialFailed),
        ] {
            assert_eq!(by_cause(cause, dial), reason, "{cause} {dial}");
        }
    }

    #[test]
    fn the_status_follows_the_call() {
        let state = State::default();
        assert_eq!((status(&state, true), status(&state, false)), ("queued", "ringing"));
        let state = State { ringing: Some(Duration::ZERO), ..State::default() };
        assert_eq!(status(&state, true), "ringing");
        let state = State { answered: Some(Duration::ZERO), ..state };
        assert_eq!(status(&state, true), "in-progress");
        let over = |reason, answered| State {
            ended: Some((Duration::ZERO, reason)),
            answered,
            ..State::default()
        };
        assert_eq!(status(&over(EndReason::CallerHangup, Some(Duration::ZERO)), true), "completed");
        assert_eq!(status(&over(EndReason::ApiHangup, None), true), "canceled");
        assert_eq!(status(&over(EndReason::ApiHangup, None), false), "failed");
        assert_eq!(status(&over(EndReason::Cancelled, None), false), "canceled");
        assert_eq!(status(&over(EndReason::AiUnreachable, None), true), "failed");
    }
}
