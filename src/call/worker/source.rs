//! A call and those who brought it: the reports of its owner, and its requests to the source.

use std::task::{Context, Poll};
use std::time::Instant;

use crate::call::live::EventKind;
use crate::call::words::Input;
use crate::call::worker::task::Running;
use crate::call::{SourceRequest, parameters};
use crate::stream::ToAi;

impl Running {
    /// Takes the reports of the call's owner. Until the AI's stream starts they become parameters;
    /// after that the AI gets them in a message of its own.
    pub(super) fn learn(&mut self, now: Instant, cx: &mut Context<'_>) {
        while let Some(owned) = &mut self.offer.owned
            && let Poll::Ready(known) = owned.known.poll_recv(cx)
        {
            let Some(known) = known else {
                // nothing else will arrive
                self.offer.owned = None;
                return self.call.handle(now, Input::Known);
            };
            if known.is_empty() {
                // nothing else is worth waiting for
                self.call.handle(now, Input::Known);
            }
            for (name, value) in &known {
                // for another AI
                self.offer.added.detail(name, value);
            }
            let new = known.into_iter().filter(|(name, value)| {
                !value.is_empty() && !self.info.parameters.iter().any(|(known, _)| known == name)
            });
            let new: Vec<(String, String)> = new.collect();
            self.info.parameters.extend(new.iter().cloned());
            self.recordings.learn(&self.info.parameters);
            let details = parameters::recorded(&self.info.parameters);
            self.observed.call.update(|state| state.details = details);
            match &mut self.ai {
                Some(ai) if self.early_replies.is_some() => ai.add_parameters(new),
                Some(_) if !new.is_empty() => {
                    self.late.push(ToAi::Parameters(Box::new(new)));
                }
                _ => {}
            }
        }
    }

    pub(super) fn request(&self, request: SourceRequest) {
        if request == SourceRequest::Answer && self.offer.outgoing.is_some() {
            self.observed.event(&EventKind::Dialling);
        }
        (self.offer.requests)(request);
    }
}
