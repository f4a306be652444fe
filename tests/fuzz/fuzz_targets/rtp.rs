//! Packets and the times between them: what the receiver makes of them stays bounded.
//!
//! Input: records of a pause in units of 2 ms, a length and as many octets of a datagram.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use trunkless::media::g711::Law;
use trunkless::media::receiver::{Format, Receiver};

/// Longest that the records may take together, and with it the frames that may come out.
const LIMIT: Duration = Duration::from_secs(60);

fuzz_target!(|data: &[u8]| {
    let start = Instant::now();
    let source = "192.0.2.10:4000".parse().expect("an address");
    let mut receiver = Receiver::new("192.0.2.10".parse().expect("an address"), REORDER);
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
            assert!(moved, "a timer that does not move would spin");
        }
        now = next;
        receiver.on_packet(now, source, packet);
        frames += drain(&mut receiver);
    }
    // a frame for each 20 ms of call time, and what a sender may be ahead of it
    let time = u64::try_from((now - start).as_millis()).expect("a minute") / 20;
    assert!(frames <= time + AHEAD, "{frames} frames in {time} slots");
});

const REORDER: Duration = Duration::from_millis(40);
/// Frames that packets may carry ahead of their time before they are cut.
const AHEAD: u64 = 20_000;

fn drain(receiver: &mut Receiver) -> u64 {
    while receiver.next_digit().is_some() {}
    let mut frames = 0;
    while receiver.next_frame().is_some() {
        frames += 1;
    }
    frames
}
