//! Deletes old recordings, by age and by total size. Recordings still to be sent are kept, and so
//! are files that are not recordings. Owns files.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::folder::Root;
use crate::record::disk::with_ending;
use crate::record::{library, outbox};

/// Limits above which recordings are deleted.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub age: Option<Duration>,
    /// Size of all recordings together.
    pub bytes: Option<u64>,
}

struct Found {
    changed: SystemTime,
    bytes: u64,
    path: PathBuf,
}

/// Deletes recordings above the limits, and returns how many.
///
/// # Errors
/// Returns an error if the directory cannot be read.
pub fn sweep(root: &Root, limits: Limits, now: SystemTime) -> io::Result<u64> {
    let mut all = Vec::new();
    library::walk(root, &mut |path, json| {
        let audio = std::fs::symlink_metadata(root.path().join(with_ending(path, "wav")));
        let bytes = json.len() + audio.as_ref().map_or(0, std::fs::Metadata::len);
        let changed = json.modified().unwrap_or(now);
        all.push(Found { changed, bytes, path: path.to_owned() });
    })?;
    all.sort_by_key(|found| found.changed);
    let sum = |all: &[Found]| all.iter().map(|found| found.bytes).sum::<u64>();
    let waiting: HashSet<String> = outbox::ids(root).into_iter().collect();
    // a JSON file that is not a sidecar is neither deleted nor counted
    let ours = |found: &Found| {
        library::read(root, &found.path).is_ok_and(|sidecar| !waiting.contains(&sidecar.id))
    };
    if limits.bytes.is_some_and(|limit| sum(&all) > limit) {
        all.retain(ours);
    }
    let (mut total, mut deleted) = (sum(&all), 0);
    for found in &all {
        let age = now.duration_since(found.changed).unwrap_or(Duration::ZERO);
        let old = limits.age.is_some_and(|limit| age > limit);
        let much = limits.bytes.is_some_and(|limit| total > limit);
        if !old && !much {
            break; // the others are younger
        }
        if ours(found) && delete(root, &found.path).is_ok() {
            total -= found.bytes;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// Deletes a recording, and any folders that are empty afterwards.
///
/// # Errors
/// Returns any I/O error.
pub fn delete(root: &Root, path: &Path) -> io::Result<()> {
    for ending in ["wav", "json"] {
        match std::fs::remove_file(root.path().join(with_ending(path, ending))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let folders = path.ancestors().skip(1).filter(|f| !f.as_os_str().is_empty());
    for folder in folders {
        // fails for a folder that is not empty
        if std::fs::remove_dir(root.path().join(folder)).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::g711::Law;
    use crate::record::recorder::Recorder;
    use crate::record::recording::{Ending, Tap};
    use crate::record::sidecar::CallInfo;
    use crate::testing::recordings;

    const DAY: Duration = Duration::from_secs(86_400);

    /// Recordings 0 to 4 of about 3300 bytes; each is a day older than the one before it.
    fn five() -> (tempfile::TempDir, Root, SystemTime) {
        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(recordings(directory.path()), || {}).unwrap();
        let now = SystemTime::now();
        let root = Root::new(directory.path().to_owned());
        for n in 0..5u32 {
            let call = CallInfo { id: format!("{n}"), pbx: "main".into(), ..CallInfo::default() };
            let mut recording = recorder.start(&call, 1, Law::Mu, 0);
            (0..10).for_each(|index| recording.tap(Tap::Ai { index, samples: [1; 160] }));
            recording.finish(Ending { reason: "drain", network: None });
            recorder.flush();
            let path = library::find(&root, &format!("{n}")).unwrap();
            let json = std::fs::File::open(root.path().join(with_ending(&path, "json"))).unwrap();
            json.set_modified(now - DAY * n).unwrap();
        }
        (directory, root, now)
    }

    fn names(root: &Root) -> Vec<String> {
        let mut names = Vec::new();
        library::walk(root, &mut |path, _| {
            names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        })
        .unwrap();
        names
    }

    #[test]
    fn recordings_above_the_age_limit_are_deleted() {
        let (_directory, root, now) = five();
        let limits = Limits { age: Some(DAY * 5 / 2), bytes: None };
        assert_eq!(sweep(&root, limits, now).unwrap(), 2);
        assert_eq!(names(&root), ["0", "1", "2"]);
    }

    #[test]
    fn the_oldest_are_deleted_when_the_total_is_too_large() {
        let (_directory, root, now) = five();
        let limits = Limits { age: None, bytes: Some(9_500) };
        assert_eq!(sweep(&root, limits, now).unwrap(), 3);
        assert_eq!(names(&root), ["0", "1"]);
        let nothing = Limits { age: None, bytes: Some(0) };
        assert_eq!(sweep(&root, nothing, now).unwrap(), 2);
        // the empty folders are deleted too
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn recordings_to_be_sent_and_other_files_are_kept() {
        let (_directory, root, now) = five();
        let path = library::find(&root, "4").unwrap();
        outbox::put(&root, "4", &path, false).unwrap();
        let strange = root.path().join("notes.json");
        std::fs::write(&strange, "{}").unwrap();
        let file = std::fs::File::open(&strange).unwrap();
        file.set_modified(now - DAY * 100).unwrap();
        // the size of other files does not count
        std::fs::write(root.path().join("notes.wav"), vec![0; 1_000_000]).unwrap();
        let limits = Limits { age: None, bytes: Some(900_000) };
        assert_eq!(sweep(&root, limits, now).unwrap(), 0);
        let limits = Limits { age: Some(Duration::from_secs(1)), bytes: None };
        assert_eq!(sweep(&root, limits, now + DAY).unwrap(), 4);
        assert_eq!(names(&root), ["4", "notes"]);
    }
}
