//! ARI mode, against a PBX of the tests' own: `world` is what it holds and what it says, `obey` how
//! it answers (`ask`), `fake` its sockets, `rig` all parties together.

mod ask;
mod fake;
mod obey;
mod rig;
mod world;

mod ai_ends;
mod cut;
mod junk;
mod limits;
mod replaced;
mod rest;
mod set_ups;
mod start;
mod whole;
