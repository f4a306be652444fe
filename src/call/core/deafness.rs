//! Detects that the PBX sends no RTP, long before `media_timeout` ends the call.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::call::core::Call;
use crate::call::words::MissingRtp;

/// RTP is missed after this long.
const MISSED_AFTER: Duration = Duration::from_secs(2);

impl Call {
    /// Returns when RTP will have been missing for 2 s; `None` on hold, before the answer, and once
    /// it has been reported.
    pub(super) fn misses_rtp_at(&self) -> Option<Instant> {
        let on_hold = self.remote.is_some_and(|r| r.is_on_hold());
        if on_hold || self.missing_rtp_reported {
            return None;
        }
        let since = self.past.answered?.max(self.hearing.receiver.last_heard()?);
        let since = self.past.resumed.map_or(since, |at| at.max(since));
        Some(since + MISSED_AFTER)
    }

    /// The address that the PBX announced for its RTP.
    pub fn announced(&self) -> Option<SocketAddr> {
        self.remote.map(|remote| remote.rtp)
    }

    /// Returns the addresses if RTP is missing now. Reported once per call.
    pub(super) fn missing_rtp(&mut self, now: Instant) -> Option<MissingRtp> {
        self.misses_rtp_at().filter(|at| *at <= now)?;
        self.missing_rtp_reported = true;
        Some(MissingRtp {
            stopped: self.hearing.receiver.counts().sequence.received > 0,
            announced: self.announced(),
            rejected: self.hearing.receiver.source.refused().map(|(from, _)| from),
        })
    }
}
