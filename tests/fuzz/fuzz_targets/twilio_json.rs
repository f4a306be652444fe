//! Fuzzes messages from an AI: decoding does not panic and never yields more audio than was sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trunkless::stream::FromAi;
use trunkless::stream::twilio::decode;

fuzz_target!(|data: &[u8]| {
    // the WebSocket library closes the connection if a text message is not UTF-8
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut audio = Vec::new();
    match decode(text, "MZ0123456789abcdef0123456789abcdef", &mut audio) {
        FromAi::Audio(audio) => assert!(audio.len() <= text.len()),
        FromAi::Mark(name) => assert!(name.len() <= text.len()),
        FromAi::Clear | FromAi::Ignored(_) => {}
        FromAi::Tool(_) | FromAi::Failed(_) | FromAi::SessionEnded(_) => panic!("{text}"),
        FromAi::Warning(_) | FromAi::Done(_) => panic!("{text}"),
        FromAi::Order(order) => match *order {
            Ok(order) => assert!(order.id.len() <= text.len().max(20)),
            Err(unusable) => assert!(unusable.why.len() < 1000, "{}", unusable.why),
        },
    }
});
