//! Lost connections: the events socket, the whole PBX, the application's name.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkless::peer::pattern;

use super::{
    CALLER, OPEN, SECOND, assert_clean, bridge, config, connected, rest, site, start, wait_lines,
};
use crate::ai::{Ai, Plan};
use crate::asterisk::Asterisk;
use crate::block_on;
use crate::caller::Caller;
use crate::rig::{Bystanders, Rig, until};

/// Resets every connection to the PBX's HTTP server.
fn cut(asterisk: &Asterisk) {
    let at = asterisk.http_addr();
    let (ip, port) = (at.ip().to_string(), format!("= :{}", at.port()));
    let killed = Command::new("ss").args(["-K", "dst", &ip, "dport", &port]).output();
    let killed = killed.expect("ss runs");
    let text = String::from_utf8_lossy(&killed.stdout).into_owned();
    assert!(killed.status.success() && text.contains("ESTAB"), "ss -K: {killed:?}");
}

/// The events socket is cut during calls, and one caller hangs up at that moment.
#[test]
fn a_cut_events_socket_costs_no_frame() {
    block_on(async {
        for (version, n) in [(16, 131), (22, 132)] {
            let asterisk = Arc::new(start(version, n));
            let fault = async |rig: &Rig| {
                let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 99, 0).await;
                caller.answered().await;
                let ended = || rig.log().matches("call ended").count();
                let (at, before) = (Instant::now(), ended());
                cut(&asterisk);
                caller.hang_up().await;
                let open = || rig.log().matches(OPEN).count() == 2;
                assert!(until(SECOND, open).await, "not open again: {}", rig.log());
                println!("{version}: events are open again after {:?}", at.elapsed());
                assert!(until(SECOND, || ended() == before + 1).await, "{}", rig.log());
            };
            Bystanders::new(site(&asterisk, n)).during(fault).await;
        }
    });
}

/// The PBX is killed during calls: each ends once, and new calls are taken as soon as ARI is back.
#[test]
fn a_killed_pbx_ends_each_call_once_and_is_used_again() {
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

/// The PBX restarts so quickly that its calls still seem to be up.
#[test]
fn a_quick_restart_of_the_pbx_ends_its_calls() {
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

/// Another program takes over the application's name. Live calls continue and their end is noticed;
/// then the only PBX is useless. The program stays up, so that no supervisor starts one that would
/// take the name back.
#[test]
fn a_bridge_whose_application_was_taken_finishes_its_calls_and_stays_up() {
    block_on(async {
        for (version, n) in [(16, 136), (22, 137)] {
            let asterisk = start(version, n);
            let ai = Ai::start(Plan::default()).await;
            let http = "[http]\nlisten = \"127.0.0.1:8071\"";
            let mut bridge = bridge(&config(&ai.url, "", http));
            let mut callers = connected(&asterisk, &ai, 2).await;
            let taken = rest::subscribe(&asterisk, "trunkless").await;
            bridge.wait_for("taken over by another program", SECOND);
            for caller in &mut callers {
                caller.wait(2 * SECOND).await;
                assert_eq!(caller.ended, None, "on {version}");
            }
            assert_eq!(bridge.lines(OPEN).len(), 1, "the name is not taken back");
            let before = ai.streams()[0].frames.len();
            callers[0].wait(SECOND / 2).await;
            assert!(ai.streams()[0].frames.len() > before + 15, "audio flows");
            for caller in &mut callers {
                caller.hang_up().await;
            }
            bridge.wait_for("no PBX can send calls any more", 8 * SECOND);
            assert!(ready(8071).starts_with("HTTP/1.1 503"), "{}", ready(8071));
            tokio::time::sleep(SECOND).await;
            assert_eq!(bridge.lines(OPEN).len(), 1, "the name is not taken back");
            bridge.signal("TERM");
            assert_eq!(bridge.exit_code(8 * SECOND), 0);
            assert_eq!(bridge.lines("reason=\"caller_hangup\"").len(), 2, "{}", bridge.log());
            drop(taken);
            assert_clean(&asterisk);
        }
    });
}

/// The response to `/readyz`.
fn ready(port: u16) -> String {
    use std::io::{Read as _, Write as _};
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).expect("a request");
    let mut response = String::new();
    socket.read_to_string(&mut response).expect("a response");
    response
}

/// The process is stopped while events and calls arrive. Afterwards, audio flows both ways.
#[test]
fn a_bridge_stopped_for_a_while_continues() {
    block_on(async {
        let asterisk = start(22, 138);
        let plan = Plan { say: u32::MAX, paced: true, call: None, ..Plan::default() };
        let ai = Ai::start(plan).await;
        let bridge = bridge(&config(&ai.url, "", ""));
        let mut callers = connected(&asterisk, &ai, 2).await;
        bridge.signal("STOP");
        let mut late = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 7, 0).await;
        late.wait(Duration::from_millis(500)).await;
        bridge.signal("CONT");
        late.answered().await;
        for (call, caller) in callers.iter_mut().enumerate() {
            let call = call as u32;
            caller.wait(SECOND / 2).await;
            let (at, from) = (Instant::now(), caller.sent.len() as u32);
            caller.wait(SECOND).await;
            assert_eq!(caller.ended, None);
            caller.talk(false);
            caller.wait(SECOND / 10).await;
            let sent = caller.sent.len() as u32;
            assert!(sent - from > 45, "{from}..{sent}");
            let heard = ai.streams().iter().map(|s| s.numbers(call)).max_by_key(Vec::len);
            let heard: Vec<u32> =
                heard.unwrap_or_default().into_iter().filter(|n| *n >= from).collect();
            assert_eq!(heard, Vec::from_iter(from..sent), "the AI of call {call}");
            let since = caller.heard.iter().filter(|h| h.at > at);
            let read = since.filter_map(|h| pattern::read(&h.samples));
            let said: Vec<u32> =
                read.map(|(of, n)| if of == call { n } else { u32::MAX }).collect();
            let whole = said.windows(2).all(|pair| pair[1] == pair[0] + 1);
            assert!(whole && said.len() > 45, "caller {call}: {said:?}");
            caller.hang_up().await;
        }
        late.wait(SECOND / 2).await;
        assert_eq!(late.ended, None);
        late.hang_up().await;
        wait_lines(&bridge, "call ended", 3, 5 * SECOND);
        assert_clean(&asterisk);
    });
}
