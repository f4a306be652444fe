//! The rig notices harm: each kind of it is done to bystanders on purpose.

use std::io::Write as _;
use std::time::Duration;

use rustix::process::Signal;

use crate::rig::{Bystanders, Rig, Site, pass};

/// Runs a harmful fault and returns the complaint.
async fn complaint(fault: impl AsyncFnMut(&Rig)) -> String {
    let verdict = Bystanders::new(Site::direct("")).calls(3).verdict(fault).await;
    verdict.expect_err("the rig notices")
}

#[tokio::test]
async fn a_bridge_that_stands_still_is_noticed() {
    let found = complaint(async |rig| {
        rig.signal(Signal::STOP);
        pass(Duration::from_millis(300)).await;
        rig.signal(Signal::CONT);
    });
    let found = found.await;
    println!("{found}");
    assert!(found.contains("call 1, AI to caller: a gap of"), "{found}");
    assert!(found.contains("frames delayed: p99"), "{found}");
}

#[tokio::test]
async fn a_lost_frame_is_noticed() {
    let found = complaint(async |rig| {
        pass(Duration::from_millis(100)).await;
        rig.lose_a_frame();
    });
    let found = found.await;
    println!("{found}");
    assert!(found.contains("call 1, caller to AI: 1 of "), "{found}");
}

#[tokio::test]
async fn descriptors_that_are_not_released_are_noticed() {
    let mut kept = None;
    let found = complaint(async |rig| {
        let (phone, stream) = rig.fault_call().await;
        // an AI that has sent anything may be silent forever
        (&stream).write_all(b"\x81\x11{\"event\":\"clear\"}").expect("written");
        kept = Some((phone, stream));
    });
    let found = found.await;
    println!("{found}");
    assert!(found.contains("udp 127.") && found.contains(": 1 instead of 0"), "{found}");
}
