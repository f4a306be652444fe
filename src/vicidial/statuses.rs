//! The status with which a call ends in VICIdial.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::call::end::EndReason;

/// The statuses for calls to which the AI has given none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses {
    /// The AI has hung up.
    pub hangup: String,
    /// The customer has hung up.
    pub caller_left: String,
    /// The customer has said nothing, whoever has hung up.
    pub no_speech: String,
    /// The answering machine detection says that a machine has answered.
    pub machine: String,
    /// The AI could not be reached, or has failed.
    pub ai_error: String,
    /// There was no room, or a shutdown.
    pub overload: String,
    /// The customer was transferred.
    pub transfer: String,
}

impl Default for Statuses {
    fn default() -> Statuses {
        Statuses {
            hangup: "AIHUP".to_owned(),
            caller_left: "AICLH".to_owned(),
            no_speech: "AINSP".to_owned(),
            machine: "AIMACH".to_owned(),
            ai_error: "AIERR".to_owned(),
            overload: "AIFULL".to_owned(),
            transfer: "AIXFER".to_owned(),
        }
    }
}

impl Statuses {
    pub fn all(&self) -> [&str; 7] {
        [
            &self.hangup,
            &self.caller_left,
            &self.no_speech,
            &self.machine,
            &self.ai_error,
            &self.overload,
            &self.transfer,
        ]
    }

    /// Returns the status of a call that ends for this reason. `given`: the AI's own. `facts`: a
    /// machine has answered, and the customer has been silent.
    pub fn of(&self, reason: EndReason, given: Option<&str>, facts: (bool, bool)) -> String {
        let (machine, silent) = facts;
        let hung_up = |plain| match () {
            () if machine => &self.machine,
            () if silent => &self.no_speech,
            () => plain,
        };
        let default = match reason {
            EndReason::Cancelled => &self.caller_left,
            EndReason::CallerHangup => hung_up(&self.caller_left),
            EndReason::Transferred | EndReason::AiHandover => &self.transfer,
            EndReason::Overload | EndReason::Drain => &self.overload,
            EndReason::AiHangup | EndReason::ApiHangup | EndReason::MaxDuration => {
                hung_up(&self.hangup)
            }
            _ => &self.ai_error,
        };
        given.unwrap_or(default).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ai_decides_and_then_the_end_reason() {
        let statuses = Statuses::default();
        let (spoken, silent, machine) = ((false, false), (false, true), (true, true));
        for (reason, given, facts, expected) in [
            (EndReason::AiHangup, Some("SALE"), machine, "SALE"),
            (EndReason::AiHangup, None, spoken, "AIHUP"),
            (EndReason::AiHangup, None, silent, "AINSP"),
            (EndReason::AiHangup, None, machine, "AIMACH"),
            (EndReason::CallerHangup, None, spoken, "AICLH"),
            (EndReason::CallerHangup, None, silent, "AINSP"),
            (EndReason::CallerHangup, None, machine, "AIMACH"),
            (EndReason::Cancelled, None, spoken, "AICLH"),
            (EndReason::AiClosed, None, silent, "AIERR"),
            (EndReason::Drain, None, silent, "AIFULL"),
            (EndReason::Transferred, None, silent, "AIXFER"),
        ] {
            assert_eq!(statuses.of(reason, given, facts), expected, "{reason:?} {facts:?}");
        }
    }
}
