//! Translates the SIP agent's types into those of `call`.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use md5::{Digest, Md5};

use crate::call::RemoteMedia;
use crate::call::end::EndReason;
use crate::command::Cause;
use crate::media::g711::Law;
use crate::media::receiver::Format;
use crate::sip::agent::CallEnd;
use crate::sip::sdp::{Codec, Remote};

/// Returns a call's ID, used in the log and for its recording.
pub fn short_id(seed: &str, unix: Duration) -> String {
    let digest = Md5::digest(seed);
    let hex: String = digest[..5].iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{hex}", unix.as_secs())
}

/// `trusted`: see [`RemoteMedia::trusted`].
pub fn remote_media(remote: &Remote, trusted: bool) -> RemoteMedia {
    let law = match remote.codec {
        Codec::Pcmu => Law::Mu,
        Codec::Pcma => Law::A,
    };
    RemoteMedia {
        rtp: remote.rtp,
        rtcp: remote.rtcp,
        format: Format {
            law,
            payload_type: remote.payload_type,
            dtmf_payload_type: remote.dtmf_payload_type,
        },
        wants_audio: remote.wants_audio(),
        sends_audio: remote.sends_audio(),
        early: false,
        trusted,
    }
}

/// Returns the status with which a call is refused.
pub fn refusal(cause: Cause) -> (u16, &'static str) {
    match cause {
        Cause::Normal => (480, "Temporarily Unavailable"),
        Cause::Busy => (486, "Busy Here"),
        Cause::Rejected => (603, "Decline"),
        Cause::Congestion => (503, "Service Unavailable"),
    }
}

pub fn end_reason(end: &CallEnd) -> EndReason {
    match end {
        CallEnd::Bye { .. } => EndReason::CallerHangup,
        CallEnd::Cancelled => EndReason::Cancelled,
        CallEnd::NoAck => EndReason::NoAck,
        CallEnd::SessionExpired => EndReason::SessionExpired,
        CallEnd::Lost => EndReason::PbxLost,
        CallEnd::BadAnswer => EndReason::BadMedia,
        CallEnd::Overload => EndReason::Overload,
        CallEnd::HungUp | CallEnd::Refused { .. } => EndReason::Internal,
    }
}
