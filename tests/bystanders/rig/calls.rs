//! The state of a bystander's call that its caller and its AI share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::judge::{Arrival, Content, Way};

/// The AI of call N sends the frames of call N plus this.
pub const AI: u32 = 1_000_000;

/// One bystander's call.
#[derive(Default)]
pub struct Call {
    pub number: u32,
    talking: AtomicBool,
    swallow: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    pub answered: bool,
    /// How the call ended.
    pub ended: Option<String>,
    /// Number of RTP packets at the caller so far.
    pub packets: usize,
    /// The last of them: when it came, from where, and its timestamp and sequence number.
    pub last_packet: Option<(Instant, SocketAddr)>,
    pub to_ai: Way,
    pub to_caller: Way,
}

impl Call {
    pub fn new(number: u32) -> Arc<Call> {
        Arc::new(Call { number, ..Call::default() })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic elsewhere")
    }

    /// While true, both sides send numbered audio.
    pub fn talk(&self, on: bool) {
        self.talking.store(on, Ordering::Relaxed);
    }

    pub fn talks(&self) -> bool {
        self.talking.load(Ordering::Relaxed)
    }

    /// The caller's next frame counts as sent, but silence is sent instead: as if a network had
    /// lost it. For a test of the rig itself.
    pub fn swallow(&self) {
        self.swallow.store(true, Ordering::Relaxed);
    }

    /// True once after [`Call::swallow`].
    pub fn swallows(&self) -> bool {
        self.swallow.swap(false, Ordering::Relaxed)
    }
}

/// Adds an arrival, leaving out what came before the first frame that is not silence.
pub fn hear(way: &mut Way, arrival: Arrival) {
    if !way.heard.is_empty() || arrival.content != Content::Silence {
        way.heard.push(arrival);
    }
}
