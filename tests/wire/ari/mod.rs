//! ARI mode, against a fake PBX: `world` is its state and events, `ask` its requests, `obey` its
//! answers, `fake` its sockets, and `rig` all parties together.

mod ask;
pub mod fake;
mod obey;
pub mod rig;
pub mod world;

mod ai_ends;
mod cut;
mod dialout;
mod junk;
mod limits;
#[cfg(feature = "fault-points")]
mod panics;
mod replaced;
mod rest;
mod set_ups;
mod start;
mod whole;
