//! The documentation against the program: configuration keys, log lines, metrics, commands,
//! configuration samples and links.

mod commands;
mod configuration;
mod links;
mod logs;
mod samples;

use std::path::{Path, PathBuf};

/// A page with its path below the top of the source tree.
struct Page {
    path: String,
    text: String,
}

/// A line outside code blocks that belongs to a table, or a whole code block.
enum Part<'a> {
    Heading(&'a str),
    /// The cells of one row; the first row of a table is its header.
    Row(Vec<String>),
    /// The word after the backticks, and the lines.
    Code(&'a str, String),
    Text(&'a str),
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and docs/*.md.
fn pages() -> Vec<Page> {
    let folder = std::fs::read_dir(root().join("docs")).expect("a folder docs");
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "md"));
    paths.push(root().join("README.md"));
    paths.sort();
    paths
        .iter()
        .map(|path| page(&path.strip_prefix(root()).expect("below").to_string_lossy()))
        .collect()
}

fn page(path: &str) -> Page {
    let text = std::fs::read_to_string(root().join(path)).expect(path);
    Page { path: path.to_owned(), text }
}

impl Page {
    /// The parts with the line each begins at.
    fn parts(&self) -> Vec<(usize, Part<'_>)> {
        let mut parts = Vec::new();
        let mut lines = self.text.lines().enumerate();
        while let Some((n, line)) = lines.next() {
            let line = line.trim_start();
            let part = if let Some(word) = line.strip_prefix("```") {
                let code = lines.by_ref().map(|(_, l)| l);
                let code: Vec<&str> = code.take_while(|l| l.trim() != "```").collect();
                Part::Code(word, unindented(&code))
            } else if line.starts_with('|') {
                Part::Row(cells(line))
            } else if line.starts_with('#') {
                Part::Heading(line.trim_start_matches('#').trim())
            } else {
                Part::Text(line)
            };
            parts.push((n + 1, part));
        }
        parts
    }

    /// The rows of all tables whose header has the column `column`: the heading above the table,
    /// the header, the line and the cells.
    fn rows(&self, column: &str) -> Vec<Row<'_>> {
        let (mut rows, mut heading, mut header) = (Vec::new(), "", Vec::new());
        for (line, part) in self.parts() {
            match part {
                Part::Heading(text) => (heading, header) = (text, Vec::new()),
                Part::Row(cells) if header.is_empty() => header = cells,
                Part::Row(cells) if cells.iter().all(|c| c.trim_matches('-').is_empty()) => {}
                Part::Row(cells) => {
                    if let Some(at) = header.iter().position(|name| name == column) {
                        let place = format!("{}:{line}", self.path);
                        rows.push(Row { place, heading, at, cells });
                    }
                }
                Part::Text(_) | Part::Code(..) => header = Vec::new(),
            }
        }
        rows
    }
}

struct Row<'a> {
    place: String,
    heading: &'a str,
    /// The column that was asked for.
    at: usize,
    cells: Vec<String>,
}

fn unindented(lines: &[&str]) -> String {
    let filled = lines.iter().filter(|line| !line.trim().is_empty());
    let indent = filled.map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    lines.iter().map(|line| line.get(indent..).unwrap_or("").to_owned() + "\n").collect()
}

fn cells(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches('|').replace("\\|", "\u{0}");
    let line = line.strip_suffix('|').unwrap_or(&line);
    line.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// The texts between backticks.
fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Fails with all that was found.
fn report(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}
