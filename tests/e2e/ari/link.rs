//! Connections that are lost: the events socket, the whole PBX, the application's name.

use std::process::Command;
use std::time::{Duration, Instant};

use super::{
    CALLER, OPEN, SECOND, assert_clean, bridge, config, connected, rest, start, wait_lines,
};
use crate::ai::{Ai, Plan};
use crate::asterisk::Asterisk;
use crate::block_on;
use crate::caller::Caller;

/// Resets every connection to the PBX's HTTP server.
fn cut(asterisk: &Asterisk) {
    let at = asterisk.http_addr();
    let (ip, port) = (at.ip().to_string(), format!("= :{}", at.port()));
    let killed = Command::new("ss").args(["-K", "dst", &ip, "dport", &port]).output();
    let killed = killed.expect("ss runs");
    let text = String::from_utf8_lossy(&killed.stdout).into_owned();
    assert!(killed.status.success() && text.contains("ESTAB"), "ss -K: {killed:?}");
}

/// The socket is cut with ten calls up, and one caller hangs up in that moment.
#[test]
fn a_cut_events_socket_costs_no_frame() {
    block_on(async {
        for (version, n) in [(16, 131), (22, 132)] {
            let asterisk = start(version, n);
            let ai = Ai::start(Plan::default()).await;
            let bridge = bridge(&config(&ai.url, "", ""));
            let mut callers = connected(&asterisk, &ai, 10).await;
            let at = Instant::now();
            cut(&asterisk);
            callers[9].hang_up().await;
            wait_lines(&bridge, OPEN, 2, SECOND);
            println!("{version}: events are open again after {:?}", at.elapsed());
            wait_lines(&bridge, "call ended", 1, SECOND);
            for caller in &mut callers[..9] {
                caller.wait(SECOND / 4).await;
                assert_eq!(caller.ended, None);
            }
            assert_eq!(bridge.lines("call ended").len(), 1, "{}", bridge.log());
            for (n, caller) in callers[..9].iter_mut().enumerate() {
                caller.talk(false);
                caller.wait(SECOND / 10).await;
                caller.hang_up().await;
                let sent = caller.sent.len() as u32;
                let heard = ai.streams().iter().map(|s| s.numbers(n as u32)).max_by_key(Vec::len);
                crate::assert_all(&heard.unwrap_or_default(), sent, &format!("call {n}"));
            }
            wait_lines(&bridge, "call ended", 10, 5 * SECOND);
            for line in bridge.lines("call ended") {
                assert!(line.contains("caller_hangup") && line.contains(" lost=0"), "{line}");
            }
            assert_clean(&asterisk);
        }
    });
}

/// The PBX is killed with calls up: each ends once, and the next one is taken as soon as ARI is
/// there again.
#[test]
fn a_killed_pbx() {
    block_on(async {
        for (version, n) in [(16, 133), (22, 134)] {
            let asterisk = start(version, n);
            let ai = Ai::start(Plan::default()).await;
            let bridge = bridge(&config(&ai.url, "", ""));
            let callers = connected(&asterisk, &ai, 10).await;
            asterisk.kill();
            wait_lines(&bridge, "call ended", 10, 5 * SECOND);
            let lines = bridge.lines("call ended");
            assert_eq!(lines.len(), 10);
            assert!(lines.iter().all(|l| l.contains("pbx_lost")), "{lines:#?}");
            drop(callers);
            asterisk.again(false);
            let back = Instant::now();
            wait_lines(&bridge, OPEN, 2, SECOND);
            println!("{version}: events are open {:?} after the PBX is back", back.elapsed());
            let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 1, 0).await;
            caller.answered().await;
            caller.hang_up().await;
            wait_lines(&bridge, "call ended", 11, 5 * SECOND);
            assert_clean(&asterisk);
        }
    });
}

/// Restarted so quickly that calls are still believed to be up.
#[test]
fn a_pbx_that_is_back_at_once() {
    block_on(async {
        let asterisk = start(22, 135);
        let ai = Ai::start(Plan::default()).await;
        let bridge = bridge(&config(&ai.url, "", ""));
        let _callers = connected(&asterisk, &ai, 3).await;
        asterisk.kill();
        asterisk.again(false);
        wait_lines(&bridge, "call ended", 3, 3 * SECOND);
        assert!(bridge.lines("call ended").iter().all(|l| l.contains("pbx_lost")));
        assert_clean(&asterisk);
    });
}

/// Another program takes the application's name: the call that is up plays on and its end is
/// noticed; then the only PBX is of no use any more.
#[test]
fn an_application_that_was_taken() {
    block_on(async {
        for (version, n) in [(16, 136), (22, 137)] {
            let asterisk = start(version, n);
            let ai = Ai::start(Plan::default()).await;
            let mut bridge = bridge(&config(&ai.url, "", ""));
            let mut callers = connected(&asterisk, &ai, 2).await;
            let taken = rest::subscribe(&asterisk, "trunkless").await;
            bridge.wait_for("another program has taken", SECOND);
            for caller in &mut callers {
                caller.wait(2 * SECOND).await;
                assert_eq!(caller.ended, None, "on {version}");
            }
            assert_eq!(bridge.lines(OPEN).len(), 1, "it does not take it back");
            let before = ai.streams()[0].frames.len();
            callers[0].wait(SECOND / 2).await;
            assert!(ai.streams()[0].frames.len() > before + 15, "audio flows");
            for caller in &mut callers {
                caller.hang_up().await;
            }
            let at = Instant::now();
            assert_eq!(bridge.exit_code(8 * SECOND), 3);
            println!("{version}: exit {:?} after the last hang-up", at.elapsed());
            assert_eq!(bridge.lines("reason=\"caller_hangup\"").len(), 2, "{}", bridge.log());
            drop(taken);
            assert_clean(&asterisk);
        }
    });
}

/// The process stands still while events and calls come.
#[test]
fn a_frozen_bridge_goes_on() {
    block_on(async {
        let asterisk = start(22, 138);
        let ai = Ai::start(Plan::default()).await;
        let bridge = bridge(&config(&ai.url, "", ""));
        let mut callers = connected(&asterisk, &ai, 2).await;
        bridge.signal("STOP");
        let mut late = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 7, 0).await;
        late.wait(Duration::from_millis(500)).await;
        bridge.signal("CONT");
        late.answered().await;
        for caller in callers.iter_mut().chain([&mut late]) {
            caller.wait(SECOND / 2).await;
            assert_eq!(caller.ended, None);
            caller.hang_up().await;
        }
        wait_lines(&bridge, "call ended", 3, 5 * SECOND);
        assert_clean(&asterisk);
    });
}
