//! Copies the packets and messages of a captured call into a bounded queue. Never blocks. Owns the
//! clock.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::capture::counters::DROPPED;
use crate::capture::{Captured, Direction, Kind};

/// At most this many packets and messages are queued for one capture.
const MAX_QUEUED: usize = 4096;
/// At most this many bytes are queued for one capture.
const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Longer messages are left out; their length remains.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Bytes of an RTP packet that remain while audio is left out: its fixed header.
const RTP_HEADER: usize = 12;

/// The part of a capture that both ends of the queue share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    queued_bytes: AtomicUsize,
    /// Packets and messages that were dropped because the queue was full.
    pub dropped: [AtomicU64; 2],
    /// True while the recording of the call is paused.
    is_private: AtomicBool,
    /// The id of the call, once there is one.
    pub call: OnceLock<String>,
}

/// The index of a kind in [`Shared::dropped`] and among the interfaces of the file.
pub(super) fn interface(kind: Kind) -> usize {
    usize::from(!kind.is_packet())
}

/// The call's end of a capture. The capture ends when all clones are dropped.
#[derive(Debug, Clone)]
pub struct Tap {
    sender: mpsc::Sender<Captured>,
    shared: Arc<Shared>,
}

impl PartialEq for Tap {
    fn eq(&self, other: &Tap) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for Tap {}

/// The reader's end of a capture.
pub(super) struct Queue {
    receiver: mpsc::Receiver<Captured>,
    pub shared: Arc<Shared>,
}

/// Returns both ends of a new capture.
pub(super) fn queue() -> (Tap, Queue) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED);
    let shared = Arc::new(Shared::default());
    (Tap { sender, shared: shared.clone() }, Queue { receiver, shared })
}

impl Queue {
    /// Waits until something was captured, and appends it. Returns false once the capture is over.
    /// Cancel-safe.
    pub async fn wait(&mut self, into: &mut Vec<Captured>) -> bool {
        let first = self.receiver.recv().await;
        let goes_on = first.is_some();
        into.extend(first.into_iter().inspect(|captured| self.shared.release(captured)));
        goes_on
    }

    /// Appends what else has been captured.
    pub fn take(&mut self, into: &mut Vec<Captured>) {
        for _ in 0..MAX_QUEUED {
            let Ok(captured) = self.receiver.try_recv() else { break };
            self.shared.release(&captured);
            into.push(captured);
        }
    }
}

impl Shared {
    fn release(&self, captured: &Captured) {
        self.queued_bytes.fetch_sub(captured.data.len(), Ordering::Relaxed);
    }
}

impl Tap {
    /// False once the capture is over.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Notes the id of the call that is captured.
    pub fn belongs_to(&self, call: &str) {
        let _ = self.shared.call.set(call.to_owned());
    }

    /// Leaves out audio and keys from now on, or no longer.
    pub fn set_private(&self, is_private: bool) {
        self.shared.is_private.store(is_private, Ordering::Relaxed);
    }

    /// Captures an RTP or RTCP packet that passes now. Returns false once the capture is over.
    pub fn packet(
        &self,
        kind: Kind,
        direction: Direction,
        between: (SocketAddr, SocketAddr),
        data: &[u8],
    ) -> bool {
        let is_private = self.shared.is_private.load(Ordering::Relaxed);
        let kept = if is_private && kind == Kind::Rtp { RTP_HEADER } else { usize::MAX };
        let length = data.len();
        let data = data[..length.min(kept)].to_vec();
        self.add(Captured { at: unix(), kind, direction, between, data, length, is_private })
    }

    /// Captures a message that passes now. Returns false once the capture is over.
    pub fn message(
        &self,
        kind: Kind,
        direction: Direction,
        between: (SocketAddr, SocketAddr),
        text: &[u8],
    ) -> bool {
        let length = text.len();
        let data = if length > MAX_MESSAGE { Vec::new() } else { text.to_vec() };
        let is_private = false;
        self.add(Captured { at: unix(), kind, direction, between, data, length, is_private })
    }

    /// Adds what was captured. If the queue is full, it is dropped and counted. Returns false once
    /// the capture is over.
    pub fn add(&self, mut captured: Captured) -> bool {
        captured.is_private |= self.shared.is_private.load(Ordering::Relaxed);
        let (bytes, index) = (captured.data.len(), interface(captured.kind));
        let queued = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let added = match queued + bytes > MAX_QUEUED_BYTES {
            true => Err(TrySendError::Full(captured)),
            false => self.sender.try_send(captured),
        };
        let Err(error) = added else { return true };
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if matches!(error, TrySendError::Closed(_)) {
            return false;
        }
        self.shared.dropped[index].fetch_add(1, Ordering::Relaxed);
        DROPPED.add(1);
        self.is_open()
    }
}

/// The time since 1970.
pub fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between() -> (SocketAddr, SocketAddr) {
        (([127, 0, 0, 1], 4000).into(), ([127, 0, 0, 2], 5000).into())
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_takes_again_once_it_is_read() {
        let (tap, mut queue) = queue();
        let packet = || tap.packet(Kind::Rtp, Direction::Sent, between(), &[0x80; 172]);
        (0..MAX_QUEUED + 3).for_each(|_| assert!(packet()));
        assert_eq!(queue.shared.dropped[0].load(Ordering::Relaxed), 3);
        let mut all = Vec::new();
        queue.take(&mut all);
        assert_eq!(all.len(), MAX_QUEUED);
        assert_eq!(queue.shared.queued_bytes.load(Ordering::Relaxed), 0);
        let message = || tap.message(Kind::Ai, Direction::Sent, between(), &[b'x'; MAX_MESSAGE]);
        (0..5).for_each(|_| assert!(message()));
        assert_eq!(queue.shared.dropped[1].load(Ordering::Relaxed), 1);
        drop(queue);
        assert!(!packet() && !message() && !tap.is_open());
        assert!(tap.shared.queued_bytes.load(Ordering::Relaxed) <= 4 * MAX_MESSAGE);
    }

    #[test]
    fn audio_is_left_out_while_the_recording_is_paused() {
        let (tap, mut queue) = queue();
        tap.set_private(true);
        tap.packet(Kind::Rtp, Direction::Received, between(), &[0x80; 172]);
        tap.packet(Kind::Rtcp, Direction::Received, between(), &[0x80; 60]);
        tap.set_private(false);
        tap.packet(Kind::Rtp, Direction::Received, between(), &[0x80; 172]);
        let mut all = Vec::new();
        queue.take(&mut all);
        let lengths: Vec<_> = all.iter().map(|c| (c.data.len(), c.length, c.is_private)).collect();
        assert_eq!(lengths, [(12, 172, true), (60, 60, true), (172, 172, false)]);
    }
}
