//! Recordings: a stereo WAV of each call, the caller left, the AI right.

pub mod wav;
pub mod writer;
