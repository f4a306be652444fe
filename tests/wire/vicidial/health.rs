//! The remote agents follow the health of the bridge.

use std::time::Duration;

use crate::bridge::Rig;
use crate::lines::Lines;
use crate::vicidial::fake::{Vicidial, until};
use crate::vicidial::rig;

/// They are active while calls can be taken, and inactive before the bridge unregisters.
#[tokio::test]
async fn the_remote_agents_follow_the_bridge() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "remote_agent = \"7001\"").await;
    until(|| vicidial.world().remote_agent.as_deref() == Some("ACTIVE")).await;
    let Rig { pbx, bridge, .. } = rig;
    let inactive = async {
        until(|| vicidial.world().remote_agent.as_deref() == Some("INACTIVE")).await;
        assert!(pbx.none_of("REGISTER", Duration::from_secs(4)).await, "calls still arrive");
        assert_eq!(pbx.registered().await.get("Expires"), Some("0"));
    };
    tokio::join!(bridge.shutdown(), inactive);
}

/// Before July 2024 there was no such function: one warning.
#[tokio::test]
async fn an_old_vicidial_is_warned_about_once() {
    let (lines, vicidial) = (Lines::new(), Vicidial::start().await);
    vicidial.world().missing = vec!["update_remote_agent"];
    let rig = rig(&vicidial, "remote_agent = \"7001\"").await;
    lines.until("older than July 2024").await;
    rig.bridge.shutdown().await;
    assert_eq!(lines.with("older than July 2024").len(), 1);
}
