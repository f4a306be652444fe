//! The counters of SIP.

use crate::telemetry::counter::{Labelled, counters};

counters! {
    total CONFLICTS = "sip_registration_conflicts", "Other devices found registered as our user.";
    total STRANGERS = "sip_strangers", "SIP requests from addresses outside the configuration.";
    total REGISTRATIONS_LOST = "sip_registrations_lost", "Registrations that worked and were lost.";
    total STRAY_RESPONSES = "sip_stray_responses", "SIP responses that belong to no request.";
    total RETRANSMISSIONS = "sip_retransmissions", "SIP messages that arrived more than once.";
    total UNREADABLE = "sip_unreadable", "SIP messages that could not be parsed.";
}

static INVITES_REFUSED: Labelled = Labelled::new(
    "sip_invites_refused",
    "INVITEs refused, by status; 0 if malformed beyond an answer.",
    &["status"],
);

static REQUESTS_REFUSED: Labelled = Labelled::new(
    "sip_requests_refused",
    "Other SIP requests refused, by method and status; 0 if they were not answered.",
    &["method", "status"],
);

/// All counters of this part that have labels.
pub static LABELLED: &[&Labelled] = &[&INVITES_REFUSED, &REQUESTS_REFUSED];

/// Counts a refused request by its method, `None` if that is unknown, and by the status of the
/// response, 0 if there was none.
pub fn count_refused(method: Option<&'static str>, status: u16) {
    let status = status.to_string();
    match method {
        Some("INVITE") => INVITES_REFUSED.add(&[&status]),
        method => REQUESTS_REFUSED.add(&[method.unwrap_or("other"), &status]),
    }
}
