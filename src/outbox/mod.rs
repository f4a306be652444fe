//! An outbox: items to be sent to other systems, which survive a restart. [`entries`] keeps one
//! file per item until it is sent; [`schedule`] (pure) decides when each item is sent, retried, or
//! held back because its destination does not respond. Recordings use it.

pub mod entries;
pub mod schedule;
