//! The end of a stream that we close: what is queued, our close frame, and the wait for the AI's.

use std::time::Instant;

use tokio_tungstenite::tungstenite::Message as Library;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::stream::scratch::Scratch;
use crate::stream::socket::{AiSocket, Farewell, would_block};

impl AiSocket {
    /// Starts closing the stream: sends what is queued and a close frame (1000), then waits for the
    /// AI's.
    pub fn bid_farewell(&mut self) {
        // later states remain: an AI that has closed accepts nothing more
        self.farewell = self.farewell.max(Farewell::Sending);
        let held = std::mem::take(&mut self.held);
        self.socket.get_mut().hand_over(&held);
    }

    /// Continues closing the stream; returns true once nothing is left to do.
    pub fn farewell(&mut self, now: Instant, scratch: &mut Scratch) -> bool {
        if self.try_pump(now, scratch).is_err() {
            // an AI that has closed accepts nothing more, but may have sent something before
            self.queue.clear();
        }
        scratch.frames.clear();
        if self.farewell == Farewell::Sending && self.queue.is_empty() && !self.blocked {
            self.farewell = Farewell::Waiting;
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            match self.socket.close(Some(frame)) {
                Err(error) if would_block(&error) => self.block(),
                // the AI closed first, and its close frame has been answered
                _ => {}
            }
        }
        while matches!(self.farewell, Farewell::Sending | Farewell::Waiting) {
            match self.socket.read() {
                Ok(Library::Close(_)) => {
                    self.asked_to_close = false;
                    self.answer_close();
                }
                // a pong may be due
                Ok(_) => drop(self.flush()),
                Err(error) if would_block(&error) => break,
                Err(_) => self.farewell = Farewell::Done,
            }
        }
        self.farewell == Farewell::Done
    }
}
