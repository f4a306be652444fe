//! The record of an ended call.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::call::end::EndReason;
use crate::call::turns::Turn;
use crate::call::words::Summary;
use crate::command::{Disposition, Failure, Sender};
use crate::stream::socket::Counts;

/// The record of an ended call.
#[derive(Debug, Clone)]
pub struct Record {
    pub id: String,
    /// The name of the route that applied to the call.
    pub route: Option<Arc<str>>,
    pub reason: EndReason,
    pub summary: Summary,
    /// Messages that were dropped because the AI was slow, or were not understood.
    pub ai: Counts,
    /// Why there was no stream to the AI, how the AI ended it ("close frame 1000"), or that it was
    /// silent. `None` when trunkless ended it for another reason.
    pub ai_end: Option<String>,
    /// Ids of the call's recordings.
    pub recordings: Vec<String>,
    /// The orders that were given, in the order in which they were completed.
    pub commands: Vec<Given>,
    /// The result of the conversation, if one was given.
    pub disposition: Option<Disposition>,
    /// How a dialler knows the call: its ids there, by name.
    pub details: BTreeMap<String, String>,
    /// The attempts to connect with an AI, at most 32.
    pub dialled: Vec<Dialled>,
    /// The turns of the conversation, at most [`MAX_TURNS`](crate::call::turns::MAX_TURNS).
    pub turns: Vec<Turn>,
}

/// An attempt to connect a call with an AI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialled {
    /// Time from the offer of the call to its beginning.
    pub at: Duration,
    pub took: Duration,
    /// The kind of the failure, if it failed.
    pub failure: Option<&'static str>,
}

/// An order in the record of its call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub by: Sender,
    pub command: &'static str,
    /// The target of a transfer.
    pub to: Option<String>,
    /// `None` if it was carried out.
    pub failure: Option<Failure>,
    /// Time from the beginning of the call to the order, and from there to its last reply.
    pub at: Duration,
    pub took: Duration,
}
