//! Finds out that the PBX sends no RTP, long before `media_timeout` ends the call.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::call::core::Call;

/// RTP is missed after this long.
const MISSED_AFTER: Duration = Duration::from_secs(2);

/// The addresses to look at when RTP is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingRtp {
    /// True if RTP has arrived before in this call.
    pub stopped: bool,
    /// The address that the PBX announced for its RTP.
    pub announced: Option<SocketAddr>,
    /// The last address from which RTP was rejected.
    pub rejected: Option<SocketAddr>,
}

impl Call {
    /// Returns when RTP will have been missing for 2 s; `None` on hold, before the answer, and once
    /// it has been reported.
    pub(super) fn misses_rtp_at(&self) -> Option<Instant> {
        let held = self.remote.is_some_and(|r| !r.wants_audio || !r.sends_audio);
        if held || self.missing_rtp_reported {
            return None;
        }
        let since = self.past.answered.max(self.past.resumed);
        let since = since?.max(self.hearing.receiver.last_heard()?);
        Some(since + MISSED_AFTER)
    }

    /// The address that the PBX announced for its RTP.
    pub fn announced(&self) -> Option<SocketAddr> {
        self.remote.map(|remote| remote.rtp)
    }

    /// Returns the addresses if RTP is missing now. Reported once per call.
    pub fn missing_rtp(&mut self, now: Instant) -> Option<MissingRtp> {
        self.misses_rtp_at().filter(|at| *at <= now)?;
        self.missing_rtp_reported = true;
        Some(MissingRtp {
            stopped: self.hearing.receiver.counts().sequence.received > 0,
            announced: self.announced(),
            rejected: self.hearing.receiver.source.refused().map(|(from, _)| from),
        })
    }
}
