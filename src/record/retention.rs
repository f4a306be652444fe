//! Deletes old recordings, by age and by total size. Recordings still to be sent are kept, and so
//! are files that are not recordings, and copies of recordings elsewhere below the directory. Owns
//! files.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// The system clock, by which ages are judged.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    pub now: SystemTime,
    /// When the program started, or the clock was last found to have been set.
    pub since: SystemTime,
    /// The program has run for long enough since then that a wrong clock would have been corrected.
    pub settled: bool,
}

/// The result of a look at all recordings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub deleted: u64,
    /// Age of the newest recording by a clock that is therefore not believed yet.
    pub doubted: Option<Duration>,
}

/// A clock that is ahead of the newest recording by more than this may be wrong.
const DOUBT: Duration = Duration::from_secs(7 * 86_400);
/// 2026-01-01. A recording from before was made by a clock that was not set yet, so its age is not
/// known.
const NOT_BEFORE: Duration = Duration::from_secs(1_767_225_600);

struct Found {
    changed: SystemTime,
    bytes: u64,
    path: PathBuf,
}

/// Deletes recordings above the limits.
///
/// # Errors
/// Returns an error if the directory cannot be read.
pub fn sweep(root: &Root, limits: Limits, clock: Clock) -> io::Result<Swept> {
    let now = clock.now;
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
    // a JSON file that is not a sidecar is neither deleted nor counted, and neither is a copy
    let ours = |found: &Found| {
        library::read(root, &found.path).is_ok_and(|sidecar| {
            !waiting.contains(&sidecar.id) && Path::new(&sidecar.path) == found.path
        })
    };
    let mut result = Swept::default();
    // those made by this process only show the clock as it is now
    let earlier = all.iter().map(|found| found.changed).filter(|at| *at <= clock.since);
    let newest = earlier.max().and_then(|at| now.duration_since(at).ok());
    result.doubted = newest.filter(|age| limits.age.is_some() && !clock.settled && *age > DOUBT);
    let age_limit = limits.age.filter(|_| result.doubted.is_none());
    if limits.bytes.is_some_and(|limit| sum(&all) > limit) {
        all.retain(ours);
    }
    let mut total = sum(&all);
    for found in &all {
        let age = now.duration_since(found.changed).unwrap_or(Duration::ZERO);
        let dated = found.changed >= UNIX_EPOCH + NOT_BEFORE;
        let old = dated && age_limit.is_some_and(|limit| age > limit);
        let much = limits.bytes.is_some_and(|limit| total > limit);
        if !old && !much && dated {
            break; // the others are younger
        }
        if !old && !much {
            continue;
        }
        if ours(found) && delete(root, &found.path).is_ok() {
            total -= found.bytes;
            result.deleted += 1;
        }
    }
    Ok(result)
}

/// Deletes a recording, and any folders that are empty afterwards.
///
/// # Errors
/// Returns any I/O error.
pub fn delete(root: &Root, path: &Path) -> io::Result<()> {
    for ending in ["wav", "json"] {
        let file = with_ending(path, ending);
        match std::fs::remove_file(root.path().join(&file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // left by a crash while the file was being replaced
        let _ = std::fs::remove_file(root.path().join(Root::new_name(&file)));
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
            recording.finish(Ending::new("drain"));
            recorder.flush();
            let path = library::find(&root, &format!("{n}")).unwrap();
            let json = std::fs::File::open(root.path().join(with_ending(&path, "json"))).unwrap();
            json.set_modified(now - DAY * n).unwrap();
        }
        (directory, root, now)
    }

    fn swept(root: &Root, limits: Limits, now: SystemTime) -> u64 {
        sweep(root, limits, Clock { now, since: now, settled: true }).unwrap().deleted
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
        assert_eq!(swept(&root, limits, now), 2);
        assert_eq!(names(&root), ["0", "1", "2"]);
    }

    #[test]
    fn the_oldest_are_deleted_when_the_total_is_too_large() {
        let (_directory, root, now) = five();
        let limits = Limits { age: None, bytes: Some(9_500) };
        assert_eq!(swept(&root, limits, now), 3);
        assert_eq!(names(&root), ["0", "1"]);
        let nothing = Limits { age: None, bytes: Some(0) };
        assert_eq!(swept(&root, nothing, now), 2);
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
        assert_eq!(swept(&root, limits, now), 0);
        let limits = Limits { age: Some(Duration::from_secs(1)), bytes: None };
        assert_eq!(swept(&root, limits, now + DAY), 4);
        assert_eq!(names(&root), ["4", "notes"]);
    }

    /// A clock that is years ahead would make all recordings old.
    #[test]
    fn a_clock_far_ahead_of_the_newest_recording_is_not_believed_at_once() {
        let (_directory, root, now) = five();
        let limits = Limits { age: Some(DAY * 90), bytes: None };
        let far = now + DAY * 400;
        // a recording made by the wrong clock does not confirm it
        let new = library::find(&root, "0").unwrap();
        let json = std::fs::File::open(root.path().join(with_ending(&new, "json"))).unwrap();
        json.set_modified(far + Duration::from_secs(60)).unwrap();
        let clock = Clock { now: far + Duration::from_secs(3600), since: far, settled: false };
        let result = sweep(&root, limits, clock).unwrap();
        assert_eq!((result.deleted, result.doubted.unwrap().as_secs() / 86_400), (0, 401));
        // the total does not depend on the clock
        let small = Limits { bytes: Some(9_500), ..limits };
        assert_eq!(sweep(&root, small, clock).unwrap().deleted, 3);
        assert_eq!(sweep(&root, limits, Clock { settled: true, ..clock }).unwrap().deleted, 1);
        // an idle week is not a wrong clock
        let (_directory, root, now) = five();
        let clock = Clock { now: now + DAY * 6, since: now + DAY * 6, settled: false };
        let limits = Limits { age: Some(DAY * 8), bytes: None };
        assert_eq!(sweep(&root, limits, clock).unwrap(), Swept { deleted: 2, doubted: None });
    }

    #[test]
    fn recordings_made_before_the_clock_was_set_have_no_age() {
        let (_directory, root, now) = five();
        let path = library::find(&root, "0").unwrap();
        let json = std::fs::File::open(root.path().join(with_ending(&path, "json"))).unwrap();
        json.set_modified(UNIX_EPOCH + DAY * 40).unwrap();
        let limits = Limits { age: Some(DAY * 5 / 2), bytes: None };
        assert_eq!(swept(&root, limits, now), 2);
        assert_eq!(names(&root), ["0", "1", "2"]);
    }

    #[test]
    fn an_archive_below_the_directory_is_kept() {
        let (_directory, root, now) = five();
        let archive = root.path().join("archive");
        std::fs::create_dir(&archive).unwrap();
        for n in 0..5 {
            let path = library::find(&root, &n.to_string()).unwrap();
            for ending in ["wav", "json"] {
                let copy = archive.join(format!("{n}.{ending}"));
                std::fs::copy(root.path().join(with_ending(&path, ending)), copy).unwrap();
            }
        }
        let limits = Limits { age: Some(Duration::from_secs(1)), bytes: Some(0) };
        assert_eq!(swept(&root, limits, now + DAY * 100), 5);
        assert_eq!(names(&root), ["0", "1", "2", "3", "4"]);
    }
}
