//! Asterisk's REST interface (ARI): calls that the dialplan sends into our Stasis application.
//!
//! Pure: [`event`], [`request`], [`bridging`] (one call), [`application`] (all calls of one PBX;
//! its inputs and outputs are in [`api`]), [`sweep`] (orphaned objects) and [`rtp_range`] (the
//! PBX's RTP ports). [`client`] owns the connections.

pub mod api;
pub mod application;
pub mod bridging;
pub mod client;
pub mod event;
pub mod request;
pub mod rtp_range;
pub mod sweep;
