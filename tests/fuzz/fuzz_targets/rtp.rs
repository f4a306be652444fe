//! Fuzzes the RTP receiver with packets and the pauses between them: its output stays bounded.
//!
//! The input is a sequence of records: a pause in units of 2 ms, a length, and that many octets of
//! a datagram.
#![no_main]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use trunkless::media::Settings;
use trunkless::media::g711::Law;
use trunkless::media::receiver::{Format, Receiver};

/// Limit on the total time of the records, which also limits the number of frames.
const LIMIT: Duration = Duration::from_secs(60);

fuzz_target!(|data: &[u8]| {
    let start = Instant::now();
    let source: SocketAddr = "192.0.2.10:4000".parse().expect("an address");
    let mut receiver = Receiver::new(source.ip(), &Settings::default());
    let format = Format { law: Law::Mu, payload_type: 0, dtmf_payload_type: Some(101) };
    receiver.set_remote(source, format);
    receiver.start(start);
    let (mut now, mut rest, mut frames) = (start, data, 0u64);
    while let [pause, length, tail @ ..] = rest {
        let (packet, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        let next = (now + Duration::from_millis(2 * u64::from(*pause))).min(start + LIMIT);
        while let Some(at) = receiver.next_timeout().filter(|at| *at <= next) {
            now = now.max(at);
            receiver.on_timeout(now);
            frames += drain(&mut receiver);
            let moved = receiver.next_timeout().is_none_or(|after| after > at);
            assert!(moved, "a timer that does not advance would loop forever");
        }
        now = next;
        receiver.on_packet(now, source, packet);
        frames += drain(&mut receiver);
    }
    // one frame per 20 ms of call time, plus those that a sender may be ahead
    let time = u64::try_from((now - start).as_millis()).expect("a minute") / 20;
    assert!(frames <= time + AHEAD, "{frames} frames in {time} slots");
});

/// Upper limit on the frames that a sender may be ahead of time: a second of late audio, 2 s of
/// concealed loss and the longest packet.
const AHEAD: u64 = 50 + 100 + 12;

fn drain(receiver: &mut Receiver) -> u64 {
    while receiver.next_digit().is_some() {}
    let mut frames = 0;
    while receiver.next_frame().is_some() {
        frames += 1;
    }
    frames
}
