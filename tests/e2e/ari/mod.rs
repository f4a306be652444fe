//! ARI mode through real Asterisk 16 and 22, with the shipped files: calls (`calls`), harm that the
//! PBX must be spared (`safety`), lost connections (`link`).

mod calls;
mod link;
mod reload;
mod rest;
mod safety;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ai::Ai;
use crate::asterisk::Asterisk;
use crate::bridge::Bridge;
use crate::bystanders::USUAL;
use crate::caller::Caller;
use crate::rig::{Dial, Site, fault_pbx};

const SECOND: Duration = Duration::from_secs(1);
const CALLER: &str = "127.0.9.1";

/// Starts an instance with the shipped files; ARI is at 127.0.0.1:8088.
pub fn start(version: u8, n: u8) -> Asterisk {
    start_with(version, n, &[])
}

fn start_with(version: u8, n: u8, vars: &[(&str, &str)]) -> Asterisk {
    let vars = [&[("DROPIN", "ari")], vars].concat();
    Asterisk::start_with(version, &format!("e2e-{n}"), &format!("127.0.{n}.1"), &vars)
}

/// A configuration with the user and application of the shipped files. `keys` go into
/// `[pbx.main.ari]`; `tables` are whole tables.
pub fn config(ai: &str, keys: &str, tables: &str) -> String {
    format!(
        "[ai]\nurl = \"{ai}\"\n{tables}\n[pbx.main]\nmode = \"ari\"\n[pbx.main.ari]\n\
         username = \"trunkless\"\npassword = \"CHANGE-ME\"\n{keys}\n"
    )
}

/// Bystanders in ARI mode, through an instance with the shipped files.
fn site(asterisk: &Arc<Asterisk>, n: u8) -> Site {
    let host = move |host: u8| Ipv4Addr::new(127, 0, n, host);
    let bridge = SocketAddr::new(host(2).into(), 5070);
    let objects = asterisk.clone();
    Site {
        config: Box::new(move |ai, fault_ai| {
            let listen = format!("[sip]\nlisten = \"{bridge}\"");
            format!("{}{}", config(ai, "", &listen), fault_pbx(host(4), fault_ai))
        }),
        ready: OPEN,
        dial: Dial {
            from: CALLER.parse().expect("an address"),
            target: asterisk.sip_addr(),
            extension: "8010".to_owned(),
        },
        ai: host(3),
        offender: host(4),
        bridge,
        usual: USUAL,
        objects: Some(Box::new(move || {
            [rest::channels(&objects), rest::bridges(&objects)].concat()
        })),
        pool: Some(asterisk.http_addr()),
        pbx: Some(asterisk.id()),
        log_limit: None,
    }
}

const OPEN: &str = "ARI events are open";

/// Starts a bridge and waits until it takes calls.
pub fn bridge(text: &str) -> Bridge {
    let bridge = Bridge::run(text);
    bridge.wait_for(OPEN, 10 * SECOND);
    bridge
}

/// Waits until the log has `count` lines that contain `text`.
fn wait_lines(bridge: &Bridge, text: &str, count: usize, limit: Duration) {
    let begin = Instant::now();
    while bridge.lines(text).len() < count {
        let late = begin.elapsed() > limit;
        assert!(!late, "{} of {count} \"{text}\" in:\n{}", bridge.lines(text).len(), bridge.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until neither channels nor bridges are left.
fn assert_clean(asterisk: &Asterisk) {
    crate::assert_no_channels(asterisk);
    let bridges = || rest::bridges(asterisk);
    crate::assert_eventually(|| bridges().is_empty(), || format!("{:?} left", bridges()));
}

/// Sets up calls whose callers talk without end, each connected to the AI.
async fn connected(asterisk: &Asterisk, ai: &Ai, count: u32) -> Vec<Caller> {
    let mut callers = Vec::new();
    for n in 0..count {
        callers.push(Caller::dial(CALLER, asterisk.sip_addr(), "8010", n, u32::MAX).await);
    }
    for caller in &mut callers {
        caller.answered().await;
    }
    let begin = Instant::now();
    let started = |n: usize| ai.streams().get(n).is_some_and(|s| s.frames.len() > 40);
    while !(0..count as usize).all(started) {
        assert!(begin.elapsed() < 10 * SECOND, "not all calls have reached the AI");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    callers
}

/// True if the caller now hears the humans' tone.
fn hears_the_tone(caller: &Caller) -> bool {
    let level = |h: &trunkless::peer::phone::Heard| trunkless::media::frame::level_dbfs(&h.samples);
    caller.heard.last().is_some_and(|h| level(h) > -20.0)
}
