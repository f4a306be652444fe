//! A call that we place: the callee is called once the AI is there, so that whoever answers hears
//! it at once. The answer of the callee is time 0.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::call::AnswerWhen;
use crate::call::answering::Detection;
use crate::call::core::Call;
use crate::call::speech::{Listener, SpeechSettings};
use crate::call::words::Output;
use crate::record;

/// The state of a call that we place.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OutgoingCall {
    /// True once the callee's phone rings.
    rings: bool,
}

impl Call {
    /// Makes this a call that we place, before anything has happened in it. `ring`: how long the
    /// phone may ring; `ai`: the AI's place in the configuration; `record`: record it, whatever is
    /// done with others.
    pub fn place(&mut self, ring: Duration, ai: usize, record: bool) {
        self.out.clear();
        self.past.answer_wanted = None;
        // the phone does not ring before the AI is there
        self.answer = AnswerWhen::AiReady;
        self.outgoing = Some(OutgoingCall::default());
        self.limits.ring = Some(ring);
        (self.limits.silent_timeout, self.limits.drain_on_close) =
            self.limits_by_ai.get(ai).copied().unwrap_or_default();
        self.ai = ai;
        if record {
            self.record.iter_mut().for_each(|plan| plan.when = record::When::Always);
        }
    }

    /// Finds out who answers, before anything has happened in the call.
    pub fn detect(&mut self, settings: SpeechSettings, wanted: Detection) {
        self.listener = Listener::if_needed(settings, Some(wanted));
    }

    /// True until the callee of a call that we place has answered.
    pub(super) fn is_dialling(&self) -> bool {
        self.outgoing.is_some() && self.past.answered.is_none()
    }

    pub(super) fn rings(&mut self) {
        if self.is_dialling()
            && let Some(outgoing) = &mut self.outgoing
            && !std::mem::replace(&mut outgoing.rings, true)
        {
            self.out.push_back(Output::Ringing);
        }
    }
}
