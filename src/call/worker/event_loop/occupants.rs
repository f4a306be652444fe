//! The events of a call on its worker, and of a stream that outlives its call. Owns I/O.

use std::task::{Context, Waker};
use std::time::Instant;

use crate::call::worker::event_loop::{Buffers, Cause, Leaving, Live, MAX_MESSAGES};

impl Live {
    /// Dials the AI that the call has asked for, or stops dialling. Returns false if neither.
    pub(super) fn dials_again(&mut self, now: Instant, waker: Option<&Waker>) -> bool {
        let Some(redial) = self.running.redial.take() else { return false };
        self.rare_events.redial(redial);
        // registers the waker
        let mut cx = Context::from_waker(waker.unwrap_or(Waker::noop()));
        self.running.handle_rare_events(now, &mut self.rare_events, &mut cx);
        true
    }

    /// Handles an event. Returns true if the AI has sent more than is read in one turn.
    pub(super) fn on(
        &mut self,
        now: Instant,
        cause: Cause,
        waker: Option<&Waker>,
        buffers: &mut Buffers,
    ) -> bool {
        let running = &mut self.running;
        // messages are what an AI event is about to read anyway
        let is_ai = matches!(cause, Cause::Ai { .. });
        let more = !is_ai && running.read_before_silence(now, &mut buffers.scratch);
        match cause {
            Cause::Woken => {
                let mut cx = Context::from_waker(waker.unwrap_or(Waker::noop()));
                let before = running.ai.is_some();
                running.handle_rare_events(now, &mut self.rare_events, &mut cx);
                if running.ai.is_some() && !before {
                    // messages may have arrived right behind the handshake's response
                    running.ai.iter_mut().for_each(|ai| ai.readable(false));
                    return running.take_messages(now, MAX_MESSAGES, &mut buffers.scratch);
                }
            }
            Cause::Timer => return more | running.on_timeout(now, buffers),
            Cause::Readable(channel) => {
                running.on_readable(now, channel, &mut buffers.datagram);
            }
            Cause::Ai { readable, writable, ending } => {
                if let Some(ai) = running.ai.as_mut().filter(|_| writable) {
                    ai.writable();
                }
                if readable {
                    running.ai.iter_mut().for_each(|ai| ai.readable(ending));
                    return running.take_messages(now, MAX_MESSAGES, &mut buffers.scratch);
                }
            }
        }
        more
    }
}

impl Leaving {
    /// Handles an event. Returns true once the stream is closed, or is to be dropped.
    pub(super) fn on(&mut self, now: Instant, cause: Cause, buffers: &mut Buffers) -> bool {
        if let Cause::Ai { ending, .. } = cause {
            self.ai.readable(ending);
            self.ai.writable();
        }
        self.ai.farewell(now, &mut buffers.scratch) || now >= self.until
    }
}
