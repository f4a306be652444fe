//! Harm that the PBX must be spared: a crash for lack of RTP ports, orphaned objects, changes to
//! other programs' objects.

use std::time::{Duration, Instant};

use super::rest::{self, ask, bridges, channels, ours};
use super::{
    CALLER, SECOND, assert_clean, bridge, config, connected, hears_the_tone, start, start_with,
};
use crate::ai::{Ai, Plan};
use crate::block_on;
use crate::caller::Caller;

/// 100 calls on a PBX with RTP ports for four streams: it survives, and callers who do not fit
/// continue in the dialplan.
#[test]
fn the_rtp_range_is_not_used_up() {
    block_on(async {
        for (version, n) in [(16, 121), (22, 122)] {
            let range = [("RTP_LO", "11000"), ("RTP_HI", "11007")];
            let asterisk = start_with(version, n, &range);
            let process = asterisk.id();
            let ai = Ai::start(Plan::default()).await;
            let bridge = bridge(&config(
                &ai.url,
                &format!("rtp_conf = \"{}\"", asterisk.config_path("rtp.conf").display()),
                "",
            ));
            // callers without RTP, so that the bridge could use up all ports
            for _ in 0..100 {
                asterisk.cli("channel originate Local/8010@from-carrier application Wait 20");
            }
            // and some whose own legs use ports from the same range
            let mut callers = Vec::new();
            for n in 0..4 {
                callers.push(Caller::dial(CALLER, asterisk.sip_addr(), "8010", n, 0).await);
            }
            for caller in &mut callers {
                caller.wait(SECOND / 4).await;
            }
            let taken = bridge.lines("call offered").len();
            let begin = Instant::now();
            while asterisk.humans().len() < 100 - taken {
                assert!(begin.elapsed() < 10 * SECOND, "{:?}", asterisk.humans().len());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            println!(
                "{version}: {taken} calls with the AI, {} with humans",
                asterisk.humans().len()
            );
            assert!((1..=3).contains(&taken), "{taken}");
            assert!(asterisk.humans().iter().all(|h| h.contains("reason=overload")));
            asterisk.cli("channel request hangup all");
            drop(callers);
            assert_clean(&asterisk);
            // a crash would show in these: the console answers only from the process of the start
            assert_eq!(asterisk.id(), process);
            assert!(std::path::Path::new(&format!("/proc/{process}")).exists(), "it crashed");
            assert_eq!(asterisk.log().matches("Asterisk Ready").count(), 1, "it restarted");
        }
    });
}

/// FreePBX's rtp.conf has no range of its own, only includes. 1,000 calls are offered to a PBX with
/// RTP ports for four streams.
#[test]
fn a_range_in_included_files_is_not_used_up() {
    block_on(async {
        let asterisk = start(22, 127);
        asterisk.stop();
        let write = |name: &str, text: &str| {
            std::fs::write(asterisk.config_path(name), text).expect("a configuration file");
        };
        let main = "[general]\n#include rtp_additional.conf\n#tryinclude rtp_custom*.conf\n";
        write("rtp.conf", main);
        write("rtp_additional.conf", "rtpstart=11000\n#include <rtp_end.conf>\n");
        write("rtp_end.conf", "rtpend=11007\n");
        asterisk.again(false);
        let process = asterisk.id();
        let settings = asterisk.cli("rtp show settings");
        assert!(settings.contains("11000") && settings.contains("11007"), "{settings}");
        let ai = Ai::start(Plan::default()).await;
        let rtp_conf = format!("rtp_conf = \"{}\"", asterisk.config_path("rtp.conf").display());
        let bridge = bridge(&config(&ai.url, &rtp_conf, ""));
        let _foreign = rest::subscribe(&asterisk, "foreign").await;
        let path = "channels?endpoint=Local/8010@from-carrier&app=foreign";
        let mut offered = 0;
        while offered < 1000 {
            // a caller whose own leg uses ports from the range
            let caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", offered, 0).await;
            for _ in 0..99 {
                assert_eq!(ask(&asterisk, "POST", path).0, 200);
            }
            offered += 100;
            let begin = Instant::now();
            while bridge.lines("call offered").len() + asterisk.humans().len() < offered as usize {
                assert!(begin.elapsed() < 20 * SECOND, "{} humans", asterisk.humans().len());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(bridges(&asterisk).len() <= 2, "of four streams, each call uses two");
            asterisk.cli("channel request hangup all");
            drop(caller);
            assert_clean(&asterisk);
        }
        let taken = bridge.lines("call offered").len();
        let humans = asterisk.humans().len();
        println!("{offered} calls offered: {taken} to the AI, {humans} with humans");
        // while all are hung up, each that ends leaves its place to the next
        assert!(taken >= 10 && humans > 500, "{taken} {humans}");
        assert_eq!(asterisk.id(), process);
        assert!(std::path::Path::new(&format!("/proc/{process}")).exists(), "it crashed");
        assert_eq!(
            asterisk.log().matches("Asterisk Ready").count(),
            2,
            "one start of our own each"
        );
    });
}

/// The bridge is killed during 20 calls, and some callers hang up meanwhile: the next start cleans
/// up, and the remaining callers get a human.
#[test]
fn orphans_of_a_killed_bridge_are_removed_at_the_next_start() {
    block_on(async {
        for (version, n) in [(16, 123), (22, 124)] {
            let asterisk = start(version, n);
            let _foreign = rest::subscribe(&asterisk, "foreign").await;
            let mut stranger = Caller::dial(CALLER, asterisk.sip_addr(), "8999", 99, 0).await;
            stranger.answered().await;
            assert_eq!(ask(&asterisk, "POST", "bridges?type=mixing&bridgeId=foreign-b").0, 200);
            let foreign = channels(&asterisk);
            let ai = Ai::start(Plan::default()).await;
            let mut first = bridge(&config(&ai.url, "", ""));
            let mut callers = connected(&asterisk, &ai, 20).await;
            first.kill();
            let mut gone: Vec<Caller> = callers.drain(..8).collect();
            for caller in &mut gone {
                caller.hang_up().await;
            }
            assert_eq!(ours(&bridges(&asterisk)).len(), 20, "the PBX does not clean up itself");
            let ai = Ai::start(Plan::default()).await;
            let second = bridge(&config(&ai.url, "", ""));
            let open = Instant::now();
            let left = || ours(&bridges(&asterisk)).len() + ours(&channels(&asterisk)).len();
            while left() > 0 {
                assert!(open.elapsed() < SECOND, "{} objects after 1 s:\n{}", left(), second.log());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            println!("{version}: all orphans are gone {:?} after connecting", open.elapsed());
            for caller in &mut callers {
                assert!(caller.until(2 * SECOND, hears_the_tone).await, "{:?}", caller.ended);
            }
            assert_eq!(asterisk.humans(), ["stasis=SUCCESS reason=restart dial="; 12]);
            assert!(bridges(&asterisk).contains(&"foreign-b".to_owned()));
            let now = channels(&asterisk);
            assert!(foreign.iter().all(|id| now.contains(id)), "{foreign:?} in {now:?}");
            assert_eq!(stranger.ended, None);
            for caller in &mut callers {
                caller.hang_up().await;
            }
            stranger.hang_up().await;
            ask(&asterisk, "DELETE", "bridges/foreign-b");
            assert_clean(&asterisk);
        }
    });
}

/// An application whose name begins like ours has ids that begin like ours.
#[test]
fn an_application_with_a_similar_name_is_left_alone() {
    block_on(async {
        let asterisk = start(22, 125);
        let theirs = "trunkless-trunkless-x-b-1795000000-00000000aa";
        let path = format!("bridges?type=mixing&bridgeId={theirs}");
        assert_eq!(ask(&asterisk, "POST", &path).0, 200);
        let lost = "trunkless-trunkless-b-1795000000-00000000aa";
        let path = format!("bridges?type=mixing&bridgeId={lost}");
        assert_eq!(ask(&asterisk, "POST", &path).0, 200);
        let ai = Ai::start(Plan::default()).await;
        let _bridge = bridge(&config(&ai.url, "", ""));
        let begin = Instant::now();
        while bridges(&asterisk) != [theirs] {
            assert!(begin.elapsed() < SECOND, "{:?}", bridges(&asterisk));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ask(&asterisk, "DELETE", &format!("bridges/{theirs}"));
    });
}

/// On SIGTERM new callers get a human at once; live calls may finish, and get a human at the end of
/// the drain time.
#[test]
fn sigterm_drains_live_calls_and_sends_new_callers_to_a_human() {
    block_on(async {
        let asterisk = start(22, 126);
        let ai = Ai::start(Plan::default()).await;
        let mut bridge = bridge(&config(&ai.url, "", "[calls]\ndrain = \"2s\""));
        let mut callers = connected(&asterisk, &ai, 1).await;
        bridge.signal("TERM");
        bridge.wait_for("stopping: no new calls", SECOND);
        let mut late = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 2, 0).await;
        assert!(late.until(SECOND, hears_the_tone).await, "{:?}", late.ended);
        assert!(!hears_the_tone(&callers[0]), "the live call continues");
        assert!(callers[0].until(5 * SECOND, hears_the_tone).await, "no human");
        assert_eq!((bridge.exit_code(5 * SECOND), bridge.ended("reason")), (0, "drain".to_owned()));
        assert_eq!(asterisk.humans(), ["stasis=SUCCESS reason=drain dial="; 2]);
        late.hang_up().await;
        callers[0].hang_up().await;
        assert_clean(&asterisk);
    });
}
