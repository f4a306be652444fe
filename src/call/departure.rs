//! Decides where the caller goes when a call ends, for every source. In ARI mode, callers whom the
//! source refuses before their call starts, or whose bridge fails, always continue in the dialplan.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::call::end::{CallerFate, EndReason};

/// The caller's way out of an ended call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Hang up, or refuse the call if it was not answered yet.
    HangUp,
    /// Continue in the dialplan of the PBX, at the next line.
    Continue,
}

/// The configured departure of callers whose AI has closed its stream. After a failure, the ladder
/// decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeparturePolicy {
    /// After the AI closed its stream with an ordinary code (`on_ai_close`).
    pub on_ai_close: Departure,
}

impl Default for DeparturePolicy {
    fn default() -> DeparturePolicy {
        DeparturePolicy { on_ai_close: Departure::HangUp }
    }
}

impl DeparturePolicy {
    /// Returns the caller's departure, or `None` if the source ended the call already.
    ///
    /// `connected`: the caller was connected to the AI. `can_continue`: the source can return the
    /// caller to the dialplan; if it cannot, the caller is hung up.
    pub fn departure(
        self,
        reason: EndReason,
        connected: bool,
        can_continue: bool,
    ) -> Option<Departure> {
        let wanted = match reason.row().caller {
            CallerFate::Gone => return None,
            CallerFate::HungUp => Departure::HangUp,
            CallerFate::Continues => Departure::Continue,
            CallerFate::AfterAiClose if connected => self.on_ai_close,
            // the AI did not take the call
            CallerFate::AfterAiClose | CallerFate::AfterAiFailure => Departure::Continue,
        };
        Some(if can_continue { wanted } else { Departure::HangUp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: [DeparturePolicy; 2] = [
        DeparturePolicy { on_ai_close: Departure::HangUp },
        DeparturePolicy { on_ai_close: Departure::Continue },
    ];

    #[test]
    fn a_source_without_a_dialplan_always_hangs_up() {
        for reason in EndReason::ALL {
            for (policy, connected) in POLICIES.into_iter().zip([false, true]) {
                let departure = policy.departure(reason, connected, false);
                assert_ne!(departure, Some(Departure::Continue), "{reason:?}");
            }
        }
    }

    #[test]
    fn the_policy_applies_only_when_the_ai_ended() {
        for (reason, connected, expected) in [
            (EndReason::AiHangup, true, [Departure::HangUp, Departure::Continue]),
            (EndReason::AiHangup, false, [Departure::Continue; 2]),
            (EndReason::AiHandover, true, [Departure::Continue; 2]),
            (EndReason::MaxDuration, true, [Departure::HangUp; 2]),
            (EndReason::ApiHangup, true, [Departure::HangUp; 2]),
            (EndReason::Drain, true, [Departure::Continue; 2]),
            (EndReason::Overload, false, [Departure::Continue; 2]),
            (EndReason::Internal, true, [Departure::Continue; 2]),
            (EndReason::PbxLost, true, [Departure::Continue; 2]),
        ] {
            let decided = POLICIES.map(|policy| policy.departure(reason, connected, true).unwrap());
            assert_eq!(decided, expected, "{reason:?}");
        }
    }

    #[test]
    fn a_call_ended_by_the_source_needs_no_departure() {
        for reason in [EndReason::CallerHangup, EndReason::Cancelled, EndReason::Transferred] {
            assert_eq!(POLICIES[0].departure(reason, true, true), None);
        }
    }
}
