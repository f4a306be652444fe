//! The caller's audio and key presses, turned from RTP packets into frames in order, and the
//! pre-roll: the part that is kept until the AI's stream starts.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::media::Settings;
use crate::media::dtmf::{DigitGate, Origin};
use crate::media::frame::Frame;
use crate::media::receiver::Receiver;

/// The pre-roll holds this many frames: 2 s.
const MAX_PREROLL_FRAMES: usize = 100;
/// The same while an AI is dialled again in mid-call: 6 s.
const MAX_KEPT_FRAMES: usize = 300;
/// The pre-roll holds this many key presses.
const MAX_PREROLL_DIGITS: usize = 32;
/// From this many packets on, one second's worth, RTP from an unannounced address is not a stray.
const MISDIRECTED: u64 = 50;

/// A frame or key press of the caller, in the order of the call.
pub(super) enum Heard {
    /// A frame and its number, counted from the first frame of the call.
    Frame(u64, Frame),
    Digit(char),
}

/// The caller's audio and key presses, on their way to the AI.
pub(super) struct Hearing {
    /// Puts RTP packets in order and turns them into frames and digits.
    pub receiver: Receiver,
    /// Drops a key press that arrives by a second route.
    gate: DigitGate,
    /// Number of the next frame from the caller.
    next_index: u64,
    /// The newest frames from before the AI's stream started, with their numbers.
    preroll: VecDeque<(u64, Frame)>,
    max_preroll: usize,
    /// Key presses from before the AI's stream started.
    preroll_digits: Vec<char>,
    /// Frames dropped from the pre-roll because it was full.
    preroll_dropped: u64,
}

impl Hearing {
    /// `signalling`: the PBX's signalling address, from which RTP is expected at first.
    pub fn new(signalling: IpAddr, settings: &Settings) -> Hearing {
        Hearing {
            receiver: Receiver::new(signalling, settings),
            gate: DigitGate::default(),
            next_index: 0,
            preroll: VecDeque::new(),
            max_preroll: MAX_PREROLL_FRAMES,
            preroll_digits: Vec::new(),
            preroll_dropped: 0,
        }
    }

    /// Returns the next frame or key press that the received packets have made ready.
    pub fn next(&mut self, now: Instant) -> Option<Heard> {
        if let Some(frame) = self.receiver.next_frame() {
            let index = self.next_index;
            self.next_index += 1;
            return Some(Heard::Frame(index, frame));
        }
        while let Some(digit) = self.receiver.next_digit() {
            if self.admits(now, digit, Origin::Rtp) {
                return Some(Heard::Digit(digit));
            }
        }
        // packets of the last press are still arriving
        if let Some(at) = self.receiver.last_event() {
            self.gate.held(at);
        }
        None
    }

    /// False if this key press was already reported by another route, or comes too soon.
    pub fn admits(&mut self, now: Instant, digit: char, origin: Origin) -> bool {
        self.gate.admits(now, digit, origin)
    }

    /// Adds a frame to the pre-roll; when it is full, the oldest frame is dropped.
    pub fn keep_frame(&mut self, index: u64, frame: Frame) {
        if self.preroll.len() == self.max_preroll {
            self.preroll.pop_front();
            self.preroll_dropped += 1;
        }
        self.preroll.push_back((index, frame));
    }

    /// Lets the pre-roll hold more from now on, because an AI is dialled in mid-call.
    pub fn keep_more(&mut self) {
        self.max_preroll = MAX_KEPT_FRAMES;
    }

    /// Adds a key press to the pre-roll, if there is room.
    pub fn keep_digit(&mut self, digit: char) {
        if self.preroll_digits.len() < MAX_PREROLL_DIGITS {
            self.preroll_digits.push(digit);
        }
    }

    /// The pre-roll so far.
    pub fn preroll(&self) -> (&VecDeque<(u64, Frame)>, &[char]) {
        (&self.preroll, &self.preroll_digits)
    }

    /// Returns the pre-roll and empties it.
    pub fn take_preroll(&mut self) -> (VecDeque<(u64, Frame)>, Vec<char>) {
        (std::mem::take(&mut self.preroll), std::mem::take(&mut self.preroll_digits))
    }

    pub fn preroll_dropped(&self) -> u64 {
        self.preroll_dropped
    }

    /// The source of RTP that is being dropped and the address announced by the PBX, if RTP keeps
    /// arriving from elsewhere and none from there.
    pub fn misdirected(&self) -> Option<(SocketAddr, SocketAddr)> {
        let counts = self.receiver.counts();
        let deaf = counts.wrong_source >= MISDIRECTED && counts.sequence.received == 0;
        self.receiver.source.refused().filter(|_| deaf)
    }
}
