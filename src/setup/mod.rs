//! `trunkless init`: from a few answers to the configuration, the secrets and the files for the
//! PBX. [`answers`] are turned into [`settings`], [`pieces`] and [`steps`] by pure functions;
//! [`probe`] looks at the PBX and this host, and [`write`] writes the files. The commands only ask
//! and print.

pub mod answers;
pub mod found;
pub mod password;
pub mod pieces;
pub mod probe;
pub mod settings;
pub mod sip_probe;
pub mod steps;
pub mod write;

/// A file that `trunkless init` writes, with its path below the chosen folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    pub path: String,
    pub text: String,
    pub mode: u32,
    /// True for a secret that the service reads: it gets the user of the service as its owner.
    pub for_service: bool,
}

/// The mode of files without secrets.
pub const READABLE: u32 = 0o644;
/// The mode of files with secrets.
pub const SECRET: u32 = 0o600;
