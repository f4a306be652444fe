//! The instrument: many calls at once through a bridge, measured from outside.
//!
//! Two threads share the machine with the bridge that they measure, so each is one loop over epoll
//! and a timer, with one system call a packet and no allocation on a frame's way: [`callers`] is
//! the PBX with all its phones, [`ai`] the WebSocket server behind the bridge. Both send by an
//! absolute clock ([`schedule`]), stamp every frame ([`stamp`]) and keep account of what comes
//! ([`ledger`], [`pacing`]). [`run`] is one measurement from the bridge's start to its end,
//! [`report`] what it found, [`ramp`] the climb until something gives.
//!
//! A *frame* is 20 ms of one call in one direction. A bridge that decodes mu-law must give the same
//! bytes back: the stamps use none of the two that stand for zero.

pub mod ai;
pub mod ari;
pub mod bridge;
pub mod callers;
pub mod figures;
pub mod launch;
pub mod ledger;
pub mod outcome;
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
