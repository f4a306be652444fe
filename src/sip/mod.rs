//! SIP user agent (RFC 3261 and friends), for one that lives beside a PBX.
//!
//! All of it is pure but [`endpoint`], [`tcp`] and [`knock`], which own the sockets, and
//! [`resolve`], which asks the DNS: bytes and `now: Instant` go in, bytes and events come out.
//! [`agent::Agent`] ties the parts together.

pub mod agent;
pub mod contact;
pub mod dialog;
pub mod digest;
pub mod endpoint;
pub mod flow;
pub mod header;
pub mod knock;
pub mod message;
pub mod network;
pub mod random;
pub mod registration;
pub mod resolve;
pub mod sdp;
pub mod session_timer;
pub mod stream;
pub mod tcp;
pub mod transaction;
pub mod translate;
pub mod uri;
