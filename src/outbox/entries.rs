//! The entries of an outbox on disk: one JSON file per item, named after its id. Owns files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::folder::{self, Root};

/// The entries in one folder.
pub struct Entries<'a> {
    root: &'a Root,
    /// The folder, relative to the root.
    folder: &'static str,
}

/// An entry as its file shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub id: String,
    /// When it was written: time since 1970.
    pub since: Duration,
    pub bytes: u64,
}

impl<'a> Entries<'a> {
    pub fn new(root: &'a Root, folder: &'static str) -> Entries<'a> {
        Entries { root, folder }
    }

    fn path(&self, id: &str) -> PathBuf {
        Path::new(self.folder).join(format!("{id}.json"))
    }

    /// The ids of all entries; empty if the folder cannot be read.
    pub fn ids(&self) -> Vec<String> {
        let folder = self.root.path().join(self.folder);
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let names = names.filter(|name| !name.starts_with('.'));
        names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect()
    }

    /// All entries, without reading them.
    ///
    /// # Errors
    /// Returns the I/O error if the folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.root.path().join(self.folder))?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let id = name.strip_suffix(".json").filter(|id| !id.starts_with('.'));
            let (Some(id), Ok(file)) = (id, entry.metadata()) else { continue };
            let since = file.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let since = since.unwrap_or_default();
            all.push(Found { id: id.to_owned(), since, bytes: file.len() });
        }
        Ok(all)
    }

    /// Writes an entry, in place of an older one. `durable`: it survives a power cut.
    ///
    /// # Errors
    /// Returns any I/O error.
    pub fn save(&self, id: &str, entry: &impl Serialize, durable: bool) -> io::Result<()> {
        let text = serde_json::to_string(entry).map_err(io::Error::other)?;
        self.root.replace(&self.path(id), &text, durable)
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// Returns any I/O error, and `InvalidData` if the file is not an entry.
    pub fn load<E: DeserializeOwned>(&self, id: &str) -> io::Result<E> {
        let text = std::fs::read(self.root.path().join(self.path(id)))?;
        serde_json::from_slice(&text).map_err(|error| self.invalid(id, &error))
    }

    /// The error for an entry that cannot be used.
    pub fn invalid(&self, id: &str, why: &dyn std::fmt::Display) -> io::Error {
        let file = self.path(id);
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", file.display()))
    }

    /// Deletes an entry. One that is already gone is not an error.
    ///
    /// # Errors
    /// Returns any other I/O error.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        match self.root.remove(&self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Locks the outbox, so that only one process sends. The lock lasts until the file is closed.
    ///
    /// # Errors
    /// Returns `WouldBlock` if another process has the lock, and any I/O error.
    pub fn lock(&self) -> io::Result<File> {
        let path = Path::new(self.folder).join(".lock");
        let file = self.root.create(&path).or_else(|_| self.root.open(&path))?;
        folder::lock(&file)?;
        Ok(file)
    }
}
