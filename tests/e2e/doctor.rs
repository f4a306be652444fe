//! `trunkless doctor` against real Asterisk: the faults that only a real PBX shows, and that it
//! disturbs nothing. RTP is blocked by routing rules in a network namespace, which needs root.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use crate::ai::{Ai, Plan};
use crate::asterisk::Asterisk;
use crate::bridge::{Bridge, Setup};
use crate::fixture::{Lab, Number};
use crate::{Pbx, assert_no_channels, block_on};

/// Set within the namespace: the UDP ports that are blocked there.
const BLOCKED: &str = "DOCTOR_BLOCKED";
/// Our RTP ports.
const PORTS: &str = "[media]\nports = \"25002-25201\"\n";

/// Runs doctor and returns its findings.
fn doctor(config: &str, arguments: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trunkless.toml");
    std::fs::write(&file, config).expect("the configuration can be written");
    let output = Command::new(env!("CARGO_BIN_EXE_trunkless"))
        .args(["doctor", "--json", "--no-ai-call", "--config"])
        .arg(&file)
        .args(arguments)
        .env_remove("TRUNKLESS_CACHE")
        .env_remove("TRUNKLESS_LAB_RUN")
        .output()
        .expect("doctor runs");
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    value["findings"].as_array().expect("findings").clone()
}

/// Asserts that exactly this step is faulty, in these words; none if `step` is empty.
fn assert_fault(findings: &[Value], step: &str, words: &str) {
    let faults: Vec<&Value> = findings.iter().filter(|f| f["state"] == "fault").collect();
    let all = format!("{findings:#?}");
    if step.is_empty() {
        assert!(faults.is_empty(), "{all}");
        return;
    }
    assert!(!faults.is_empty() && faults.iter().all(|f| f["step"] == step), "{step}: {all}");
    assert!(faults.iter().any(|f| f.to_string().contains(words)), "{words}: {all}");
}

fn state<'a>(findings: &'a [Value], step: &str) -> &'a str {
    let found = findings.iter().find(|finding| finding["step"] == step);
    found.and_then(|finding| finding["state"].as_str()).unwrap_or("missing")
}

#[test]
fn faults_of_an_account_are_named_and_a_registration_is_not_disturbed() {
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Lab::start(pbx);
            let ai = Ai::start(Plan { say: 50, ..Plan::default() }).await;
            let setup = || Setup { tables: PORTS.to_owned(), ..lab.setup(&ai.url) };
            let bridge = Bridge::registered(&setup());
            let findings = doctor(&setup().config(), &["--echo", "600"]);
            assert_fault(&findings, "", "");
            for step in ["pbx.main.registration", "pbx.main.device", "pbx.main.echo"] {
                assert_eq!(state(&findings, step), "ok", "{pbx:?} {step}: {findings:#?}");
            }
            let refused = "registration refused with 40";
            for (change, step, words) in [
                (Setup { password: "wrong", ..setup() }, "pbx.main.registration", refused),
                (Setup { username: "nosuch", ..setup() }, "pbx.main.registration", refused),
                (
                    Setup { registrar: format!("{}:5999", lab.asterisk.ip()), ..setup() },
                    "pbx.main.sip",
                    "its port is closed",
                ),
                (
                    Setup { listen: format!("{}:5090", lab.address(9)), ..setup() },
                    "pbx.main.device",
                    "another device is registered as the same user",
                ),
            ] {
                assert_fault(&doctor(&change.config(), &[]), step, words);
            }
            let findings = doctor(&setup().config(), &["--echo", "699"]);
            assert_fault(&findings, "pbx.main.echo", "refuses the call to 699");
            // the registration is where it was: a call arrives
            assert_no_channels(&lab.asterisk);
            let mut caller = lab.dial(50).await;
            caller.answered().await;
            caller.hang_up().await;
            assert!(bridge.lines("registrar lost").is_empty());
            assert!(bridge.lines("another device").is_empty());
        }
    });
}

fn ari_config(asterisk: &Asterisk, ai: &str, keys: &str, tables: &str) -> String {
    let rtp_conf = asterisk.config_path("rtp.conf");
    format!(
        "[ai]\nurl = \"{ai}\"\n{tables}\n[pbx.main]\nmode = \"ari\"\n[pbx.main.ari]\n\
         url = \"http://{}\"\nusername = \"trunkless\"\nrtp_conf = \"{}\"\nmax_media = 100\n{keys}\n",
        asterisk.http_addr(),
        rtp_conf.display()
    )
}

const GOOD: &str = "password = \"arisecret\"";

/// Changes a file of the configuration, and reloads it.
fn change(asterisk: &Asterisk, file: &str, from: &str, to: &str, reload: &str) {
    let path = asterisk.config_path(file);
    let text = std::fs::read_to_string(&path).expect(file);
    assert!(text.contains(from), "{file}: {text}");
    std::fs::write(&path, text.replace(from, to)).expect(file);
    asterisk.cli(reload);
}

#[test]
fn faults_of_ari_are_named_and_nothing_is_left_there() {
    block_on(async {
        let ai = Ai::start(Plan::default()).await;
        for version in [16, 22] {
            let number = Number::claim();
            let ip = format!("127.0.{}.1", number.n);
            let asterisk = Asterisk::start(version, &format!("e2e-{}", number.n), &ip);
            let dialplan = "[doctor]\nexten => 1,1,Stasis(trunkless)\n";
            std::fs::write(asterisk.config_path("extensions_dropin.conf"), dialplan)
                .expect("a file");
            let run = |keys: &str, tables: &str| {
                doctor(&ari_config(&asterisk, &ai.url, keys, tables), &[])
            };
            let findings = run(GOOD, PORTS);
            assert_fault(&findings, "", "");
            assert_eq!(state(&findings, "pbx.main.media"), "ok", "{version}: {findings:#?}");
            assert_no_channels(&asterisk);
            assert!(!asterisk.cli("bridge show all").contains("doctor"));
            assert_fault(&run("password = \"wrong\"", PORTS), "pbx.main.ari", "(401)");
            let other = format!("{GOOD}\napp = \"other\"");
            assert_fault(&run(&other, PORTS), "pbx.main.dialplan", "application mismatch");
            let range = String::from_utf8(asterisk.config("rtp.conf")).expect("text");
            let first = range.split("rtpstart = ").nth(1).and_then(|rest| rest.lines().next());
            let first: u16 = first.and_then(|first| first.trim().parse().ok()).expect("a port");
            let inside = format!("[media]\nports = \"{first}-{}\"\n", first + 401);
            assert_fault(&run(GOOD, &inside), "configuration", "overlaps Asterisk's range");
            let reload = "module reload res_ari.so";
            change(&asterisk, "ari.conf", "read_only = no", "read_only = yes", reload);
            assert_fault(&run(GOOD, PORTS), "pbx.main.ari", "set read_only = no");
            change(&asterisk, "ari.conf", "read_only = yes", "read_only = no", reload);
            change(&asterisk, "http.conf", "enabled = yes", "enabled = no", "module reload http");
            assert_fault(&run(GOOD, PORTS), "pbx.main.ari", "set enabled = yes and bindaddr");
            drop(asterisk);
        }
    });
}

/// Runs another test of this program in a namespace where packets to these UDP ports get lost.
fn in_namespace(test: &str, blocked: &str) {
    let script = "ip link set lo up && ip rule add pref 10 lookup local && ip rule del pref 0 && \
                  ip rule add pref 5 ipproto udp dport \"$0\" blackhole && exec \"$@\"";
    let program = std::env::current_exe().expect("this program");
    // the instances of other tests cannot be reached there
    let lab = std::env::temp_dir().join(format!("trunkless-lab-{}", std::process::id()));
    let output = Command::new("unshare")
        .args(["-n", "sh", "-c", script, blocked])
        .arg(program)
        .args([test, "--exact", "--nocapture"])
        .env(BLOCKED, blocked)
        .env("TRUNKLESS_LAB_RUN", &lab)
        .output()
        .expect("unshare runs");
    let _ = std::fs::remove_dir_all(&lab);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn blocked_rtp_is_named_with_its_direction() {
    let test = "doctor::within_the_namespace";
    in_namespace(test, "10000-20100");
    in_namespace(test, "25000-25300");
}

/// Does nothing outside of the namespace of [`blocked_rtp_is_named_with_its_direction`].
#[test]
fn within_the_namespace() {
    let Ok(blocked) = std::env::var(BLOCKED) else { return };
    let words = match blocked.starts_with("10000") {
        true => "it heard no RTP from us",
        false => "no RTP from the PBX",
    };
    block_on(async {
        for pbx in Pbx::ALL {
            let lab = Lab::start(pbx);
            let ai: SocketAddr = ([127, 0, 0, 1], 9).into();
            let setup = Setup { tables: PORTS.to_owned(), ..lab.setup(&format!("ws://{ai}")) };
            let findings = doctor(&setup.config(), &["--echo", "600"]);
            let findings = without_ai(findings);
            assert_fault(&findings, "pbx.main.echo", words);
            assert_no_channels(&lab.asterisk);
            // without a route to us, Asterisk refuses external media
            if pbx != Pbx::Sip16 && blocked.starts_with("10000") {
                let config = ari_config(&lab.asterisk, &format!("ws://{ai}"), GOOD, PORTS);
                let findings = without_ai(doctor(&config, &[]));
                assert_fault(&findings, "pbx.main.media", words);
                assert_no_channels(&lab.asterisk);
            }
        }
    });
}

/// There is no AI in the namespace.
fn without_ai(mut findings: Vec<Value>) -> Vec<Value> {
    findings.retain(|finding| !finding["step"].as_str().unwrap_or_default().starts_with("ai."));
    findings
}
