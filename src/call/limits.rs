//! The times that end a call: what has happened when, and what follows if nothing else does.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::call::CallConfig;
use crate::call::end::EndReason;

/// With the PBX silent on the signalling side, so long without RTP means that it is gone.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// A source that does not connect an answered caller has failed.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Milestones {
    pub answer_wanted: Option<Instant>,
    /// Time 0: when the caller was connected.
    pub answered: Option<Instant>,
    pub ai_started: Option<Instant>,
    pub ai_heard: bool,
    pub pbx_lost: Option<Instant>,
    pub pbx_back: Option<Instant>,
    /// When the last hold ended.
    pub resumed: Option<Instant>,
}

/// How things are now.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// When RTP last came.
    pub heard: Option<Instant>,
    pub on_hold: bool,
    /// The AI's stream is up.
    pub talking: bool,
    /// The latest time at which queued audio stops playing, and the reason the call ends with.
    pub finish_by: Option<(Instant, EndReason)>,
}

/// The times of [`CallConfig`] that the decisions need; zero = never.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub drain_on_close: Duration,
    max_duration: Duration,
    silent_timeout: Duration,
    media_timeout: Duration,
}

impl Limits {
    pub fn of(config: &CallConfig) -> Limits {
        Limits {
            drain_on_close: config.drain_on_close,
            max_duration: config.max_duration,
            silent_timeout: config.silent_timeout,
            media_timeout: config.media_timeout,
        }
    }

    /// The earliest of the times that end the call, and why it ends then.
    pub fn earliest(&self, past: &Milestones, state: State) -> Option<(Instant, EndReason)> {
        let after = |since: Option<Instant>, limit: Duration, reason: EndReason| {
            since.filter(|_| !limit.is_zero()).map(|at| (at + limit, reason))
        };
        let heard = state.heard.filter(|_| past.answered.is_some());
        let expected = heard.max(past.resumed).filter(|_| !state.on_hold);
        let silent = past.ai_started.filter(|_| !past.ai_heard && state.talking);
        // a PBX that is back knows this call if its RTP flows again
        let survived = past.pbx_back.is_some_and(|back| heard.is_some_and(|at| at > back));
        let unsure = past.pbx_lost.is_some() && !survived;
        let lost = heard.max(past.pbx_lost).filter(|_| unsure && !state.on_hold);
        let unconnected = past.answer_wanted.filter(|_| past.answered.is_none());
        let times = [
            state.finish_by,
            after(past.answered, self.max_duration, EndReason::MaxDuration),
            after(lost, LOST_AFTER, EndReason::PbxLost),
            after(unconnected, CONNECT_LIMIT, EndReason::PbxError),
            after(expected, self.media_timeout, EndReason::MediaTimeout),
            after(silent, self.silent_timeout, EndReason::AiTimeout),
        ];
        times.into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}
