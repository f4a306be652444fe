//! The time limits of a call: when each one ends it, given the call's events so far.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::call::CallConfig;
use crate::call::end::EndReason;

/// If the PBX has proved that it is gone, or responds again, the call is lost after this long
/// without RTP.
const GONE_AFTER: Duration = Duration::from_secs(2);
/// If the PBX only does not respond to signalling, the call is lost after this long without RTP. A
/// pause of the network is usually shorter.
const LOST_AFTER: Duration = Duration::from_secs(9);
/// The source has failed if it does not connect the caller this long after the answer was
/// requested.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// The times of the call's events so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Milestones {
    /// When the answer was requested from the source.
    pub answer_wanted: Option<Instant>,
    /// When the caller was connected, which is time 0.
    pub answered: Option<Instant>,
    /// When the AI's stream started.
    pub ai_started: Option<Instant>,
    /// True once the AI has sent a message that can be used.
    pub ai_heard: bool,
    /// True if its session may continue on another connection, since the last one ended.
    pub resuming: bool,
    /// When the PBX stopped responding.
    pub pbx_lost: Option<Instant>,
    /// True if the PBX proved then that it is gone.
    pub pbx_gone: bool,
    /// When the PBX responded again after that.
    pub pbx_back: Option<Instant>,
    /// When the last hold ended, or later after a standstill of this process.
    pub resumed: Option<Instant>,
}

/// The present state, as far as the limits depend on it.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// When RTP last arrived.
    pub heard: Option<Instant>,
    pub on_hold: bool,
    /// True while the AI's stream is up.
    pub talking: bool,
    /// True while the owner of the call ends it.
    pub leaves: bool,
    /// Deadline for playing queued audio, and the end reason that then applies.
    pub finish_by: Option<(Instant, EndReason)>,
}

/// The limits from [`CallConfig`]; zero = none.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub drain_on_close: Duration,
    max_duration: Duration,
    /// That of the AI that was dialled last.
    pub silent_timeout: Duration,
    media_timeout: Duration,
    /// The longest time that the callee's phone rings, if we place the call.
    pub ring: Option<Duration>,
}

impl Limits {
    /// Those of each AI: `silent_timeout` and `drain_on_close`.
    pub fn by_ai(config: &CallConfig) -> Vec<(Duration, Duration)> {
        let all = config.ais.iter().enumerate();
        all.map(|(place, ai)| (ai.silent_timeout, config.drain(place))).collect()
    }

    pub fn of(config: &CallConfig) -> Limits {
        Limits {
            drain_on_close: config.drain(config.first),
            max_duration: config.max_duration,
            silent_timeout: config
                .ais
                .get(config.first)
                .map_or(Duration::ZERO, |ai| ai.silent_timeout),
            media_timeout: config.media_timeout,
            ring: None,
        }
    }

    /// Returns the earliest time at which the call ends, and the reason.
    pub fn earliest(&self, past: &Milestones, state: State) -> Option<(Instant, EndReason)> {
        let after = |since: Option<Instant>, limit: Duration, reason: EndReason| {
            since.filter(|_| !limit.is_zero()).map(|at| (at + limit, reason))
        };
        let heard = state.heard.filter(|_| past.answered.is_some());
        let expected = heard.max(past.resumed).filter(|_| !state.on_hold);
        let silent = past.ai_started.filter(|_| !past.ai_heard && state.talking);
        // if RTP has arrived since the PBX came back, the PBX still has this call
        let survived = past.pbx_back.is_some_and(|back| heard.is_some_and(|at| at > back));
        let unsure = past.pbx_lost.is_some() && !survived;
        let lost = heard.max(past.pbx_lost).filter(|_| unsure && !state.on_hold);
        let lost_after = if past.pbx_gone { GONE_AFTER } else { LOST_AFTER };
        let back = past.pbx_back.filter(|_| lost.is_some());
        let unconnected = past.answer_wanted.filter(|_| past.answered.is_none());
        let (connect, unanswered) = match self.ring {
            Some(ring) => (ring, EndReason::NoAnswer),
            None => (CONNECT_LIMIT, EndReason::PbxError),
        };
        let times = [
            state.finish_by,
            after(
                past.answered.filter(|_| !state.leaves),
                self.max_duration,
                EndReason::MaxDuration,
            ),
            after(lost, lost_after, EndReason::PbxLost),
            after(back, GONE_AFTER, EndReason::PbxLost),
            after(unconnected, connect, unanswered),
            after(expected, self.media_timeout, EndReason::MediaTimeout),
            after(silent, self.silent_timeout, EndReason::AiTimeout),
        ];
        times.into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}
