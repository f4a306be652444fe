//! Places at which a test makes the program panic. Only built with the feature `fault-points`; a
//! call with the header `X-Fault: NAME` then panics at the place of this name.

use crate::call::Offer;

/// Panics here if the call asks for it.
#[cfg(feature = "fault-points")]
pub(in crate::call) fn fault_point(name: &str, offer: &Offer) {
    let asks = |(key, value): &(String, String)| {
        let key = key.trim_start_matches("X-");
        key.eq_ignore_ascii_case("fault") && value == name
    };
    assert!(!offer.vars.iter().any(asks), "fault point {name}");
}

#[cfg(not(feature = "fault-points"))]
pub(in crate::call) fn fault_point(_: &str, _: &Offer) {}
