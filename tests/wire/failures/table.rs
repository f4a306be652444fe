//! The failures of AIs, and what each means in each dialect.

use std::time::Duration;

use super::voice::{self, Voice};

/// How an AI fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    // before the call is answered
    /// Nothing listens at its address.
    Refused,
    /// The handshake is answered with this status.
    Status(&'static str),
    Unanswered,
    /// The same of the request before the socket.
    Create(&'static str),
    CreateUnanswered,
    /// The session is refused, or never ready.
    Refuses,
    NeverReady,
    /// It closes its stream with an error as soon as that is open.
    ClosesEarly,
    // in mid-call
    Close(u16),
    Reset,
    /// The connection ends without a close frame.
    End,
    Silent,
    /// It sends nothing that can be used.
    Unusable,
    /// It reads nothing and answers no ping.
    Hang,
    NotWebSocket,
    NotUtf8,
    /// The beginning of a message of 16 MiB.
    Oversize,
    /// A message without an end.
    Endless,
    /// The vendor's message about a failure, its request to end the stream, or the end of its time.
    Error,
    Disconnect,
    Expires,
    /// The session is to continue on another connection, which is refused, or never ready.
    NotResumed,
    ResumedUnready,
    /// The regular end of a stream, which is dialled again: it works, or does not.
    Again,
    AgainUnanswered,
    // not failures
    Garbage,
    Binary,
    TooMuch,
    Warning,
    /// It calls a tool, and is silent while it waits for the result.
    ToolFirst,
}

/// The caller's fate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// The next step of `on_ai_failure`: the end reason if there is none, and words of the log.
    Ladder(&'static str, &'static str),
    /// The AI has hung up.
    HangUp,
    /// The same AI continues.
    Continues,
}

/// One cell of the table.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub voice: Voice,
    pub failure: Failure,
    pub outcome: Outcome,
    /// How long it takes by itself until the failure is known.
    pub known: Duration,
}

pub const ANSWER_WAIT: Duration = Duration::from_millis(1500);
pub const SILENT: Duration = Duration::from_secs(2);
/// See [`Case::config`].
const PING: Duration = Duration::from_millis(500);
/// An AI that waits for a tool is silent for this long.
const LONG_SILENCE: Duration = Duration::from_secs(3);
/// A connection that is refused is tried again for this long.
const RETRIES: Duration = Duration::from_millis(600);
/// An AI is dialled again, its session may take to be ready, and a message or the answer to a ping
/// may take, for this long.
const AGAIN: Duration = Duration::from_secs(5);
const READY: Duration = Duration::from_secs(5);
const LATE: Duration = Duration::from_secs(10);

/// Those that are noticed late come first: they wait beside the others.
const FAILURES: [Failure; 34] = [
    Failure::Hang,
    Failure::Endless,
    Failure::NeverReady,
    Failure::NotResumed,
    Failure::ResumedUnready,
    Failure::Refused,
    Failure::Status("401 Unauthorized"),
    Failure::Status("403 Forbidden"),
    Failure::Status("500 Internal Server Error"),
    Failure::Unanswered,
    Failure::Create("401 Unauthorized"),
    Failure::Create("500 Internal Server Error"),
    Failure::CreateUnanswered,
    Failure::Refuses,
    Failure::ClosesEarly,
    Failure::Close(1000),
    Failure::Close(4001),
    Failure::Close(1008),
    Failure::Close(1011),
    Failure::Reset,
    Failure::End,
    Failure::Silent,
    Failure::Unusable,
    Failure::NotWebSocket,
    Failure::NotUtf8,
    Failure::Oversize,
    Failure::Error,
    Failure::Disconnect,
    Failure::Expires,
    Failure::Garbage,
    Failure::Binary,
    Failure::TooMuch,
    Failure::Warning,
    Failure::ToolFirst,
];

impl Failure {
    /// True if the AI fails before the caller is connected with it.
    pub fn is_early(self) -> bool {
        use Failure::{
            ClosesEarly, Create, CreateUnanswered, NeverReady, Refused, Refuses, Status, Unanswered,
        };
        matches!(
            self,
            Refused
                | Status(_)
                | Unanswered
                | Create(_)
                | CreateUnanswered
                | Refuses
                | NeverReady
                | ClosesEarly
        )
    }

    /// True if another failure of the table differs from it in a status or a byte only.
    pub fn is_variant(self) -> bool {
        match self {
            Failure::Status(status) | Failure::Create(status) => !status.starts_with("401"),
            Failure::Close(code) => code == 1008,
            Failure::NotUtf8 | Failure::Oversize => true,
            _ => false,
        }
    }

    /// Returns the meaning of this failure in a dialect, and when it is known; `None` if there is
    /// no such failure.
    fn meaning(self, voice: Voice) -> Option<(Outcome, Duration)> {
        use Failure as F;
        use Outcome::{Continues, HangUp, Ladder};
        let Voice(name) = voice;
        let (session, created) = (voice.has_session(), name == "ultravox");
        let never_hangs_up = ["openai-realtime", "gemini-live"].contains(&name);
        let unreachable = |words| Ladder("ai_unreachable", words);
        let (now, only) = (Duration::ZERO, |applies: bool, outcome| applies.then_some(outcome));
        Some(match self {
            F::Refused if created => (unreachable("the request before the socket failed"), now),
            F::Refused => (unreachable("AI unreachable: cannot connect"), RETRIES),
            F::Status(_) => (unreachable("AI unreachable: WebSocket handshake refused"), now),
            F::Unanswered => (unreachable("AI unreachable: timed out after"), ANSWER_WAIT),
            F::Create(_) => only(created, (unreachable("the request before the socket"), now))?,
            F::CreateUnanswered => {
                only(created, (unreachable("the request before the socket"), ANSWER_WAIT))?
            }
            F::Refuses => only(session, (unreachable("AI unreachable: "), now))?,
            F::NeverReady => {
                only(session, (unreachable("its session was not ready in time"), READY))?
            }
            F::ClosesEarly if session => (unreachable("AI unreachable: close frame 1011"), now),
            F::ClosesEarly => (Ladder("ai_closed", "AI stream lost: close frame 1011"), now),
            F::Close(1000 | 4001) if never_hangs_up => {
                (Ladder("ai_closed", "AI stream lost: the AI ended its session"), now)
            }
            F::Close(1000 | 4001) => (HangUp, now),
            F::Close(_) => (Ladder("ai_closed", "AI stream lost: close frame 10"), now),
            F::Reset | F::End => (Ladder("ai_closed", "AI stream lost: "), now),
            F::Silent | F::Unusable => {
                (Ladder("ai_timeout", "AI silent: no usable message for 2s"), SILENT)
            }
            F::Hang => (Ladder("ai_timeout", "AI stream "), PING + LATE),
            F::NotWebSocket | F::NotUtf8 | F::Oversize => {
                (Ladder("ai_protocol", "AI stream lost: "), now)
            }
            F::Endless => (Ladder("ai_protocol", "not complete after 10 s"), LATE),
            F::Error => {
                voice.error()?;
                (Ladder("ai_closed", "uota"), now)
            }
            F::Disconnect => only(name == "jambonz", (HangUp, now))?,
            F::Expires => {
                only(name == "openai-realtime", (Ladder("ai_closed", "60 minutes"), now))?
            }
            F::NotResumed | F::ResumedUnready => {
                only(name == "gemini-live", (unreachable("its session continues"), AGAIN))?
            }
            F::Again => (Continues, now),
            F::AgainUnanswered => (unreachable("AI unreachable: "), AGAIN),
            F::Garbage | F::TooMuch => (Continues, now),
            F::Binary => only(!voice.is_binary(), (Continues, now))?,
            F::ToolFirst => {
                voice.tool()?;
                (Continues, LONG_SILENCE)
            }
            F::Warning => {
                voice.warning()?;
                (Continues, now)
            }
        })
    }
}

impl Case {
    /// The settings of its AI, besides those of the dialect.
    pub fn config(&self) -> &'static str {
        match self.failure {
            Failure::Silent | Failure::Unusable | Failure::ToolFirst => "silent_timeout = \"2s\"\n",
            Failure::Hang => "ping = \"500ms\"\n",
            _ => "",
        }
    }

    /// True if it takes ten seconds to be noticed.
    pub fn is_late(self) -> bool {
        self.known >= LATE
    }
}

fn cases(failures: &[Failure]) -> Vec<Case> {
    let of = |failure: &Failure| {
        let failure = *failure;
        voice::ALL.into_iter().filter_map(move |voice| {
            let (outcome, known) = failure.meaning(voice)?;
            Some(Case { voice, failure, outcome, known })
        })
    };
    failures.iter().flat_map(of).collect()
}

/// The whole table.
pub fn all() -> Vec<Case> {
    cases(&FAILURES)
}

/// Streams that end in the regular way, where that means that the AI is dialled again.
pub fn dialled_again() -> Vec<Case> {
    cases(&[Failure::AgainUnanswered, Failure::Again])
}
