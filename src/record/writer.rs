//! Writes recordings: calls hand over blocks of a second, one thread writes them. A call never
//! waits: what the thread cannot take becomes silence of the same length. Owns files.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use tracing::error;

use crate::media::frame::{FRAME_SAMPLES, SILENCE, Samples};
use crate::record::wav;
use crate::telemetry::COUNTERS;

/// Frames in a block.
const BLOCK_FRAMES: u64 = 50;
/// Blocks that may wait for the thread.
const QUEUE: usize = 4096;

/// Which channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    Caller,
    Ai,
}

enum Job {
    /// Interleaved samples for the file, at this offset behind the header.
    Block {
        path: PathBuf,
        offset: u64,
        samples: Vec<u8>,
    },
    Sync(SyncSender<()>),
}

/// Hands out [`Recording`]s; cloned for every PBX.
#[derive(Clone)]
pub struct Recorder {
    directory: PathBuf,
    jobs: SyncSender<Job>,
}

impl Recorder {
    /// Starts the writer thread.
    ///
    /// # Errors
    /// When the directory does not exist and cannot be made.
    pub fn new(directory: PathBuf) -> io::Result<Recorder> {
        std::fs::create_dir_all(&directory)?;
        let (jobs, queue) = sync_channel(QUEUE);
        thread::Builder::new().name("recorder".to_owned()).spawn(move || write_all(&queue))?;
        Ok(Recorder { directory, jobs })
    }

    /// A recording for the call `id`, an id of ours: letters, digits and dashes.
    pub fn start(&self, id: &str) -> Recording {
        let path = self.directory.join(format!("{id}.wav"));
        Recording { path, jobs: self.jobs.clone(), block: 0, samples: empty_block(), frames: 0 }
    }

    /// Waits until everything handed over so far is written.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.jobs.send(Job::Sync(done)).is_ok() {
            let _ = wait.recv();
        }
    }
}

/// One call's recording.
pub struct Recording {
    path: PathBuf,
    jobs: SyncSender<Job>,
    /// Number of the block that is being filled; the one after it is started.
    block: u64,
    samples: Vec<u8>,
    /// Highest frame seen, plus one.
    frames: u64,
}

/// Two blocks: the tracks may be a few frames apart.
fn empty_block() -> Vec<u8> {
    vec![SILENCE; 2 * BLOCK_FRAMES as usize * FRAME_SAMPLES * 2]
}

impl Recording {
    /// Takes frame number `index` of a track.
    pub fn tap(&mut self, track: Track, index: u64, frame: &Samples) {
        while index >= (self.block + 2) * BLOCK_FRAMES {
            self.hand_over();
        }
        self.frames = self.frames.max(index + 1);
        let Some(slot) = index.checked_sub(self.block * BLOCK_FRAMES) else { return };
        let start = slot as usize * FRAME_SAMPLES * 2 + usize::from(track == Track::Ai);
        let places = self.samples[start..].iter_mut().step_by(2);
        places.zip(frame).for_each(|(place, sample)| *place = *sample);
    }

    fn hand_over(&mut self) {
        let half = self.samples.len() / 2;
        let mut block = empty_block();
        block[..half].copy_from_slice(&self.samples[half..]);
        let mut full = std::mem::replace(&mut self.samples, block);
        let first = self.block * BLOCK_FRAMES;
        let wanted = (self.frames.saturating_sub(first) as usize * FRAME_SAMPLES * 2).min(half);
        full.truncate(wanted);
        let offset = self.block * half as u64;
        self.block += 1;
        let job = Job::Block { path: self.path.clone(), offset, samples: full };
        if self.jobs.try_send(job).is_err() {
            COUNTERS.recording_errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hands the rest over; returns the file's path.
    pub fn finish(mut self) -> PathBuf {
        while self.block * BLOCK_FRAMES < self.frames {
            self.hand_over();
        }
        self.path
    }
}

fn write_all(queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        match job {
            Job::Block { path, offset, samples } => {
                if let Err(why) = write_block(&path, offset, &samples) {
                    COUNTERS.recording_errors.fetch_add(1, Ordering::Relaxed);
                    error!(file = %path.display(), %why, "recording cannot be written");
                }
            }
            Job::Sync(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// Writes a block in its place and the header for what the file holds now.
fn write_block(path: &PathBuf, offset: u64, samples: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file: File = options.write(true).create(true).truncate(false).mode(0o640).open(path)?;
    let end = file.metadata()?.len().max(wav::HEADER_BYTES as u64);
    let start = wav::HEADER_BYTES as u64 + offset;
    file.seek(SeekFrom::Start(end))?;
    let missing = start.saturating_sub(end) as usize;
    io::copy(&mut io::Read::take(io::repeat(SILENCE), missing as u64), &mut file)?;
    file.seek(SeekFrom::Start(start))?;
    file.write_all(samples)?;
    let data = start + samples.len() as u64 - wav::HEADER_BYTES as u64;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&wav::header(2, u32::try_from(data).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tracks_stand_side_by_side() {
        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(directory.path().to_owned()).unwrap();
        let mut recording = recorder.start("call-1");
        for index in 0..130u64 {
            recording.tap(Track::Caller, index, &[index as u8; 160]);
            if !(60..70).contains(&index) {
                recording.tap(Track::Ai, index, &[200 - index as u8; 160]);
            }
        }
        let path = recording.finish();
        recorder.flush();
        let channels = wav::read(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((channels[0].len(), channels[1].len()), (130 * 160, 130 * 160));
        for index in 0..130usize {
            assert_eq!(channels[0][index * 160], index as u8);
            let ai = if (60..70).contains(&index) { SILENCE } else { 200 - index as u8 };
            assert_eq!(channels[1][index * 160 + 159], ai);
        }
    }
}
