//! Files below a directory. They are never created, opened or moved through a symbolic link below
//! it. Owns files.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const FOLDER_MODE: u32 = 0o750;
/// Size of the file that [`Root::probe`] writes.
const PROBE_BYTES: usize = 65_536;

/// A directory and everything below it.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

impl Root {
    pub fn new(path: PathBuf) -> Root {
        Root { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory, or a folder below it. With `make`, missing folders are created.
    ///
    /// # Errors
    /// Returns any I/O error, with the folder's path. A symbolic link below the directory is an
    /// error.
    pub fn folder(&self, relative: &Path, make: bool) -> io::Result<OwnedFd> {
        let mut path = self.path.clone();
        let with_path = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        if make {
            let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&path);
            made.map_err(|error| with_path(&path, error))?;
        }
        let root = rustix::fs::open(&path, folder_flags(), Mode::empty());
        let mut folder = root.map_err(|error| with_path(&path, error.into()))?;
        for part in relative.components() {
            let Component::Normal(name) = part else {
                return Err(io::Error::other("path leads out of the directory"));
            };
            path.push(name);
            if make {
                match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(FOLDER_MODE)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(with_path(&path, error.into())),
                }
            }
            let flags = folder_flags() | OFlags::NOFOLLOW;
            let next = rustix::fs::openat(&folder, name, flags, Mode::empty());
            folder = next.map_err(|error| with_path(&path, error.into()))?;
        }
        Ok(folder)
    }

    /// Opens the folder of a path below the directory, and returns it with the file name.
    fn parent(&self, path: &Path, make: bool) -> io::Result<(OwnedFd, String)> {
        let name = path.file_name().and_then(|n| n.to_str());
        let name = name.ok_or_else(|| io::Error::other("path without a file name"))?;
        Ok((self.folder(path.parent().unwrap_or(Path::new("")), make)?, name.to_owned()))
    }

    /// Creates a file that must not exist yet.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        let (folder, name) = self.parent(path, true)?;
        create(&folder, &name)
    }

    /// Opens a file for reading and, where permitted, writing.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        let (folder, name) = self.parent(path, false)?;
        open(&folder, &name)
    }

    /// Replaces a small file atomically: readers see either the old contents or the new.
    ///
    /// # Errors
    /// Returns any I/O error; the old file is still there then.
    pub fn replace(&self, path: &Path, text: &str, durable: bool) -> io::Result<()> {
        self.replace_with(path, durable, |file| file.write_all(text.as_bytes()))
    }

    /// Same as [`Root::replace`], with contents written by `fill`.
    ///
    /// # Errors
    /// Returns any I/O error; the old file is still there then.
    pub fn replace_with(
        &self,
        path: &Path,
        durable: bool,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        let (folder, name) = self.parent(path, true)?;
        let new = format!(".{name}.new");
        let _ = rustix::fs::unlinkat(&folder, &new, AtFlags::empty());
        let result = create(&folder, &new).and_then(|mut file| {
            fill(&mut file)?;
            if durable {
                file.sync_all()?;
            }
            Ok(rustix::fs::renameat(&folder, &new, &folder, &name)?)
        });
        if result.is_err() {
            let _ = rustix::fs::unlinkat(&folder, &new, AtFlags::empty());
        }
        result
    }

    /// Moves a file to a path that is not in use yet.
    ///
    /// # Errors
    /// Returns any I/O error, and `AlreadyExists` if the path is in use.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (old, old_name) = self.parent(from, false)?;
        let (new, new_name) = self.parent(to, true)?;
        let (o, n) = (old_name.as_str(), new_name.as_str());
        match rustix::fs::renameat_with(&old, o, &new, n, RenameFlags::NOREPLACE) {
            // the filesystem does not support NOREPLACE
            Err(Errno::INVAL | Errno::NOSYS) => {
                if rustix::fs::statat(&new, n, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Ok(rustix::fs::renameat(&old, o, &new, n)?)
            }
            other => Ok(other?),
        }
    }

    /// Syncs the folder of a path, so that moves into and out of it survive a power cut.
    pub fn sync_folder_of(&self, path: &Path) -> io::Result<()> {
        let (folder, _) = self.parent(path, false)?;
        Ok(rustix::fs::fsync(&folder)?)
    }

    pub fn exists(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(self.path.join(path)).is_ok()
    }

    /// Deletes a file.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let (folder, name) = self.parent(path, false)?;
        Ok(rustix::fs::unlinkat(&folder, &name, AtFlags::empty())?)
    }

    /// Syncs the whole filesystem, and waits for it.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel.
    pub fn sync(&self) -> io::Result<()> {
        let folder = rustix::fs::open(&self.path, folder_flags(), Mode::empty())?;
        Ok(rustix::fs::syncfs(&folder)?)
    }

    /// Returns the space that we may still use, in percent of the filesystem; `None` if unknown.
    pub fn free_percent(&self) -> Option<f64> {
        let found = rustix::fs::statvfs(&self.path).ok().filter(|found| found.f_blocks > 0)?;
        Some(100.0 * found.f_bavail as f64 / found.f_blocks as f64)
    }

    /// Checks that files can be written to a folder now, by writing one.
    ///
    /// # Errors
    /// Returns the I/O error that prevents it.
    pub fn probe(&self, folder: &Path) -> io::Result<()> {
        let folder = self.folder(folder, true)?;
        let name = format!(".probe-{}", std::process::id());
        let _ = rustix::fs::unlinkat(&folder, &name, AtFlags::empty());
        let result = create(&folder, &name).and_then(|f| f.write_all_at(&[0; PROBE_BYTES], 0));
        let _ = rustix::fs::unlinkat(&folder, &name, AtFlags::empty());
        result
    }
}

fn create(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, name, flags, FILE_MODE)?.into())
}

fn open(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let open = |access| {
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(folder, name, flags, Mode::empty())
    };
    match open(OFlags::RDWR) {
        Err(Errno::ACCESS | Errno::ROFS) => Ok(open(OFlags::RDONLY)?.into()),
        other => Ok(other?.into()),
    }
}

/// Locks a file. On filesystems without locking this succeeds: no other process is assumed.
///
/// # Errors
/// Returns `WouldBlock` if another process holds the lock.
pub fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}
