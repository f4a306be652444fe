//! Why a call ended: one table for SIP, Q.850, log and metrics.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use tracing::Level;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndReason {
    CallerHangup,
    /// The caller gave up before we answered.
    Cancelled,
    /// The AI closed its socket in good order.
    AiHangup,
    /// The AI could not be reached, before or after the answer.
    AiUnreachable,
    /// The AI's socket broke.
    AiClosed,
    /// The AI takes or says nothing.
    AiTimeout,
    /// The AI does not speak WebSocket or sends more than is allowed.
    AiProtocol,
    /// No RTP from the PBX.
    MediaTimeout,
    /// The PBX has forgotten the call or is gone.
    PbxLost,
    /// The PBX has refused a command that the call needs.
    PbxError,
    /// The PBX has taken the caller elsewhere.
    Transferred,
    NoAck,
    SessionExpired,
    BadMedia,
    MaxDuration,
    Overload,
    /// Nothing can be recorded, and every call has to be.
    NotRecorded,
    Drain,
    Internal,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct EndRow {
    /// In logs and metrics.
    pub label: &'static str,
    /// Refusal before the answer.
    pub sip_status: u16,
    pub sip_reason: &'static str,
    /// In the Reason of our BYE.
    pub q850: u16,
    pub level: Level,
}

impl EndReason {
    pub const ALL: [EndReason; 19] = [
        EndReason::CallerHangup,
        EndReason::Cancelled,
        EndReason::AiHangup,
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
        EndReason::NotRecorded,
        EndReason::Drain,
        EndReason::Internal,
    ];

    pub fn row(self) -> EndRow {
        const BUSY: &str = "Service Unavailable";
        let (label, sip_status, sip_reason, q850, level) = match self {
            EndReason::CallerHangup => {
                ("caller_hangup", 487, "Request Terminated", 16, Level::INFO)
            }
            EndReason::Cancelled => ("cancelled", 487, "Request Terminated", 16, Level::INFO),
            EndReason::AiHangup => ("ai_hangup", 503, BUSY, 16, Level::INFO),
            EndReason::AiUnreachable => ("ai_unreachable", 503, BUSY, 38, Level::WARN),
            EndReason::AiClosed => ("ai_closed", 503, BUSY, 38, Level::WARN),
            EndReason::AiTimeout => ("ai_timeout", 503, BUSY, 38, Level::WARN),
            EndReason::AiProtocol => ("ai_protocol", 503, BUSY, 111, Level::WARN),
            EndReason::MediaTimeout => ("media_timeout", 503, BUSY, 44, Level::WARN),
            EndReason::PbxLost => ("pbx_lost", 503, BUSY, 27, Level::WARN),
            EndReason::PbxError => ("pbx_error", 503, BUSY, 38, Level::WARN),
            EndReason::Transferred => ("transferred", 487, "Request Terminated", 16, Level::INFO),
            EndReason::NoAck => ("no_ack", 503, BUSY, 102, Level::WARN),
            EndReason::SessionExpired => ("session_expired", 503, BUSY, 102, Level::WARN),
            EndReason::BadMedia => ("bad_media", 488, "Not Acceptable Here", 88, Level::WARN),
            EndReason::MaxDuration => ("max_duration", 503, BUSY, 16, Level::INFO),
            EndReason::Overload => ("overload", 503, BUSY, 42, Level::WARN),
            EndReason::NotRecorded => ("not_recorded", 503, BUSY, 41, Level::WARN),
            EndReason::Drain => ("drain", 503, BUSY, 31, Level::INFO),
            EndReason::Internal => ("internal", 500, "Server Internal Error", 41, Level::ERROR),
        };
        EndRow { label, sip_status, sip_reason, q850, level }
    }

    pub fn label(self) -> &'static str {
        self.row().label
    }

    /// Whether the AI is to blame: then `on_ai_failure` applies.
    pub fn is_ai_failure(self) -> bool {
        matches!(
            self,
            EndReason::AiUnreachable
                | EndReason::AiClosed
                | EndReason::AiTimeout
                | EndReason::AiProtocol
        )
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
