//! Import circles: files that import each other, directly or through others, may only be neighbours
//! in one folder.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Source, lines, report, sources};

type Imports = BTreeMap<String, BTreeSet<String>>;

/// The module of a file: `call/core.rs` is `call/core`, `call/mod.rs` is `call`.
fn module(path: &str) -> &str {
    let path = path.trim_end_matches(".rs");
    path.strip_suffix("/mod").unwrap_or(path)
}

/// The folder of a file.
fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The paths after `crate::` in a file: `a::b::{c, d::e}` is `a/b/c` and `a/b/d/e`.
fn paths(code: &str) -> Vec<String> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let end = rest.find(|c: char| !is_path(c)).unwrap_or(rest.len());
        let base = rest[..end].trim_end_matches(':').replace("::", "/");
        if rest[end..].starts_with('{') {
            let list = rest[end + 1..].split('}').next().unwrap_or("");
            let items = list.split(',').map(|item| item.trim().replace("::", "/"));
            found.extend(items.map(|item| format!("{base}/{item}")));
        }
        found.push(base);
    }
    found
}

/// The modules that each module imports.
fn imports(sources: &[Source]) -> Imports {
    let of_src = || sources.iter().filter(|s| s.in_src && !s.is_test());
    let known: BTreeSet<&str> = of_src().map(|s| module(&s.path)).collect();
    let longest = |path: &str| {
        let mut path = path;
        while !known.contains(path) {
            path = path.rsplit_once('/')?.0;
        }
        Some(path.to_owned())
    };
    let imported = |source: &Source| {
        let code: Vec<&str> = lines(source.code()).map(|(_, line)| line).collect();
        paths(&code.join("\n")).iter().filter_map(|path| longest(path)).collect()
    };
    of_src().map(|source| (module(&source.path).to_owned(), imported(source))).collect()
}

fn reachable(from: &str, imports: &Imports) -> BTreeSet<String> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(module) = open.pop() {
        for next in imports.get(&module).into_iter().flatten() {
            if seen.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    seen
}

#[test]
fn import_circles_stay_within_one_folder() {
    let sources = sources();
    let imports = imports(&sources);
    let folders: BTreeMap<&str, &str> =
        sources.iter().filter(|s| s.in_src).map(|s| (module(&s.path), folder(&s.path))).collect();
    let reached: BTreeMap<&str, BTreeSet<String>> =
        imports.keys().map(|name| (name.as_str(), reachable(name, &imports))).collect();
    let mut found = Vec::new();
    for (name, seen) in &reached {
        for other in seen.iter().filter(|other| other.as_str() > *name) {
            let back = reached.get(other.as_str()).is_some_and(|seen| seen.contains(*name));
            if back && folders.get(name) != folders.get(other.as_str()) {
                found.push(format!("src/{name} and src/{other} import each other"));
            }
        }
    }
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 300, "imports are found");
    report("import circles across folders", &found);
}
