//! A worker after a panic. Owns the clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::call::worker::event_loop::Worker;
use crate::call::worker::inbox::InboxMessage;
use crate::call::worker::token::{Socket, Token};
use crate::stream::scratch::Scratch;

impl Worker {
    /// Continues after a panic. Ends the call whose event was being handled. All others continue as
    /// if each of their sockets and deadlines had an event, because some of these were lost.
    pub fn recover(&mut self) {
        let now = Instant::now();
        if let Some(index) = self.handled.take() {
            self.discard(index);
        }
        // it may hold half a message
        self.buffers.scratch = Scratch::default();
        (self.timer_at, self.timers, self.starved) = (None, BinaryHeap::new(), Vec::new());
        self.free.clear();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.occupant.is_none() {
                self.free.push(index);
                continue;
            }
            let token = Token::new(index, slot.generation, Socket::None);
            (slot.timer, slot.due) = (Some(now), None);
            self.timers.push(Reverse((now, token)));
            self.starved.push(token);
            self.messages.push_back(InboxMessage::Woken(token));
            // the change makes the kernel report the AI's socket again
            slot.ai_watched = slot.ai_watched.map(|writing| !writing);
        }
        self.inbox.ring();
    }

    /// Drops an occupant that panicked, and with it the sender on which its record is awaited.
    fn discard(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(occupant) = slot.occupant.take() else { return };
        slot.waker = None;
        // dropping it may panic again
        let _ = catch_unwind(AssertUnwindSafe(|| drop(occupant)));
    }
}
