//! The frame path takes no memory: what is needed for the first frames serves all that follow.

#[path = "bench/frame_path.rs"]
mod frame_path;

use std::alloc::System;

use frame_path::FramePath;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test in this program, so that the counts are its own.
#[test]
fn a_frame_takes_no_memory() {
    let mut path = FramePath::new();
    // two seconds, in which the queues find their size
    (0..100).for_each(|_| path.tick());
    let mut seconds = 0;
    for _ in 0..20 {
        let (messages, packets, reports) = (path.messages, path.packets, path.reports);
        let region = Region::new(COUNTING);
        (0..50).for_each(|_| path.tick());
        let taken = region.change();
        assert_eq!((path.messages - messages, path.packets - packets), (50, 50));
        // an RTCP report, each few seconds, may take some
        if path.reports == reports {
            seconds += 1;
            assert_eq!((taken.allocations, taken.reallocations), (0, 0), "{taken:?}");
        }
    }
    assert!(seconds >= 10, "{seconds}");
    // that a count would show
    let region = Region::new(COUNTING);
    std::hint::black_box(Vec::<u8>::with_capacity(160));
    assert_eq!(region.change().allocations, 1);
}
