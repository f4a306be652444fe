//! The counters of SIP.

use crate::telemetry::counter::counters;

counters! {
    total STRANGERS = "sip_strangers", "SIP requests from addresses outside the configuration.";
    total UNREADABLE = "sip_unreadable", "SIP messages that could not be parsed.";
}
