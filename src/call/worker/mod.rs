//! The threads that calls run on. [`pool`] starts them and places calls, [`event_loop`] is what
//! each one runs, [`inbox`] takes messages from other threads, [`token`] identifies the call and
//! socket of an event.

pub(in crate::call) mod event_loop;
mod inbox;
pub mod pool;
mod token;
