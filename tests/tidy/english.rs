//! Habits of translated prose that can be matched by text: none may be left in comments, texts and
//! pages. CONTRIBUTING.md says how to write instead.

use std::path::{Path, PathBuf};

use crate::report;

/// Phrases, as whole words, and their replacements.
const PHRASES: &[(&str, &str)] = &[
    ("of ours", "\"our …\""),
    ("of theirs", "\"their …\""),
    ("of the AI's", "\"the AI's …\""),
    ("so long", "\"this long\""),
    ("so many", "\"this many\""),
    ("so often", "\"this often\""),
    ("nobody", "\"no owner\", \"no process\""),
    ("somebody", "\"another process\""),
    ("everybody", "\"every process\""),
    ("he", "\"the caller\" or \"they\""),
    ("him", "\"the caller\" or \"them\""),
    ("his", "\"the caller's\" or \"their\""),
    ("told", "logged, reported, sent"),
    ("tells", "logs, reports, sends"),
    ("says so", "reports it"),
    ("seldom", "rarely"),
    ("anew", "again"),
    ("for ever", "forever"),
    ("in good order", "cleanly"),
    ("at rest", "quarantined"),
    ("hurry", "force"),
    ("goes on", "continues"),
    ("go on", "continue"),
    ("went on", "continued"),
    ("knocks", "probes"),
    ("obeys", "carries out"),
    ("bids", "sends"),
    ("has left", "\"left\""),
    ("has taken", "\"took\""),
];
/// Words that a comment does not begin with; a noun or a verb goes there.
const BEGINNINGS: &[&str] = &["What", "Who", "Whom", "Whose", "Whether", "So"];
/// "is no" followed by one of these is good English.
const AFTER_IS_NO: &[&str] = &["longer", "more", "worse", "better", "different"];
/// Pages that people read, and files whose comments they read.
const PAGES: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Cargo.toml",
    "Dockerfile",
    "trunkless.toml",
    "docker-compose.yml",
    "docker-compose.lab.yml",
    "docs",
    "asterisk",
    "dialplan",
    "docker",
    "examples",
    "packaging",
    "src",
    "tests",
];

/// The habits found in one comment, text or line of a page.
fn habits(prose: &str) -> Vec<String> {
    let mut found = Vec::new();
    let prose = without_code(prose);
    let words: Vec<&str> = prose
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .filter(|w| !w.is_empty())
        .collect();
    for (phrase, instead) in PHRASES {
        let parts: Vec<&str> = phrase.split(' ').collect();
        let same = |w: &[&str]| w.iter().zip(&parts).all(|(a, b)| a.eq_ignore_ascii_case(b));
        if words.windows(parts.len()).any(same) {
            found.push(format!("\"{phrase}\": write {instead}"));
        }
    }
    let is_no = |w: &[&str]| {
        ["is", "are", "was"].contains(&w[1])
            && w[2] == "no"
            && !w[0].eq_ignore_ascii_case("there")
            && !AFTER_IS_NO.contains(&w[3])
    };
    if words.windows(4).any(is_no) {
        found.push("\"is no …\": write \"is not a …\"".to_owned());
    }
    found
}

/// Leaves out text in backticks: names are not prose.
fn without_code(prose: &str) -> String {
    prose.split('`').step_by(2).collect::<Vec<_>>().join(" x ")
}

/// The prose of a line of a source file: its comment, and the texts in it.
fn prose_of_code(line: &str) -> Vec<&str> {
    let line = line.trim_start();
    if line.starts_with("//") {
        return vec![line];
    }
    let (code, comment) = match line.split_once(" // ") {
        Some((code, comment)) if code.matches('"').count() % 2 == 0 => (code, Some(comment)),
        _ => (line, None),
    };
    let texts = code.split('"').skip(1).step_by(2).filter(|text| text.contains(' '));
    texts.chain(comment).collect()
}

fn prose(path: &Path, text: &str) -> Vec<(usize, String)> {
    let (mut found, mut fenced) = (Vec::new(), false);
    let ending = path.extension().map_or("", |e| e.to_str().unwrap_or(""));
    for (number, line) in text.lines().enumerate() {
        let lines: Vec<&str> = match ending {
            "rs" => prose_of_code(line),
            "md" if line.starts_with("```") => {
                fenced = !fenced;
                Vec::new()
            }
            "md" => Some(line).filter(|_| !fenced).into_iter().collect(),
            // in Asterisk's files a comment begins with a semicolon
            _ => line.find(['#', ';']).map(|at| &line[at..]).into_iter().collect(),
        };
        found.extend(lines.into_iter().map(|prose| (number + 1, prose.to_owned())));
    }
    found
}

/// A comment block whose first line begins with a clause instead of a noun or a verb.
fn begins_with_a_clause(text: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let comment = |line: &str| line.starts_with("//");
    let first = |n: usize| comment(lines[n]) && (n == 0 || !comment(lines[n - 1]));
    let word =
        |line: &str| line.trim_start_matches(['/', '!', ' ']).split(' ').next().map(str::to_owned);
    let blocks = (0..lines.len()).filter(|n| first(*n));
    let found = blocks.filter_map(|n| word(lines[n]).map(|word| (n + 1, word)));
    found.filter(|(_, word)| BEGINNINGS.contains(&word.as_str())).collect()
}

fn files(path: PathBuf, all: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let skipped = ["target", "corpus", "seeds", "cache"];
        if !skipped.iter().any(|name| path.ends_with(name)) {
            let entries = std::fs::read_dir(&path).expect("a folder");
            entries.for_each(|entry| files(entry.expect("an entry").path(), all));
        }
    } else if ["rs", "md", "toml", "conf", "sh", "yml", "py"]
        .iter()
        .any(|e| path.extension().is_some_and(|x| x == *e))
        || path.ends_with("Dockerfile")
    {
        all.push(path);
    }
}

#[test]
fn plain_english() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    PAGES.iter().for_each(|page| files(root.join(page), &mut all));
    all.retain(|path| path.exists() && !path.ends_with("tests/tidy/english.rs"));
    all.sort();
    let mut found = Vec::new();
    for path in &all {
        let text = std::fs::read_to_string(path).expect("a text file");
        let place = path.strip_prefix(root).expect("within the project").display().to_string();
        for (number, prose) in prose(path, &text) {
            found.extend(habits(&prose).into_iter().map(|h| format!("{place}:{number}: {h}")));
        }
        if place.ends_with(".rs") {
            let clauses = begins_with_a_clause(&text).into_iter();
            found.extend(clauses.map(|(number, word)| {
                format!("{place}:{number}: a comment begins with \"{word}\": name the thing")
            }));
        }
    }
    report("prose", &found);
}

#[test]
fn each_habit_is_found() {
    for (phrase, _) in PHRASES {
        assert_eq!(habits(&format!("// x {phrase} y")).len(), 1, "{phrase}");
        assert_eq!(habits(&format!("// `x {phrase} y`")).len(), 0, "{phrase}");
    }
    assert_eq!(habits("This is no answer.").len(), 1);
    assert!(habits("There is no answer, and it is no longer waited for.").is_empty());
    assert_eq!(begins_with_a_clause("/// What it is.\n/// So it is.\nfn x() {}\n").len(), 1);
    let code = "let x = \"he is\"; // nobody";
    let found: Vec<String> = prose_of_code(code).into_iter().flat_map(habits).collect();
    assert_eq!(found.len(), 2, "{found:?}");
}
