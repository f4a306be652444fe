//! The agent in virtual time against a PBX that says what each test writes.

mod accounts;
mod calls;
mod limits;
mod outgoing;
mod refusals;
mod renegotiation;
mod rig;
mod session_timers;
