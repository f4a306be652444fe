//! The threads that calls run on. [`pool`] starts them and assigns calls to them, [`event_loop`]
//! runs on each of them, [`inbox`] holds messages from other threads, and [`token`] identifies the
//! call and socket of an event.

pub(in crate::call) mod event_loop;
mod inbox;
pub mod pool;
mod token;
