//! The ladder of `on_ai_failure`: what is tried, in order, for a caller whose AI has failed.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use bytes::Bytes;

use crate::call::transfers::TransferRules;
use crate::command::{Cause, Destination};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rung {
    /// Connect the caller with another AI: its place in [`crate::call::CallConfig::ais`].
    Ai(usize),
    /// The same for a further AI of the call's route. The AI before it is dialled only once.
    Next(usize),
    /// Play a prompt, mu-law.
    Play(Bytes),
    /// The same, if the caller has been connected.
    PlayIfConnected(Bytes),
    /// Transfer the caller: the name of a target.
    Transfer(String),
    /// Continue in the dialplan, if the source has one.
    Continue,
    /// Hang up, or refuse the call; by default with the cause of the failure.
    Hangup(Option<Cause>),
}

/// The treatment of a caller for whom no call can be started, because there are too many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Refuse the call; by default with the cause of an overload.
    Refuse(Option<Cause>),
    /// Continue in the dialplan (ARI mode).
    #[default]
    Continue,
    Transfer(Destination),
}

impl Overflow {
    /// Returns the first rung that needs neither an AI nor audio. `can_continue`: the source has a
    /// dialplan to continue in.
    pub fn of(ladder: &[Rung], rules: &TransferRules, can_continue: bool) -> Overflow {
        let overflow = |rung: &Rung| match rung {
            Rung::Ai(_) | Rung::Next(_) | Rung::Play(_) | Rung::PlayIfConnected(_) => None,
            // an in-group is not an extension
            Rung::Transfer(to) => rules.find(to).filter(|to| !to.in_group).map(Overflow::Transfer),
            Rung::Continue => can_continue.then_some(Overflow::Continue),
            Rung::Hangup(cause) => Some(Overflow::Refuse(*cause)),
        };
        ladder.iter().find_map(overflow).unwrap_or(Overflow::Refuse(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rung_without_audio_counts() {
        let humans =
            Destination { context: None, exten: "1001".into(), priority: 1, in_group: false };
        let targets = [("humans".to_owned(), humans.clone())].into();
        let rules = TransferRules { targets, ..TransferRules::default() };
        let (play, transfer) = (Rung::Play(Bytes::new()), Rung::Transfer("humans".into()));
        let busy = Rung::Hangup(Some(Cause::Busy));
        for (ladder, sip, ari) in [
            (vec![], Overflow::Refuse(None), Overflow::Refuse(None)),
            (
                vec![Rung::Continue, busy.clone()],
                Overflow::Refuse(Some(Cause::Busy)),
                Overflow::Continue,
            ),
            (
                vec![Rung::Ai(1), play, transfer, busy],
                Overflow::Transfer(humans.clone()),
                Overflow::Transfer(humans),
            ),
        ] {
            assert_eq!(Overflow::of(&ladder, &rules, false), sip, "{ladder:?}");
            assert_eq!(Overflow::of(&ladder, &rules, true), ari, "{ladder:?}");
        }
    }
}
