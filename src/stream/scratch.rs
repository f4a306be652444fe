//! Buffers that all streams of a worker use in turn, and the masks of their messages. Owns the
//! random source of the masks.

use bytes::BytesMut;

use crate::stream::dialect::Form;
use crate::stream::frames;

/// Bytes read at once.
const INPUT_BYTES: usize = 16 * 1024;

/// Buffers for writing and reading, shared by many streams. Shared, they stay in the processor's
/// cache; separate buffers of a thousand streams would not. They hold no data from one turn of a
/// stream to the next.
pub struct Scratch {
    /// The message being encoded.
    pub(super) text: BytesMut,
    /// Frames to be sent by the next `AiSocket::pump`.
    pub(super) frames: Vec<u8>,
    /// Received bytes.
    pub(super) input: Box<[u8]>,
    /// Decoded audio of a message.
    pub(super) audio: Vec<u8>,
    /// Random bytes, four for each mask.
    masks: [u8; 256],
    /// Bytes of `masks` not used yet.
    masks_left: usize,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            text: BytesMut::new(),
            frames: Vec::new(),
            input: vec![0; INPUT_BYTES].into(),
            audio: Vec::new(),
            masks: [0; 256],
            masks_left: 0,
        }
    }
}

impl Scratch {
    /// Returns an unpredictable mask (RFC 6455 §10.3), so that no proxy on the way can be fooled.
    fn mask(&mut self) -> [u8; 4] {
        if self.masks_left < 4 {
            // if this fails, the old ones are used again: they are not secret from the AI anyway
            let _ = getrandom::fill(&mut self.masks);
            self.masks_left = self.masks.len();
        }
        self.masks_left -= 4;
        *self.masks[self.masks_left..].first_chunk().unwrap_or(&[0; 4])
    }

    /// Appends a message to the frames.
    pub(super) fn write(&mut self, form: Form, data: &[u8]) {
        let mask = self.mask();
        frames::write_message(form == Form::Binary, data, mask, &mut self.frames);
    }

    /// Appends an empty ping to the frames.
    pub(super) fn write_ping(&mut self) {
        let mask = self.mask();
        frames::write_ping(mask, &mut self.frames);
    }
}
