//! Places at which a test makes a recording panic. Only built with the feature `fault-points`; a
//! call from the number `panic-NAME` then panics at the place of this name.

use crate::record::sidecar::CallInfo;

/// Panics here if the call asks for it.
#[cfg(feature = "fault-points")]
pub(in crate::record) fn fault_point(name: &str, call: &CallInfo) {
    assert_ne!(call.from_number.strip_prefix("panic-"), Some(name), "fault point {name}");
}

#[cfg(not(feature = "fault-points"))]
pub(in crate::record) fn fault_point(_: &str, _: &CallInfo) {}
