//! Old recordings are deleted: by age, and by the size of all. What waits to be sent elsewhere is
//! kept, and so is any file that is not a recording. Owns files.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::record::disk::{Root, with_ending};
use crate::record::{library, outbox};

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub age: Option<Duration>,
    pub bytes: Option<u64>,
}

struct Found {
    changed: SystemTime,
    bytes: u64,
    path: PathBuf,
}

/// Deletes what is over the limits; how many recordings.
///
/// # Errors
/// When the directory cannot be read.
pub fn sweep(root: &Root, limits: Limits, now: SystemTime) -> io::Result<u64> {
    let waiting = outbox::ids(root).into_iter().filter_map(|id| outbox::load(root, &id).ok());
    let waiting: HashSet<PathBuf> = waiting.map(|entry| entry.path).collect();
    let mut all = Vec::new();
    library::walk(root, &mut |path, json| {
        let audio = std::fs::symlink_metadata(root.path().join(with_ending(path, "wav")));
        let bytes = json.len() + audio.as_ref().map_or(0, std::fs::Metadata::len);
        let changed = json.modified().unwrap_or(now);
        all.push(Found { changed, bytes, path: path.to_owned() });
    })?;
    all.sort_by_key(|found| found.changed);
    let mut total: u64 = all.iter().map(|found| found.bytes).sum();
    let mut deleted = 0;
    for found in &all {
        let age = now.duration_since(found.changed).unwrap_or(Duration::ZERO);
        let old = limits.age.is_some_and(|limit| age > limit);
        let much = limits.bytes.is_some_and(|limit| total > limit);
        if !old && !much {
            break; // the others are younger
        }
        let sent = !waiting.contains(&found.path);
        // a JSON file of somebody else's is none of ours
        if sent && library::read(root, &found.path).is_ok() && delete(root, &found.path).is_ok() {
            total -= found.bytes;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// Deletes a recording, and the folders that are empty then.
///
/// # Errors
/// The kernel's.
pub fn delete(root: &Root, path: &Path) -> io::Result<()> {
    for ending in ["wav", "json"] {
        match std::fs::remove_file(root.path().join(with_ending(path, ending))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let folders = path.ancestors().skip(1).filter(|f| !f.as_os_str().is_empty());
    for folder in folders {
        // one that holds something stays
        if std::fs::remove_dir(root.path().join(folder)).is_err() {
            break;
        }
    }
    Ok(())
}
