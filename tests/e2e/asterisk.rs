//! A real Asterisk, run by `lab/ast.sh` on its own loopback address.
#![allow(dead_code)] // each test uses some of it

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A running instance; dropping it stops it.
pub struct Asterisk {
    name: String,
    ip: IpAddr,
    http: SocketAddr,
}

/// The console of an instance.
#[derive(Clone)]
pub struct Console(String);

impl Console {
    /// The output of a command.
    pub fn run(&self, command: &str) -> String {
        ast(&["cli", &self.0, command])
    }
}

impl Asterisk {
    /// Starts version 16 or 22 and returns once it is fully booted. An instance of the same name
    /// that a killed test run left is stopped first.
    pub fn start(version: u8, name: &str, ip: &str) -> Asterisk {
        Asterisk::start_with(version, name, ip, &[])
    }

    /// Like [`Asterisk::start`], with variables of the configuration set (`RTP_HI`, see
    /// `lab/ast.sh`). `("DROPIN", "ari")` runs the shipped files of ARI mode: only one such
    /// instance at a time.
    pub fn start_with(version: u8, name: &str, ip: &str, vars: &[(&str, &str)]) -> Asterisk {
        let tree = cache().join(format!("asterisk-{version}"));
        assert!(
            tree.join(".version").exists(),
            "no Asterisk {version} in {}: run tests/run.sh once, it fetches what the \
             end-to-end tests need",
            tree.display()
        );
        let ip_addr: IpAddr = ip.parse().expect("an IP address");
        // the shipped http.conf assumes a bridge on the PBX's own host
        let shipped = vars.contains(&("DROPIN", "ari"));
        let http_ip = if shipped { Ipv4Addr::LOCALHOST.into() } else { ip_addr };
        let http = SocketAddr::new(http_ip, 8088);
        let asterisk = Asterisk { name: name.to_owned(), ip: ip_addr, http };
        let version = version.to_string();
        let vars: Vec<String> = vars.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut args = vec!["start", name, &version, ip];
        args.extend(vars.iter().map(String::as_str));
        ast(&args);
        asterisk
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        let path = run_dir().join(&self.name).join("pid");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        text.trim().parse().unwrap_or_else(|e| panic!("{path:?}: {text}: {e}"))
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

    /// HTTP and ARI. The user is `trunkless` with the password `arisecret`; with the shipped files
    /// the password is `CHANGE-ME`, and there is a user `foreign` with `foreignsecret`.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// The output of a console command.
    pub fn cli(&self, command: &str) -> String {
        ast(&["cli", &self.name, command])
    }

    /// The console, for another thread.
    pub fn console(&self) -> Console {
        Console(self.name.clone())
    }

    /// The number of channels now, one per call leg.
    pub fn channels(&self) -> usize {
        let out = self.cli("core show channels count");
        out.lines()
            .find_map(|l| l.split_once(" active channel")?.0.trim().parse().ok())
            .unwrap_or_else(|| panic!("no channel count in {out:?}"))
    }

    /// The outcome of each call to the bridge so far: `DIALSTATUS` and hangup cause, as in `ANSWER
    /// 16`.
    pub fn dials(&self) -> Vec<String> {
        self.verbose("LAB-DIAL ")
    }

    /// Why each call went to the drop-ins' humans, as in `stasis=FAILED reason= dial=`.
    pub fn humans(&self) -> Vec<String> {
        self.verbose("LAB-HUMAN ")
    }

    /// The rest of each line from the dialplan that begins with `begin`.
    pub fn verbose(&self, begin: &str) -> Vec<String> {
        let begin = format!("app_verbose.c: {begin}");
        let log = self.log();
        let lines = log.lines().filter_map(|l| l.split_once(&begin));
        lines.map(|(_, rest)| rest.to_owned()).collect()
    }

    /// The warnings and errors in the log, without times and threads.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.log();
        let bad = log.lines().filter(|l| l.contains("] WARNING[") || l.contains("] ERROR["));
        // [12:00:00.000] WARNING[1234] file.c: what
        // [12:00:00.000] WARNING[1234][C-00000001] file.c: what
        bad.map(|l| l.splitn(3, ' ').nth(2).unwrap_or(l).to_owned()).collect()
    }

    pub fn config_path(&self, path: &str) -> PathBuf {
        run_dir().join(&self.name).join("etc").join(path)
    }

    /// A file of the instance's configuration, as Asterisk read it.
    pub fn config(&self, path: &str) -> Vec<u8> {
        let path = self.config_path(path);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The log so far, across restarts.
    pub fn log(&self) -> String {
        let path = run_dir().join(&self.name).join("log/full");
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Crashes the instance: no peer is notified, the ports close.
    pub fn kill(&self) {
        ast(&["kill", &self.name]);
    }

    /// Stops the instance cleanly: calls are hung up first.
    pub fn stop(&self) {
        ast(&["stop", &self.name]);
    }

    /// Starts the instance again after `kill` or `stop`, with or without its registrations.
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
        // must not panic: that would hide the panic in progress
        let _ = run(&["stop", &self.name]);
    }
}

/// The folder that `lab/fetch.sh` and `lab/fetch-s3.sh` fill.
pub fn cache() -> PathBuf {
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
