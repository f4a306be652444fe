//! The other side of each wire: a SIP phone with a small registrar, the AI stand-in, numbered
//! audio. For the demo, `trunkless call`, benches and tests alike.

pub mod ai;
pub mod pattern;
pub mod phone;
pub mod registrar;
