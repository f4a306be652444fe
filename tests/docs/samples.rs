//! Shell commands and configuration samples on the pages against the program's own parsers.

use std::collections::HashMap;

use toml::{Table, Value};
use trunkless::config::resolve::resolve;
use trunkless::config::{Source, load};

use crate::{Part, pages, report};

/// A TOML block that is not trunkless' configuration: ```toml other
const OTHER: &str = "toml other";

/// The code blocks of all pages that begin with one of `words`.
fn blocks(words: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for page in pages() {
        for (line, part) in page.parts() {
            if let Part::Code(word, text) = part
                && words.contains(&word)
            {
                found.push((format!("{}:{line}", page.path), text));
            }
        }
    }
    found
}

/// The words of each simple command, with quotes taken off.
fn commands(script: &str) -> Vec<Vec<String>> {
    let (mut all, mut words) = (Vec::new(), Vec::<String>::new());
    let (mut word, mut quote): (Option<String>, _) = (None, None);
    let script = script.replace("\\\n", " ") + "\n";
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if quote == Some(c) => quote = None,
            c if quote.is_some() => word.get_or_insert_default().push(c),
            '\'' | '"' => (word, quote) = (Some(word.unwrap_or_default()), Some(c)),
            '#' if word.is_none() => while chars.next_if(|c| *c != '\n').is_some() {},
            ' ' | '\t' => words.extend(word.take()),
            '\n' | '|' | '&' | ';' | '(' | ')' | '<' | '>' => {
                words.extend(word.take());
                all.push(std::mem::take(&mut words));
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    all.retain(|words| !words.is_empty());
    all
}

/// The arguments of trunkless in a command, if it runs trunkless.
fn arguments(words: &[String]) -> Option<Vec<String>> {
    let is_assignment = |word: &&String| {
        word.split('=').next().is_some_and(|name| {
            word.contains('=') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        })
    };
    let words: Vec<&str> = words.iter().skip_while(is_assignment).map(String::as_str).collect();
    let is_trunkless = |word: &&str| word.rsplit('/').next() == Some("trunkless");
    let rest = match &words[..] {
        [first, rest @ ..] if is_trunkless(first) => rest,
        ["cargo", "run", rest @ ..] => {
            let at = rest.iter().position(|word| *word == "--")?;
            &rest[at + 1..]
        }
        ["sudo" | "nice" | "exec" | "docker", ..] => {
            let runs = ["run", "exec"].iter().any(|verb| words.contains(verb));
            let at = words.iter().rposition(is_trunkless)?;
            if words[0] == "docker" && !runs { return None } else { &words[at + 1..] }
        }
        _ => return None,
    };
    Some(rest.iter().map(|word| (*word).to_owned()).collect())
}

#[test]
fn commands_parse() {
    let (mut found, mut count) = (Vec::new(), 0);
    for (place, script) in blocks(&["sh"]) {
        for arguments in commands(&script).iter().filter_map(|words| arguments(words)) {
            count += 1;
            let all = std::iter::once("trunkless".to_owned()).chain(arguments.clone());
            if let Err(error) = trunkless::cli::command().try_get_matches_from(all)
                && error.use_stderr()
            {
                let why = error.to_string();
                let why = why.lines().next().unwrap_or_default();
                found.push(format!("{place}: trunkless {}: {why}", arguments.join(" ")));
            }
        }
    }
    assert!(count > 5, "{count} commands");
    report("commands that trunkless does not take", &found);
}

#[test]
fn scripts_are_split_into_commands() {
    let script = "A=1 trunkless run --check # why\nx | ./trunkless call 'sip:1 2' --dtmf 12# &\n\
                  docker run -e trunkless trunkless \\\n echo-agent\ncargo run --release -- demo\n\
                  install trunkless /usr/bin\ndocker build -t trunkless .\n";
    let found: Vec<String> = commands(script)
        .iter()
        .filter_map(|words| arguments(words))
        .map(|words| words.join(","))
        .collect();
    assert_eq!(found, ["run,--check", "call,sip:1 2,--dtmf,12#", "echo-agent", "demo"]);
}

/// A fragment, with what a configuration requires added where it is missing.
fn completed(mut all: Table) -> Table {
    let table = |from: &mut Table, name: &str| -> Table {
        from.remove(name).and_then(|value| value.try_into().ok()).unwrap_or_default()
    };
    let add = |to: &mut Table, name: &str, text: &str| {
        to.entry(name).or_insert_with(|| Value::from(text));
    };
    let mut ai = table(&mut all, "ai");
    add(&mut ai, "url", "ws://127.0.0.1:8080");
    let mut recording = table(&mut all, "recording");
    add(&mut recording, "directory", "/var/lib/trunkless/recordings");
    let mut pbxs = table(&mut all, "pbx");
    if pbxs.is_empty() {
        pbxs.insert("main".to_owned(), Value::Table(Table::new()));
    }
    for (_, pbx) in pbxs.iter_mut() {
        let Some(pbx) = pbx.as_table_mut() else { continue };
        let mode = if pbx.contains_key("ari") { "ari" } else { "sip" };
        add(pbx, "mode", mode);
        for mode in ["sip", "ari"] {
            let mut inner = table(pbx, mode);
            add(&mut inner, "username", "8001");
            if !inner.keys().any(|key| key.starts_with("password")) {
                add(&mut inner, "password", "x");
            }
            if mode == "sip" {
                add(&mut inner, "registrar", "192.0.2.1");
            }
            pbx.insert(mode.to_owned(), Value::Table(inner));
        }
        if pbx.contains_key("vicidial") {
            let mut inner = table(pbx, "vicidial");
            add(&mut inner, "password", "x");
            pbx.insert("vicidial".to_owned(), Value::Table(inner));
        }
    }
    for (name, inner) in [("ai", ai), ("recording", recording), ("pbx", pbxs)] {
        all.insert(name.to_owned(), Value::Table(inner));
    }
    all
}

/// The files and variables that a sample names are not on this machine.
fn is_about_this_machine(message: &str) -> bool {
    ["cannot be read", "cannot read", "is not set", "No such file"]
        .iter()
        .any(|w| message.contains(w))
}

#[test]
fn configurations_are_valid() {
    let (mut found, mut count) = (Vec::new(), 0);
    for (place, text) in blocks(&["toml"]) {
        count += 1;
        let table: Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                found.push(format!("{place}: {error}"));
                continue;
            }
        };
        let text = completed(table).to_string();
        let (source, environment) = (Source { name: place.clone(), text }, HashMap::new());
        let plan = load(&source, &environment)
            .and_then(|settings| resolve(&source, settings, &environment));
        if let Err(error) = plan
            && !is_about_this_machine(&error.message)
        {
            found.push(format!("{place}: {}: {}", error.key, error.message));
        }
    }
    assert!(count > 1, "{count} samples");
    report(&format!("not a configuration (```{OTHER} marks other files)"), &found);
}

/// Calls depend on the service being there, so systemd must never give up restarting it, and must
/// wait until a stop is complete.
#[test]
fn the_unit_restarts_the_service_for_good_and_lets_calls_end() {
    let path = crate::root().join("packaging/trunkless.service");
    let unit = std::fs::read_to_string(path).expect("the unit");
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key} is missing"))
    };
    assert_eq!(value("StartLimitIntervalSec"), "0");
    assert_eq!(value("Restart"), "always");
    assert_eq!(value("ExecReload"), "/bin/sh -c \"kill -HUP $MAINPID\"");
    let drain = trunkless::config::schema::Calls::default().drain;
    // docs/operations.md, "Stopping and upgrading": what a stop takes beyond the drain time
    let longest = drain.0.as_secs() + 60;
    let limit: u64 = value("TimeoutStopSec").parse().expect("seconds");
    assert!(limit > longest, "{limit} s, and a stop takes {longest} s");
    // each call needs five descriptors
    let files: usize = value("LimitNOFILE").parse().expect("a number");
    assert!(files >= 5 * 1000, "{files} open files");
}

/// An example that changes the unit shows only the changed lines, so that upgrades keep the rest.
#[test]
fn pages_have_no_copy_of_the_unit() {
    let copies = blocks(&["ini"]).into_iter().filter(|(_, text)| text.contains("ExecStart="));
    report("copies of the unit", &copies.map(|(place, _)| place).collect::<Vec<_>>());
}
