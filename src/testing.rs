//! Shared by the unit tests. Owns their only reading of the clock.

/// Returns the first instant of a test. All later times in the test are virtual.
pub fn start() -> std::time::Instant {
    std::time::Instant::now()
}

/// Returns recorder settings for a test's directory, with defaults for the rest.
pub fn recordings(directory: &std::path::Path) -> crate::record::settings::RecordSettings {
    crate::record::settings::RecordSettings {
        directory: directory.to_owned(),
        require_mount: false,
        layout: crate::record::layout::Layout::default(),
        encoding: None,
        fsync: std::time::Duration::from_millis(500),
        keep_free_percent: 0.0,
        keep: None,
        keep_bytes: None,
        require: false,
        outbox: false,
        max_calls: 10,
    }
}
