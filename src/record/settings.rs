//! The settings of recordings.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::record::layout::Layout;
use crate::record::wav::Encoding;

/// Settings of all recordings.
#[derive(Debug, Clone)]
pub struct RecordSettings {
    pub directory: PathBuf,
    /// The directory must not be on the filesystem of `/`.
    pub require_mount: bool,
    pub layout: Layout,
    /// `None` keeps the call's own G.711 law, without transcoding.
    pub encoding: Option<Encoding>,
    /// Interval of syncing to disk; zero for never.
    pub fsync: Duration,
    /// Free space, in percent of the disk, that recordings must leave.
    pub keep_free_percent: f64,
    /// Age at which recordings are deleted.
    pub keep: Option<Duration>,
    /// Size of all recordings above which the oldest are deleted.
    pub keep_bytes: Option<u64>,
    /// Refuse new calls while they cannot be recorded.
    pub require: bool,
    /// Upload finished recordings, or send a webhook.
    pub outbox: bool,
    pub max_calls: usize,
}

/// The settings of a recorder, which may change while it runs. Its directory does not. Clones share
/// them.
#[derive(Debug, Clone)]
pub struct CurrentSettings(Arc<Mutex<Arc<RecordSettings>>>);

impl CurrentSettings {
    pub fn new(settings: RecordSettings) -> CurrentSettings {
        CurrentSettings(Arc::new(Mutex::new(Arc::new(settings))))
    }

    pub fn get(&self) -> Arc<RecordSettings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, settings: RecordSettings) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }
}
