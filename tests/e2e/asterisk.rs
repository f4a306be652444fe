//! A real Asterisk, run by `lab/ast.sh` on a loopback address of its own.
#![allow(dead_code)] // each test uses some of it

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A running instance; dropping it stops it.
pub struct Asterisk {
    name: String,
    ip: IpAddr,
}

impl Asterisk {
    /// Starts version 16 or 22; returns when it is fully booted. One left over by a killed test run
    /// under the same name goes first.
    pub fn start(version: u8, name: &str, ip: &str) -> Asterisk {
        Asterisk::start_with(version, name, ip, &[])
    }

    /// The same, with variables of the configuration set (`RTP_HI`, see `lab/ast.sh`).
    pub fn start_with(version: u8, name: &str, ip: &str, vars: &[(&str, &str)]) -> Asterisk {
        let tree = cache().join(format!("asterisk-{version}"));
        assert!(
            tree.join(".version").exists(),
            "no Asterisk {version} in {}: run tests/run.sh once, it fetches what the \
             end-to-end tests need",
            tree.display()
        );
        let asterisk = Asterisk { name: name.to_owned(), ip: ip.parse().expect("an IP address") };
        let version = version.to_string();
        let vars: Vec<String> = vars.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut args = vec!["start", name, &version, ip];
        args.extend(vars.iter().map(String::as_str));
        ast(&args);
        asterisk
    }

    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// `chan_pjsip`, UDP and TCP.
    pub fn sip_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 5060)
    }

    /// `chan_sip`, UDP, on 16 only.
    pub fn chansip_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 5160)
    }

    /// HTTP and ARI, as `trunkless` with the password `arisecret`.
    pub fn http_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 8088)
    }

    /// What one console command prints.
    pub fn cli(&self, command: &str) -> String {
        ast(&["cli", &self.name, command])
    }

    /// Channels that exist now: one for each leg of a call.
    pub fn channels(&self) -> usize {
        let out = self.cli("core show channels count");
        out.lines()
            .find_map(|l| l.split_once(" active channel")?.0.trim().parse().ok())
            .unwrap_or_else(|| panic!("no channel count in {out:?}"))
    }

    /// How each call to the bridge ended so far, as `ANSWER 16`: `DIALSTATUS` and the cause.
    pub fn dials(&self) -> Vec<String> {
        let log = self.log();
        let ends = log.lines().filter_map(|l| l.split_once("app_verbose.c: LAB-DIAL "));
        ends.map(|(_, end)| end.to_owned()).collect()
    }

    /// The log so far, across restarts.
    pub fn log(&self) -> String {
        let path = run_dir().join(&self.name).join("log/full");
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A crash: nobody is told, the ports close.
    pub fn kill(&self) {
        ast(&["kill", &self.name]);
    }

    /// An orderly stop: calls are hung up first.
    pub fn stop(&self) {
        ast(&["stop", &self.name]);
    }

    /// Starts once more after `kill` or `stop`, with or without the registrations it had.
    pub fn again(&self, wipe_astdb: bool) {
        let mut args = vec!["again", self.name.as_str()];
        args.extend(wipe_astdb.then_some("--wipe-astdb"));
        ast(&args);
    }
}

impl Drop for Asterisk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "the log of {}: {}",
                self.name,
                run_dir().join(&self.name).join("log/full").display()
            );
        }
        // no panic here: it would hide the one that is under way
        let _ = run(&["stop", &self.name]);
    }
}

/// The folder that `lab/fetch.sh` fills.
fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("TRUNKLESS_CACHE") {
        return dir.into();
    }
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is not set")).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("trunkless")
}

/// The folder of the instances' state.
fn run_dir() -> PathBuf {
    std::env::var_os("TRUNKLESS_LAB_RUN").map_or_else(|| "/tmp/trunkless-lab".into(), PathBuf::from)
}

fn run(args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/lab/ast.sh");
    Command::new(&script)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", script.display()))
}

fn ast(args: &[&str]) -> String {
    let out = run(args);
    assert!(
        out.status.success(),
        "ast.sh {} failed, {}:\n{}",
        args.join(" "),
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}
