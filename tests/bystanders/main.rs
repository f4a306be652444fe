//! Calls beside a fault: the real program, 20 bystanders with numbered audio both ways, and a fault
//! that none of them may notice. `rig/` explains what is asserted. Each test is one fault.

mod ai;
mod control;
mod failures;
mod floods;
mod judging;
#[cfg(feature = "fault-points")]
mod panics;
mod process;
mod reload;
mod rig;
mod self_test;

use rig::{Bystanders, Site};

#[tokio::test]
async fn nothing_happens() {
    Bystanders::new(Site::direct("")).during(async |_| {}).await;
}
