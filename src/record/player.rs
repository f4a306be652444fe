//! Reads finished recordings for those who listen to them. Owns file reading.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::folder::Root;
use crate::media::g711::Law;
use crate::record::settings::RecordSettings;
use crate::record::wav::Encoding;
use crate::record::{disk, library};

/// Paths of recordings that are kept, because the search for one reads all folders.
const MAX_KNOWN: usize = 64;
/// Bytes that are read at once for a waveform.
const PIECE: usize = 65_536;
/// The largest value of a waveform.
const FULL: f64 = 100.0;

/// The finished recordings of a directory.
#[derive(Debug)]
pub struct Player {
    root: Root,
    /// Ids of recordings with their paths, newest last.
    known: Mutex<VecDeque<(String, PathBuf)>>,
}

/// A recording that is being read.
#[derive(Debug)]
pub struct Opened {
    /// The contents of its sidecar.
    pub sidecar: Value,
    /// Size of the audio file.
    pub bytes: u64,
    file: File,
    encoding: Encoding,
}

impl Player {
    pub fn new(settings: &RecordSettings) -> Player {
        Player { root: disk::root(settings), known: Mutex::default() }
    }

    /// Opens the recording with this id.
    ///
    /// # Errors
    /// Returns `NotFound` if there is no such recording, or no longer, and any other I/O error.
    pub fn open(&self, id: &str) -> io::Result<Opened> {
        let path = self.find(id)?;
        let opened = self.open_at(&path);
        if opened.is_err() {
            // it may have been moved or deleted
            self.lock().retain(|(known, _)| known != id);
        }
        opened
    }

    fn open_at(&self, path: &std::path::Path) -> io::Result<Opened> {
        let text = io::read_to_string(self.root.open(&disk::with_ending(path, "json"))?)?;
        let sidecar: Value = serde_json::from_str(&text)
            .map_err(|e| io::Error::other(format!("{}.json: {e}", path.display())))?;
        let format = sidecar["audio"]["format"].as_str().unwrap_or_default();
        let encoding = Encoding::ALL.into_iter().find(|encoding| encoding.label() == format);
        let encoding = encoding
            .ok_or_else(|| io::Error::other(format!("{}.json: no format", path.display())))?;
        let file = self.root.open(&disk::with_ending(path, "wav"))?;
        Ok(Opened { sidecar, bytes: file.metadata()?.len(), file, encoding })
    }

    fn find(&self, id: &str) -> io::Result<PathBuf> {
        // generated names only: no folders, and nothing hidden
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if id.is_empty() || id.starts_with('.') || !id.chars().all(plain) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if let Some((_, path)) = self.lock().iter().find(|(known, _)| known == id) {
            return Ok(path.clone());
        }
        let path = library::find(&self.root, id)?;
        let mut known = self.lock();
        if known.len() >= MAX_KNOWN {
            known.pop_front();
        }
        known.push_back((id.to_owned(), path.clone()));
        Ok(path)
    }

    /// A panic in another thread leaves the list consistent, so poisoning is ignored.
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(String, PathBuf)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    /// Reads up to `length` bytes of the audio file.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel.
    pub fn read(&self, from: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut read = 0;
        while read < length {
            match self.file.read_at(&mut bytes[read..], from + read as u64)? {
                0 => break,
                n => read += n,
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Returns the loudest sample of each of up to `points` parts of the recording, for the caller
    /// and the AI: the square root of its magnitude, from 0 to 100. Reads the whole file, but keeps
    /// only one piece of it.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel.
    pub fn waveform(&self, points: usize) -> io::Result<[Vec<u8>; 2]> {
        let (size, header) = (self.encoding.sample_bytes() as usize, self.encoding.header_bytes());
        let pairs = self.bytes.saturating_sub(header) / (2 * size as u64);
        let each = pairs.div_ceil(points.max(1) as u64).max(1);
        let mut peaks = [0, 1].map(|_| vec![0u16; pairs.div_ceil(each) as usize]);
        let mut pair = 0u64;
        loop {
            let piece = self.read(header + pair * 2 * size as u64, PIECE)?;
            if pair >= pairs || piece.len() < 2 * size {
                break;
            }
            for samples in piece.chunks_exact(2 * size) {
                let place = (pair / each) as usize;
                for (side, sample) in samples.chunks_exact(size).enumerate() {
                    let level = self.level(sample);
                    peaks[side].get_mut(place).into_iter().for_each(|p| *p = level.max(*p));
                }
                pair += 1;
            }
        }
        let shown = |peak: u16| (f64::from(peak) / 32_768.0).sqrt().mul_add(FULL, 0.5) as u8;
        Ok(peaks.map(|track| track.into_iter().map(shown).collect()))
    }

    fn level(&self, sample: &[u8]) -> u16 {
        match (self.encoding, sample) {
            (Encoding::Mu, [byte]) => Law::Mu.decode(*byte).unsigned_abs(),
            (Encoding::A, [byte]) => Law::A.decode(*byte).unsigned_abs(),
            (_, [low, high]) => i16::from_le_bytes([*low, *high]).unsigned_abs(),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn player(encoding: Encoding, left: i16, right: i16) -> (tempfile::TempDir, Player) {
        let folder = tempfile::tempdir().unwrap();
        let day = folder.path().join("2026-11-24/main");
        std::fs::create_dir_all(&day).unwrap();
        let samples: Vec<u8> = (0..30_000)
            .flat_map(|n| [if n < 15_000 { left } else { 0 }, right])
            .map(|s| Law::Mu.encode(s))
            .collect();
        let data = encoding.from_law(Law::Mu, samples);
        let mut file = encoding.header(2, data.len() as u64);
        file.extend(data);
        std::fs::write(day.join("a-1.wav"), file).unwrap();
        let sidecar = json!({"id": "a-1", "audio": {"format": encoding.label()}});
        std::fs::write(day.join("a-1.json"), sidecar.to_string()).unwrap();
        let player = Player { root: Root::new(folder.path().into()), known: Mutex::default() };
        (folder, player)
    }

    #[test]
    fn the_waveform_has_both_sides() {
        for encoding in Encoding::ALL {
            let (_folder, player) = player(encoding, -8000, 32_000);
            let opened = player.open("a-1").expect("a recording");
            let [caller, ai] = opened.waveform(100).expect("its waveform");
            assert_eq!((caller.len(), ai.len()), (100, 100), "{encoding:?}");
            assert!(caller[..50].iter().all(|v| (48..=51).contains(v)), "{encoding:?} {caller:?}");
            assert!(caller[50..].iter().all(|v| *v <= 2), "{encoding:?}");
            assert!(ai.iter().all(|v| (97..=100).contains(v)), "{encoding:?} {ai:?}");
            let header = opened.read(0, 12).expect("bytes");
            assert_eq!((&header[..4], &header[8..]), (&b"RIFF"[..], &b"WAVE"[..]));
            assert!(opened.read(opened.bytes, 12).is_ok_and(|rest| rest.is_empty()));
        }
    }

    #[test]
    fn only_ids_are_found_and_deleted_recordings_are_not() {
        let (folder, player) = player(Encoding::Mu, 0, 0);
        for bad in ["", "..", ".a", "../a-1", "2026-11-24/main/a-1", "/etc/passwd", "a-2", "a\0"] {
            let error = player.open(bad).expect_err(bad);
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{bad}");
        }
        assert!(player.open("a-1").is_ok());
        std::fs::remove_file(folder.path().join("2026-11-24/main/a-1.wav")).unwrap();
        let error = player.open("a-1").expect_err("no audio");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(player.lock().is_empty());
    }
}
