//! The program reloads for `trunkless reload`, on SIGHUP and when its file changes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::bridge::Net;

const LIMIT: Duration = Duration::from_secs(30);

struct Program {
    child: Child,
    folder: tempfile::TempDir,
    base: String,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start() -> Program {
        let (net, folder) = (Net::new(), tempfile::tempdir().unwrap());
        let base = format!(
            "[sip]\nlisten = \"{}:0\"\n[ai]\nurl = \"ws://127.0.0.1:9/\"\n\
             [pbx.main]\nmode = \"sip\"\n[pbx.main.sip]\nregister = false\npeers = [\"{}\"]\n",
            net.bridge(),
            net.pbx()
        );
        let (file, log) = (folder.path().join("trunkless.toml"), folder.path().join("log"));
        std::fs::write(&file, &base).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
        command.args(["run", "--config"]).arg(&file).env_clear();
        let child = command.stderr(File::create(log).unwrap()).spawn().unwrap();
        let program = Program { child, folder, base };
        program.until("trunkless is up", 1);
        program
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("trunkless.toml")
    }

    /// Replaces the file by another one, as editors do.
    fn write(&self, tables: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, format!("{}{tables}", self.base)).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    fn count(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap();
        log.matches(text).count()
    }

    /// Waits until the log has `text` this many times.
    fn until(&self, text: &str, count: usize) {
        let begin = Instant::now();
        while self.count(text) < count {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(begin.elapsed() < LIMIT, "not {count} times \"{text}\" in:\n{}", log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(id, signal).unwrap();
    }
}

/// Runs `trunkless reload`, and returns its exit code and its output.
fn reload(file: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    let output = command.args(["reload", "--config"]).arg(file).args(more).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_program_reloads_on_request_on_a_signal_and_by_itself() {
    let mut program = Program::start();
    let file = program.file();
    let (code, text) = reload(&file, &[]);
    assert!(code == Some(0) && text.contains("nothing has changed"), "{code:?} {text}");
    program.until(" reloaded: nothing has changed", 1);
    // the level of the log changes at once, so that this reload is not logged
    program.write(
        "[log]\nlevel = \"error\"\n[reload]\nwatch = true\n[media]\nports = \"30000-30999\"",
    );
    let (code, text) = reload(&file, &[]);
    assert_eq!(code, Some(0), "{text}");
    for line in ["changed: log.level", "changed: reload.watch", "needs a restart: media.ports"] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert_eq!(program.count("reloaded, for new calls"), 0);
    // nothing but the file
    program.write("[reload]\nwatch = true\n");
    program.until("reloaded, for new calls", 1);
    program.write("[reload]\nwatch = \"perhaps\"\n");
    program.signal(Signal::HUP);
    program.until("the one from before stays", 1);
    let (code, text) = reload(&file, &["--json"]);
    let outcome: serde_json::Value = serde_json::from_str(&text).expect(&text);
    assert_eq!((code, &outcome["ok"]), (Some(2), &false.into()));
    let why = outcome["errors"][0].as_str().expect("a reason");
    assert!(why.contains("trunkless.toml:11: reload.watch"), "{why}");
    let (code, text) = reload(&program.folder.path().join("other.toml"), &[]);
    assert!(code == Some(1) && text.contains("no answer from a trunkless"), "{code:?} {text}");
    program.signal(Signal::TERM);
    assert_eq!(program.child.wait().unwrap().code(), Some(0));
}
