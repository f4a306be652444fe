//! The agent in virtual time against a PBX scripted by each test.

mod accounts;
mod assignment;
mod calls;
mod changing;
mod direction;
mod limits;
mod monitor;
mod outgoing;
mod refusals;
mod renegotiation;
mod rig;
mod session_timers;
mod transfers;
