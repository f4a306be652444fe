//! Messages that are hard to parse, fed to the agent as if its PBX had sent them: our own fixtures,
//! the corpora of RFC 4475 and RFC 5118 if they are present, and mutations of all of these.
//!
//! The corpora are expected in `TRUNKLESS_CORPORA`, or in `../shared/corpora` if that is not set.

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

#[test]
fn rfc4475_messages_are_answered_as_expected() {
    let Some(folder) = corpus("rfc4475") else {
        return println!("rfc4475: skipped, the corpus is not present");
    };
    let table = std::fs::read_to_string(folder.join("expect.tsv")).expect("a table");
    let table = expect::parse_table(&table, 3);
    let messages = messages(&folder, ".dat");
    run("rfc4475", &messages, Who::Extension, |name| table.get(name).cloned());
}

#[test]
fn rfc5118_messages_are_answered_as_expected() {
    let Some(folder) = corpus("rfc5118") else {
        return println!("rfc5118: skipped, the corpus is not present");
    };
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
