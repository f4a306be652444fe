//! Commands to live calls. Everything that controls a call speaks this vocabulary, whether it sits
//! on the AI's WebSocket, behind HTTP or on the command line.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Record(RecordCommand),
}

/// A command to a call's recording while the call is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordCommand {
    /// Starts a recording; ignored while one is running.
    Start,
    /// Replaces both tracks with silence, and drops key presses, until `Resume`.
    Pause,
    Resume,
    /// Closes the recording; a later `Start` begins another.
    Stop,
}

/// The reason why a call did not accept a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotQueued {
    #[error("no such call")]
    NoSuchCall,
    #[error("too many commands are queued for this call")]
    QueueFull,
}
