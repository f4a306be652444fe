//! Links between the pages, the table of contents, and the README's size.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::{Page, Part, page, pages, report, root};

const MAX_README: usize = 10_000;

/// The targets of `[text](target)` outside code, with their lines.
fn links(page: &Page) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, part) in page.parts() {
        let text = match part {
            Part::Heading(text) | Part::Text(text) => text.to_owned(),
            Part::Row(cells) => cells.join(" | "),
            Part::Code(..) => continue,
        };
        for (at, _) in text.match_indices("](") {
            let in_code = text[..at].matches('`').count() % 2 == 1;
            let target = text[at + 2..].split(')').next().unwrap_or_default();
            if !in_code {
                found.push((line, target.to_owned()));
            }
        }
    }
    found
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(page: &Page) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, part) in page.parts() {
        if let Part::Heading(text) = part {
            let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            found.insert(kept.collect::<String>().to_lowercase().replace(' ', "-"));
        }
    }
    found
}

/// Without `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut all, part| {
        match part {
            Component::ParentDir => drop(all.pop()),
            other => all.push(other),
        }
        all
    })
}

#[test]
fn relative_links_lead_somewhere() {
    let mut found = Vec::new();
    for from in pages() {
        for (line, link) in links(&from) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = Path::new(&from.path).parent().unwrap_or(Path::new(""));
            let to = if path.is_empty() {
                PathBuf::from(&from.path)
            } else {
                normal(&folder.join(path))
            };
            let place = format!("{}:{line}: {link}", from.path);
            if !root().join(&to).exists() {
                found.push(place);
            } else if !anchor.is_empty() && !anchors(&page(&to.to_string_lossy())).contains(anchor)
            {
                found.push(format!("{place}: there is no such heading"));
            }
        }
    }
    report("links that lead nowhere", &found);
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let listed: BTreeSet<String> =
        links(&page("docs/SUMMARY.md")).into_iter().map(|l| l.1).collect();
    let names = pages().into_iter().filter_map(|p| Some(p.path.strip_prefix("docs/")?.to_owned()));
    let missing = names.filter(|name| name != "SUMMARY.md" && !listed.contains(name));
    report("not in docs/SUMMARY.md", &missing.collect::<Vec<_>>());
}

#[test]
fn the_readme_is_short() {
    let size = page("README.md").text.len();
    assert!(size <= MAX_README, "README.md has {size} bytes, more than {MAX_README}");
}
