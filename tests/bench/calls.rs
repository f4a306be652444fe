//! Runs `trunkless bench` through a real Asterisk from the lab, or without one.
//!
//!     cargo bench --bench calls -- [--through 22|16|chan_sip|ari22|ari16|direct] \
//!         [arguments of `trunkless bench`]
//!
//! Callers, Asterisk, bridge and AI share one machine and its clock. `direct` leaves out Asterisk,
//! so that only the bridge is measured.

#![allow(dead_code, reason = "the modules are shared with the end-to-end tests")]

#[path = "../e2e/asterisk.rs"]
mod asterisk;
#[path = "../e2e/bridge.rs"]
mod bridge;

use std::net::SocketAddr;
use std::process::Command;

use asterisk::Asterisk;
use bridge::Setup;

const BRIDGE: &str = "127.0.64.2:5070";

/// A PBX and the settings for a measurement through it.
struct Scene {
    /// Keeps the PBX running.
    _asterisk: Asterisk,
    /// The bridge's configuration.
    config: String,
    /// Value of `--source`.
    source: &'static str,
    /// Address that the callers dial.
    address: SocketAddr,
    /// Extension that they dial there.
    extension: &'static str,
}

/// Starts Asterisk with the drop-in files of ARI mode.
fn ari(calls: u32, version: u8) -> Scene {
    let vars = [("DROPIN", "ari")];
    let asterisk = Asterisk::start_with(version, "bench", "127.0.64.1", &vars);
    let config = format!(
        "[calls]\nmax = {0}\n[pbx.main]\nmode = \"ari\"\n[pbx.main.ari]\n\
         username = \"trunkless\"\npassword = \"CHANGE-ME\"\nmax_media = {0}\n",
        calls + 10
    );
    let address = asterisk.sip_addr();
    Scene { _asterisk: asterisk, config, source: "ari", address, extension: "8010" }
}

fn sip(calls: u32, version: u8, chan_sip: bool) -> Scene {
    let asterisk = Asterisk::start(version, "bench", "127.0.64.1");
    let registrar = if chan_sip { asterisk.chansip_addr() } else { asterisk.sip_addr() };
    let setup = Setup {
        registrar: registrar.to_string(),
        username: if chan_sip { "cc100" } else { "ai" },
        password: "bridgesecret",
        // replaced by the bench
        ai: "ws://127.0.0.1:9".to_owned(),
        listen: BRIDGE.to_owned(),
        tables: format!("[calls]\nmax = {}\n", calls + 10),
        sip_keys: String::new(),
    };
    let (address, config) = (asterisk.sip_addr(), setup.config());
    let extension = if chan_sip { "710" } else { "700" };
    Scene { _asterisk: asterisk, config, source: "sip", address, extension }
}

fn scene(through: &str, calls: u32) -> Option<Scene> {
    match through {
        "22" => Some(sip(calls, 22, false)),
        "16" => Some(sip(calls, 16, false)),
        "chan_sip" => Some(sip(calls, 16, true)),
        "ari22" => Some(ari(calls, 22)),
        "ari16" => Some(ari(calls, 16)),
        "direct" => None,
        other => panic!("--through {other}: 22, 16, chan_sip, ari22, ari16 or direct"),
    }
}

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).filter(|w| w != "--bench").collect();
    let through = words.iter().position(|w| w == "--through").map(|at| {
        words.remove(at);
        assert!(at < words.len(), "--through needs a value");
        words.remove(at)
    });
    let calls = words.iter().position(|w| w == "--calls").and_then(|at| words.get(at + 1));
    let calls = calls.map_or(50, |n| n.parse().expect("--calls needs a number"));
    let through = through.unwrap_or_else(|| "22".to_owned());
    let directory = tempfile::tempdir().expect("a temporary folder");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    // these variables belong to the lab and are not configuration keys
    bench.env_remove("TRUNKLESS_CACHE").env_remove("TRUNKLESS_LAB_RUN");
    bench.arg("bench").args(words);
    let scene = scene(&through, calls);
    if let Some(scene) = &scene {
        let config = directory.path().join("trunkless.toml");
        std::fs::write(&config, &scene.config).expect("writing the configuration");
        bench.args(["--source", scene.source, "--extension", scene.extension]);
        bench.args(["--pbx", &scene.address.to_string(), "--config"]).arg(config);
    }
    eprintln!("through {through}");
    let status = bench.status().expect("trunkless starts");
    drop(scene);
    std::process::exit(status.code().unwrap_or(1));
}
