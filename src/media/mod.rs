//! The audio path: RTP in and out, in 20 ms frames of G.711 at 8 kHz.
//!
//! Pure: packets, frames and `now` go in; packets, frames and deadlines come out.

pub mod dtmf;
pub mod frame;
pub mod g711;
pub mod machine;
pub mod pacer;
pub mod playout;
pub mod quality;
pub mod quiet;
pub mod receiver;
pub mod resample;
pub mod rtcp;
pub mod rtp;
pub mod sender;
pub mod sequencer;
pub mod source;
pub mod speech;
pub mod standing;
pub mod timeline;
pub mod tone;
pub mod voice;

use std::time::Duration;

/// Settings of the audio path of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long later packets are held for a missing one.
    pub reorder_wait: Duration,
    /// How far late audio from the caller may put the timeline ahead of real time; beyond that, it
    /// is dropped.
    pub max_lead: Duration,
    /// How long the first frame of a talkspurt to the caller waits for more.
    pub prebuffer: Duration,
    /// Send RTP to where it comes from, instead of to the address in the SDP.
    pub symmetric: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            reorder_wait: Duration::from_millis(40),
            max_lead: Duration::from_secs(1),
            prebuffer: Duration::ZERO,
            symmetric: false,
        }
    }
}
