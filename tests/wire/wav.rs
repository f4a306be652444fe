//! WAV files for the bridge to play.

use std::path::PathBuf;

use tempfile::TempDir;
use trunkless::record::wav;

use crate::stream::agent_frames;

/// Writes a WAV file with the AI's numbered audio from frame 1000 on; it exists as long as the
/// returned directory.
pub fn write_prompt(frames: u32) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("prompt.wav");
    let audio = agent_frames(1000..1000 + frames);
    let header = wav::Encoding::Mu.header(1, audio.len() as u64);
    std::fs::write(&path, [&header[..], &audio].concat()).unwrap();
    (directory, path)
}
