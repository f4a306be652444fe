//! Fuzzes SDP offers: the answer to every accepted offer can be parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trunkless::sip::sdp::{Direction, Local, Remote};

fuzz_target!(|data: &[u8]| {
    if let Ok(remote) = Remote::parse(data) {
        let rtp = "192.0.2.1:20000".parse().expect("an address");
        let direction = Direction::SendRecv;
        let answer = remote.answer(&Local { rtp, session_id: 1, version: 1, direction });
        let back = Remote::parse(answer.as_bytes()).expect("our own SDP parses");
        assert_eq!((back.rtp, back.codec), (rtp, remote.codec));
        assert_eq!(back.payload_type, remote.payload_type);
    }
});
