//! The threads that calls run on. [`pool`] starts them and assigns calls to them, [`event_loop`]
//! runs on each of them, [`inbox`] holds messages from other threads, [`rate`] decides when events
//! are batched, and [`token`] identifies the call and socket of an event. [`task`] is one call
//! there: its packets, its AI's messages and its timers; [`dialling`] connects it with its AIs,
//! [`desk`] has its orders, and [`described`] shows it to others.

mod ai_side;
mod capturing;
mod counting;
mod delays;
pub mod described;
pub mod desk;
mod dialling;
mod event_loop;
mod inbox;
mod lines;
pub mod pool;
mod rare_events;
mod rate;
mod source;
pub mod task;
mod token;
mod tools;
mod watching;
