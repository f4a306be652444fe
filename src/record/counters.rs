//! The counters of recordings and of their outbox.

use crate::telemetry::counter::counters;

counters! {
    total FINISHED = "recordings", "Recordings finished.";
    total PARTIAL = "recordings_partial", "Recordings finished with gaps.";
    total FAILED = "recordings_failed", "Recordings given up.";
    total REPAIRED = "recordings_repaired", "Recordings repaired after a crash.";
    total WRITE_ERRORS = "recording_errors", "Writes to the disk that failed.";
    seconds LOST_MS = "recording_lost_seconds", "Audio that was not recorded.";
    total UPLOADS = "recording_uploads", "Recordings uploaded.";
    total WEBHOOKS = "recording_webhooks", "Webhooks accepted.";
    total SEND_ERRORS = "recording_send_errors", "Failed upload and webhook attempts.";
    gauge UNWRITTEN = "recordings_unwritten", "Recordings with audio that waits for a failed disk.";
    gauge DISK_FREE = "recording_disk_free_bytes",
        "Space for recordings that is left; 0 without recordings.";
    gauge DISK_SIZE = "recording_disk_size_bytes", "Size of their filesystem.";
    gauge WAITING = "recordings_waiting", "Recordings waiting to be sent.";
}
