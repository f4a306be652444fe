//! The load generator behind `trunkless bench`: many concurrent calls through a bridge, measured
//! from outside.
//!
//! The generator's two threads share the machine with the bridge they measure. Each is therefore a
//! single loop over epoll and a timer, with one system call per packet. [`callers`] is the PBX with
//! all its phones; [`ai`] is the WebSocket server behind the bridge. Both send by an absolute clock
//! ([`schedule`]), stamp every frame ([`stamp`]) and account for what arrives ([`ledger`],
//! [`pacing`]). [`run`] is one measurement, from the start of the bridge to its end; [`report`]
//! holds its results; [`ramp`] adds calls until something breaks.
//!
//! A *frame* is 20 ms of one call in one direction. A bridge that decodes and re-encodes mu-law
//! must return the same bytes, so the stamps avoid both byte values that stand for zero.

pub mod ai;
pub mod ai_stream;
pub mod ari;
pub mod bridge;
pub mod callers;
pub mod delays;
pub mod dialect;
pub mod figures;
pub mod floods;
pub mod floor;
pub mod launch;
pub mod ledger;
pub mod listener;
pub mod network;
pub mod outcome;
pub mod outgoing;
pub mod pacing;
pub mod process;
pub mod ramp;
pub mod report;
pub mod run;
pub mod schedule;
pub mod shared;
pub mod signalling;
pub mod speech;
pub mod stamp;
pub mod stasis;
pub mod telephony;
pub mod trace;
pub mod verdict;
pub mod waiting;
pub mod websocket;
pub mod wire;
