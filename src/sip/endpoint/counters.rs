//! The counters of SIP.

use crate::telemetry::counter::{Labelled, counters};

counters! {
    total CONFLICTS = "sip_registration_conflicts", "Other devices found registered as our user.";
    total STRANGERS = "sip_strangers", "SIP requests from addresses outside the configuration.";
    total REGISTRATIONS_LOST = "sip_registrations_lost", "Registrations that worked and were lost.";
    total UNREADABLE = "sip_unreadable", "SIP messages that could not be parsed.";
}

/// INVITEs that were refused, by the status of the response; 0 if they could not be answered.
pub static REFUSED: Labelled = Labelled::new(
    "sip_invites_refused",
    "INVITEs refused, by status; 0 if malformed beyond an answer.",
    "status",
);
