//! The counters of ARI.

use crate::telemetry::counter::counters;
use crate::telemetry::histogram::Histogram;

counters! {
    total REQUESTS = "ari_requests", "REST requests to PBXs.";
    total REQUESTS_FAILED = "ari_requests_failed",
        "REST requests that were not answered, or answered with a server error.";
    total EVENTS_LOST = "ari_events_lost", "Times at which the events WebSocket of a PBX was lost.";
}

/// How long a request waits for its response.
pub static REQUEST: Histogram =
    Histogram::new("ari_request_seconds", "Time from a REST request to its response.");
/// All histograms of ARI.
pub static HISTOGRAMS: &[&Histogram] = &[&REQUEST];
