//! Commands to live calls. Everything that controls a call speaks this vocabulary, whether it sits
//! on the AI's WebSocket, behind HTTP or on the command line.
//!
//! An [`Order`] is a command with its sender and its id. Every order gets at least one [`Reply`]:
//! `Done` or `Failed` is the last one, `Accepted` and `Progress` may come before.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::time::Duration;

/// A command to one call, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Chosen by the sender, who finds it in the replies. May be empty.
    pub id: String,
    pub by: Sender,
    pub when: When,
    pub command: Command,
}

/// The sender of an order, as it is logged and kept with the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    Ai,
    /// The name of the token that authorised the request.
    Http(String),
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sender::Ai => f.write_str("ai"),
            Sender::Http(token) => write!(f, "http:{token}"),
        }
    }
}

/// When a command is carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum When {
    #[default]
    Now,
    /// Once the caller has heard everything that is queued, so that no goodbye is cut.
    AfterAudio,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Hangup {
        cause: Cause,
        /// The status of the call's disposition, in place of an earlier one.
        status: Option<String>,
    },
    Transfer(Transfer),
    /// Joins the caller and the target of an attended transfer.
    CompleteTransfer,
    /// Gives up a transfer: the caller is back with the AI.
    CancelTransfer,
    SendDigits(Digits),
    Hold(bool),
    Mute {
        side: Side,
        on: bool,
    },
    Record(RecordCommand),
    /// Plays a prompt of the configuration, by its name.
    Play(String),
    /// Sets channel variables of the caller's channel: names and values.
    SetVariables(Vec<(String, String)>),
    Disposition(Disposition),
    /// Changes what the dialler knows of the customer.
    Lead(LeadChange),
    /// Ends the AI's stream, and then does something else with the caller.
    Redirect(Box<Redirect>),
}

/// A change of what the dialler knows of the customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeadChange {
    /// The customer is called again.
    Callback {
        /// The local time, as `2026-11-24 10:00:00`.
        at: String,
        comments: String,
    },
    /// The customer is never called again: by this campaign, or by any.
    DoNotCall { everywhere: bool },
    /// Fields of the lead: names and values.
    Update(Vec<(String, String)>),
}

/// The treatment of a caller who leaves the AI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Keys that are pressed first.
    pub keys: Option<Digits>,
    pub then: Then,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    Hangup(Cause),
    Transfer(Transfer),
    /// Another AI of the configuration: its name, or its URL.
    Ai(String),
}

/// Why the caller is hung up, as the PBX sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cause {
    #[default]
    Normal,
    Busy,
    Rejected,
    Congestion,
}

impl Cause {
    pub const ALL: [Cause; 4] = [Cause::Normal, Cause::Busy, Cause::Rejected, Cause::Congestion];

    pub fn name(self) -> &'static str {
        match self {
            Cause::Normal => "normal",
            Cause::Busy => "busy",
            Cause::Rejected => "rejected",
            Cause::Congestion => "congestion",
        }
    }

    /// The cause of ITU-T Q.850.
    pub fn q850(self) -> u8 {
        match self {
            Cause::Normal => 16,
            Cause::Busy => 17,
            Cause::Rejected => 21,
            Cause::Congestion => 34,
        }
    }
}

/// The target of a transfer rings.
pub const RINGING: &str = "ringing";
/// The target of a transfer has answered.
pub const ANSWERED: &str = "answered";

/// A transfer of the caller to someone else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// A name of the allow-list, or an extension that matches one of its patterns.
    pub to: String,
    pub kind: TransferKind,
    /// How long the target may ring.
    pub timeout: Duration,
    pub on_fail: OnFail,
    /// The status of the call's disposition, if the transfer succeeds.
    pub status: Option<String>,
}

/// Where a transfer leads: an extension of the PBX's dialplan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// `None` for the PBX's usual one. In SIP mode, the PBX chooses it for our extension.
    pub context: Option<String>,
    pub exten: String,
    pub priority: u32,
    /// True if `exten` is an in-group of VICIdial instead; empty for the default one of the
    /// campaign.
    pub in_group: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TransferKind {
    /// The caller is handed over at once, or when the target answers.
    #[default]
    Blind,
    /// The AI talks to the target first, and then hands over the caller.
    Attended,
}

/// The treatment of a caller whose transfer failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFail {
    /// The caller talks to the same AI again.
    #[default]
    Resume,
    /// The caller goes down the ladder of `on_ai_failure`.
    Ladder,
    Hangup,
}

/// Keys to be pressed: `0`-`9`, `*`, `#`, `A`-`D`, and `w` for a pause of half a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digits(String);

/// The pause among [`Digits`].
pub const PAUSE: char = 'w';

impl Digits {
    /// At most this many keys.
    pub const MAX: usize = 64;
    /// At most this many pauses: a minute.
    pub const MAX_PAUSES: usize = 120;

    /// Returns `None` if `keys` is empty, too long or contains anything else.
    pub fn new(keys: &str) -> Option<Digits> {
        let valid =
            |key: char| matches!(key, '0'..='9' | '*' | '#' | 'A'..='D' | 'a'..='d' | 'w' | 'W');
        let pauses = keys.chars().filter(|key| key.eq_ignore_ascii_case(&PAUSE)).count();
        let bounded = pauses <= Digits::MAX_PAUSES && keys.len() <= Digits::MAX + pauses;
        let fits = !keys.is_empty() && bounded && keys.chars().all(valid);
        let upper =
            |key: char| if key.eq_ignore_ascii_case(&'w') { 'w' } else { key.to_ascii_uppercase() };
        fits.then(|| Digits(keys.chars().map(upper).collect()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The side that is not heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Side {
    /// The AI does not hear the caller.
    #[default]
    Caller,
    /// The caller does not hear the AI.
    Ai,
}

/// A command to a call's recording while the call is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordCommand {
    /// Starts a recording; ignored while one is running.
    Start,
    /// Replaces both tracks with silence, and drops key presses, until `Resume`.
    Pause,
    Resume,
    /// Closes the recording; a later `Start` begins another.
    Stop,
}

/// The result of a conversation, in the words of the company: VICIdial's status, for example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disposition {
    pub status: String,
    /// More about it, as one JSON object.
    pub data: String,
}

impl Disposition {
    pub fn of_status(status: String) -> Disposition {
        Disposition { status, data: "{}".to_owned() }
    }
}

/// An answer to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The order is valid and will be carried out.
    Accepted,
    /// The state of an order that takes time: `ringing`, `answered`.
    Progress(&'static str),
    Done,
    Failed(Failure),
}

/// The reason why an order failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("not possible in this mode")]
    Unsupported,
    #[error("not allowed by the configuration")]
    NotAllowed,
    #[error("not a valid command")]
    Invalid,
    #[error("not possible in the call's present state")]
    WrongState,
    #[error("the target is busy")]
    Busy,
    #[error("the target does not answer")]
    NoAnswer,
    #[error("no such target")]
    NoSuchTarget,
    #[error("the target hung up before the transfer was complete")]
    TargetHungUp,
    #[error("cancelled")]
    Cancelled,
    #[error("the dialplan lacks the extension trunkless-join of our snippets")]
    NoSnippet,
    #[error("no such prompt")]
    NoSuchPrompt,
    #[error("this call is not recorded")]
    NotRecorded,
    #[error("the PBX refused it")]
    Refused,
    #[error("VICIdial's statuses have at most 6 letters and digits")]
    BadStatus,
    #[error("the call has ended")]
    Ended,
    #[error("no such call")]
    NoSuchCall,
    #[error("too many commands are open in this call")]
    QueueFull,
}

impl Reply {
    /// The word for programs.
    pub fn status(&self) -> &'static str {
        match self {
            Reply::Accepted => "accepted",
            Reply::Progress(_) => "progress",
            Reply::Done => "done",
            Reply::Failed(_) => "failed",
        }
    }
}

impl Failure {
    pub const ALL: [Failure; 17] = [
        Failure::Unsupported,
        Failure::NotAllowed,
        Failure::Invalid,
        Failure::WrongState,
        Failure::Busy,
        Failure::NoAnswer,
        Failure::NoSuchTarget,
        Failure::TargetHungUp,
        Failure::Cancelled,
        Failure::NoSnippet,
        Failure::NoSuchPrompt,
        Failure::NotRecorded,
        Failure::Refused,
        Failure::BadStatus,
        Failure::Ended,
        Failure::NoSuchCall,
        Failure::QueueFull,
    ];

    /// The word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Failure::Unsupported => "unsupported",
            Failure::NotAllowed => "not_allowed",
            Failure::Invalid => "invalid",
            Failure::WrongState => "wrong_state",
            Failure::Busy => "busy",
            Failure::NoAnswer => "no_answer",
            Failure::NoSuchTarget => "no_such_target",
            Failure::TargetHungUp => "target_hung_up",
            Failure::Cancelled => "cancelled",
            Failure::NoSnippet => "no_snippet",
            Failure::NoSuchPrompt => "no_such_prompt",
            Failure::NotRecorded => "not_recorded",
            Failure::Refused => "refused",
            Failure::BadStatus => "bad_status",
            Failure::Ended => "ended",
            Failure::NoSuchCall => "no_such_call",
            Failure::QueueFull => "queue_full",
        }
    }
}
