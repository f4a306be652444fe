//! The audio path: RTP in and out, in 20 ms frames of G.711 at 8 kHz.
//!
//! Pure: packets, frames and `now` go in; packets, frames and deadlines come out.

pub mod dtmf;
pub mod frame;
pub mod g711;
pub mod pacer;
pub mod playout;
pub mod receiver;
pub mod rtcp;
pub mod rtp;
pub mod sender;
pub mod sequencer;
pub mod source;
pub mod timeline;
