//! Listening in: copies of a live call's audio for those who listen. A listener that is too slow
//! misses frames, and the call does not notice.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::media::frame::Samples;
use crate::media::g711::Law;
use crate::record::recording::Tap;

/// Frames that may wait for a listener: a second of both directions.
const MAX_WAITING: usize = 100;
/// A call has at most this many listeners.
pub const MAX_LISTENERS: usize = 4;

/// A frame of a call.
#[derive(Debug, Clone, Copy)]
pub struct Overheard {
    /// True for audio of the caller, false for audio to the caller.
    pub is_caller: bool,
    /// In mu-law.
    pub samples: Samples,
}

/// The call's end of the way to a listener.
#[derive(Debug)]
pub struct Listener {
    frames: mpsc::Sender<Overheard>,
    missed: Arc<AtomicU64>,
}

/// The listener's end. Dropping it ends the listening.
#[derive(Debug)]
pub struct Earpiece {
    pub frames: mpsc::Receiver<Overheard>,
    missed: Arc<AtomicU64>,
}

impl Earpiece {
    /// Frames that were left out because the listener was too slow.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// Creates both ends.
pub fn listener() -> (Listener, Earpiece) {
    let (sender, frames) = mpsc::channel(MAX_WAITING);
    let missed = Arc::<AtomicU64>::default();
    (Listener { frames: sender, missed: missed.clone() }, Earpiece { frames, missed })
}

/// The listeners of one call.
#[derive(Debug, Default)]
pub struct Listeners(Vec<Listener>);

impl Listeners {
    /// Adds a listener. One too many is dropped, which ends its stream.
    pub fn add(&mut self, listener: Listener) {
        if self.0.len() < MAX_LISTENERS {
            self.0.push(listener);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies a frame to all listeners. Returns true if the last listener has gone.
    pub fn pass(&mut self, tap: &Tap) -> bool {
        let overheard = match *tap {
            _ if self.0.is_empty() => return false,
            Tap::Caller { law, mut samples, .. } => {
                law.convert(Law::Mu, &mut samples);
                Overheard { is_caller: true, samples }
            }
            Tap::Ai { samples, .. } => Overheard { is_caller: false, samples },
            Tap::Digit(_) | Tap::Mark(_) => return false,
        };
        self.0.retain(|listener| match listener.frames.try_send(overheard) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                listener.missed.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Closed(_)) => false,
        });
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::frame::FRAME_SAMPLES;

    fn tap(byte: u8) -> Tap {
        Tap::Ai { index: 0, samples: [byte; FRAME_SAMPLES] }
    }

    #[test]
    fn a_slow_listener_misses_frames_and_the_others_do_not() {
        let mut listeners = Listeners::default();
        assert!(!listeners.pass(&tap(0)));
        let (slow, mut slow_ear) = listener();
        let (fast, mut fast_ear) = listener();
        listeners.add(slow);
        listeners.add(fast);
        for n in 0..150 {
            assert!(!listeners.pass(&tap(n)));
            assert_eq!(fast_ear.frames.try_recv().map(|f| f.samples[0]), Ok(n));
        }
        assert_eq!((slow_ear.missed(), fast_ear.missed()), (50, 0));
        assert_eq!(slow_ear.frames.try_recv().map(|f| f.samples[0]), Ok(0));
        drop(slow_ear);
        assert!(!listeners.pass(&tap(0)));
        drop(fast_ear);
        assert!(listeners.pass(&tap(0)));
        assert!(listeners.is_empty());
    }

    #[test]
    fn one_listener_too_many_gets_nothing() {
        let mut listeners = Listeners::default();
        let mut ears: Vec<Earpiece> = (0..=MAX_LISTENERS)
            .map(|_| {
                let (listener, ear) = listener();
                listeners.add(listener);
                ear
            })
            .collect();
        listeners.pass(&tap(1));
        let got = ears.iter_mut().filter_map(|ear| ear.frames.try_recv().ok()).count();
        assert_eq!(got, MAX_LISTENERS);
    }
}
