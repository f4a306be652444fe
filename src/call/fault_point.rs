//! Places at which a test makes the program panic. Only built with the feature `fault-points`; a
//! call with the header `X-Fault: NAME` then panics at the place of this name.

use crate::call::Offer;

/// Panics here if the call asks for it.
#[cfg(feature = "fault-points")]
pub(in crate::call) fn fault_point(name: &str, offer: &Offer) {
    let asks = ("fault".to_owned(), name.to_owned());
    let parameters = crate::call::parameters::all(&[], &offer.added, &[]);
    assert!(!parameters.contains(&asks), "fault point {name}");
}

#[cfg(not(feature = "fault-points"))]
pub(in crate::call) fn fault_point(_: &str, _: &Offer) {}
