//! trunkless connects the calls on a PBX to a voice-AI pipeline over a WebSocket.
//!
//! The path of a call: [`sip`] or [`ari`] takes it from the PBX and turns it into a
//! [`call::Offer`], [`call`] joins the RTP side ([`media`]) to the AI's WebSocket ([`stream`]), and
//! [`record`] records both sides.
//!
//! [`app`] assembles the parts according to [`config`]. [`peer`] has the remote ends for the demo
//! and the tests, and [`bench`] puts a bridge under load. ARCHITECTURE.md lists all modules.

pub mod app;
pub mod ari;
pub mod bench;
pub mod call;
pub mod capture;
pub mod cli;
pub mod command;
pub mod config;
pub mod control;
pub mod dns;
pub mod doctor;
pub mod faults;
pub mod folder;
pub mod media;
pub mod notices;
pub mod outbox;
pub mod peer;
pub mod record;
pub mod setup;
pub mod signed_requests;
pub mod sip;
pub mod status_callbacks;
pub mod stream;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod user_pattern;
pub mod vicidial;

#[cfg(test)]
pub mod testing;
