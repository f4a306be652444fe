//! The rules that can be checked in the source text: imports, sizes, names and purity.

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/english.rs"]
mod english;

use std::path::{Path, PathBuf};

/// The start of a path, and the modules of this crate that files there may import. The first
/// matching row applies. ARCHITECTURE.md has the same table.
const IMPORTS: &[(&str, &[&str])] = &[
    ("media/", &["media"]),
    ("capture/", &["capture", "media", "telemetry"]),
    ("stream/", &["capture", "command", "dns", "media", "stream", "telemetry", "tls"]),
    ("command", &[]),
    ("faults", &[]),
    ("user_pattern", &[]),
    ("dns", &[]),
    ("folder", &[]),
    ("outbox/", &["dns", "folder", "outbox"]),
    ("record/", &["command", "dns", "folder", "media", "outbox", "record", "telemetry"]),
    ("sip/endpoint/translate", &["sip", "call", "command", "media"]),
    ("sip/endpoint", &["sip", "call", "capture", "command", "dns", "faults", "media", "telemetry"]),
    ("sip/", &["faults", "sip", "user_pattern"]),
    ("ari/client", &["ari", "call", "capture", "command", "dns", "faults", "media", "telemetry"]),
    ("ari/", &["ari", "command"]),
    (
        "call/",
        &[
            "call",
            "capture",
            "command",
            "faults",
            "media",
            "stream",
            "record",
            "telemetry",
            "user_pattern",
        ],
    ),
    ("signed_requests", &["call", "dns", "outbox", "tls"]),
    ("status_callbacks", &["call", "signed_requests", "telemetry"]),
    ("traces/", &["traces", "call", "dns", "telemetry"]),
    ("vicidial/", &["vicidial", "call", "command", "dns", "folder", "outbox", "telemetry"]),
    (
        "control/",
        &[
            "control",
            "call",
            "capture",
            "command",
            "record",
            "signed_requests",
            "stream",
            "telemetry",
        ],
    ),
    ("bench/", &["bench", "folder", "peer", "sip", "media", "stream", "record"]),
    ("setup/", &["setup", "ari", "dns", "sip"]),
    ("peer/", &["peer", "sip", "media", "stream", "record"]),
    // builds the settings types of the other parts
    (
        "config/",
        &[
            "config",
            "ari",
            "call",
            "command",
            "control",
            "faults",
            "media",
            "notices",
            "outbox",
            "record",
            "sip",
            "stream",
            "tls",
            "traces",
            "user_pattern",
            "vicidial",
        ],
    ),
    ("telemetry/", &["telemetry"]),
    (
        "doctor/",
        &[
            "doctor", "ari", "config", "dns", "faults", "media", "outbox", "peer", "record", "sip",
            "stream", "vicidial",
        ],
    ),
    // commands print the types that peers and calls return
    (
        "cli/",
        &[
            "cli",
            "app",
            "bench",
            "capture",
            "config",
            "control",
            "doctor",
            "faults",
            "folder",
            "peer",
            "call",
            "media",
            "record",
            "setup",
            "sip",
            "telemetry",
            "tls",
            "vicidial",
        ],
    ),
];

/// Modules that use no sockets, clock, tasks or files.
const PURE: &[&str] = &[
    "media/",
    "sip/",
    "ari/",
    "command.rs",
    "capture/extract.rs",
    "capture/framing.rs",
    "capture/pcapng.rs",
    "capture/redact.rs",
    "doctor/configuration.rs",
    "doctor/finding.rs",
    "doctor/judge_sip.rs",
    "doctor/tone.rs",
    "faults.rs",
    "control/masks.rs",
    "control/twiml.rs",
    "call/core.rs",
    "call/core/",
    "call/departure.rs",
    "call/end.rs",
    "call/ended.rs",
    "call/hearing.rs",
    "call/history.rs",
    "call/hours.rs",
    "call/ladder.rs",
    "call/limits.rs",
    "call/outgoing.rs",
    "call/listening.rs",
    "call/parameters.rs",
    "call/playing.rs",
    "call/playing/",
    "call/routing.rs",
    "call/speech.rs",
    "call/transfers.rs",
    "call/turns.rs",
    "call/vitals.rs",
    "call/words.rs",
    "call/worker/rate.rs",
    "call/worker/token.rs",
    "stream/carrier.rs",
    "stream/clip.rs",
    "stream/closed.rs",
    "traces/spans.rs",
    "stream/dialect.rs",
    "stream/exotel.rs",
    "stream/extension.rs",
    "stream/frames.rs",
    "stream/head.rs",
    "stream/jambonz.rs",
    "stream/l16.rs",
    "stream/linear.rs",
    "stream/liveness.rs",
    "stream/own.rs",
    "stream/plivo.rs",
    "stream/queue.rs",
    "stream/telnyx.rs",
    "stream/twilio.rs",
    "stream/unreachable.rs",
    "outbox/backlog.rs",
    "outbox/schedule.rs",
    "record/align.rs",
    "record/layout.rs",
    "record/notice.rs",
    "record/recording.rs",
    "record/settings.rs",
    "record/sidecar.rs",
    "record/wav.rs",
    "vicidial/answer.rs",
    "vicidial/call_id.rs",
    "vicidial/statuses.rs",
    "config/check.rs",
    "config/environment.rs",
    "config/plan.rs",
    "config/values.rs",
    "bench/delays.rs",
    "bench/dialect.rs",
    "bench/dialect/carriers.rs",
    "bench/dialect/models.rs",
    "bench/figures.rs",
    "bench/floods.rs",
    "bench/ledger.rs",
    "bench/listener.rs",
    "bench/network.rs",
    "bench/outgoing.rs",
    "bench/pacing.rs",
    "bench/report.rs",
    "bench/schedule.rs",
    "bench/speech.rs",
    "bench/stamp.rs",
    "bench/stasis.rs",
    "bench/verdict.rs",
    "bench/websocket.rs",
    "peer/pattern.rs",
    "peer/registrar.rs",
    "setup/answers.rs",
    "setup/found.rs",
    "setup/password.rs",
    "setup/pieces.rs",
    "setup/settings.rs",
    "setup/steps.rs",
];
/// Files in those folders that own I/O, or only declare modules.
const NOT_PURE: &[&str] = &[
    "sip/endpoint/counters.rs",
    "sip/endpoint/events.rs",
    "sip/endpoint/inbox.rs",
    "sip/endpoint/mod.rs",
    "sip/endpoint/offers.rs",
    "sip/endpoint/orders.rs",
    "sip/endpoint/outgoing.rs",
    "sip/endpoint/transfer.rs",
    "sip/endpoint/recovery.rs",
    "sip/endpoint/peers.rs",
    "sip/endpoint/port_probe.rs",
    "sip/endpoint/resolve.rs",
    "sip/endpoint/tcp.rs",
    "sip/mod.rs",
    "media/mod.rs",
    "ari/client",
    "ari/mod.rs",
];
const DENIES: &str = "#![deny(clippy::disallowed_methods, clippy::disallowed_types)]";
/// Names that only a file that owns I/O may contain.
const IO: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "tokio::spawn",
    "spawn_blocking",
    "thread::spawn",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "File::",
    "fs::",
    "getrandom::fill",
];
const NAMES: &[&str] = &["Manager", "Helper", "utils"];
const STUBS: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore"];

struct Source {
    /// Path relative to `src` or `tests`, with slashes.
    path: String,
    text: String,
    in_src: bool,
}

impl Source {
    /// Returns the text before the unit tests.
    fn code(&self) -> &str {
        let inline = self.text.find("#[cfg(test)]\nmod tests {");
        &self.text[..inline.unwrap_or(self.text.len())]
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// True for tests that need real time, which may therefore sleep.
    fn is_e2e_or_bench(&self) -> bool {
        ["e2e/", "bench/", "monitoring/"].iter().any(|folder| self.path.starts_with(folder))
    }

    fn is(&self, list: &[&str]) -> bool {
        self.in_src && list.iter().any(|start| self.path.starts_with(start))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for (folder, in_src) in [("src", true), ("tests", false)] {
        let mut open = vec![root.join(folder)];
        while let Some(folder_path) = open.pop() {
            for entry in std::fs::read_dir(&folder_path).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() && !path.ends_with("target") {
                    open.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let text = std::fs::read_to_string(&path).expect("a source file");
                    all.push(Source { path: relative(&path, &root.join(folder)), text, in_src });
                }
            }
        }
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

fn relative(path: &Path, root: &Path) -> String {
    let path: PathBuf = path.strip_prefix(root).expect("within the folder").into();
    path.to_string_lossy().replace('\\', "/")
}

/// Fails with the rule and all violations found, if there are any.
fn report(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

/// Returns the lines that are not comments, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn imports() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| s.in_src && !s.is_test()) {
        let rule = IMPORTS.iter().find(|(start, _)| source.path.starts_with(start));
        let Some((_, allowed)) = rule else { continue };
        for (number, line) in lines(source.code()) {
            let names = line.split("crate::").skip(1);
            let names = names.map(|n| n.split(|c: char| !c.is_alphanumeric() && c != '_').next());
            for name in names.flatten().filter(|n| !n.is_empty() && !allowed.contains(n)) {
                found.push(format!("src/{}:{number}: crate::{name}", source.path));
            }
        }
    }
    report("imports that the table does not allow", &found);
}

#[test]
fn sizes() {
    let mut found = Vec::new();
    for source in sources() {
        let where_ = format!("{}/{}", if source.in_src { "src" } else { "tests" }, source.path);
        let code = lines(source.code()).filter(|(_, line)| !line.trim().is_empty()).count();
        if code > 400 && !source.is_test() {
            println!("{where_}: {code} lines of code, the aim is 400");
        }
        if code > 500 {
            found.push(format!("{where_}: {code} lines of code"));
        }
        for (number, line) in source.text.lines().enumerate() {
            let width = line.chars().count();
            if width > 100 && !line.contains("r#") && !line.contains("http") {
                found.push(format!("{where_}:{}: {width} columns", number + 1));
            }
        }
        found.extend(
            functions(&source.text)
                .into_iter()
                .filter(|(_, n)| *n > 70)
                .map(|(number, length)| format!("{where_}:{number}: a function of {length} lines")),
        );
    }
    report("too large", &found);
}

/// Returns the first line and the length of each function, relying on rustfmt's indentation.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let all: Vec<&str> = text.lines().collect();
    for (i, line) in all.iter().enumerate() {
        let words = line.trim_start();
        let is_fn = ["fn ", "pub fn ", "async fn ", "pub async fn ", "const fn ", "pub const fn "]
            .iter()
            .any(|start| words.starts_with(start))
            || (words.starts_with("pub(") && words.contains(" fn "));
        let indent = &line[..line.len() - words.len()];
        let ends = |l: &&str| l.strip_prefix(indent).is_some_and(|l| l == "}");
        let one_line = words.ends_with('}') || words.ends_with(';');
        if is_fn
            && !one_line
            && let Some(length) = all[i..].iter().position(ends)
        {
            found.push((i + 1, length + 1));
        }
    }
    found
}

#[test]
fn words_and_stubs() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| s.path != "tidy.rs") {
        let folder = if source.in_src { "src" } else { "tests" };
        for (number, line) in lines(&source.text) {
            let place = format!("{folder}/{}:{number}", source.path);
            let stub = STUBS.iter().find(|stub| line.contains(*stub));
            found.extend(stub.map(|stub| format!("{place}: {stub}")));
            let sleeps = line.contains("sleep(") && !source.is_e2e_or_bench();
            if !source.in_src && sleeps {
                found.push(format!("{place}: sleep"));
            }
            if source.in_src && line.contains("fn get_") {
                found.push(format!("{place}: get_"));
            }
            let defines = ["struct ", "enum ", "trait ", "mod ", "type "];
            if source.in_src && defines.iter().any(|d| line.contains(d)) {
                let name = NAMES.iter().find(|name| line.contains(*name));
                found.extend(name.map(|name| format!("{place}: {name}")));
            }
        }
    }
    report("words that the rules forbid", &found);
}

#[test]
fn each_file_begins_with_a_doc_comment() {
    let all = sources();
    let silent = all.iter().filter(|s| s.in_src && !s.text.starts_with("//!"));
    let silent: Vec<String> = silent.map(|s| format!("src/{}", s.path)).collect();
    report("files that do not begin with //!", &silent);
}

#[test]
fn pure_modules_deny_io_and_the_others_own_it() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| s.in_src && !s.is_test()) {
        let place = format!("src/{}", source.path);
        if source.is(PURE) && !source.is(NOT_PURE) {
            if !source.text.lines().any(|line| line == DENIES) {
                found.push(format!("{place}: pure, but does not deny I/O"));
            }
            continue;
        }
        if source.text.lines().any(|line| line == DENIES) {
            continue;
        }
        let io = lines(source.code()).find(|(_, line)| IO.iter().any(|word| line.contains(word)));
        let mut head = source.text.lines().take_while(|line| line.starts_with("//!"));
        let says = head.any(|line| line.to_lowercase().contains("owns"));
        if let (Some((number, line)), false) = (io, says) {
            found.push(format!(
                "{place}:{number}: I/O, but the first paragraph does not name what it owns: {line}"
            ));
        }
    }
    report("purity", &found);
}
