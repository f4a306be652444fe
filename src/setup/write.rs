//! Writes the files: all of them, or none. Each is complete before it has its name, and what was
//! there before comes back if one of them fails. Owns the files of the chosen folder.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::setup::NewFile;
use crate::setup::settings::NAME;

/// The mode of new folders.
const FOLDER_MODE: u32 = 0o755;
/// The user of the installed service.
const SERVICE: &str = "trunkless";
/// The longest password file that is read.
const MAX_SECRET_BYTES: u64 = 4096;

/// A file on its way to its name.
struct Pending<'a> {
    file: &'a NewFile,
    target: PathBuf,
    new: PathBuf,
    /// A second name of the file that is replaced.
    before: Option<PathBuf>,
    /// True once the new file has the name.
    renamed: bool,
}

/// Returns the paths of files that exist and have other contents.
pub fn differing(directory: &Path, files: &[NewFile]) -> Vec<PathBuf> {
    let paths = files.iter().map(|file| (directory.join(&file.path), file));
    let differs = |path: &Path, file: &NewFile| {
        fs::symlink_metadata(path).is_ok()
            && fs::read(path).ok().as_deref() != Some(file.text.as_bytes())
    };
    paths.filter(|(path, file)| differs(path, file)).map(|(path, _)| path).collect()
}

/// Returns a secret of an earlier run.
pub fn secret(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_SECRET_BYTES).read_to_string(&mut text).ok()?;
    let secret = text.trim_end_matches(['\r', '\n']);
    (!secret.is_empty()).then(|| secret.to_owned())
}

/// Writes all files below the directory. An earlier configuration is kept as `trunkless.toml.old`.
///
/// # Errors
/// Returns the first error, with the path. Nothing has changed then.
pub fn write(directory: &Path, files: &[NewFile]) -> Result<(), String> {
    let mut folders = Vec::new();
    let mut pending = Vec::new();
    let result = make_folders(directory, files, &mut folders)
        .and_then(|()| files.iter().try_for_each(|file| prepare(directory, file, &mut pending)))
        .and_then(|()| rename_all(&mut pending));
    match &result {
        Ok(()) => pending.iter().for_each(finish),
        Err(_) => {
            pending.iter().for_each(undo);
            // a folder that is not empty by now belongs to someone else as well
            folders.iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
        }
    }
    result
}

fn failed(path: &Path) -> impl Fn(io::Error) -> String + '_ {
    move |why| {
        let cure = match why.kind() {
            ErrorKind::PermissionDenied => "; run this as root, or choose another --directory",
            ErrorKind::NotFound => "; create the folder above it, or choose another --directory",
            _ => "",
        };
        format!("{}: cannot be written: {why}{cure}; nothing was changed", path.display())
    }
}

fn make_folders(
    directory: &Path,
    files: &[NewFile],
    made: &mut Vec<PathBuf>,
) -> Result<(), String> {
    let below = files.iter().filter_map(|file| Path::new(&file.path).parent());
    let mut wanted: Vec<PathBuf> = below.map(|folder| directory.join(folder)).collect();
    wanted.push(directory.to_owned());
    wanted.sort();
    wanted.dedup();
    for folder in wanted {
        match DirBuilder::new().mode(FOLDER_MODE).create(&folder) {
            Ok(()) => made.push(folder),
            Err(why) if why.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(why) => return Err(failed(&folder)(why)),
        }
    }
    Ok(())
}

/// Writes a file under a temporary name beside its own.
fn prepare<'a>(
    directory: &Path,
    file: &'a NewFile,
    pending: &mut Vec<Pending<'a>>,
) -> Result<(), String> {
    let target = directory.join(&file.path);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let new = target.with_file_name(format!(".{name}.new-{}", std::process::id()));
    if target.is_dir() {
        return Err(failed(&target)(io::Error::other("it is a folder")));
    }
    let write = || -> io::Result<()> {
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        out.write_all(file.text.as_bytes())?;
        let is_root = rustix::process::geteuid().is_root();
        if let Some((user, group)) = service_user().filter(|_| file.for_service && is_root) {
            std::os::unix::fs::fchown(&out, Some(user), Some(group))?;
        }
        out.set_permissions(Permissions::from_mode(file.mode))?;
        out.sync_all()
    };
    let written = write().map_err(failed(&target));
    pending.push(Pending { file, target, new, before: None, renamed: false });
    written
}

/// The user and group of the installed service, if there is one.
fn service_user() -> Option<(u32, u32)> {
    user_in(&fs::read_to_string("/etc/passwd").ok()?)
}

fn user_in(passwd: &str) -> Option<(u32, u32)> {
    let fields = |line: &str| -> Option<(u32, u32)> {
        let mut fields = line.strip_prefix(SERVICE)?.strip_prefix(':')?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    passwd.lines().find_map(fields)
}

/// Gives the files their names. The configuration is the last one.
fn rename_all(pending: &mut [Pending<'_>]) -> Result<(), String> {
    pending.sort_by_key(|pending| pending.file.path == NAME);
    for one in pending {
        if fs::symlink_metadata(&one.target).is_ok() {
            let name = one.target.file_name().unwrap_or_default().to_string_lossy();
            let before = format!(".{name}.before-{}", std::process::id());
            let before = one.target.with_file_name(before);
            fs::hard_link(&one.target, &before).map_err(failed(&one.target))?;
            one.before = Some(before);
        }
        fs::rename(&one.new, &one.target).map_err(failed(&one.target))?;
        one.renamed = true;
    }
    Ok(())
}

/// Removes what only [`undo`] would need.
fn finish(one: &Pending<'_>) {
    let Some(before) = &one.before else { return };
    let is_same = fs::read(before).is_ok_and(|old| old == one.file.text.as_bytes());
    if one.file.path == NAME && !is_same {
        let _ = fs::rename(before, one.target.with_file_name(format!("{NAME}.old")));
    } else {
        let _ = fs::remove_file(before);
    }
}

/// Puts back what was there before.
fn undo(one: &Pending<'_>) {
    let renamed = one.renamed;
    match &one.before {
        Some(before) if renamed => drop(fs::rename(before, &one.target)),
        Some(before) => drop(fs::remove_file(before)),
        None if renamed => drop(fs::remove_file(&one.target)),
        None => {}
    }
    let _ = fs::remove_file(&one.new);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str, mode: u32) -> NewFile {
        NewFile { path: path.to_owned(), text: text.to_owned(), mode, for_service: false }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_have_their_modes_and_the_old_configuration_is_kept() {
        let lab = tempfile::tempdir().unwrap();
        let folder = lab.path().join("new");
        let files = |text| [file(NAME, text, 0o644), file("pbx/secret", text, 0o600)];
        write(&folder, &files("one")).unwrap();
        assert!(differing(&folder, &files("one")).is_empty());
        assert_eq!(differing(&folder, &files("two")).len(), 2);
        write(&folder, &files("one")).unwrap();
        assert_eq!(names(&folder), ["pbx", NAME], "the same contents need no second file");
        write(&folder, &files("two")).unwrap();
        assert_eq!(names(&folder), ["pbx", NAME, "trunkless.toml.old"]);
        assert_eq!(fs::read_to_string(folder.join("trunkless.toml.old")).unwrap(), "one");
        for (path, mode) in [(NAME, 0o644), ("pbx/secret", 0o600)] {
            let found = fs::metadata(folder.join(path)).unwrap();
            assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
            assert_eq!(fs::read_to_string(folder.join(path)).unwrap(), "two");
        }
        assert_eq!(names(&folder.join("pbx")), ["secret"]);
        assert_eq!(secret(&folder.join("pbx/secret")).as_deref(), Some("two"));
        assert_eq!(secret(&folder.join("none")), None);
    }

    #[test]
    fn a_failure_leaves_everything_as_it_was() {
        let lab = tempfile::tempdir().unwrap();
        let folder = lab.path().join("new");
        // a file cannot replace a folder, which shows before anything has its name
        let files = [file("a", "1", 0o600), file("b/c", "1", 0o600), file("b", "1", 0o600)];
        let why = write(&folder, &files).unwrap_err();
        assert!(why.contains("nothing was changed"), "{why}");
        assert!(!folder.exists());

        write(&folder, &[file("a", "old", 0o600), file("new", "x", 0o600)]).unwrap();
        // renaming onto `new/` fails after `a` has been replaced
        fs::remove_file(folder.join("new")).unwrap();
        let mut pending = Vec::new();
        let files = [file("a", "new", 0o600), file("n", "1", 0o600), file("new", "1", 0o600)];
        for one in &files {
            prepare(&folder, one, &mut pending).unwrap();
        }
        fs::create_dir(folder.join("new")).unwrap();
        assert!(rename_all(&mut pending).is_err());
        pending.iter().for_each(undo);
        assert_eq!(names(&folder), ["a", "new"]);
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "old");
    }

    #[test]
    fn the_user_of_the_service_is_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ntrunkless2:x:7:8::/:\n\
                      trunkless:x:998:997::/nonexistent:/usr/sbin/nologin\n";
        assert_eq!(user_in(passwd), Some((998, 997)));
        assert_eq!(user_in("root:x:0:0::/root:/bin/sh\n"), None);
    }
}
