//! The frame path does not allocate: memory allocated for the first frames serves all later ones.

#[path = "bench/frame_path.rs"]
mod frame_path;

use std::alloc::System;

use frame_path::FramePath;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The only test in this program, so that no other test adds to the counts.
#[test]
fn the_frame_path_does_not_allocate() {
    let mut path = FramePath::new();
    // two seconds, in which the queues reach their size
    (0..100).for_each(|_| path.tick());
    let mut seconds = 0;
    for _ in 0..20 {
        let (messages, packets, reports) = (path.messages, path.packets, path.reports);
        let region = Region::new(COUNTING);
        (0..50).for_each(|_| path.tick());
        let allocated = region.change();
        assert_eq!((path.messages - messages, path.packets - packets), (50, 50));
        // the RTCP report every few seconds may allocate
        if path.reports == reports {
            seconds += 1;
            assert_eq!((allocated.allocations, allocated.reallocations), (0, 0), "{allocated:?}");
        }
    }
    assert!(seconds >= 10, "{seconds}");
    // check that an allocation does show up in the counts
    let region = Region::new(COUNTING);
    std::hint::black_box(Vec::<u8>::with_capacity(160));
    assert_eq!(region.change().allocations, 1);
}
