//! Recordings: a stereo WAV of each call, the caller left, the AI as it was played right, and a
//! JSON sidecar that tells its story.
//!
//! ```text
//! call ──Tap──> recording ──blocks──> writer (thread) ──finished──> closer (thread) ──> outbox
//!                (pure)                incomplete/ID.wav             DATE/PBX/ID.wav     upload,
//!                                                                    DATE/PBX/ID.json    webhook
//! ```
//!
//! [`recording`] lays both tracks side by side, [`align`] keeps them together when clocks drift,
//! [`wav`], [`sidecar`], [`layout`] and [`notice`] are what files hold and are called: all pure.
//! [`recorder`] is what calls ask; [`writer`] and [`closer`] are the threads, [`health`] how they
//! are, [`disk`] the files, [`repair`] what a crash has left, [`retention`] the old ones,
//! [`library`] finds one, [`outbox`] sends them elsewhere, by its [`schedule`] (pure).

pub mod align;
pub mod closer;
pub mod disk;
pub mod health;
pub mod layout;
pub mod library;
pub mod notice;
pub mod outbox;
pub mod queue;
pub mod recorder;
pub mod recording;
pub mod repair;
pub mod retention;
pub mod schedule;
pub mod sidecar;
pub mod upload;
pub mod wav;
pub mod webhook;
pub mod writer;

/// What can be asked of a call's recording while the call is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordCommand {
    /// Begin one; nothing when one is being made.
    Start,
    /// Both tracks are silence until `Resume`, and keys are not noted.
    Pause,
    Resume,
    /// Close it; a later `Start` begins another.
    Stop,
}

/// Which calls are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// From the answer on.
    Always,
    /// From [`RecordCommand::Start`] on.
    OnCommand,
}
