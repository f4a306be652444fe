//! A call with an owner, who ends it or takes the caller elsewhere. Once asked to, the call lasts,
//! with silence, until the owner has done so: a BYE from us would count as an abandoned call.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::call::SourceRequest;
use crate::call::core::state::Falling;
use crate::call::core::{Call, Phase};
use crate::call::departure::Departure;
use crate::call::end::EndReason;
use crate::call::ladder::Rung;
use crate::call::words::Output;
use crate::media::frame::{Frame, Kind};
use crate::media::quiet::is_quiet;

/// After this time the call ends in any case. Before, the owner has given up and asked the
/// source to end it.
const LEFT: Duration = Duration::from_secs(360);
/// An owner that takes the caller elsewhere, in a shutdown, has this long.
pub(super) const TAKEN_AWAY: Duration = Duration::from_secs(15);
/// The prompt that is always there.
const SORRY: &str = "sorry";
/// A caller who was louder than silence for this many frames, 300 ms, has said something.
const SPOKEN: u32 = 15;

/// The state of a call with an owner.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnedCall {
    /// The stream does not start before this time, unless the owner's data arrives earlier.
    data_by: Option<Instant>,
    /// Maximum length of the status of a disposition, in bytes.
    pub max_status: usize,
    /// When a call that leaves ends in any case.
    left_by: Option<Instant>,
    /// Frames of the caller's that were louder than silence; `None` once the owner knows that the
    /// caller has spoken.
    loud: Option<u32>,
}

impl Call {
    /// The call has an owner. Its data is waited for until `data_by`.
    pub fn own(&mut self, data_by: Option<Instant>, max_status: usize) {
        self.owned = Some(OwnedCall { data_by, max_status, left_by: None, loud: Some(0) });
        // the owner can take the caller elsewhere
        self.can_continue = true;
    }

    pub(super) fn data_by(&self) -> Option<Instant> {
        self.owned.and_then(|owned| owned.data_by)
    }

    /// The owner's data is waited for no longer.
    pub(super) fn all_known(&mut self, now: Instant) {
        self.owned.iter_mut().for_each(|owned| owned.data_by = None);
        self.start_stream(now);
    }

    /// Takes a frame of the caller's, until it is known that the caller has spoken.
    pub(super) fn listen(&mut self, frame: &Frame) {
        let Some(loud) = self.owned.as_mut().and_then(|owned| owned.loud.as_mut()) else { return };
        if frame.kind != Kind::Heard || is_quiet(frame.law, &frame.samples) {
            return;
        }
        *loud += 1;
        if *loud >= SPOKEN {
            self.spoken();
        }
    }

    /// The caller has said something, or pressed a key.
    pub(super) fn spoken(&mut self) {
        let Some(owned) = &mut self.owned else { return };
        if owned.loud.take().is_some() {
            self.out.push_back(Output::Request(SourceRequest::Spoken));
        }
    }

    pub(super) fn leave(&mut self, reason: EndReason) {
        self.playing.drop_ai_audio();
        self.falling = None;
        self.out.extend([Output::CloseAi, Output::Leaving]);
        self.phase = Phase::Leaving { reason };
    }

    pub(super) fn leaves(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    /// Sets the time at which a call that leaves ends in any case.
    pub(super) fn settle_leaving(&mut self, now: Instant) {
        if self.leaves() {
            self.owned.iter_mut().for_each(|owned| {
                owned.left_by.get_or_insert(now + LEFT);
            });
        }
    }

    /// When a call that leaves ends in any case.
    pub(super) fn left_by(&self) -> Option<Instant> {
        self.owned.filter(|_| self.leaves()).and_then(|owned| owned.left_by)
    }

    /// Ends a call that leaves and whose owner has not ended it: its media has stopped, or it has
    /// lasted for too long.
    pub(super) fn give_up_leaving(&mut self, reason: EndReason) {
        let departure = Departure::HangUp;
        self.out.push_back(Output::Request(SourceRequest::End { reason, departure }));
        self.ended(reason);
    }

    /// The owner has not taken the caller of an unanswered call: the caller is answered, hears a
    /// prompt, and the owner is asked once more.
    pub(super) fn not_taken(&mut self, now: Instant) {
        let Phase::Leaving { reason } = self.phase else { return };
        if self.past.answered.is_some() {
            return;
        }
        self.phase = Phase::Finishing { reason, until: None };
        let prompt = self.prompts.get(SORRY).cloned().unwrap_or_default();
        let rungs = [Rung::Play(prompt), Rung::Continue].into();
        self.falling = Some(Falling { reason, rungs, active: true });
        self.owned.iter_mut().for_each(|owned| owned.left_by = None);
        self.next_rung(now);
    }
}
