//! The remote ends: a SIP phone with a small registrar, the AI stand-in, and numbered audio. Used
//! by the demo, `trunkless call`, the benches and the tests.

pub mod ai;
pub mod pattern;
pub mod phone;
pub mod registrar;
