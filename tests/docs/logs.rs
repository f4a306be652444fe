//! Log lines, end reasons and metrics on the pages against the program.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use trunkless::call::end::EndReason;
use trunkless::call::ports::PortPool;
use trunkless::config::{Source, load, resolve::resolve};
use trunkless::control::health::Watched;
use trunkless::control::metrics;
use trunkless::record::recorder::Recorder;
use trunkless::telemetry::PbxStatuses;

use crate::{page, pages, report, root, spans};

/// Parts of the tree that do not write an operator's log.
const NOT_OPERATION: &[&str] = &["src/bench", "src/peer", "src/cli/demo.rs"];
/// `$level` stands for all of them.
const MACROS: &[(&str, &str)] =
    &[("info!(", "info"), ("warn!(", "warn"), ("error!(", "error"), ("$level!(", "error")];

struct Message {
    place: String,
    level: &'static str,
    /// With `…` for what varies.
    text: String,
}

/// Path and text of each source file, with comment lines emptied, up to its unit tests.
fn sources() -> Vec<(String, String)> {
    let (mut all, mut open) = (Vec::new(), vec![root().join("src")]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path: PathBuf = entry.expect("an entry").path();
            let name = path.strip_prefix(root()).expect("below").to_string_lossy().into_owned();
            if NOT_OPERATION.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
                let is_comment = |line: &str| line.trim_start().starts_with("//");
                let lines = text[..end].lines().map(|l| if is_comment(l) { "" } else { l });
                all.push((name, lines.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    all
}

/// The first string literal of `code`: its text, with escapes undone and `…` for `{placeholders}`.
fn literal(code: &str) -> Option<String> {
    let mut chars = code[code.find('"')? + 1..].chars().peekable();
    let mut text = String::new();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Some(text),
            '\\' => match chars.next()? {
                '\n' => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                other => text.push(other),
            },
            '{' => {
                while chars.next()? != '}' {}
                text.push('…');
            }
            c => text.push(c),
        }
    }
    None
}

fn messages() -> Vec<Message> {
    let mut all = Vec::new();
    for (path, text) in sources() {
        for (start, level) in MACROS {
            for (at, _) in text.match_indices(start) {
                let rest = &text[at + start.len()..];
                let line = text[..at].matches('\n').count() + 1;
                let place = format!("{path}:{line}");
                let end = rest.find(");").unwrap_or(rest.len());
                let text = literal(rest).filter(|_| rest.find('"').is_some_and(|at| at < end));
                let text = text.unwrap_or_else(|| panic!("{place}: {start} without a text"));
                all.push(Message { place, level, text });
            }
        }
    }
    assert!(all.len() > 50, "{} messages", all.len());
    all
}

/// Where a page quotes a log line, and the first code span there; further ones are fields.
fn quoted(path: &str) -> Vec<(String, String, Vec<String>)> {
    let page = page(path);
    let rows = page.rows("log line").into_iter().filter(|row| row.cells[row.at] != "–");
    let found = rows.map(|row| {
        let mut spans = spans(&row.cells[row.at]).into_iter().map(str::to_owned);
        let first = spans.next().unwrap_or_default();
        (row.place, first, spans.collect())
    });
    found.collect()
}

/// The parts of `line` that stand where `message` has `…`; `None` if it is another message.
fn filled_in<'a>(message: &str, line: &'a str) -> Option<Vec<&'a str>> {
    let mut fixed = message.split('…');
    let mut rest = line.strip_prefix(fixed.next()?)?;
    let mut found = Vec::new();
    let mut fixed = fixed.peekable();
    while let Some(part) = fixed.next() {
        let last = fixed.peek().is_none();
        let at = if last { rest.strip_suffix(part)?.len() } else { rest.find(part)? };
        found.push(&rest[..at]);
        rest = &rest[at + part.len()..];
    }
    rest.is_empty().then_some(found)
}

/// The source as one line, in which texts that span several lines are whole.
fn flat_source() -> String {
    let joined: String = sources().into_iter().map(|(_, text)| text + "\n").collect();
    let mut lines = joined.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |all, line| all + line.trim_start())
}

#[test]
fn quoted_log_lines_are_in_the_source() {
    let (known, flat) = (messages(), flat_source());
    let is_in_source = |text: &str| text.split('…').all(|part| flat.contains(part));
    let (mut found, mut count) = (Vec::new(), 0);
    for page in pages() {
        for (place, line, fields) in quoted(&page.path) {
            count += 1;
            let mut fills = known.iter().filter_map(|message| filled_in(&message.text, &line));
            // a message that varies may be quoted with one of its causes
            if !fills.any(|fills| fills.iter().all(|fill| is_in_source(fill))) {
                found.push(format!("{place}: {line}"));
            }
            for field in fields {
                let value = field.split_once("=\"").and_then(|(_, rest)| rest.strip_suffix('"'));
                if !is_in_source(value.unwrap_or_default()) {
                    found.push(format!("{place}: {field}"));
                }
            }
        }
    }
    assert!(count > 50, "{count} lines");
    report("log lines that the program does not write", &found);
}

/// The other pages quote the beginning of a line, or a part of it.
#[test]
fn texts_in_tables_of_symptoms_are_in_the_source() {
    let (flat, mut found) = (flat_source(), Vec::new());
    for page in pages() {
        for row in page.rows("you see") {
            let spans = spans(&row.cells[row.at]).into_iter();
            for text in spans.filter(|text| text.split(' ').count() > 2 && !text.contains('=')) {
                if !text.split('…').all(|part| flat.contains(part)) {
                    found.push(format!("{}: {text}", row.place));
                }
            }
        }
    }
    report("texts that the program does not write", &found);
}

#[test]
fn every_warning_and_error_is_on_the_page() {
    let lines = quoted("docs/troubleshooting.md").into_iter().map(|(_, line, _)| line);
    let lines: BTreeSet<String> = lines.collect();
    let missing = messages().into_iter().filter(|m| m.level != "info" && !lines.contains(&m.text));
    let missing: Vec<String> = missing.map(|m| format!("{}: {}", m.place, m.text)).collect();
    report("not in docs/troubleshooting.md", &missing);
}

#[test]
fn end_reasons() {
    let page = page("docs/troubleshooting.md");
    let rows = page.rows("reason").into_iter();
    let found: BTreeSet<_> =
        rows.map(|row| (spans(&row.cells[0]).concat(), row.cells[2].clone())).collect();
    let rows = EndReason::ALL.iter().map(|reason| reason.row());
    let wanted = rows.map(|row| (row.label.to_owned(), row.sip_status.to_string()));
    assert_eq!(found, wanted.collect::<BTreeSet<_>>());
}

/// The names in the text that `/metrics` answers.
fn metric_names() -> BTreeSet<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "[ai]\nurl = \"ws://ai\"\n[recording]\ndirectory = \"{}\"\n[pbx.main]\nmode = \"sip\"\n\
         [pbx.main.sip]\nregister = false\npeers = [\"192.0.2.1\"]\n",
        folder.path().display()
    );
    let (source, environment) = (Source { name: "test".to_owned(), text }, Default::default());
    let settings = load(&source, &environment).expect("settings");
    let plan = resolve(&source, settings, &environment).expect("a plan");
    let recorder = Recorder::new(plan.recording.expect("recordings").settings, || {});
    let pbxs = PbxStatuses::default();
    pbxs.add("main", "sip");
    let watched = Watched {
        labelled: trunkless::app::LABELLED,
        counters: trunkless::app::COUNTERS,
        pbxs,
        calls: Arc::new(|| 0),
        ports: PortPool::new([127, 0, 0, 1].into(), 20_000, 20_010),
        stopping: Arc::default(),
        recorder: watch::channel(Some(recorder.expect("a recorder"))).1,
    };
    let text = metrics::text(&watched);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.replacen(' ', " | ", 1)).collect()
}

#[test]
fn metrics_are_those_of_the_program() {
    let page = page("docs/operations.md");
    let rows = page.rows("metric").into_iter();
    let listed = rows.map(|row| format!("{} | {}", spans(&row.cells[0]).concat(), row.cells[1]));
    let (listed, known): (BTreeSet<String>, _) = (listed.collect(), metric_names());
    assert!(known.len() > 20);
    let missing = known.difference(&listed).map(|name| format!("missing: {name}"));
    let unknown = listed.difference(&known).map(|name| format!("does not exist: {name}"));
    report("metrics in docs/operations.md", &missing.chain(unknown).collect::<Vec<_>>());
    let mut unknown = Vec::new();
    for page in pages() {
        for (at, _) in page.text.match_indices("trunkless_") {
            let word = page.text[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let word = word.into_iter().next().unwrap_or_default();
            if !known.iter().any(|name| name.split(' ').next() == Some(word)) {
                unknown.push(format!("{}: {word}", page.path));
            }
        }
    }
    report("metrics that do not exist", &unknown);
}
