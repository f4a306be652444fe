//! Finds finished recordings below a directory. Owns file reading.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use crate::folder::Root;
use crate::record::layout::{INCOMPLETE, OUTBOX};
use crate::record::sidecar::Sidecar;

/// Levels of folders that are searched.
const DEPTH: usize = 16;

/// Calls `found` with each sidecar's path below the root, without extension, and its metadata.
/// Symbolic links and hidden names are skipped. Names within a folder are in sorted order.
///
/// # Errors
/// Returns an error if the directory itself cannot be read.
pub fn walk(root: &Root, found: &mut dyn FnMut(&Path, &Metadata)) -> io::Result<()> {
    walk_files(root, "json", found)
}

/// Same as [`walk`], for files with another extension.
///
/// # Errors
/// Returns an error if the directory itself cannot be read.
pub fn walk_files(
    root: &Root,
    ending: &str,
    found: &mut dyn FnMut(&Path, &Metadata),
) -> io::Result<()> {
    std::fs::read_dir(root.path())?;
    let of = |name: &str| Some(name.strip_suffix(ending)?.strip_suffix('.')?.to_owned());
    walk_folder(root.path(), Path::new(""), 0, &of, found);
    Ok(())
}

fn walk_folder(
    root: &Path,
    relative: &Path,
    depth: usize,
    stem_of: &dyn Fn(&str) -> Option<String>,
    found: &mut dyn FnMut(&Path, &Metadata),
) {
    let Ok(entries) = std::fs::read_dir(root.join(relative)) else { return };
    let mut names: Vec<_> =
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort_unstable();
    for name in names {
        let ours = depth == 0 && [INCOMPLETE, OUTBOX].contains(&name.as_str());
        if ours || name.starts_with('.') {
            continue;
        }
        let path = relative.join(&name);
        let Ok(metadata) = std::fs::symlink_metadata(root.join(&path)) else { continue };
        if metadata.is_dir() && depth < DEPTH {
            walk_folder(root, &path, depth + 1, stem_of, found);
        } else if let Some(stem) = stem_of(&name).filter(|_| metadata.is_file()) {
            found(&relative.join(stem), &metadata);
        }
    }
}

/// Reads a sidecar; `path` is without extension.
///
/// # Errors
/// Returns any I/O error, or an error if the file is not a valid sidecar.
pub fn read(root: &Root, path: &Path) -> io::Result<Sidecar> {
    let text = std::fs::read(root.path().join(crate::record::disk::with_ending(path, "json")))?;
    let read = serde_json::from_slice(&text);
    read.map_err(|e| io::Error::other(format!("{}.json: {e}", path.display())))
}

/// Finds a recording by its id, or by its path with or without extension. Returns the path below
/// the root, without extension.
///
/// # Errors
/// Returns an error if the directory cannot be read, and `NotFound` if there is no such recording.
pub fn find(root: &Root, word: &str) -> io::Result<PathBuf> {
    let plain = word.strip_suffix(".json").or_else(|| word.strip_suffix(".wav")).unwrap_or(word);
    let plain = Path::new(plain);
    let below = plain.strip_prefix(root.path()).unwrap_or(plain);
    if below.is_relative() && root.exists(&crate::record::disk::with_ending(below, "json")) {
        return Ok(below.to_owned());
    }
    let mut hit = None;
    walk(root, &mut |path, _| {
        if path.file_name() == plain.file_name() {
            hit = Some(path.to_owned());
        }
    })?;
    hit.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no recording {word}")))
}
