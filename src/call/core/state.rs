//! The state of a call's orders, of its transfer, and of its way down the ladder.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, VecDeque};

use crate::call::end::EndReason;
use crate::call::ladder::Rung;
use crate::command::{Command, OnFail, Sender, Then, TransferKind};

/// An order that is not complete.
#[derive(Debug)]
pub(super) enum Open {
    /// Waits until the audio queued before it has been played.
    Waiting {
        command: Command,
        by: Sender,
    },
    /// Its audio or its keys are being played.
    Playing,
    /// The source puts the caller on hold, or takes the caller off hold.
    Holding(bool),
    Transferring(Transferring),
    /// Completes or cancels the open transfer.
    EndingTransfer {
        completes: bool,
    },
    /// Its keys are being pressed; then the rest of the redirect follows.
    Redirecting {
        then: Then,
        by: Sender,
    },
    /// The source carries it out.
    Asked,
}

/// The orders of a call, and what they have changed.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// The orders that are not complete, by number.
    pub open: HashMap<u32, Open>,
    /// True while the caller is on hold by an order.
    pub held: bool,
    /// True if the AI was last sent that the caller is on hold.
    pub told_held: bool,
    /// True while the caller waits for the target of a transfer.
    pub away: bool,
    /// True while the AI does not hear the caller.
    pub caller_muted: bool,
    /// True while the caller does not hear the AI.
    pub ai_muted: bool,
}

impl Open {
    /// True for an order after which the call is not what it was before: it ends, the caller goes
    /// elsewhere, or the AI is another one.
    fn decides(&self) -> bool {
        let command = match self {
            Open::Transferring(_) | Open::Redirecting { .. } => return true,
            Open::Waiting { command, .. } => command,
            _ => return false,
        };
        matches!(command, Command::Hangup { .. } | Command::Transfer(_) | Command::Redirect(_))
    }
}

impl Orders {
    /// True if an open order decides what becomes of the caller.
    pub fn decide(&self) -> bool {
        self.open.values().any(Open::decides)
    }

    /// True if the caller hears something because of an order, or will, or an order decides what
    /// becomes of the caller.
    pub fn pending(&self) -> bool {
        let pending =
            |open: &Open| matches!(open, Open::Waiting { .. } | Open::Playing) || open.decides();
        self.open.values().any(pending)
    }

    /// Takes out the orders that wait for audio, in the order in which they were given.
    pub fn take_waiting(&mut self) -> Vec<(u32, Command, Sender)> {
        let waiting = self.open.extract_if(|_, open| matches!(open, Open::Waiting { .. }));
        let mut waiting: Vec<(u32, Command, Sender)> = waiting
            .filter_map(|(number, open)| match open {
                Open::Waiting { command, by } => Some((number, command, by)),
                _ => None,
            })
            .collect();
        waiting.sort_unstable_by_key(|(number, ..)| *number);
        waiting
    }

    /// Takes out a redirect whose keys are being pressed.
    pub fn take_redirect(&mut self) -> Option<u32> {
        let found = self.open.iter().find(|(_, open)| matches!(open, Open::Redirecting { .. }));
        let number = *found?.0;
        self.open.remove(&number);
        Some(number)
    }

    /// True while the source puts the caller on hold, or takes the caller off hold.
    pub fn holding(&self) -> bool {
        self.open.values().any(|open| matches!(open, Open::Holding(_)))
    }

    /// True if a transfer is not complete.
    pub fn transfer(&self) -> bool {
        self.open.values().any(|open| matches!(open, Open::Transferring(_)))
    }
}

/// A transfer that is not complete.
#[derive(Debug, Clone)]
pub(super) struct Transferring {
    pub kind: TransferKind,
    /// True if the caller was on hold before.
    pub was_held: bool,
    pub on_fail: OnFail,
    pub by: Sender,
    /// The status of the call's disposition, if it succeeds.
    pub status: Option<String>,
    /// True once the AI talks to the target.
    pub consulting: bool,
}

/// The way down.
#[derive(Debug)]
pub(super) struct Falling {
    /// The failure.
    pub reason: EndReason,
    /// The rungs that have not been tried. They are kept while another AI has the caller: it may
    /// fail, too.
    pub rungs: VecDeque<Rung>,
    /// False while an AI has the caller.
    pub active: bool,
}
