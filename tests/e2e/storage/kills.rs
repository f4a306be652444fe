//! The program and the S3 server are killed repeatedly in the middle of uploads.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::block_on;
use crate::storage::lab::{Recordings, S3, SECOND, SECRET, files, program, tables, until};
use crate::storage::proxy::Proxy;

const COUNT: u32 = 5;
/// 26 MB, four parts.
const FRAMES: u64 = 82_000;
const ROUNDS: u32 = 6;

/// A number below `below`.
fn random(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*state >> 33) % below
}

fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(now)
}

/// Each recording exists once and unchanged, here and in the store. An upload is left unfinished
/// only if a kill came between its creation and noting it; it has no parts and costs nothing.
#[test]
fn nothing_is_lost_or_damaged_by_kills() {
    block_on(async {
        let n = 101;
        let seed = seed();
        println!("SEED={seed}");
        let mut state = seed;
        let recordings = Recordings::new();
        recordings.make(COUNT, FRAMES, 1);
        let mut s3 = S3::started(n);
        let pace = Duration::from_micros(1500); // 40 MB/s
        let proxy = Proxy::start(n, s3.address(), pace).await;
        let url = "s3://rec/calls";
        let text = tables(n, recordings.path(), url, &Proxy::address(n), SECRET);
        let mut bridge = program(n, &text);
        let mut in_the_middle = 0;
        for round in 0..ROUNDS {
            let before = proxy.count("partNumber=");
            let again = || proxy.count("partNumber=") > before || recordings.waiting() == 0;
            until("an upload, or its end", 40 * SECOND, again);
            tokio::time::sleep(Duration::from_millis(random(&mut state, 700))).await;
            in_the_middle += u32::from(s3.unfinished() != (0, 0));
            if round % 2 == 0 {
                bridge.kill();
                bridge = program(n, &text);
            } else {
                s3.kill();
                tokio::time::sleep(SECOND).await;
                s3.start();
            }
        }
        let done = || recordings.waiting() == 0;
        until("the outbox is empty", 60 * SECOND, done);
        println!(
            "{in_the_middle} of {ROUNDS} kills in the middle of an upload, unfinished {:?}, \
            {} multipart uploads begun",
            s3.unfinished(),
            proxy.count("?uploads")
        );
        assert!(in_the_middle >= 2, "the kills were too early or too late");
        recordings.assert_sent(&s3.bucket("rec").join("calls"), COUNT as usize);
        assert_eq!(files(&recordings.path().join("incomplete")).len(), 0);
        // a noted upload is aborted with its parts, and parts are sent only after it is noted
        let (uploads, parts) = s3.unfinished();
        assert!(uploads <= 2 && parts == 0, "unfinished: {uploads} uploads, {parts} parts");
    });
}
