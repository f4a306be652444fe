//! Asterisk's REST interface (ARI): calls that the dialplan sends into our Stasis application.
//!
//! [`event`], [`request`], [`bridging`] (one call), [`sweep`] (what is left behind), [`application`]
//! (all of one PBX; [`api`] are its words) and [`rtp_range`] (what limits the PBX) are pure;
//! [`client`] owns the connections.

pub mod api;
pub mod application;
pub mod bridging;
pub mod client;
pub mod event;
mod reconcile;
pub mod request;
pub mod rtp_range;
pub mod sweep;
