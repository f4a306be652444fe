//! The AI's side of a call: its stream opens, brings messages and ends. Owns no I/O but the log;
//! [`AiSocket`] has the stream's.

use std::time::{Duration, Instant};

use tracing::warn;

use crate::call::counters::ai_failed;
use crate::call::words::Input;
use crate::call::worker::task::Running;
use crate::stream::closed::Closed;
use crate::stream::scratch::Scratch;
use crate::stream::socket::{AiSocket, Stop};
use crate::stream::unreachable::ConnectError;
use crate::stream::{FromAi, ToAi};

impl Running {
    /// Notifies the call once the AI can take it.
    pub(super) fn prepared(&mut self, now: Instant) {
        if self.ai_prepares && self.ai.as_ref().is_some_and(AiSocket::is_ready) {
            self.ai_prepares = false;
            self.config.ais.get(self.current).iter().for_each(|ai| ai.breaker.ready());
            self.call.handle(now, Input::AiOpen);
        }
    }

    /// Handles up to `limit` messages from the AI. Returns true if more may be waiting.
    pub fn take_messages(&mut self, now: Instant, limit: usize, scratch: &mut Scratch) -> bool {
        let Running {
            ai,
            call,
            offer,
            ignored_logged,
            desk,
            warnings,
            tools,
            late,
            config,
            current,
            info,
            ..
        } = self;
        let Some(ai) = ai else { return false };
        let stop = ai.read(now, scratch, limit, &mut |message| {
            if let FromAi::Ignored(why) = message
                && !std::mem::replace(ignored_logged, true)
            {
                warn!(call = offer.id, "AI message ignored: {why} (logged once per call)");
            }
            match message {
                FromAi::Order(order) => {
                    if let Some((number, order)) = desk.take(now, *order) {
                        call.handle(now, Input::Order { number, order });
                    }
                }
                FromAi::Tool(tool) => {
                    let server = config.ais.get(*current).and_then(|ai| ai.tools.as_ref());
                    let refused = tools.call(server, info, *tool);
                    late.extend(refused.map(|refused| ToAi::ToolResult(Box::new(refused))));
                    call.ai_works();
                }
                FromAi::Warning(why) => {
                    if warnings.admits(now) {
                        warn!(call = offer.id, "AI reports a problem: {why}");
                    }
                }
                _ => call.handle(now, Input::Ai(message)),
            }
        });
        self.prepared(now);
        match stop {
            Stop::Empty => false,
            Stop::Turn => true,
            Stop::Closed(closed) => {
                // replies to earlier messages go out before the close frame is answered
                if closed.is_ordinary() {
                    self.act(now, scratch);
                }
                self.ai.iter_mut().for_each(AiSocket::answer_close);
                self.on_closed(now, closed);
                false
            }
        }
    }

    /// Notes that the AI has failed by sending nothing for this long.
    pub(super) fn ai_silent(&mut self, time: Duration) {
        self.lines.ai_silent(time);
        self.ai_end = Some(format!("no usable message for {time:?} after its start"));
    }

    /// Notes that the AI has closed before it was ready.
    fn session_refused(&mut self, closed: &Closed) {
        self.lines.ai_unreachable(&closed.to_string());
        let error = ConnectError::Session(closed.to_string());
        ai_failed(error.kind());
        let is_kept = self.attempts == self.dialled.len();
        if let Some(last) = self.dialled.last_mut().filter(|_| is_kept) {
            last.failure = Some(error.kind());
        }
        let Some(ai) = self.config.ais.get(self.current) else { return };
        // one call that dials its AI again and again says nothing about other calls
        if self.info.resumed {
            return;
        }
        let _runtime = self.runtime.enter();
        ai.breaker.failed(&ai.target, &error);
    }

    pub fn on_closed(&mut self, now: Instant, closed: Closed) {
        let Some(ai) = self.ai.take() else { return };
        let prepares = std::mem::take(&mut self.ai_prepares);
        match prepares {
            true => self.session_refused(&closed),
            false => self.lines.ai_closed(&closed),
        }
        // a broken stream is dropped; a cleanly closed one has had its close frame answered, and is
        // kept until its connection ends
        self.ai_counts = ai.counts();
        self.info.resumption = ai.resumption();
        self.ai_end = Some(closed.to_string());
        self.closing = closed.is_ordinary().then(|| Box::new(ai));
        match prepares {
            true => self.call.handle(now, Input::AiFailed),
            false => self.call.handle(now, Input::AiClosed(&closed)),
        }
    }
}
