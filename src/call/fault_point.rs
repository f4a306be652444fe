//! Places at which a test makes the program panic. Only built with the feature `fault-points`; a
//! call with the header `X-Fault: NAME` then panics at the place of this name.

/// Panics here if the call asks for it.
#[cfg(feature = "fault-points")]
pub fn fault_point(name: &str, headers: &[(String, String)]) {
    let asks = |(key, value): &(String, String)| {
        let key = key.trim_start_matches("X-");
        key.eq_ignore_ascii_case("fault") && value == name
    };
    assert!(!headers.iter().any(asks), "fault point {name}");
}

#[cfg(not(feature = "fault-points"))]
pub fn fault_point(_: &str, _: &[(String, String)]) {}

/// Panics here if the message asks for it.
#[cfg(feature = "fault-points")]
pub fn fault_point_of_message(name: &str, data: &[u8]) {
    let wish = format!("X-Fault: {name}");
    let asks = data.windows(wish.len()).any(|part| part == wish.as_bytes());
    assert!(!asks, "fault point {name}");
}

#[cfg(not(feature = "fault-points"))]
pub fn fault_point_of_message(_: &str, _: &[u8]) {}
