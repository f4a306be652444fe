//! The recordings' directory. Files are created under `incomplete/`, and moved to their place when
//! they are complete. Files below the directory are never created, opened or moved through a
//! symbolic link. Owns files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tracing::warn;

use crate::folder::{Root, lock};
use crate::record::layout::INCOMPLETE;
use crate::record::settings::RecordSettings;
use crate::record::sidecar::Sidecar;
use crate::record::wav::Encoding;

/// Bytes of a file that are read or filled at a time.
const PIECE: usize = 65_536;

/// Returns the recordings' directory.
pub fn root(settings: &RecordSettings) -> Root {
    let directory = settings.directory.clone();
    if settings.require_mount { Root::on_mount(directory) } else { Root::new(directory) }
}

/// Returns the path `incomplete/ID.wav` or `incomplete/ID.json`.
pub fn incomplete(id: &str, ending: &str) -> PathBuf {
    Path::new(INCOMPLETE).join(format!("{id}.{ending}"))
}

/// Appends an extension to a path; dots already in the name are kept.
pub fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// The files of a recording in progress. The audio file is locked, so that another process does not
/// take it for a leftover of a crash.
pub struct Part {
    root: Root,
    id: String,
    /// Text of the sidecar as of the start, for the repair after a crash.
    sidecar_text: String,
    encoding: Encoding,
    file: File,
    /// Bytes of samples in the file.
    data: u64,
    /// Final path, once the files are prepared for it and until they have been moved.
    place: Option<PathBuf>,
    /// Hash of the whole file, and the value of `data` that it belongs to.
    hash: Option<(u64, String)>,
}

/// Returns true if the file exists, is not being written, and contains no audio.
fn is_empty(root: &Root, path: &Path) -> bool {
    let small = |file: &File| file.metadata().is_ok_and(|m| m.len() <= 58);
    root.open(path).is_ok_and(|file| small(&file) && lock(&file).is_ok())
}

impl Part {
    /// Creates `incomplete/ID.wav` and `incomplete/ID.json`, or neither.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel.
    pub fn create(
        root: &Root,
        id: &str,
        sidecar_text: String,
        encoding: Encoding,
    ) -> io::Result<Part> {
        let (path, json) = (incomplete(id, "wav"), incomplete(id, "json"));
        let file = match root.create(&path) {
            // left by a failed attempt that could not be cleaned up
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_empty(root, &path) => {
                root.remove(&path)?;
                root.create(&path)?
            }
            other => other?,
        };
        let made = lock(&file)
            .and_then(|()| file.write_all_at(&encoding.header(2, 0), 0))
            .and_then(|()| root.replace(&json, &sidecar_text, false));
        if let Err(error) = made {
            let _ = root.remove(&path);
            return Err(error);
        }
        let (root, id) = (root.clone(), id.to_owned());
        Ok(Part { root, id, sidecar_text, encoding, file, data: 0, place: None, hash: None })
    }

    /// Takes over a recording left by a crash, with all whole samples in its file.
    ///
    /// # Errors
    /// Returns any I/O error, `WouldBlock` if another process is still writing it, and `NotFound`
    /// if it has just finished it.
    pub fn adopt(
        root: &Root,
        id: &str,
        sidecar_text: String,
        encoding: Encoding,
    ) -> io::Result<Part> {
        let file = root.open(&incomplete(id, "wav"))?;
        lock(&file)?;
        let data = file.metadata()?.len().saturating_sub(encoding.header_bytes());
        let data = data - data % (2 * encoding.sample_bytes());
        let (root, id) = (root.clone(), id.to_owned());
        let part = Part { root, id, sidecar_text, encoding, file, data, place: None, hash: None };
        // it may have been moved between the opening and the lock
        match part.stands_at(&incomplete(&part.id, "wav"))? {
            true => Ok(part),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Returns the number of samples per channel.
    pub fn samples(&self) -> u64 {
        self.data / (2 * self.encoding.sample_bytes())
    }

    /// Writes samples at position `at`, counted in samples per channel, and updates the header. Any
    /// gap before that position is filled with silence. After an error, the same call can be
    /// repeated.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel.
    pub fn write(&mut self, at: u64, samples: &[u8]) -> io::Result<()> {
        if self.file.metadata()?.nlink() == 0 {
            self.rescue()?;
        }
        let start = at * 2 * self.encoding.sample_bytes();
        let head = self.encoding.header_bytes();
        while self.data < start {
            let piece = (start - self.data).min(PIECE as u64);
            let silence = vec![self.encoding.silence(); piece as usize];
            self.file.write_all_at(&silence, head + self.data)?;
            self.data += piece;
        }
        self.file.write_all_at(samples, head + start)?;
        self.data = self.data.max(start + samples.len() as u64);
        self.file.write_all_at(&self.encoding.header(2, self.data), 0)
    }

    /// Recreates the file after it or its folder was deleted, from the deleted file that we still
    /// have open.
    fn rescue(&mut self) -> io::Result<()> {
        let mut new = Part::create(&self.root, &self.id, self.sidecar_text.clone(), self.encoding)?;
        let copied = (|| {
            self.file.seek(SeekFrom::Start(0))?;
            new.file.seek(SeekFrom::Start(0))?;
            io::copy(&mut self.file, &mut new.file)
        })();
        if let Err(error) = copied {
            let _ = self.root.remove(&incomplete(&self.id, "wav"));
            return Err(error);
        }
        self.file = new.file;
        Ok(())
    }

    /// Moves the recording and its sidecar to their place, and returns the final path. `announce`
    /// is called once both files are complete and the path is known, just before they are moved.
    /// After an error, the call can be repeated.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel or from `announce`.
    pub fn publish(
        &mut self,
        sidecar: &mut Sidecar,
        path: &Path,
        durable: bool,
        announce: impl Fn(&Path) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        let place = match self.place.take() {
            Some(place) => place,
            None => {
                let place = free_name(&self.root, path)?;
                self.prepare(sidecar, &place, durable)?;
                place
            }
        };
        announce(&place)?;
        self.place = Some(place.clone());
        let (from, to) = (incomplete(&self.id, "wav"), with_ending(&place, "wav"));
        if self.root.exists(&from)
            && let Err(error) = self.root.rename(&from, &to)
        {
            if error.kind() == io::ErrorKind::AlreadyExists {
                self.place = None; // the name was taken meanwhile: choose another
            }
            return Err(error);
        }
        if !self.stands_at(&to)? {
            self.place = None;
            return Err(io::Error::other("audio file disappeared; writing it again"));
        }
        // with its sidecar in place, others may use or delete the recording at any time
        move_pair(&self.root, &self.id, &place, durable)?;
        Ok(place)
    }

    /// Completes both files under `incomplete/`: the WAV header, and the final sidecar.
    fn prepare(&mut self, sidecar: &mut Sidecar, place: &Path, durable: bool) -> io::Result<()> {
        if !self.stands_at(&incomplete(&self.id, "wav"))? {
            self.rescue()?;
        }
        self.file.write_all_at(&self.encoding.header(2, self.data), 0)?;
        let length = self.encoding.header_bytes() + self.data;
        if self.file.metadata()?.len() > length {
            self.file.set_len(length)?; // cuts an incomplete sample left by a crash
        }
        if durable {
            self.file.sync_data()?;
        }
        let name = with_ending(place, "wav");
        sidecar.path = place.to_string_lossy().into_owned();
        let audio = &mut sidecar.audio;
        audio.file = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.encoding.label().clone_into(&mut audio.format);
        (audio.samples, audio.bytes) = (self.data / (2 * self.encoding.sample_bytes()), length);
        audio.sha256 = self.sha256()?;
        self.root.replace(&incomplete(&self.id, "json"), &sidecar.text(), durable)
    }

    /// Returns true if the path leads to the file that we have open, and not to another.
    fn stands_at(&self, path: &Path) -> io::Result<bool> {
        let held = self.file.metadata()?;
        let named = std::fs::symlink_metadata(self.root.path().join(path));
        Ok(named.is_ok_and(|n| (n.dev(), n.ino()) == (held.dev(), held.ino())))
    }

    /// Returns the hash of the file, which is read only once even if moving it is tried repeatedly.
    fn sha256(&mut self) -> io::Result<String> {
        if let Some((_, hash)) = self.hash.as_ref().filter(|(data, _)| *data == self.data) {
            return Ok(hash.clone());
        }
        self.file.seek(SeekFrom::Start(0))?;
        let hash = sha256(&self.file)?;
        self.hash = Some((self.data, hash.clone()));
        Ok(hash)
    }
}

/// Moves `incomplete/ID.wav` and then `incomplete/ID.json` to their place. A file that has already
/// been moved is skipped.
///
/// # Errors
/// Returns any I/O error from the kernel.
pub fn move_pair(root: &Root, id: &str, path: &Path, durable: bool) -> io::Result<()> {
    for ending in ["wav", "json"] {
        let from = incomplete(id, ending);
        if root.exists(&from) {
            let to = with_ending(path, ending);
            match root.rename(&from, &to) {
                // another process repaired it at the same moment
                Err(error) if error.kind() == io::ErrorKind::NotFound && root.exists(&to) => {}
                other => other?,
            }
        }
    }
    if durable {
        // both files are in place, so a failed sync does not fail the move
        let folders = [with_ending(path, "wav"), incomplete(id, "wav")];
        let synced = folders.iter().try_for_each(|folder| root.sync_folder_of(folder));
        if let Err(error) = synced.or_else(not_found) {
            warn!(recording = id, %error, "recording moved, but its folder not synced to disk");
        }
    }
    Ok(())
}

fn not_found(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Returns the first unused path: the given one, or the one with -2, -3, … appended.
fn free_name(root: &Root, path: &Path) -> io::Result<PathBuf> {
    let taken = |p: &Path| ["wav", "json"].iter().any(|e| root.exists(&with_ending(p, e)));
    let others = (2..1000).map(|n| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("-{n}"));
        PathBuf::from(name)
    });
    let mut all = std::iter::once(path.to_owned()).chain(others);
    all.find(|p| !taken(p)).ok_or_else(|| io::ErrorKind::AlreadyExists.into())
}

/// Returns the SHA-256 in hex.
///
/// # Errors
/// Returns any error from the reader.
pub fn sha256(mut reader: impl Read) -> io::Result<String> {
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match reader.read(&mut piece)? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
