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
    // a JSON file of somebody else's is none of ours, and does not count either
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::g711::Law;
    use crate::record::recorder::Recorder;
    use crate::record::recording::{Ending, Tap};
    use crate::record::sidecar::CallInfo;
    use crate::testing::recordings;

    const DAY: Duration = Duration::from_secs(86_400);

    /// Recordings 0 to 4, each a day older than the one before it, of some 3300 bytes.
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
    fn the_old_go_and_the_young_stay() {
        let (_directory, root, now) = five();
        let limits = Limits { age: Some(DAY * 5 / 2), bytes: None };
        assert_eq!(sweep(&root, limits, now).unwrap(), 2);
        assert_eq!(names(&root), ["0", "1", "2"]);
    }

    #[test]
    fn the_oldest_go_when_all_are_too_large() {
        let (_directory, root, now) = five();
        let limits = Limits { age: None, bytes: Some(9_500) };
        assert_eq!(sweep(&root, limits, now).unwrap(), 3);
        assert_eq!(names(&root), ["0", "1"]);
        let nothing = Limits { age: None, bytes: Some(0) };
        assert_eq!(sweep(&root, nothing, now).unwrap(), 2);
        // and their folders with them
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_waits_to_be_sent_and_what_is_not_ours_stays() {
        let (_directory, root, now) = five();
        let path = library::find(&root, "4").unwrap();
        outbox::put(&root, "4", &path, false).unwrap();
        let strange = root.path().join("notes.json");
        std::fs::write(&strange, "{}").unwrap();
        let file = std::fs::File::open(&strange).unwrap();
        file.set_modified(now - DAY * 100).unwrap();
        // what cannot be deleted is no reason to delete the others
        std::fs::write(root.path().join("notes.wav"), vec![0; 1_000_000]).unwrap();
        let limits = Limits { age: None, bytes: Some(900_000) };
        assert_eq!(sweep(&root, limits, now).unwrap(), 0);
        let limits = Limits { age: Some(Duration::from_secs(1)), bytes: None };
        assert_eq!(sweep(&root, limits, now + DAY).unwrap(), 4);
        assert_eq!(names(&root), ["4", "notes"]);
    }
}
