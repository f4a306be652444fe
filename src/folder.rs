//! Files below a directory. They are never created, opened or moved through a symbolic link below
//! it. Owns files.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use tracing::info;

const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const FOLDER_MODE: u32 = 0o750;
/// Size of the file that [`Root::probe`] writes.
const PROBE_BYTES: usize = 65_536;

/// A directory and everything below it.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    /// True once the directory was found outside the filesystem of `/`, or must be there. If it is
    /// on that filesystem later, its disk is not mounted.
    mounted: Arc<AtomicBool>,
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

impl Root {
    pub fn new(path: PathBuf) -> Root {
        Root { path, mounted: Arc::default() }
    }

    /// A directory that must not be on the filesystem of `/`, because it belongs on a mounted disk.
    pub fn on_mount(path: PathBuf) -> Root {
        Root { path, mounted: Arc::new(AtomicBool::new(true)) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if the directory, or the one it is to be created in, is on the filesystem of `/`
    /// although it was on another before.
    fn check_mount(&self, device: u64) -> io::Result<()> {
        if device != std::fs::metadata("/")?.dev() {
            self.mounted.store(true, Ordering::Relaxed);
        } else if self.mounted.load(Ordering::Relaxed) {
            return Err(io::Error::other("its disk is not mounted"));
        }
        Ok(())
    }

    /// Creates the directory. Its parent is never created: it may be on a disk that is not mounted.
    fn make(&self) -> io::Result<()> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = std::fs::metadata(parent.unwrap_or(Path::new(".")));
        let parent = parent.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let why = "its parent folder does not exist; mount the disk, or create the folder";
                io::Error::new(io::ErrorKind::NotFound, why)
            }
            _ => error,
        })?;
        self.check_mount(parent.dev())?;
        DirBuilder::new().mode(FOLDER_MODE).create(&self.path)?;
        info!(directory = %self.path.display(), "directory created");
        Ok(())
    }

    /// Opens the directory, or a folder below it. With `make`, missing folders are created, but not
    /// the directory's parent.
    ///
    /// # Errors
    /// Returns any I/O error, with the folder's path. A symbolic link below the directory is an
    /// error, and so is a directory whose disk is not mounted any more.
    pub fn folder(&self, relative: &Path, make: bool) -> io::Result<OwnedFd> {
        let mut path = self.path.clone();
        let with_path = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        if make && !path.exists() {
            self.make().or_else(already_there).map_err(|error| with_path(&path, error))?;
        }
        let root = rustix::fs::open(&path, folder_flags(), Mode::empty());
        let mut folder = root.map_err(|error| with_path(&path, error.into()))?;
        let device = rustix::fs::fstat(&folder).map_err(|error| with_path(&path, error.into()))?;
        self.check_mount(device.st_dev).map_err(|error| with_path(&path, error))?;
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

    /// The temporary file that replaces a file. A crash may leave it behind.
    pub fn new_name(path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(new_name(&name))
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
        let new = new_name(&name);
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

    /// Returns the space that we may still use, and the size of the filesystem, in bytes; `None` if
    /// unknown.
    pub fn space(&self) -> Option<(u64, u64)> {
        let found = rustix::fs::statvfs(&self.path).ok().filter(|found| found.f_blocks > 0)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some((bytes(found.f_bavail), bytes(found.f_blocks)))
    }

    /// Returns how much of the filesystem we may still use, in percent; `None` if unknown.
    pub fn free_percent(&self) -> Option<f64> {
        self.space().map(|(free, size)| 100.0 * free as f64 / size.max(1) as f64)
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

fn new_name(name: &str) -> String {
    format!(".{name}.new")
}

fn already_there(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

/// Returns true if `inner` is `outer` or below it, through symbolic links, `..` and bind mounts of
/// a folder on the way. Neither has to exist yet.
pub fn is_within(inner: &Path, outer: &Path) -> bool {
    let (inner, outer) = (resolved(inner), resolved(outer));
    let id = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let outer_id = id(&outer);
    let same = |path: &Path| path == outer || (outer_id.is_some() && id(path) == outer_id);
    inner.ancestors().any(same)
}

/// The path without symbolic links and `..`, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (mut known, mut rest) = (PathBuf::new(), PathBuf::new());
    for part in path.components() {
        match part {
            Component::ParentDir if !rest.as_os_str().is_empty() => {
                rest.pop();
            }
            Component::ParentDir => {
                known.pop();
            }
            part => rest.push(part),
        }
        if let Ok(found) = known.join(&rest).canonicalize() {
            (known, rest) = (found, PathBuf::new());
        }
    }
    known.join(rest)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_is_recognised_by_any_of_its_names() {
        let lab = tempfile::tempdir().unwrap();
        let at = |path: &str| lab.path().join(path);
        std::fs::create_dir_all(at("rec/day")).unwrap();
        std::fs::create_dir(at("other")).unwrap();
        symlink(at("rec"), at("link")).unwrap();
        symlink(at("rec/day"), at("other/day")).unwrap();
        let rec = at("rec");
        let names = ["rec", "rec/", "rec/day", "rec/new/newer", "link", "link/new", "other/day/x"];
        let dotted = ["other/../rec", "other/../rec/./day/", "missing/../rec/x", "other/day/.."];
        for inner in names.iter().chain(&dotted) {
            assert!(is_within(&at(inner), &rec), "{inner}");
        }
        for outer in ["other", "other/new", "record", "rec/..", "rec/../new", "link/../x", ""] {
            assert!(!is_within(&at(outer), &rec), "{outer}");
        }
        assert!(is_within(&at("rec/day"), &at("link")) && is_within(&at("new/a"), &at("new")));
    }

    #[test]
    fn only_the_last_part_of_the_path_is_created() {
        let lab = tempfile::tempdir().unwrap();
        let root = Root::new(lab.path().join("disk/recordings"));
        let error = root.create(Path::new("a/b")).unwrap_err();
        assert!(error.to_string().contains("parent folder does not exist"), "{error}");
        assert!(!lab.path().join("disk").exists());
        std::fs::create_dir(lab.path().join("disk")).unwrap();
        root.create(Path::new("a/b")).unwrap();
    }

    /// `/dev/shm` serves as the mounted disk.
    #[test]
    fn a_directory_whose_disk_is_not_mounted_is_not_used() {
        let (lab, shm) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
        if device(lab.path()) != device(Path::new("/")) || device(shm.path()) == device(lab.path())
        {
            return; // another layout of disks
        }
        let disk = lab.path().join("disk");
        let mount = |to: &Path| {
            let _ = std::fs::remove_file(&disk);
            symlink(to, &disk).unwrap();
        };
        let root = Root::new(disk.join("recordings"));
        mount(shm.path());
        root.create(Path::new("a")).unwrap();
        let empty = lab.path().join("mount point");
        std::fs::create_dir(&empty).unwrap();
        mount(&empty);
        for path in ["b", "c/d"] {
            let error = root.create(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains("not mounted"), "{error}");
        }
        assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
        // the directory itself may be the mount point
        let itself = Root::on_mount(disk.clone());
        assert!(itself.create(Path::new("b")).is_err());
        mount(shm.path());
        root.create(Path::new("b")).unwrap();
        itself.create(Path::new("b")).unwrap();
    }
}
