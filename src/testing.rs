//! What the unit tests share. Owns their only reading of the clock.

/// The first instant of a test; everything after it is virtual time.
pub fn start() -> std::time::Instant {
    std::time::Instant::now()
}
