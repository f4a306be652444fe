//! The publications of a running call: its figures, once a second, and its audio for those who
//! listen in.

use std::time::Instant;

use crate::call::core::Call;
use crate::call::listening::{Listener, Listeners};
use crate::call::live::LiveCall;
use crate::call::vitals::INTERVAL;
use crate::record::recording::Tap;

#[derive(Debug, Default)]
pub(super) struct Watching {
    /// When the figures are due. They are published with the first deadline after that, so that no
    /// wake-up is added.
    due: Option<Instant>,
    listeners: Listeners,
}

impl Watching {
    /// Publishes the figures if they are due.
    pub fn publish(&mut self, now: Instant, call: &mut Call, live: &LiveCall) {
        if self.due.is_none_or(|due| due <= now) {
            self.due = Some(now + INTERVAL);
            live.vitals.publish(call.figures(now));
        }
    }

    pub fn listen(&mut self, call: &mut Call, listener: Listener) {
        self.listeners.add(listener);
        call.set_listened(!self.listeners.is_empty());
    }

    /// Copies a frame to the listeners.
    pub fn pass(&mut self, call: &mut Call, tap: &Tap) {
        if self.listeners.pass(tap) {
            call.set_listened(false);
        }
    }
}
