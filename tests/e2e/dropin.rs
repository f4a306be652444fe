//! The files of `asterisk/` and `dialplan/` as they are shipped, in real Asterisks: they load
//! without warnings, and they take a call to the AI, or to a human if there is none.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use futures_util::StreamExt as _;
use serde_json::Value;
use trunkless::media::frame::level_dbfs;
use trunkless::sip::agent::CallEnd;

use crate::ai::{Ai, Plan, Stream};
use crate::asterisk::Asterisk;
use crate::bridge::{Bridge, Setup};
use crate::caller::Caller;
use crate::{assert_all, assert_no_channels, block_on};

const SECOND: Duration = Duration::from_secs(1);
const CALLER: &str = "127.0.9.1";
/// ARI user and password in the shipped file.
const LOGIN: &str = "trunkless:CHANGE-ME";

/// Mode, target dialplan, file and extension of each snippet.
const SNIPPETS: [(&str, &str, &str, &str); 8] = [
    ("ari", "asterisk", "asterisk/extensions_ari.conf", "8010@from-carrier"),
    ("pjsip", "asterisk", "asterisk/extensions_pjsip.conf", "8010@from-carrier"),
    ("sip", "asterisk", "asterisk/extensions_sip.conf", "8010@from-carrier"),
    ("ari", "freepbx", "freepbx/extensions_custom_ari.conf", "8010@from-internal"),
    ("pjsip", "freepbx", "freepbx/extensions_custom_pjsip.conf", "8010@from-internal"),
    ("ari", "vicidial", "vicidial/custom_dialplan_ari.conf", "8010@default"),
    ("sip", "vicidial", "vicidial/custom_dialplan_sip.conf", "8011@default"),
    ("pjsip", "vicidial", "vicidial/custom_dialplan_pjsip.conf", "8012@default"),
];

/// Mode and file of each configuration, a console command that shows it, and a line of the output
/// with single spaces.
const CONFIGURATIONS: [(&str, &str, &str, &str); 4] = [
    ("ari", "ari/http.conf", "http show status", "Server Enabled and Bound to 127.0.0.1:8088"),
    ("ari", "ari/ari.conf", "ari show user trunkless", "Read only?: No"),
    ("pjsip", "pjsip/pjsip.conf", "pjsip show endpoint ai", "rtp_timeout : 5"),
    ("sip", "sip/sip.conf", "sip show peer ai", "Qualify Freq : 2000 ms"),
];

fn start(version: u8, n: u8, mode: &str, dialplan: &str) -> Asterisk {
    let vars = [("DROPIN", mode), ("DIALPLAN", dialplan)];
    Asterisk::start_with(version, &format!("e2e-{n}"), &format!("127.0.{n}.1"), &vars)
}

fn shipped(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The configuration files below a folder of the project.
fn conf_files(folder: &str) -> BTreeSet<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut open: Vec<PathBuf> = vec![top.clone()];
    let mut found = BTreeSet::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "conf") {
                let path = path.strip_prefix(&top).expect("below it");
                found.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    found
}

/// Loads every file in every Asterisk it is for.
#[test]
fn every_file_loads_without_warnings() {
    let snippets: BTreeSet<String> = SNIPPETS.map(|(_, _, file, _)| file.to_owned()).into();
    assert_eq!(conf_files("dialplan"), snippets, "this test runs every snippet");
    let files: BTreeSet<String> = CONFIGURATIONS.map(|(_, file, ..)| file.to_owned()).into();
    assert_eq!(conf_files("asterisk"), files, "this test runs every configuration");
    for version in [16, 22] {
        let usual = Asterisk::start(version, "e2e-71", "127.0.71.1").complaints();
        for (mode, dialplan, file, extension) in SNIPPETS {
            if (mode, version) == ("sip", 22) {
                continue; // Asterisk 22 has no chan_sip
            }
            let asterisk = start(version, 71, mode, dialplan);
            let new = asterisk.complaints().into_iter().filter(|c| !usual.contains(c));
            let new: Vec<String> = new.collect();
            assert!(new.is_empty(), "{file} in {version}: {new:#?}");
            let path = format!("dialplan/{file}");
            let same = asterisk.config(&format!("dropin/{path}")) == shipped(&path);
            assert!(same, "{path} runs as it is shipped");
            let shown = asterisk.cli(&format!("dialplan show {extension}"));
            let name = file.rsplit('/').next().expect("a name");
            assert!(shown.contains(&format!("[{name}:")), "{file} in {version}: {shown}");
            for (_, file, command, wanted) in CONFIGURATIONS.iter().filter(|c| c.0 == mode) {
                let path = format!("asterisk/{file}");
                let same = asterisk.config(&format!("dropin/{path}")) == shipped(&path);
                assert!(same, "{path} runs as it is shipped");
                let shown = asterisk.cli(command);
                let mut lines = shown.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
                let found = lines.any(|words| words.join(" ").contains(wanted));
                assert!(found, "{file} in {version}, {wanted:?} in: {shown}");
            }
        }
    }
}

/// VICIdial's admin page drops backslashes and apostrophes from a dialplan entry, and old versions
/// also semicolons: the snippets must not depend on them.
#[test]
fn the_snippets_survive_vicidials_admin_page() {
    for file in conf_files("dialplan").iter().filter(|f| f.starts_with("vicidial/")) {
        let text = String::from_utf8(shipped(&format!("dialplan/{file}"))).expect("text");
        assert!(text.is_ascii() && !text.contains(['\\', '\'', '\r', '\t']), "{file}");
        for line in text.lines() {
            assert!(line.rfind(';').is_none_or(|at| at == 0), "{file}: a comment after {line}");
            // without its semicolon, a comment must not mean anything to Asterisk
            let comment = line.strip_prefix(';').map(str::trim_start).unwrap_or("");
            assert!(!comment.contains('=') && !comment.starts_with(['[', '#']), "{file}: {line}");
        }
        // the text is pasted into one of VICIdial's contexts, so its own contexts come last
        let own = text.find("\n[").unwrap_or(text.len());
        assert!(text.find("\nexten").is_some_and(|exten| exten < own), "{file}");
    }
}

fn hears_the_tone(caller: &Caller) -> bool {
    caller.heard.last().is_some_and(|h| level_dbfs(&h.samples) > -20.0)
}

/// Calls and waits for the humans' tone; returns how long it took.
async fn to_the_humans(asterisk: &Asterisk, extension: &str, limit: Duration) -> Duration {
    let before = asterisk.humans().len();
    let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), extension, 1, 0).await;
    let heard = caller.until(limit, hears_the_tone).await;
    let took = caller.dialled.elapsed();
    assert!(heard, "{extension}: no tone within {limit:?}: {:?}", caller.ended);
    caller.hang_up().await;
    assert_eq!(asterisk.humans().len(), before + 1, "{:?}", asterisk.humans());
    took
}

/// The setup of a bridge that registers as in the shipped files.
fn setup(asterisk: &Asterisk, n: u8, mode: &str, ai: &str) -> Setup {
    let registrar = if mode == "sip" { asterisk.chansip_addr() } else { asterisk.sip_addr() };
    Setup {
        registrar: registrar.to_string(),
        username: "ai",
        password: "CHANGE-ME",
        ai: ai.to_owned(),
        listen: format!("127.0.{n}.2:5070"),
        tables: String::new(),
        sip_keys: String::new(),
    }
}

/// Makes a call with numbered audio both ways, to the last frame; returns what the AI received.
pub async fn to_the_ai(asterisk: &Asterisk, extension: &str, ai: &Ai, bridge: &Bridge) -> Stream {
    let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), extension, 1, 100).await;
    caller.answered().await;
    caller.until(5 * SECOND, |c| c.sent.len() == 100 && c.numbers(1000).len() == 100).await;
    caller.wait(SECOND / 5).await;
    caller.hang_up().await;
    let heard = ai.until("the close", 5 * SECOND, |s| s.closed.is_some()).await;
    assert_all(&heard.numbers(1), 100, "the AI");
    assert_all(&caller.numbers(1000), 100, "the caller");
    assert_eq!(bridge.ended("reason"), "caller_hangup");
    assert_eq!(bridge.ended("lost"), "0");
    heard
}

/// Extension 8010 in SIP mode with a bridge that is absent, up, without its AI, killed in mid-call,
/// and dead.
async fn sip_mode(version: u8, n: u8, mode: &str) {
    let asterisk = start(version, n, mode, "asterisk");
    let who = format!("{mode} on {version}");
    let took = to_the_humans(&asterisk, "8010", 2 * SECOND).await;
    println!("{who}: without a bridge the humans are heard after {took:?}");
    assert!(took < SECOND, "{who}: {took:?}");

    let ai = Ai::start(Plan { say: 100, ..Plan::default() }).await;
    let bridge = Bridge::registered(&setup(&asterisk, n, mode, &ai.url));
    let heard = to_the_ai(&asterisk, "8010", &ai, &bridge).await;
    assert_eq!(heard.parameters["from_number"], "5551234");
    assert_eq!(heard.parameters["did"], "8010", "{who}");
    assert!(heard.parameters["uniqueid"].as_str().is_some_and(|id| id.contains('.')), "{who}");
    drop(bridge);

    let bridge = Bridge::registered(&setup(&asterisk, n, mode, "ws://127.0.0.1:9"));
    let took = to_the_humans(&asterisk, "8010", 5 * SECOND).await;
    println!("{who}: without an AI the humans are heard after {took:?}");
    assert!(took < 3 * SECOND, "{who}: {took:?}");
    drop(bridge);

    let ai = Ai::start(Plan::default()).await;
    let bridge = Bridge::registered(&setup(&asterisk, n, mode, &ai.url));
    let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 1, 0).await;
    caller.answered().await;
    caller.wait(SECOND).await;
    drop(bridge);
    let killed = Instant::now();
    let took = to_the_humans(&asterisk, "8010", 12 * SECOND).await;
    println!("{who}: right after the kill the humans are heard after {took:?}");
    assert!(caller.until(10 * SECOND, |c| c.ended.is_some()).await, "{who}: dead air");
    assert!(matches!(caller.ended, Some(CallEnd::Bye { .. })), "{who}: {:?}", caller.ended);
    tokio::time::sleep((5 * SECOND).saturating_sub(killed.elapsed())).await;
    let took = to_the_humans(&asterisk, "8010", 2 * SECOND).await;
    println!("{who}: 5 s after the kill the humans are heard after {took:?}");
    assert!(took < SECOND, "{who}: {took:?}");
    println!("{who}: {:?}", asterisk.humans());
    assert_no_channels(&asterisk);
}

#[test]
fn sip_mode_reaches_the_ai_or_a_human_through_chan_sip_16() {
    block_on(sip_mode(16, 72, "sip"));
}

#[test]
fn sip_mode_reaches_the_ai_or_a_human_through_pjsip_16() {
    block_on(sip_mode(16, 73, "pjsip"));
}

#[test]
fn sip_mode_reaches_the_ai_or_a_human_through_pjsip_22() {
    block_on(sip_mode(22, 74, "pjsip"));
}

/// The PBX itself ends the caller's leg, through the shipped RTP timeout.
#[test]
fn a_killed_bridge_leaves_no_dead_air() {
    block_on(async {
        for (version, n, mode) in [(16, 75, "sip"), (22, 76, "pjsip")] {
            let asterisk = start(version, n, mode, "asterisk");
            let ai = Ai::start(Plan::default()).await;
            let bridge = Bridge::registered(&setup(&asterisk, n, mode, &ai.url));
            let mut caller = Caller::dial(CALLER, asterisk.sip_addr(), "8010", 1, 0).await;
            caller.answered().await;
            caller.wait(SECOND).await;
            drop(bridge);
            let killed = Instant::now();
            assert!(caller.until(8 * SECOND, |c| c.ended.is_some()).await, "{mode}: dead air");
            println!("{mode} on {version}: the caller's leg ends after {:?}", killed.elapsed());
            assert_no_channels(&asterisk);
        }
    });
}

/// FreePBX: calls from a phone and through an inbound route, whose number reaches the AI.
#[test]
fn freepbx_reaches_the_ai_or_a_human_in_sip_mode() {
    block_on(async {
        for (version, n) in [(16, 77), (22, 78)] {
            let asterisk = start(version, n, "pjsip", "freepbx");
            for extension in ["8010", "did-5550100"] {
                let took = to_the_humans(&asterisk, extension, 2 * SECOND).await;
                assert!(took < SECOND, "{extension} on {version}: {took:?}");
            }
            for (extension, did) in [("8010", None), ("did-5550100", Some("5550100"))] {
                let ai = Ai::start(Plan { say: 100, ..Plan::default() }).await;
                let bridge = Bridge::registered(&setup(&asterisk, n, "pjsip", &ai.url));
                let heard = to_the_ai(&asterisk, extension, &ai, &bridge).await;
                let heard = heard.parameters;
                assert_eq!(heard["did"].as_str(), did, "{extension} on {version}");
                assert_eq!(heard["X-Did"].as_str(), did, "{extension} on {version}");
                assert!(heard["uniqueid"].as_str().is_some_and(|id| id.contains('.')), "{heard}");
            }
        }
    });
}

/// VICIdial: the AI receives the lead's data, and without the AI the call goes to the in-group.
#[test]
fn vicidial_reaches_the_ai_or_the_in_group_in_sip_mode() {
    block_on(async {
        let cases = [
            (16, 79, "sip", "8001", "8011"),
            (16, 80, "pjsip", "8002", "8012"),
            (22, 81, "pjsip", "8002", "8012"),
        ];
        for (version, n, mode, phone, extension) in cases {
            let asterisk = start(version, n, mode, "vicidial");
            let extension = format!("vd-{extension}");
            let took = to_the_humans(&asterisk, &extension, 2 * SECOND).await;
            assert!(took < SECOND, "{mode} on {version}: {took:?}");
            let ingroup = ["90009*SALESLINE**0000402027**5551234****"];
            assert_eq!(asterisk.verbose("LAB-INGROUP "), ingroup);
            let ai = Ai::start(Plan { say: 100, ..Plan::default() }).await;
            let mut setup = setup(&asterisk, n, mode, &ai.url);
            (setup.username, setup.password) = (phone, "bridgesecret");
            let bridge = Bridge::registered(&setup);
            let heard = to_the_ai(&asterisk, &extension, &ai, &bridge).await.parameters;
            assert_eq!(heard["from_name"], "V1231456150000402027");
            // the names of ARI mode, and beside them those of the release before
            for names in [
                ["vici_call_id", "lead_id", "campaign", "uniqueid"],
                ["X-VICI-Call-ID", "X-VICI-Lead-ID", "X-VICI-Campaign", "X-VICI-Uniqueid"],
            ] {
                let [call, lead, campaign, id] = names.map(|n| heard[n].as_str().unwrap_or(""));
                let expected = ["V1231456150000402027", "0000402027", "AITEST"];
                assert_eq!([call, lead, campaign], expected, "{mode} on {version}");
                assert!(id.contains('.'), "{mode} on {version}: a channel's id: {id:?}");
            }
            assert!(heard.get("amd_status").is_none(), "{mode} on {version}: it is empty");
        }
    });
}

#[test]
fn without_a_bridge_in_ari_mode_callers_reach_a_human_within_a_second() {
    block_on(async {
        for (version, n) in [(16, 82), (22, 83)] {
            for (dialplan, extensions) in [
                ("asterisk", ["8010", "8018"]),
                ("freepbx", ["8010", "did-5550100"]),
                ("vicidial", ["vd-8010", "vd-8010"]),
            ] {
                let asterisk = start(version, n, "ari", dialplan);
                for extension in extensions {
                    let took = to_the_humans(&asterisk, extension, 2 * SECOND).await;
                    println!("{dialplan} {extension} on {version}: humans after {took:?}");
                    assert!(took < SECOND, "{dialplan} {extension} on {version}: {took:?}");
                }
                assert_eq!(asterisk.humans(), ["stasis=FAILED reason= dial="; 2]);
                if dialplan == "vicidial" {
                    let ingroup = "90009*SALESLINE**0000402027**5551234****";
                    assert_eq!(asterisk.verbose("LAB-INGROUP "), [ingroup; 2]);
                }
                assert_no_channels(&asterisk);
            }
        }
    });
}

/// Sends a request below /ari and returns the status.
fn ari(at: SocketAddr, login: &str, method: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(at).expect("a connection");
    let login = base64::engine::general_purpose::STANDARD.encode(login);
    let request = format!(
        "{method} /ari/{path} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Basic {login}\r\n\
         Connection: close\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).expect("it is written");
    let mut answer = String::new();
    // a connection above the limit is closed without an answer, or reset
    let _ = socket.read_to_string(&mut answer);
    answer.split(' ').nth(1).unwrap_or("none").to_owned()
}

/// The shipped user may log in and write, and more connections fit than with Asterisk's default.
#[test]
fn ari_admits_the_shipped_user() {
    for (version, n) in [(16, 84), (22, 85)] {
        let asterisk = start(version, n, "ari", "asterisk");
        let at = asterisk.http_addr();
        let write = "asterisk/variable?variable=LAB&value=1";
        for login in [LOGIN, "foreign:foreignsecret"] {
            assert_eq!(ari(at, login, "GET", "applications"), "200", "{login} on {version}");
            assert_eq!(ari(at, login, "POST", write), "204", "{login} on {version}");
        }
        assert_eq!(ari(at, "trunkless:wrong", "GET", "applications"), "401");
        let idle: Vec<TcpStream> =
            (0..300).map(|_| TcpStream::connect(at).expect("a connection")).collect();
        assert_eq!(ari(at, LOGIN, "GET", "applications"), "200", "on {version}");
        drop(idle);
    }
}

/// Connects to ARI in place of the bridge, waits for one call and disconnects; the call stays in
/// Stasis. Returns its `StasisStart`.
async fn next_call(asterisk: &Asterisk, caller: impl Future<Output = Caller>) -> (Value, Caller) {
    let at = asterisk.http_addr();
    let url = format!("ws://{at}/ari/events?app=trunkless&api_key=trunkless:CHANGE-ME");
    let (mut events, _) = tokio_tungstenite::connect_async(url).await.expect("a WebSocket");
    while ari(at, LOGIN, "GET", "applications/trunkless") != "200" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let caller = caller.await;
    let start = async {
        loop {
            let message = events.next().await.expect("an event").expect("no error");
            let text = message.into_text().expect("text");
            let event: Value = serde_json::from_str(&text).expect("JSON");
            if event["type"] == "StasisStart" {
                return event;
            }
        }
    };
    let start = tokio::time::timeout(5 * SECOND, start).await.expect("a call within 5 s");
    (start, caller)
}

/// The arguments identify the call, whatever name the caller has. A call that is sent back reaches
/// a human, and the reason is in the log.
#[test]
fn ari_snippets_pass_arguments_and_take_calls_back() {
    let lead = ["vici_call_id=V1231456150000402027", "lead_id=0000402027"];
    let cases: [(&str, &str, &[&str], &[&str]); 6] = [
        ("asterisk", "8010", &["did=8010"], &[]),
        ("asterisk", "8018", &["did=8018"], &[]),
        ("freepbx", "8010", &["did="], &[]),
        ("freepbx", "did-5550100", &["did=5550100"], &[]),
        ("vicidial", "vd-8010", &lead, &["campaign=AITEST", "amd_status="]),
        (
            "vicidial",
            "bad-8010",
            &["vici_call_id=Evelead_id666x", "lead_id=666"],
            &["campaign=", "amd_status="],
        ),
    ];
    block_on(async {
        for (version, n) in [(16, 86), (22, 87)] {
            for (dialplan, extension, before, after) in cases {
                let who = format!("{dialplan} {extension} on {version}");
                let asterisk = start(version, n, "ari", dialplan);
                let dial = Caller::dial(CALLER, asterisk.sip_addr(), extension, 1, 0);
                let (event, mut caller) = next_call(&asterisk, dial).await;
                let id = event["channel"]["id"].as_str().expect("an id");
                let unique = format!("uniqueid={id}");
                let wanted: Vec<&str> =
                    before.iter().chain([&unique.as_str()]).chain(after).copied().collect();
                assert_eq!(event["args"], serde_json::json!(wanted), "{who}");
                let answered = !["8010", "did-5550100"].contains(&extension);
                caller.until(SECOND / 2, |c| c.answered.is_some()).await;
                assert_eq!(
                    caller.answered.is_some(),
                    answered,
                    "{who}: the snippet itself must not answer"
                );
                let reason =
                    format!("channels/{id}/variable?variable=TRUNKLESS_REASON&value=overload");
                assert_eq!(ari(asterisk.http_addr(), LOGIN, "POST", &reason), "204", "{who}");
                let continue_path = format!("channels/{id}/continue");
                assert_eq!(
                    ari(asterisk.http_addr(), LOGIN, "POST", &continue_path),
                    "204",
                    "{who}"
                );
                let tone = caller.until(2 * SECOND, hears_the_tone).await;
                assert!(tone, "{who}: {:?}", caller.ended);
                assert_eq!(asterisk.humans(), ["stasis=SUCCESS reason=overload dial="], "{who}");
                caller.hang_up().await;
                assert_no_channels(&asterisk);
            }
        }
    });
}
