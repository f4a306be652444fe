//! An outbox: items to be sent to other systems, which survive a restart. [`entries`] keeps one
//! file per item until it is sent; [`schedule`] (pure) decides when each item is sent, retried, or
//! held back because its destination does not respond; [`backlog`] (pure) bounds how many wait, and
//! how long. [`webhook`] is one of the destinations. Recordings and the events of calls use it.

pub mod backlog;
pub mod entries;
pub mod schedule;
pub mod webhook;
