//! The dialects of the bench's AI. This file reads and writes the messages with audio, 50 of each
//! per second and call. All other messages of a dialect are those of its [`AiSide`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod carriers;
mod models;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::bench::stamp::{Read, Stamp};
use crate::bench::websocket::{self, BINARY, TEXT, base64_after};
use crate::media::frame::{FRAME_SAMPLES, Samples};
use crate::media::g711;
pub use crate::stream::dialect::Dialect;

/// Length of a frame in base64: mu-law, and linear.
const MU_LAW_CHARS: usize = FRAME_SAMPLES.div_ceil(3) * 4;
const LINEAR_CHARS: usize = LINEAR_BYTES.div_ceil(3) * 4;
const LINEAR_BYTES: usize = FRAME_SAMPLES * 2;

/// The form of audio in both directions. All of it has 8 kHz, so that no byte of a stamp changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    /// True for base64 in JSON, false for binary messages.
    is_text: bool,
    /// True for 16 bits, little-endian; false for mu-law.
    is_linear: bool,
}

impl Format {
    /// Returns the length of a frame in a message.
    fn length(self) -> usize {
        match (self.is_text, self.is_linear) {
            (true, false) => MU_LAW_CHARS,
            (true, true) => LINEAR_CHARS,
            (false, false) => FRAME_SAMPLES,
            (false, true) => LINEAR_BYTES,
        }
    }
}

/// The meaning of a message without audio.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// True if the stream begins: the AI may speak.
    pub starts: bool,
    /// The caller's number, if the message names it.
    pub caller: Option<u32>,
    /// The AI's answer.
    pub reply: Option<String>,
}

/// The AI's side of a dialect, except for the audio itself. One per stream.
trait AiSide: Send {
    fn format(&self) -> Format;

    /// Returns the AI's first message, which it sends as soon as the WebSocket is open.
    fn hello(&self) -> Option<&'static str> {
        None
    }

    /// True if the caller's first audio starts the stream, because no message announces it.
    fn starts_with_audio(&self) -> bool {
        false
    }

    /// Reads a message of the bridge without audio.
    ///
    /// # Errors
    /// Returns an error if the stream cannot be measured.
    fn read(&mut self, message: &Value) -> Result<Said, &'static str>;

    /// Returns the text before and after the audio in a message of the AI; binary messages have
    /// none.
    fn around(&self) -> (String, &'static str) {
        (String::new(), "")
    }

    /// Begins a talkspurt, and returns the messages before its first frame.
    fn begin_talkspurt(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Returns the messages that make the bridge discard the audio that it has not played.
    fn clear(&mut self) -> Vec<String>;
}

/// Returns why the bench's AI does not speak a dialect; `None` if it does.
pub fn why_not(dialect: Dialect) -> Option<&'static str> {
    (dialect == Dialect::GeminiLive).then_some(
        "its audio is not at 8 kHz, and the numbers in the bench's frames do not survive the \
         conversion; cargo bench --bench pieces measures what the conversion costs",
    )
}

/// The messages of one stream in its dialect.
pub struct Messages {
    dialect: Dialect,
    side: Box<dyn AiSide>,
    format: Format,
    /// A complete message with audio, which is replaced for each frame.
    media: Vec<u8>,
    /// Offset of the audio in it.
    audio_at: usize,
}

impl Messages {
    pub fn new(dialect: Dialect) -> Messages {
        let side: Box<dyn AiSide> = match dialect {
            Dialect::Twilio
            | Dialect::Telnyx
            | Dialect::Plivo
            | Dialect::Exotel
            | Dialect::L16
            | Dialect::Jambonz => carriers::side(dialect),
            Dialect::OpenAiRealtime
            | Dialect::Deepgram
            | Dialect::ElevenLabs
            | Dialect::GeminiLive
            | Dialect::Ultravox => models::side(dialect),
        };
        let format = side.format();
        Messages { dialect, side, format, media: Vec::new(), audio_at: 0 }
    }

    /// Returns the AI's first message, which it sends as soon as the WebSocket is open.
    pub fn hello(&self) -> Option<&'static str> {
        self.side.hello()
    }

    /// True if the caller's first audio starts the stream.
    pub fn starts_with_audio(&self) -> bool {
        self.side.starts_with_audio()
    }

    /// Returns the audio of a text message; `None` if it has none. `hint` is the offset of audio in
    /// the last message.
    pub fn audio_of_text(&self, text: &[u8], hint: &mut usize) -> Option<Read> {
        const CARRIERS: &[u8] = br#""payload":""#;
        let base64 = match self.dialect {
            Dialect::Twilio | Dialect::Telnyx | Dialect::Plivo => {
                base64_after(text, CARRIERS, MU_LAW_CHARS, hint)
            }
            Dialect::Exotel => base64_after(text, CARRIERS, LINEAR_CHARS, hint),
            Dialect::OpenAiRealtime => base64_after(text, br#""audio":""#, MU_LAW_CHARS, hint),
            Dialect::ElevenLabs => {
                base64_after(text, br#""user_audio_chunk":""#, MU_LAW_CHARS, hint)
            }
            Dialect::L16
            | Dialect::Jambonz
            | Dialect::Deepgram
            | Dialect::GeminiLive
            | Dialect::Ultravox => None,
        }?;
        let mut audio = [0; LINEAR_CHARS / 4 * 3];
        Some(match BASE64.decode_slice(base64, &mut audio) {
            Ok(length) => self.read_audio(&audio[..length]),
            Err(_) => Read::Damaged,
        })
    }

    /// Reads the frame of a binary message.
    pub fn read_audio(&self, audio: &[u8]) -> Read {
        if !self.format.is_linear {
            return Stamp::read(audio);
        }
        if audio.len() != LINEAR_BYTES {
            return Read::Damaged;
        }
        let (pairs, _) = audio.as_chunks::<2>();
        let mut samples: Samples = [0; FRAME_SAMPLES];
        for (sample, pair) in samples.iter_mut().zip(pairs) {
            *sample = g711::encode(i16::from_le_bytes(*pair));
        }
        Stamp::read(&samples)
    }

    /// Reads a text message without audio.
    ///
    /// # Errors
    /// Returns an error if the message is not one that a bridge sends, or if the stream cannot be
    /// measured.
    pub fn read(&mut self, text: &[u8]) -> Result<Said, &'static str> {
        let message = serde_json::from_slice(text).map_err(|_| "a text message is not JSON")?;
        self.side.read(&message)
    }

    /// Begins a talkspurt: appends the messages before its first frame.
    pub fn begin_talkspurt(&mut self, out: &mut Vec<u8>) {
        for text in self.side.begin_talkspurt() {
            websocket::write(TEXT, text.as_bytes(), out);
        }
        self.format = self.side.format();
        let (before, after) = self.side.around();
        let audio = vec![b'A'; self.format.length()];
        let message = [before.as_bytes(), &audio, after.as_bytes()].concat();
        self.media.clear();
        let opcode = if self.format.is_text { TEXT } else { BINARY };
        websocket::write(opcode, &message, &mut self.media);
        self.audio_at = self.media.len() - after.len() - audio.len();
    }

    /// Returns the message with a frame of the AI.
    pub fn media(&mut self, samples: &Samples) -> &[u8] {
        let place = &mut self.media[self.audio_at..][..self.format.length()];
        let linear;
        let audio: &[u8] = match self.format.is_linear {
            false => samples,
            true => {
                linear = to_linear(samples);
                &linear
            }
        };
        match self.format.is_text {
            true => {
                let written = BASE64.encode_slice(audio, place);
                debug_assert_eq!(written, Ok(self.format.length()));
            }
            false => place.copy_from_slice(audio),
        }
        &self.media
    }

    /// Appends the messages that make the bridge discard what it has not played.
    pub fn clear(&mut self, out: &mut Vec<u8>) {
        for text in self.side.clear() {
            websocket::write(TEXT, text.as_bytes(), out);
        }
    }
}

fn to_linear(samples: &Samples) -> [u8; LINEAR_BYTES] {
    let mut linear = [0; LINEAR_BYTES];
    let (pairs, _) = linear.as_chunks_mut::<2>();
    for (pair, sample) in pairs.iter_mut().zip(samples) {
        *pair = g711::decode(*sample).to_le_bytes();
    }
    linear
}

#[cfg(test)]
mod tests;
