//! The counters of packet captures.

use crate::telemetry::counter::counters;

counters! {
    total STARTED = "captures", "Packet captures started.";
    total DROPPED = "capture_dropped",
        "Packets and messages missing from captures because their client read too slowly.";
    gauge RUNNING = "captures_running", "Packet captures running now.";
}
