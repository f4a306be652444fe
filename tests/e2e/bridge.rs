//! The program as a separate process, with a configuration file and a log.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running `trunkless run`; dropping it kills it.
pub struct Bridge {
    child: Child,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

/// The settings of a test's bridge.
pub struct Setup {
    /// `host:port` of the registrar.
    pub registrar: String,
    pub username: &'static str,
    pub password: &'static str,
    /// The AI's URL.
    pub ai: String,
    /// The address where SIP listens.
    pub listen: String,
    /// Further tables.
    pub tables: String,
    /// Further keys of `[pbx.main.sip]`.
    pub sip_keys: String,
}

impl Setup {
    pub fn config(&self) -> String {
        format!(
            "[ai]\nurl = \"{}\"\n[sip]\nlisten = \"{}\"\n[log]\nlevel = \"info\"\n{}\n[pbx.main]\n\
             mode = \"sip\"\n[pbx.main.sip]\nregistrar = \"{}\"\nusername = \"{}\"\n\
             password = \"{}\"\n{}\n",
            self.ai,
            self.listen,
            self.tables,
            self.registrar,
            self.username,
            self.password,
            self.sip_keys
        )
    }
}

impl Bridge {
    pub fn start(setup: &Setup) -> Bridge {
        Bridge::run(&setup.config())
    }

    /// Starts the program with this configuration text.
    pub fn run(text: &str) -> Bridge {
        Bridge::run_under(&[], text)
    }

    /// Like [`Bridge::run`], but through another program that turns into this one: `strace -D …`.
    pub fn run_under(program: &[&str], text: &str) -> Bridge {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (config, log) = (directory.path().join("trunkless.toml"), directory.path().join("log"));
        std::fs::write(&config, text).expect("the configuration can be written");
        let output = File::create(&log).expect("the log can be made");
        let words = [program, &[env!("CARGO_BIN_EXE_trunkless")]].concat();
        let child = Command::new(words[0])
            .args(&words[1..])
            .args(["run", "--config"])
            .arg(&config)
            // the lab's variables, which are not configuration keys of the program
            .env_remove("TRUNKLESS_CACHE")
            .env_remove("TRUNKLESS_LAB_RUN")
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("trunkless starts");
        Bridge { child, log, _directory: directory }
    }

    /// Starts the program and waits until it has registered.
    pub fn registered(setup: &Setup) -> Bridge {
        let bridge = Bridge::start(setup);
        bridge.wait_for("registered pbx=\"main\"", Duration::from_secs(10));
        bridge
    }

    /// Kills the program with SIGKILL: no peer is notified.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        let _ = self.child.wait();
    }

    /// Waits until the program ends by itself and returns its exit code.
    pub fn exit_code(&mut self, limit: Duration) -> i32 {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                return status.code().expect("an exit code");
            }
            assert!(begin.elapsed() < limit, "still running after {limit:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log can be read")
    }

    /// The log lines that contain a text.
    pub fn lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|l| l.contains(text)).map(str::to_owned).collect()
    }

    pub fn wait_for(&self, text: &str, limit: Duration) {
        let begin = Instant::now();
        while !self.log().contains(text) {
            let late = begin.elapsed() > limit;
            assert!(!late, "no \"{text}\" within {limit:?} in:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A field of the `call ended` line of the only call.
    pub fn ended(&self, field: &str) -> String {
        self.wait_for("call ended", Duration::from_secs(5));
        let lines = self.lines("call ended");
        assert_eq!(lines.len(), 1, "{lines:?}");
        // figures that are 0 are left out
        let Some(value) = lines[0].split(&format!(" {field}=")).nth(1) else {
            return "0".to_owned();
        };
        value.split(' ').next().expect("a value").trim_matches('"').to_owned()
    }

    /// The CPU time used so far, from /proc/PID/stat in ticks of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("the process runs");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        Duration::from_millis(10 * (ticks(11) + ticks(12)))
    }

    pub fn signal(&self, name: &str) {
        let (signal, pid) = (format!("-{name}"), self.child.id().to_string());
        let sent = Command::new("kill").args([signal, pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Sends SIGTERM and returns the exit code.
    pub fn terminate(&mut self, limit: Duration) -> i32 {
        self.signal("TERM");
        self.exit_code(limit)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the bridge's log:\n{}", self.log());
        }
    }
}
