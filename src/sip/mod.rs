//! A SIP user agent (RFC 3261 and related RFCs) that runs next to a PBX.
//!
//! Everything is pure except [`endpoint`], which owns the sockets and queries DNS: bytes and
//! `now: Instant` go in, bytes and events come out. [`agent::Agent`] ties the parts together.

pub mod agent;
pub mod bytes;
pub mod challenges;
pub mod contact;
pub mod description;
pub mod dialog;
pub mod digest;
pub mod endpoint;
pub mod flow;
pub mod header;
pub mod key_press;
pub mod message;
pub mod multipart;
pub mod network;
pub mod random;
pub mod reader;
pub mod registration;
pub mod sdp;
pub mod session_timer;
pub mod stream;
pub mod transaction;
pub mod uri;
