//! Messages that are hard to parse, fed to the agent as if its PBX had sent them: our own fixtures,
//! among them one for each message of RFC 4475 and RFC 5118, and mutations of them.
//!
//! The messages of the RFCs themselves are not part of this project. They are used as well if they
//! are in `TRUNKLESS_CORPORA`, or in `../shared/corpora` if that is not set. `tests/run.sh` names
//! them if they are not there.

mod expect;
mod mutate;
mod subject;

use std::path::{Path, PathBuf};

use expect::Expected;
use subject::{Subject, Who};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sip")
}

fn corpus(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TRUNKLESS_CORPORA").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpora");
    let folder = root.unwrap_or_else(default).join(name);
    folder.is_dir().then_some(folder)
}

/// Returns the name, without `ending`, and the bytes of each message in a folder.
fn messages(folder: &Path, ending: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).expect("a folder of messages");
    let mut all: Vec<(String, Vec<u8>)> = entries
        .filter_map(|entry| {
            let path = entry.expect("a folder entry").path();
            let name = path.file_name()?.to_str()?.strip_suffix(ending)?.to_owned();
            Some((name, std::fs::read(&path).expect("a message")))
        })
        .collect();
    all.sort();
    all
}

/// Feeds each message to a fresh agent. Panics with a list of all unexpected answers.
fn run(
    corpus: &str,
    messages: &[(String, Vec<u8>)],
    who: Who,
    expected: impl Fn(&str) -> Option<Expected>,
) {
    let mut wrong = Vec::new();
    for (name, data) in messages {
        let Some(expected) = expected(name) else {
            wrong.push(format!("{name}: no expected answer is defined"));
            continue;
        };
        let mut subject = Subject::new(who);
        let found = subject.feed(data);
        if !expected.allows(&found) {
            wrong.push(format!("{name}: expected {expected:?}, found {found:?}"));
        }
        if !subject.is_alive() {
            wrong.push(format!("{name}: the agent no longer answers OPTIONS"));
        }
    }
    println!("{corpus}: {} messages, {} wrong", messages.len(), wrong.len());
    assert!(!messages.is_empty(), "{corpus} is empty");
    assert!(wrong.is_empty(), "{corpus}:\n{}", wrong.join("\n"));
}

#[test]
fn own_fixtures_are_answered_as_expected() {
    let table = std::fs::read_to_string(fixtures().join("expect.tsv")).expect("a table");
    let table = expect::parse_table(&table, 1);
    let messages = messages(&fixtures(), ".sip");
    run("own fixtures", &messages, Who::Extension, |name| table.get(name).cloned());
    assert_eq!(table.len(), messages.len(), "the table and the messages differ in number");
}

/// The sections of RFC 4475 and RFC 5118 that contain a message.
fn sections() -> Vec<String> {
    let rfc4475 = [("3.1.1", 13), ("3.1.2", 19), ("3.2", 1), ("3.3", 15), ("3.4", 1)];
    let rfc4475 = rfc4475.map(|(above, count)| (format!("4475:{above}"), count));
    let all = rfc4475.into_iter().chain([("5118:4".to_owned(), 10)]);
    all.flat_map(|(above, count)| (1..=count).map(move |n| format!("{above}.{n}"))).collect()
}

#[test]
fn own_fixtures_have_every_kind_of_message_in_the_rfcs() {
    let table = std::fs::read_to_string(fixtures().join("expect.tsv")).expect("a table");
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    let named: Vec<&str> = rows.filter_map(|row| row.split('\t').nth(3)).collect();
    let sections = sections();
    let missing: Vec<&String> = sections.iter().filter(|s| !named.contains(&s.as_str())).collect();
    assert!(missing.is_empty(), "no fixture for {missing:?}");
    let unknown: Vec<&&str> = named.iter().filter(|n| !sections.iter().any(|s| s == **n)).collect();
    assert!(unknown.is_empty(), "no such section: {unknown:?}");
}

#[test]
fn the_messages_of_rfc4475_are_answered_as_expected_where_they_are_present() {
    let Some(folder) = corpus("rfc4475") else { return };
    let table = std::fs::read_to_string(folder.join("expect.tsv")).expect("a table");
    let table = expect::parse_table(&table, 3);
    let messages = messages(&folder, ".dat");
    let expected = |name: &str| expect::lenient_rfc4475(name).or_else(|| table.get(name).cloned());
    run("rfc4475", &messages, Who::Extension, expected);
}

#[test]
fn the_messages_of_rfc5118_are_answered_as_expected_where_they_are_present() {
    let Some(folder) = corpus("rfc5118") else { return };
    run("rfc5118", &messages(&folder, ".dat"), Who::Trunk, expect::rfc5118);
}

#[test]
fn mutated_messages_do_not_break_the_agent() {
    let mut seeds = messages(&fixtures(), ".sip");
    for name in ["rfc4475", "rfc5118"] {
        seeds.extend(corpus(name).iter().flat_map(|folder| messages(folder, ".dat")));
    }
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, data)| data).collect();
    mutate::run(&seeds);
}
