//! The entry point for calls: they get their [`Recording`]s here. Owns the threads' start and the
//! reading of the clock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{channel, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::error;

use crate::media::g711::Law;
use crate::record::closer::Closer;
use crate::record::health::Health;
use crate::record::queue::{Begin, Job, Queue};
use crate::record::recording::{BLOCK_FRAMES, Recording};
use crate::record::settings::{CurrentSettings, RecordSettings};
use crate::record::sidecar::{CallInfo, Sidecar};
use crate::record::writer::Writer;
use crate::record::{counters, disk};

/// Seconds of audio per call that may wait for the disk; all calls share the sum.
const QUEUE_SECONDS: usize = 10;
/// How long a flush, as at shutdown, waits for the disk.
const FLUSH: Duration = Duration::from_secs(20);

/// Starts [`Recording`]s; cloned for every PBX.
#[derive(Clone)]
pub struct Recorder {
    queue: Queue,
    /// Number of the next recording, shared by all clones.
    next_key: Arc<AtomicU64>,
    settings: CurrentSettings,
    health: Arc<Health>,
}

impl Recorder {
    /// Starts the threads. An unusable directory is not an error, because calls can be taken all
    /// the same: it is reported by [`Recorder::trouble`] and tried again. `finished` is called when
    /// the outbox has a new entry.
    ///
    /// # Errors
    /// Returns an error if a thread cannot be started.
    pub fn new(
        settings: RecordSettings,
        finished: impl Fn() + Send + 'static,
    ) -> io::Result<Recorder> {
        let limit = settings.max_calls.max(1) * QUEUE_SECONDS * 50 / BLOCK_FRAMES as usize;
        let (queue, jobs) = Queue::new(limit);
        let root = disk::root(&settings);
        let (settings, health) = (CurrentSettings::new(settings), Arc::new(Health::default()));
        let (closing, to_close) = channel();
        let (of, load) = (settings.clone(), queue.load());
        let closer = Closer::new(root.clone(), of, health.clone(), load, finished);
        thread::Builder::new()
            .name("recordings".to_owned())
            .spawn(move || closer.run(&to_close))?;
        let load = queue.load();
        let writer = Writer::new(root, settings.clone(), health.clone(), load, closing);
        thread::Builder::new().name("recorder".to_owned()).spawn(move || writer.run(&jobs))?;
        Ok(Recorder { queue, next_key: Arc::default(), settings, health })
    }

    /// Takes other settings for new recordings, and for the care of those that are finished. The
    /// directory, and the room in the queue, stay.
    pub fn change(&self, settings: RecordSettings) {
        self.settings.set(settings);
    }

    /// Starts the `nth` recording of a call, beginning with the call's frame number `first`.
    pub fn start(&self, call: &CallInfo, nth: u32, law: Law, first: u64) -> Recording {
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let id = if nth == 1 { call.id.clone() } else { format!("{}-{nth}", call.id) };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = crate::record::layout::clean(&id);
        self.health.begun(&id);
        let settings = self.settings.get();
        let path = settings.layout.path(unix, &call.pbx, &id);
        let mut sidecar = Sidecar::begun(&id, call.clone(), unix, &path);
        sidecar.start_ms = first * 20;
        let encoding = settings.encoding.unwrap_or(law.into());
        encoding.label().clone_into(&mut sidecar.audio.format);
        let unwritten_ms = Arc::<AtomicU64>::default();
        let begin = Begin {
            sidecar: sidecar.clone(),
            path,
            law,
            encoding,
            unwritten_ms: unwritten_ms.clone(),
        };
        self.queue.send(Job::Begin { key, begin: Box::new(begin) });
        Recording::new(key, self.queue.clone(), sidecar, law, first, unwritten_ms)
    }

    /// Returns why nothing can be recorded at the moment, or `None` if it can.
    pub fn trouble(&self) -> Option<String> {
        let hangs = || "the disk is too slow, or hangs".to_owned();
        self.health.trouble().or_else(|| self.queue.load().is_high().then(hangs))
    }

    /// Returns true if new calls must be refused because they could not be recorded.
    pub fn refuses(&self) -> bool {
        self.settings.get().require && self.trouble().is_some()
    }

    /// True if no call may continue unrecorded.
    pub fn is_required(&self) -> bool {
        self.settings.get().require
    }

    /// Waits until everything queued so far is on disk or has failed; 20 s at most.
    pub fn flush(&self) {
        self.flush_queue(false);
    }

    /// Same as [`Recorder::flush`], at the program's end: audio that is not on disk then is counted
    /// as lost.
    pub fn close(&self) {
        self.flush_queue(true);
    }

    fn flush_queue(&self, last: bool) {
        let (done, wait) = sync_channel(1);
        self.queue.send(Job::Flush { done, last });
        if wait.recv_timeout(FLUSH).is_err() {
            if last {
                counters::LOST_MS.add(self.queue.load().pending() * BLOCK_FRAMES * 20);
            }
            error!(
                "recordings not finished: the disk hangs or is too slow; they are repaired at the \
                 next start"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::folder::Root;
    use crate::record::disk::{incomplete, with_ending};
    use crate::record::recording::{Ending, Tap};
    use crate::record::sidecar::State;
    use crate::record::{library, wav};
    use crate::testing::recordings;

    fn recorder(settings: RecordSettings) -> Recorder {
        Recorder::new(settings, || {}).unwrap()
    }

    fn call() -> CallInfo {
        CallInfo { id: "17-ab".into(), pbx: "main".into(), ..CallInfo::default() }
    }

    /// Records `frames` on both tracks; the samples' value is the frame's number.
    fn talk(recording: &mut Recording, frames: std::ops::Range<u64>) {
        for index in frames {
            let samples = [index as u8; 160];
            recording.tap(Tap::Caller { index, law: Law::Mu, samples, heard_at: None });
            recording.tap(Tap::Ai { index, samples: [200u8.wrapping_sub(index as u8); 160] });
        }
    }

    fn finish(recorder: &Recorder, recording: Recording) {
        recording.finish(Ending::new("ai_hangup"));
        recorder.flush();
    }

    /// Returns the sidecar and both tracks of the only recording.
    fn only(directory: &Path) -> (Sidecar, Vec<Vec<u8>>) {
        let root = Root::new(directory.to_owned());
        let mut paths = Vec::new();
        library::walk(&root, &mut |path, _| paths.push(path.to_owned())).unwrap();
        assert_eq!(paths.len(), 1, "{paths:?}");
        let audio = std::fs::read(directory.join(with_ending(&paths[0], "wav"))).unwrap();
        (library::read(&root, &paths[0]).unwrap(), wav::read(&audio).unwrap())
    }

    #[test]
    fn a_finished_recording_is_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let recorder = recorder(recordings(directory.path()));
        let mut recording = recorder.start(&call(), 1, Law::Mu, 0);
        talk(&mut recording, 0..133);
        finish(&recorder, recording);
        let (sidecar, tracks) = only(directory.path());
        for n in 0..133usize {
            assert_eq!((tracks[0][n * 160], tracks[1][n * 160 + 159]), (n as u8, 200 - n as u8));
        }
        assert_eq!((sidecar.state, &*sidecar.end_reason), (State::Complete, "ai_hangup"));
        assert_eq!((sidecar.audio.samples, sidecar.duration_ms), (133 * 160, 2660));
        let file = directory.path().join(with_ending(Path::new(&sidecar.path), "wav"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::metadata(&file).unwrap().len(), sidecar.audio.bytes);
        let hash = crate::record::disk::sha256(std::fs::File::open(&file).unwrap()).unwrap();
        assert_eq!(hash, sidecar.audio.sha256);
        let left = std::fs::read_dir(directory.path().join("incomplete")).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn every_format_holds_the_same_audio() {
        for encoding in wav::Encoding::ALL {
            let directory = tempfile::tempdir().unwrap();
            let settings = recordings(directory.path());
            let recorder = recorder(RecordSettings { encoding: Some(encoding), ..settings });
            let mut recording = recorder.start(&call(), 1, Law::Mu, 0);
            talk(&mut recording, 1..20);
            finish(&recorder, recording);
            let (sidecar, tracks) = only(directory.path());
            assert_eq!((tracks[0].len(), &*sidecar.audio.format), (3200, encoding.label()));
            let value = |s: u8| crate::media::g711::decode(s);
            assert!(value(tracks[0][10 * 160]).abs_diff(value(10)) < 600, "{encoding:?}");
        }
    }

    /// The same id is used three times, as may happen when the clock is set back.
    #[test]
    fn recordings_are_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let recorder = recorder(recordings(directory.path()));
        for _ in 0..3 {
            let mut recording = recorder.start(&call(), 1, Law::Mu, 0);
            talk(&mut recording, 0..20);
            finish(&recorder, recording);
        }
        let mut names = Vec::new();
        let root = Root::new(directory.path().to_owned());
        library::walk(&root, &mut |path, _| {
            names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        })
        .unwrap();
        names.sort_unstable();
        assert_eq!(names, ["17-ab", "17-ab-2", "17-ab-3"]);
    }

    #[test]
    fn no_audio_is_lost_when_the_directory_is_removed_or_renamed() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("recordings");
        for gone in ["removed", "renamed"] {
            let recorder = recorder(recordings(&directory));
            let mut recording = recorder.start(&call(), 1, Law::Mu, 0);
            talk(&mut recording, 0..50);
            recorder.flush();
            match gone {
                "removed" => std::fs::remove_dir_all(&directory).unwrap(),
                _ => std::fs::rename(&directory, parent.path().join("elsewhere")).unwrap(),
            }
            talk(&mut recording, 50..100);
            finish(&recorder, recording);
            let (sidecar, tracks) = only(&directory);
            assert_eq!((tracks[0].len(), sidecar.state), (16_000, State::Complete), "{gone}");
            assert!((0..100).all(|n| tracks[0][n * 160] == n as u8), "{gone}");
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }

    #[test]
    fn symbolic_links_in_the_directory_are_not_followed() {
        let (directory, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let linked = directory.path().join("incomplete");
        std::os::unix::fs::symlink(target.path(), &linked).unwrap();
        let recorder = recorder(recordings(directory.path()));
        recorder.flush();
        assert!(recorder.trouble().is_some());
        let mut recording = recorder.start(&call(), 1, Law::Mu, 0);
        talk(&mut recording, 0..20);
        recorder.flush();
        assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 0);
        // recovers without a restart
        std::fs::remove_file(&linked).unwrap();
        finish(&recorder, recording);
        assert_eq!(only(directory.path()).1[0].len(), 20 * 160);
        assert!(!directory.path().join(incomplete("17-ab", "wav")).exists());
    }

    /// The disk is not mounted, so the parent folder is missing.
    #[test]
    fn audio_that_is_not_written_is_counted() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("disk/recordings");
        let recorder = recorder(recordings(&directory));
        let mut recording = recorder.start(&call(), 1, Law::Mu, 0);
        talk(&mut recording, 0..700);
        recorder.flush();
        assert_eq!(recording.lost_ms(), 14_000);
        talk(&mut recording, 700..705);
        assert_eq!(recording.lost_ms(), 14_100);
        // it is written after all
        std::fs::create_dir(parent.path().join("disk")).unwrap();
        recorder.flush();
        assert_eq!(recording.lost_ms(), 0);
        finish(&recorder, recording);
        assert_eq!(only(&directory).1[0].len(), 705 * 160);
        // and a call that is still unwritten at the exit
        std::fs::rename(parent.path().join("disk"), parent.path().join("gone")).unwrap();
        let before = (counters::LOST_MS.get(), counters::FAILED.get());
        let mut recording = recorder.start(&call(), 1, Law::Mu, 0);
        talk(&mut recording, 0..133);
        recording.finish(Ending::new("drain"));
        recorder.close();
        // other tests may count as well
        assert!(counters::LOST_MS.get() - before.0 >= 2660);
        assert!(counters::FAILED.get() > before.1);
    }

    #[test]
    fn keep_free_percent_is_left_free() {
        let directory = tempfile::tempdir().unwrap();
        let settings = RecordSettings { keep_free_percent: 100.0, ..recordings(directory.path()) };
        let recorder = recorder(RecordSettings { require: true, ..settings });
        assert!(recorder.refuses()); // the disk has not been checked yet
        recorder.flush();
        let trouble = recorder.trouble().expect("there is trouble");
        assert!(trouble.contains("keep_free_percent"), "{trouble}");
        assert!(recorder.refuses());
    }
}
