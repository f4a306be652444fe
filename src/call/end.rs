//! The end reasons of calls: one table for SIP, Q.850, log, metrics and the caller's fate.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use tracing::Level;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndReason {
    CallerHangup,
    /// The caller gave up before we answered.
    Cancelled,
    /// The AI closed its stream with an ordinary code.
    AiHangup,
    /// The AI closed its stream with the code that hands the caller over to the dialplan.
    AiHandover,
    /// A transfer failed, and the caller was not to return to the AI.
    TransferFailed,
    /// The control API ended the call.
    ApiHangup,
    /// The AI could not be reached, before or after the answer.
    AiUnreachable,
    /// The AI's stream broke, or was closed with an error.
    AiClosed,
    /// The AI accepted no data, or never sent any.
    AiTimeout,
    /// The AI violated the WebSocket protocol or exceeded a size limit.
    AiProtocol,
    /// No RTP from the PBX.
    MediaTimeout,
    /// The PBX is gone, or no longer knows the call.
    PbxLost,
    /// The PBX refused a command that the call needs, or did not connect the caller in time.
    PbxError,
    /// The PBX moved the caller elsewhere, or a transfer did.
    Transferred,
    NoAck,
    SessionExpired,
    BadMedia,
    MaxDuration,
    Overload,
    /// The callee of a call that we placed is busy.
    Busy,
    /// The callee did not answer in time.
    NoAnswer,
    /// The callee declined the call.
    Rejected,
    /// The PBX does not know the number.
    InvalidNumber,
    /// The PBX did not place the call.
    DialFailed,
    /// Recording is mandatory, and the call could not be recorded.
    NotRecorded,
    /// trunkless is shutting down.
    Drain,
    Internal,
}

/// The caller's fate for an end reason, from which [`crate::call::departure`] decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerFate {
    /// The source ended or moved the call already.
    Gone,
    HungUp,
    /// Continues in the dialplan: a fault in trunkless or the PBX is not a reason to hang up.
    Continues,
    /// As configured with `on_ai_close`.
    AfterAiClose,
    /// As configured with `on_ai_failure`.
    AfterAiFailure,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct EndRow {
    /// Name in logs and metrics.
    pub label: &'static str,
    /// Status of the refusal before the answer.
    pub sip_status: u16,
    pub sip_reason: &'static str,
    /// Cause in the Reason header of our BYE.
    pub q850: u16,
    /// Level of the log line.
    pub level: Level,
    pub caller: CallerFate,
}

impl EndReason {
    pub const ALL: [EndReason; 27] = [
        EndReason::CallerHangup,
        EndReason::Cancelled,
        EndReason::AiHangup,
        EndReason::AiHandover,
        EndReason::TransferFailed,
        EndReason::ApiHangup,
        EndReason::AiUnreachable,
        EndReason::AiClosed,
        EndReason::AiTimeout,
        EndReason::AiProtocol,
        EndReason::MediaTimeout,
        EndReason::PbxLost,
        EndReason::PbxError,
        EndReason::Transferred,
        EndReason::NoAck,
        EndReason::SessionExpired,
        EndReason::BadMedia,
        EndReason::MaxDuration,
        EndReason::Overload,
        EndReason::Busy,
        EndReason::NoAnswer,
        EndReason::Rejected,
        EndReason::InvalidNumber,
        EndReason::DialFailed,
        EndReason::NotRecorded,
        EndReason::Drain,
        EndReason::Internal,
    ];

    pub fn row(self) -> EndRow {
        use CallerFate::{AfterAiClose, AfterAiFailure, Continues, Gone, HungUp};
        const INFO: Level = Level::INFO;
        const WARN: Level = Level::WARN;
        const BUSY: &str = "Service Unavailable";
        const UNAVAILABLE: &str = "Temporarily Unavailable";
        const TERMINATED: &str = "Request Terminated";
        let (label, sip_status, sip_reason, q850, level, caller) = match self {
            EndReason::CallerHangup => ("caller_hangup", 487, TERMINATED, 16, INFO, Gone),
            EndReason::Cancelled => ("cancelled", 487, TERMINATED, 16, INFO, Gone),
            EndReason::AiHangup => ("ai_hangup", 503, BUSY, 16, INFO, AfterAiClose),
            EndReason::AiHandover => ("ai_handover", 503, BUSY, 16, INFO, Continues),
            EndReason::TransferFailed => ("transfer_failed", 503, BUSY, 31, WARN, AfterAiFailure),
            EndReason::ApiHangup => ("api_hangup", 603, "Decline", 16, INFO, HungUp),
            EndReason::AiUnreachable => ("ai_unreachable", 503, BUSY, 38, WARN, AfterAiFailure),
            EndReason::AiClosed => ("ai_closed", 503, BUSY, 38, WARN, AfterAiFailure),
            EndReason::AiTimeout => ("ai_timeout", 503, BUSY, 38, WARN, AfterAiFailure),
            EndReason::AiProtocol => ("ai_protocol", 503, BUSY, 111, WARN, AfterAiFailure),
            EndReason::MediaTimeout => ("media_timeout", 503, BUSY, 44, WARN, Continues),
            EndReason::PbxLost => ("pbx_lost", 503, BUSY, 27, WARN, Continues),
            EndReason::PbxError => ("pbx_error", 503, BUSY, 38, WARN, Continues),
            EndReason::Transferred => ("transferred", 487, TERMINATED, 16, INFO, Gone),
            EndReason::NoAck => ("no_ack", 503, BUSY, 102, WARN, Gone),
            EndReason::SessionExpired => ("session_expired", 503, BUSY, 102, WARN, Gone),
            EndReason::BadMedia => ("bad_media", 488, "Not Acceptable Here", 88, WARN, Gone),
            EndReason::MaxDuration => ("max_duration", 503, BUSY, 16, INFO, HungUp),
            EndReason::Overload => ("overload", 503, BUSY, 42, WARN, Continues),
            EndReason::Busy => ("busy", 486, "Busy Here", 17, INFO, HungUp),
            EndReason::NoAnswer => ("no_answer", 480, UNAVAILABLE, 19, INFO, HungUp),
            EndReason::Rejected => ("rejected", 603, "Decline", 21, INFO, HungUp),
            EndReason::InvalidNumber => ("invalid_number", 404, "Not Found", 1, WARN, HungUp),
            EndReason::DialFailed => ("dial_failed", 503, BUSY, 38, WARN, HungUp),
            EndReason::NotRecorded => ("not_recorded", 503, BUSY, 41, WARN, Continues),
            EndReason::Drain => ("drain", 503, BUSY, 31, INFO, Continues),
            EndReason::Internal => {
                ("internal", 500, "Server Internal Error", 41, Level::ERROR, Continues)
            }
        };
        EndRow { label, sip_status, sip_reason, q850, level, caller }
    }

    pub fn label(self) -> &'static str {
        self.row().label
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique() {
        let mut labels: Vec<_> = EndReason::ALL.iter().map(|r| r.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), EndReason::ALL.len());
    }
}
