//! Repairs the recordings that a crash left under `incomplete/`: each gets a valid header and a
//! sidecar with the state `truncated`, and is moved to its place. Recordings that another process
//! is still writing are locked, and left alone. Owns files.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use tracing::{info, warn};

use crate::folder::Root;
use crate::record::disk::{self, Part, incomplete};
use crate::record::layout::{INCOMPLETE, Layout, OUTBOX};
use crate::record::sidecar::{CallInfo, Sidecar, State};
use crate::record::wav::Encoding;

/// [`Sidecar::end_reason`] of a recording that was cut off by a crash.
const KILLED: &str = "internal_kill";
/// A temporary file older than this is no longer in use.
const STALE: Duration = Duration::from_secs(3600);

/// Audio without a sidecar is repaired once it is older than this.
const YOUNG: Duration = Duration::from_secs(60);

type Announce<'a> = &'a dyn Fn(&Path) -> io::Result<()>;

/// Repairs one recording; returns true if it was repaired. A failure is logged, and the repair is
/// tried again at the next look.
pub fn repair(
    root: &Root,
    layout: &Layout,
    id: &str,
    durable: bool,
    announce: Announce<'_>,
) -> bool {
    let close = || close(root, layout, id, durable, announce);
    let result = match close() {
        // another process moved a file at the same moment
        Err(error) if error.kind() == io::ErrorKind::NotFound => close(),
        other => other,
    };
    match result {
        Ok(None) => false,
        Ok(Some(sidecar)) => {
            let (state, seconds) = (sidecar.state.label(), sidecar.duration_ms / 1000);
            info!(recording = id, state, seconds, file = sidecar.path, "recording repaired");
            true
        }
        // another process is still writing it, or has just finished it
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_left(root, id) => false,
        Err(error) => {
            warn!(recording = id, %error, "recording not repaired; retrying within an hour");
            false
        }
    }
}

fn names(root: &Root, folder: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.path().join(folder)) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Returns the ids of all recordings under `incomplete/`.
pub fn leftovers(root: &Root) -> Vec<String> {
    let names = names(root, INCOMPLETE);
    let ids = names.iter().filter(|n| !n.starts_with('.')).filter_map(|n| {
        let id = n.strip_suffix(".wav").or_else(|| n.strip_suffix(".json"))?;
        Some(id.to_owned())
    });
    ids.collect::<BTreeSet<String>>().into_iter().collect()
}

/// Deletes temporary files left by a crash.
pub fn clear(root: &Root) {
    let stale = |n: &&String| n.starts_with('.') && (n.ends_with(".new") || n.contains(".probe-"));
    for folder in [INCOMPLETE, OUTBOX] {
        for name in names(root, folder).iter().filter(stale) {
            let path = Path::new(folder).join(name);
            let changed = std::fs::metadata(root.path().join(&path)).and_then(|m| m.modified());
            if changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE)) {
                let _ = root.remove(&path);
            }
        }
    }
}

fn is_left(root: &Root, id: &str) -> bool {
    ["wav", "json"].iter().any(|ending| root.exists(&incomplete(id, ending)))
}

fn close(
    root: &Root,
    layout: &Layout,
    id: &str,
    durable: bool,
    announce: Announce<'_>,
) -> io::Result<Option<Sidecar>> {
    // In this order: another process that finishes the recording now completes the sidecar before
    // it moves the audio. Without audio, a sidecar read afterwards is the final one.
    let has_audio = root.exists(&incomplete(id, "wav"));
    let stored = read_sidecar(root, id);
    match stored {
        // it was complete, and about to be moved
        Some(sidecar) if sidecar.state != State::Recording => {
            if has_audio {
                drop(Part::adopt(root, id, String::new(), Encoding::Mu)?);
            }
            announce(Path::new(&sidecar.path))?;
            disk::move_pair(root, id, Path::new(&sidecar.path), durable)?;
            Ok(Some(sidecar))
        }
        Some(_) if !has_audio => {
            warn!(recording = id, "recording's audio file is missing: deleting its sidecar");
            root.remove(&incomplete(id, "json"))?;
            Ok(None)
        }
        stored => {
            if !is_left(root, id) {
                return Ok(None); // finished in the meantime
            }
            // another process may be creating it, and have neither locked it nor written a sidecar
            let wav = root.open(&incomplete(id, "wav"))?.metadata()?;
            let age = wav.modified()?.elapsed().unwrap_or_default();
            if stored.is_none() && !root.exists(&incomplete(id, "json")) && age < YOUNG {
                return Ok(None);
            }
            let format = stored.as_ref().map(|sidecar| sidecar.audio.format.clone());
            let known = Encoding::ALL.into_iter().find(|e| format.as_deref() == Some(e.label()));
            let encoding = known.map_or_else(|| encoding(root, id), Ok)?;
            let sidecar = match stored {
                Some(sidecar) => sidecar,
                None => new_sidecar(root, layout, id)?,
            };
            let mut part = Part::adopt(root, id, sidecar.text(), encoding)?;
            let mut sidecar = Sidecar {
                state: State::Truncated,
                end_reason: KILLED.to_owned(),
                duration_ms: part.samples() / 8,
                ..sidecar
            };
            let path = Path::new(&sidecar.path).to_owned();
            part.publish(&mut sidecar, &path, durable, announce)?;
            Ok(Some(sidecar))
        }
    }
}

/// Returns the sidecar under `incomplete/`, if it can be read and its path is valid.
fn read_sidecar(root: &Root, id: &str) -> Option<Sidecar> {
    let mut text = String::new();
    root.open(&incomplete(id, "json")).ok()?.read_to_string(&mut text).ok()?;
    let sidecar: Sidecar = serde_json::from_str(&text).ok()?;
    // we wrote the path, but the file may have been edited since
    let inside = Path::new(&sidecar.path).components();
    let mut parts = inside.map(|part| matches!(part, std::path::Component::Normal(_)));
    parts.all(|good| good).then_some(sidecar)
}

/// Returns the encoding given by the header of the audio file.
fn encoding(root: &Root, id: &str) -> io::Result<Encoding> {
    let mut head = [0; 22];
    // a file that ends within its header has no audio, so the encoding does not matter
    let _ = root.open(&incomplete(id, "wav"))?.read_exact(&mut head);
    Ok(Encoding::of(u16::from_le_bytes([head[20], head[21]])))
}

/// Creates a sidecar for a recording that has none.
fn new_sidecar(root: &Root, layout: &Layout, id: &str) -> io::Result<Sidecar> {
    let changed = root.open(&incomplete(id, "wav"))?.metadata()?.modified()?;
    let unix = changed.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let path = layout.path(unix, "unknown", id);
    let call = CallInfo { id: id.to_owned(), ..CallInfo::default() };
    Ok(Sidecar::begun(id, call, unix, &path))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;

    use super::*;
    use crate::media::g711::Law;
    use crate::record::disk::with_ending;
    use crate::record::recorder::Recorder;
    use crate::record::recording::Tap;
    use crate::record::settings::RecordSettings;
    use crate::record::wav;
    use crate::testing::recordings;

    /// Returns a directory with the files that a call of 50 frames leaves under `incomplete/` when
    /// the program is killed. They are copied while the recorder is still running.
    fn crashed(settings: impl FnOnce(RecordSettings) -> RecordSettings) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(settings(recordings(directory.path())), || {}).unwrap();
        let call = CallInfo { id: "17-ab".into(), pbx: "main".into(), ..CallInfo::default() };
        let mut recording = recorder.start(&call, 1, Law::Mu, 0);
        for index in 0..50u64 {
            let samples = [index as u8; 160];
            recording.tap(Tap::Caller { index, law: Law::Mu, samples, heard_at: None });
            recording.tap(Tap::Ai { index, samples });
        }
        recorder.flush();
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join(INCOMPLETE)).unwrap();
        for ending in ["wav", "json"] {
            let name = incomplete("17-ab", ending);
            std::fs::copy(directory.path().join(&name), copy.path().join(&name)).unwrap();
        }
        copy
    }

    fn repaired(directory: &Path) -> (u64, Vec<PathBuf>) {
        let announced = RefCell::new(Vec::new());
        let announce = |path: &Path| {
            announced.borrow_mut().push(path.to_owned());
            Ok(())
        };
        let root = Root::new(directory.to_owned());
        let close = |id: &String| repair(&root, &Layout::default(), id, true, &announce);
        let count = leftovers(&root).iter().filter(|id| close(id)).count() as u64;
        (count, announced.into_inner())
    }

    fn read(directory: &Path, path: &Path) -> (Sidecar, Vec<u8>) {
        let text = std::fs::read(directory.join(with_ending(path, "json"))).unwrap();
        let audio = std::fs::read(directory.join(with_ending(path, "wav"))).unwrap();
        (serde_json::from_slice(&text).unwrap(), wav::read(&audio).unwrap().swap_remove(0))
    }

    fn left(directory: &Path) -> usize {
        std::fs::read_dir(directory.join(INCOMPLETE)).unwrap().count()
    }

    #[test]
    fn recordings_left_by_a_crash_are_repaired() {
        for encoding in [None, Some(Encoding::A), Some(Encoding::Pcm16)] {
            let directory = crashed(|settings| RecordSettings { encoding, ..settings });
            let (count, announced) = repaired(directory.path());
            assert_eq!((count, announced.len(), left(directory.path())), (1, 1, 0));
            let (sidecar, audio) = read(directory.path(), &announced[0]);
            assert_eq!((sidecar.state, &*sidecar.end_reason), (State::Truncated, KILLED));
            assert_eq!(
                (sidecar.duration_ms, audio.len(), &*sidecar.call.pbx),
                (1000, 8000, "main")
            );
            assert_eq!(repaired(directory.path()), (0, Vec::new()));
        }
    }

    /// The length of the file counts, not the one in its header.
    #[test]
    fn whole_samples_are_kept_wherever_a_file_ends() {
        for length in [0, 10, 30, 57, 58, 59, 61, 5000, 16_057] {
            let directory = crashed(|settings| settings);
            let file = directory.path().join(incomplete("17-ab", "wav"));
            let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
            file.set_len(length).unwrap();
            let (count, announced) = repaired(directory.path());
            assert_eq!(count, 1);
            let (sidecar, audio) = read(directory.path(), &announced[0]);
            let samples = length.saturating_sub(58) / 2;
            assert_eq!((audio.len() as u64, sidecar.audio.samples), (samples, samples), "{length}");
        }
    }

    #[test]
    fn a_recording_without_a_valid_sidecar_is_repaired() {
        for text in [None, Some("{\"version\""), Some("")] {
            let directory = crashed(|settings| settings);
            let json = directory.path().join(incomplete("17-ab", "json"));
            match text {
                Some(text) => std::fs::write(json, text).unwrap(),
                None => {
                    std::fs::remove_file(json).unwrap();
                    // it may be another process' new recording
                    assert_eq!(repaired(directory.path()).0, 0);
                    let wav = directory.path().join(incomplete("17-ab", "wav"));
                    let old = std::time::SystemTime::now() - YOUNG;
                    std::fs::File::open(wav).unwrap().set_modified(old).unwrap();
                }
            }
            let (count, announced) = repaired(directory.path());
            assert_eq!((count, left(directory.path())), (1, 0));
            let (sidecar, audio) = read(directory.path(), &announced[0]);
            assert_eq!((&*sidecar.call.id, audio.len()), ("17-ab", 8000));
        }
    }

    #[test]
    fn an_edited_sidecar_does_not_lead_out_of_the_directory() {
        let directory = crashed(|settings| settings);
        let json = directory.path().join(incomplete("17-ab", "json"));
        let text = std::fs::read_to_string(&json).unwrap();
        let mut sidecar: Sidecar = serde_json::from_str(&text).unwrap();
        sidecar.path = "../../etc/cron.d/x".into();
        std::fs::write(&json, sidecar.text()).unwrap();
        let (count, announced) = repaired(directory.path());
        assert_eq!(count, 1);
        assert!(announced[0].to_str().unwrap().contains("/unknown/17-ab"), "{announced:?}");
    }

    /// Killed between the two moves, or between the final sidecar and the first move.
    #[test]
    fn an_interrupted_move_is_completed() {
        for moved in [false, true] {
            let directory = crashed(|settings| settings);
            let json = directory.path().join(incomplete("17-ab", "json"));
            let text = std::fs::read_to_string(&json).unwrap();
            let mut sidecar: Sidecar = serde_json::from_str(&text).unwrap();
            (sidecar.state, sidecar.path) = (State::Complete, "day/17-ab".into());
            std::fs::write(&json, sidecar.text()).unwrap();
            if moved {
                std::fs::create_dir(directory.path().join("day")).unwrap();
                let wav = directory.path().join(incomplete("17-ab", "wav"));
                std::fs::rename(wav, directory.path().join("day/17-ab.wav")).unwrap();
            }
            assert_eq!(repaired(directory.path()), (1, vec![PathBuf::from("day/17-ab")]));
            let (sidecar, audio) = read(directory.path(), Path::new("day/17-ab"));
            assert_eq!((sidecar.state, audio.len()), (State::Complete, 8000));
            assert_eq!(left(directory.path()), 0);
        }
    }

    /// During a rolling restart, the old process still finishes recordings while the new one looks
    /// for leftovers.
    #[test]
    fn a_recording_that_another_process_finishes_is_neither_damaged_nor_doubled() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_owned());
        let finish = |n: u32| {
            let id = format!("{n}");
            let call = CallInfo { id: id.clone(), ..CallInfo::default() };
            let mut sidecar = Sidecar::begun(&id, call, Duration::ZERO, Path::new(&id));
            let mut part = Part::create(&root, &id, sidecar.text(), Encoding::Mu).unwrap();
            part.write(0, &[1; 320]).unwrap();
            sidecar.state = State::Complete;
            let path = PathBuf::from(format!("day/{id}"));
            part.publish(&mut sidecar, &path, false, |_| Ok(())).unwrap();
        };
        std::thread::scope(|scope| {
            let old = scope.spawn(|| (0..400).for_each(finish));
            while !old.is_finished() {
                repaired(directory.path());
            }
        });
        repaired(directory.path());
        let mut found = Vec::new();
        crate::record::library::walk(&root, &mut |path, _| found.push(path.to_owned())).unwrap();
        assert_eq!(found.len(), 400);
        let sound = |path: &PathBuf| read(directory.path(), path).0.state == State::Complete;
        assert!(found.iter().all(sound));
        assert_eq!(left(directory.path()), 0);
    }

    #[test]
    fn temporary_files_left_by_a_crash_are_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_owned());
        let hour = Duration::from_secs(3700);
        for folder in [INCOMPLETE, OUTBOX] {
            std::fs::create_dir(directory.path().join(folder)).unwrap();
            for (name, age) in [(".1.json.new", hour), (".2.json.new", hour / 2), ("3.json", hour)]
            {
                let file = std::fs::File::create(directory.path().join(folder).join(name)).unwrap();
                file.set_modified(std::time::SystemTime::now() - age).unwrap();
            }
        }
        clear(&root);
        for folder in [INCOMPLETE, OUTBOX] {
            let mut left = names(&root, folder);
            left.sort_unstable();
            assert_eq!(left, [".2.json.new", "3.json"], "{folder}");
        }
    }

    #[test]
    fn a_recording_in_progress_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(recordings(directory.path()), || {}).unwrap();
        let call = CallInfo { id: "17-ab".into(), pbx: "main".into(), ..CallInfo::default() };
        let recording = recorder.start(&call, 1, Law::Mu, 0);
        recorder.flush();
        assert_eq!(repaired(directory.path()), (0, Vec::new()));
        assert_eq!(left(directory.path()), 2);
        drop(recording);
    }
}
