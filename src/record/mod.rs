//! Call recordings: a stereo WAV with the caller on the left and the AI, as it was played, on the
//! right, plus a JSON sidecar that describes the call.
//!
//! ```text
//! call ──Tap──> recording ──blocks──> writer (thread) ──finished──> closer (thread) ──> outbox
//!                (pure)                incomplete/ID.wav             DATE/PBX/ID.wav     upload,
//!                                                                    DATE/PBX/ID.json    webhook
//! ```
//!
//! Calls use [`recorder`] and reach the writer through [`queue`]. [`recording`] lays both tracks
//! side by side, and [`align`] keeps them in step when clocks drift. [`wav`] and [`sidecar`] are
//! the file formats, [`layout`] the file names, [`notice`] the beep; these are all pure.
//! [`writer`] and [`closer`] are the threads, [`health`] their state, and [`disk`] the files.
//! [`repair`] finishes what a crash left behind, [`retention`] deletes old recordings,
//! [`library`] finds one and [`player`] reads it for those who listen. [`outbox`] sends recordings
//! by [`upload`] and [`webhook`].

pub mod align;
pub mod closer;
pub mod counters;
pub mod disk;
mod fault_point;
pub mod health;
pub mod layout;
pub mod library;
pub mod notice;
pub mod outbox;
pub mod player;
pub mod queue;
pub mod recorder;
pub mod recording;
pub mod repair;
pub mod retention;
pub mod settings;
pub mod sidecar;
pub mod upload;
pub mod wav;
pub mod writer;

/// When the recording of a call starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// When the call is answered.
    Always,
    /// On [`RecordCommand::Start`](crate::command::RecordCommand::Start).
    OnCommand,
}
