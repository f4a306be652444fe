//! trunkless connects the calls on a PBX to a voice-AI pipeline over a WebSocket.
//!
//! A call's way: [`sip`] or [`ari`] takes it from the PBX and makes a [`call::Offer`] of it,
//! [`call`] joins the RTP side ([`media`]) and the AI's WebSocket ([`stream`]), [`record`] keeps
//! what was said.
//! [`app`] puts the parts together from [`config`]. [`peer`] has the other side of each wire, for
//! the demo and tests, and [`bench`] puts a bridge under load. ARCHITECTURE.md tells where to find
//! what.

pub mod app;
pub mod ari;
pub mod bench;
pub mod call;
pub mod cli;
pub mod config;
pub mod control;
pub mod media;
pub mod peer;
pub mod record;
pub mod sip;
pub mod stream;
pub mod telemetry;
pub mod tls;

#[cfg(test)]
pub mod testing;
