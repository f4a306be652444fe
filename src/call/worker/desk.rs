//! The orders of one call: who gave each one, and who gets its replies. Owns no I/O but the log,
//! the clock and the channels of the replies.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::info;

use crate::telemetry::Throttle;

use crate::call::OrderRequest;
use crate::call::ended::Given;
use crate::call::live::EventKind;
use crate::call::worker::described::Observed;
use crate::command::{Command, Failure, Order, Reply, Sender, Then};
use crate::stream::{OrderReply, ToAi, Unusable, extension};

/// The record of a call lists this many orders at most. Beyond that, the oldest of the AI are left
/// out, or else the oldest.
const MAX_LISTED: usize = 200;
/// The orders that an AI may give: one per interval, and this many at once.
const PACE: (Duration, u32) = (Duration::from_millis(50), 100);
const ZERO: Duration = Duration::ZERO;

/// An order that has no final reply yet.
struct Entry {
    id: String,
    by: Sender,
    command: &'static str,
    /// The target of a transfer.
    to: Option<String>,
    /// False once another AI has the call, which does not know of this order.
    is_present: bool,
    /// Gets the replies to an order that is not the AI's.
    replies: Option<tokio::sync::mpsc::UnboundedSender<Reply>>,
    /// When it was given.
    at: Instant,
}

/// The orders of one call.
pub(super) struct Desk {
    /// The call's id.
    call: String,
    /// When the call began.
    begun: Instant,
    /// The number of the last order.
    last: u32,
    open: HashMap<u32, Entry>,
    /// Replies to orders that could not be understood.
    pub unusable: Vec<ToAi>,
    given: Vec<Given>,
    /// Limits the orders of the AI.
    pace: Throttle,
}

impl Desk {
    pub fn new(call: &str) -> Desk {
        Desk {
            call: call.to_owned(),
            begun: Instant::now(),
            last: 0,
            open: HashMap::new(),
            unusable: Vec::new(),
            given: Vec::new(),
            pace: Throttle::with_burst(PACE.0, PACE.1),
        }
    }

    /// Numbers an order of the AI.
    pub fn take(&mut self, now: Instant, order: Result<Order, Unusable>) -> Option<(u32, Order)> {
        let paced = self.pace.admits(now);
        let (id, command, failure, why) = match order {
            Ok(order) if paced => return Some(self.add(order, None)),
            Ok(order) => (order.id, extension::name(&order.command), Failure::QueueFull, None),
            Err(Unusable { id, command, why }) => (id, command, Failure::Invalid, Some(why)),
        };
        if paced {
            let (by, at, took) = (Sender::Ai, now.saturating_duration_since(self.begun), ZERO);
            let given = Given { by, command, to: None, failure: Some(failure), at, took };
            info!(call = self.call, by = %Sender::Ai, command, why, "command refused");
            self.list(given);
        }
        let reply = OrderReply { id, command, reply: Reply::Failed(failure), why };
        self.unusable.push(ToAi::Reply(Box::new(reply)));
        None
    }

    /// Numbers an order of the control API.
    pub fn take_request(&mut self, request: OrderRequest) -> (u32, Order) {
        self.add(request.order, Some(request.replies))
    }

    fn add(
        &mut self,
        order: Order,
        replies: Option<tokio::sync::mpsc::UnboundedSender<Reply>>,
    ) -> (u32, Order) {
        self.last += 1;
        let command = extension::name(&order.command);
        let to = match &order.command {
            Command::Transfer(transfer) => Some(transfer.to.clone()),
            Command::Redirect(redirect) => match &redirect.then {
                Then::Transfer(transfer) => Some(transfer.to.clone()),
                Then::Ai(_) | Then::Hangup(_) => None,
            },
            _ => None,
        };
        let entry = Entry {
            id: order.id.clone(),
            by: order.by.clone(),
            command,
            to,
            is_present: true,
            replies,
            at: Instant::now(),
        };
        self.open.insert(self.last, entry);
        (self.last, order)
    }

    /// Passes a reply on. Returns the message if the AI gets it.
    pub fn reply(&mut self, number: u32, reply: &Reply, observed: &Observed) -> Option<ToAi> {
        let entry = self.open.get(&number)?;
        let (id, command) = (entry.id.clone(), entry.command);
        observed.event(&EventKind::Command { by: &entry.by, command, id: &id, reply });
        let message = match &entry.replies {
            // its receiver may be gone
            Some(replies) => {
                let _ = replies.send(reply.clone());
                None
            }
            None if !entry.is_present => None,
            None => {
                let reply = reply.clone();
                Some(ToAi::Reply(Box::new(OrderReply { id, command, reply, why: None })))
            }
        };
        let failure = match reply {
            Reply::Accepted | Reply::Progress(_) => return message,
            Reply::Done => None,
            Reply::Failed(failure) => Some(*failure),
        };
        if let Some(Entry { by, to, at, .. }) = self.open.remove(&number) {
            match failure {
                None => info!(call = self.call, %by, command, to, "command carried out"),
                Some(why) => info!(call = self.call, %by, command, to, %why, "command failed"),
            }
            let (took, at) = (at.elapsed(), at.saturating_duration_since(self.begun));
            self.list(Given { by, command, to, failure, at, took });
        }
        message
    }

    /// Another AI has the call: it gets no replies to orders of the one before.
    pub fn change_ai(&mut self) {
        self.open.values_mut().for_each(|entry| entry.is_present = false);
        self.unusable.clear();
    }

    fn list(&mut self, given: Given) {
        if self.given.len() >= MAX_LISTED {
            let oldest = self.given.iter().position(|given| given.by == Sender::Ai);
            self.given.remove(oldest.unwrap_or(0));
        }
        self.given.push(given);
    }

    /// Fails the orders that are not complete, because the call is over. Returns all orders.
    pub fn close(&mut self, observed: &Observed) -> Vec<Given> {
        let mut open: Vec<u32> = self.open.keys().copied().collect();
        open.sort_unstable();
        for number in open {
            self.reply(number, &Reply::Failed(Failure::Ended), observed);
        }
        std::mem::take(&mut self.given)
    }
}
