//! What an AI says: decoded without a panic, and never more audio than was sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trunkless::stream::FromAi;
use trunkless::stream::twilio::decode;

fuzz_target!(|data: &[u8]| {
    // a WebSocket text message is UTF-8, or the library has closed the connection
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut audio = Vec::new();
    match decode(text, "MZ0123456789abcdef0123456789abcdef", &mut audio) {
        FromAi::Audio(audio) => assert!(audio.len() <= text.len()),
        FromAi::Mark(name) => assert!(name.len() <= text.len()),
        FromAi::Clear | FromAi::Ignored(_) => {}
    }
});
