//! Asterisk's REST interface (ARI): calls that the dialplan sends into our Stasis application.
//!
//! Pure: [`event`], [`request`], [`bridging`] (one call), [`application`] (all calls of one PBX;
//! [`api`] has its inputs and outputs), [`sweep`] (objects left behind) and [`rtp_range`] (the
//! PBX's RTP ports). [`client`] owns the connections.

pub mod api;
pub mod application;
pub mod bridging;
pub mod client;
pub mod event;
mod reconcile;
pub mod request;
pub mod rtp_range;
pub mod sweep;
