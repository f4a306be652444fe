//! Sends finished recordings: each is uploaded first, then announced to the webhook. One entry per
//! recording under `outbox/` survives a restart. A recording is sent at least once, and the store
//! holds it once. Owns files, tasks and a thread.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, sleep_until};
use tracing::{error, info, warn};

use crate::folder::Root;
use crate::outbox::entries::Entries;
use crate::outbox::schedule::{self, Schedule};
use crate::outbox::webhook::{Webhook, WebhookError};
use crate::record::disk::{incomplete, with_ending};
use crate::record::health::guarded;
use crate::record::layout::OUTBOX;
use crate::record::sidecar::{Sidecar, Upload, rfc3339};
use crate::record::upload::{FOLDER_LIMIT, UploadError, Uploader, is_local_file};
use crate::record::{counters, library, retention};

/// Give up a webhook that has failed for this long. Uploads are never given up.
const WEBHOOK_LIMIT: Duration = Duration::from_secs(3 * 86_400);
/// Wait after a notification, so that recordings that finish together are collected at once.
const GATHER: Duration = Duration::from_millis(200);
/// Interval of the scan for new entries that were not announced.
const LOOK: Duration = Duration::from_secs(60);
/// Minimum number of attempts by this process before it gives up a webhook, because the age of an
/// entry may be wrong: the system clock may have been set.
const WEBHOOK_TRIES: u32 = 10;
/// Interval between attempts to take the outbox's lock from another process.
const OTHER: Duration = Duration::from_secs(2);

/// One file under `outbox/`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Path of the recording below its directory, without an extension.
    pub path: PathBuf,
    /// Time of creation in seconds since 1970.
    pub since: u64,
    /// The store's id of a multipart upload that may be unfinished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multipart: Option<String>,
    /// URL of the audio, once it is uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded: Option<String>,
    /// The files on disk contain `uploaded` as well.
    #[serde(skip)]
    saved: bool,
    /// The webhook was accepted, or given up.
    #[serde(skip)]
    notified: bool,
}

fn entries(root: &Root) -> Entries<'_> {
    Entries::new(root, OUTBOX)
}

/// Destinations of a recording, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Store,
    Webhook,
}

impl schedule::Target for Target {
    const ALL: &'static [Target] = &[Target::Store, Target::Webhook];

    fn index(self) -> usize {
        self as usize
    }
}

/// Adds a recording to the outbox.
///
/// # Errors
/// Returns any I/O error.
pub fn put(root: &Root, id: &str, path: &Path, durable: bool) -> io::Result<()> {
    let entry = Entry { path: path.to_owned(), since: unix().as_secs(), ..Entry::default() };
    save(root, id, &entry, durable)
}

/// # Errors
/// Returns any I/O error.
pub fn save(root: &Root, id: &str, entry: &Entry, durable: bool) -> io::Result<()> {
    entries(root).save(id, entry, durable)
}

/// The ids of the recordings that are waiting.
pub fn ids(root: &Root) -> Vec<String> {
    entries(root).ids()
}

/// # Errors
/// Returns any I/O error, and `InvalidData` if the file is not an entry.
pub fn load(root: &Root, id: &str) -> io::Result<Entry> {
    let entry: Entry = entries(root).load(id)?;
    // the file may have been edited
    let inside = entry.path.components().all(|part| matches!(part, Component::Normal(_)));
    let outside = || entries(root).invalid(id, &"its path leads out of the directory");
    if inside { Ok(entry) } else { Err(outside()) }
}

fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("upload: {0}")]
    Upload(#[from] UploadError),
    #[error("webhook: {0}")]
    Webhook(#[from] WebhookError),
    #[error("{0}")]
    Disk(#[from] io::Error),
}

impl SendError {
    /// The destination that failed; `None` if the recording itself is the problem.
    fn at(&self) -> Option<Target> {
        match self {
            SendError::Upload(UploadError::Store(_)) => Some(Target::Store),
            SendError::Webhook(_) => Some(Target::Webhook),
            SendError::Upload(_) | SendError::Disk(_) => None,
        }
    }
}

/// The result of a successful attempt.
#[derive(Debug, Clone, Copy)]
struct Sent {
    /// The destination responded.
    answered: bool,
    /// The next destination.
    next: Option<Target>,
}

const DONE: Sent = Sent { answered: false, next: None };

/// Sends the recordings in the outbox.
pub struct Outbox {
    pub root: Root,
    pub uploader: Option<Uploader>,
    pub webhook: Option<Webhook>,
    /// Delete the local files of a recording once it is uploaded.
    pub delete_after: bool,
    /// Notified when a recording is added.
    pub added: Arc<Notify>,
}

/// A task's recording, its destination, its entry after the attempt, and the result.
type Tried = (String, Target, Option<Entry>, Result<Sent, SendError>);

impl Outbox {
    /// Sends on a separate thread until the handle is dropped. There, hashing and a disk that hangs
    /// hold up no call.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start(self) -> io::Result<oneshot::Sender<()>> {
        let (handle, mut dropped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let this = Arc::new(self);
        let run = move || {
            let mut serve = || {
                runtime.block_on(async {
                    tokio::select! {
                        () = this.clone().run() => {}
                        _ = &mut dropped => {}
                    }
                });
            };
            while guarded(&mut serve).is_none() {
                error!("internal error: the outbox panicked; it continues");
                thread::sleep(OTHER);
            }
            // do not wait for a read from a disk that hangs
            runtime.shutdown_background();
        };
        thread::Builder::new().name("outbox".to_owned()).spawn(run)?;
        Ok(handle)
    }

    /// Never returns.
    async fn run(self: Arc<Self>) {
        let _lock = self.lock().await;
        let this = self;
        let mut schedule = Schedule::new(this.first());
        let mut tasks: JoinSet<Tried> = JoinSet::new();
        let mut names = HashMap::new();
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if next_look <= now {
                ids(&this.root).into_iter().for_each(|id| schedule.add(id, now));
                next_look = now + LOOK;
            }
            while let Some((id, target, mut entry, failures)) = schedule.start(now) {
                let (this, name) = (this.clone(), id.clone());
                let task = tasks.spawn(async move {
                    let result = this.send(&id, target, &mut entry, failures).await;
                    (id, target, entry, result)
                });
                names.insert(task.id(), name);
            }
            counters::WAITING.set(schedule.len() as u64);
            let next = schedule.next(now).map_or(next_look, |at| at.min(next_look));
            tokio::select! {
                () = this.added.notified() => {
                    sleep(GATHER).await;
                    next_look = Instant::now();
                }
                Some(done) = tasks.join_next_with_id() => match done {
                    Ok((task, tried)) => {
                        names.remove(&task);
                        note(&mut schedule, tried);
                    }
                    // the panic hook has logged it
                    Err(fault) => if let Some(id) = names.remove(&fault.id()) {
                        counters::SEND_ERRORS.add(1);
                        schedule.failed(&id, None, Instant::now());
                    }
                },
                () = sleep_until(next.into()) => {}
            }
        }
    }

    /// Takes the lock, so that only one process sends. A second process waits until the first one,
    /// which may still have calls, has exited.
    async fn lock(&self) -> Option<File> {
        let mut notified = false;
        loop {
            match entries(&self.root).lock() {
                Ok(file) => return Some(file),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return None,
                Err(_) if !notified => {
                    notified = true;
                    let directory = self.root.path().display();
                    info!(%directory, "another process still sends recordings from here; waiting");
                }
                Err(_) => {}
            }
            sleep(OTHER).await;
        }
    }

    /// Makes one attempt to send a recording to a destination, continuing where the last one ended.
    async fn send(
        &self,
        id: &str,
        target: Target,
        kept: &mut Option<Entry>,
        failures: u32,
    ) -> Result<Sent, SendError> {
        let loaded = kept.take().map_or_else(|| load(&self.root, id), Ok);
        let entry = match loaded {
            Ok(entry) => kept.insert(entry),
            // another process has sent it
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DONE),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return self.restore(id, &error);
            }
            Err(error) => return Err(error.into()),
        };
        let mut sidecar = match library::read(&self.root, &entry.path) {
            Ok(sidecar) => sidecar,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.give_up(id, entry);
            }
            Err(error) => return Err(error.into()),
        };
        match target {
            Target::Store => self.upload(id, entry, &mut sidecar).await,
            Target::Webhook => {
                let answered = self.notify(id, entry, &sidecar, failures).await?;
                self.finish(id, entry).await?;
                Ok(Sent { answered, next: None })
            }
        }
    }

    async fn upload(
        &self,
        id: &str,
        entry: &mut Entry,
        sidecar: &mut Sidecar,
    ) -> Result<Sent, SendError> {
        let mut answered = false;
        if let Some(uploader) = self.uploader.as_ref().filter(|_| entry.uploaded.is_none()) {
            let url = match uploader.audio(&self.root, id, entry, sidecar).await {
                Err(UploadError::Disk(error)) if error.kind() == io::ErrorKind::NotFound => {
                    // the audio is moved before its sidecar
                    return self.give_up(id, entry);
                }
                other => other?,
            };
            sidecar.upload = Some(Upload { url: url.clone(), at: rfc3339(unix()) });
            uploader.sidecar(&entry.path, sidecar.text()).await?;
            (entry.uploaded, entry.multipart) = (Some(url.clone()), None);
            answered = true;
            counters::UPLOADS.add(1);
            info!(recording = id, url, "recording uploaded");
        }
        let saved = self.note_upload(id, entry, sidecar);
        if self.webhook.is_some() {
            return Ok(Sent { answered, next: Some(Target::Webhook) });
        }
        // when the files are to be deleted, a full disk does not matter
        if !self.delete_after {
            saved?;
        }
        self.finish(id, entry).await?;
        Ok(Sent { answered, next: None })
    }

    fn note_upload(&self, id: &str, entry: &mut Entry, sidecar: &mut Sidecar) -> io::Result<()> {
        let Some(url) = entry.uploaded.clone().filter(|_| !entry.saved) else { return Ok(()) };
        sidecar.upload.get_or_insert_with(|| Upload { url, at: rfc3339(unix()) });
        let json = with_ending(&entry.path, "json");
        self.root.replace(&json, &sidecar.text(), true)?;
        save(&self.root, id, entry, true)?;
        entry.saved = true;
        Ok(())
    }

    async fn finish(&self, id: &str, entry: &Entry) -> io::Result<()> {
        if let Some(url) = entry.uploaded.as_ref().filter(|_| self.delete_after) {
            // the copy may be on a disk that hangs
            let (root, path, copy) = (self.root.clone(), entry.path.clone(), url.clone());
            let look = spawn_blocking(move || is_local_file(&root, &path, &copy));
            let same = tokio::time::timeout(FOLDER_LIMIT, look).await;
            if same.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.unwrap_or(true) {
                error!(
                    recording = id,
                    url, "recording not deleted: its uploaded copy is the same file"
                );
            } else {
                retention::delete(&self.root, &entry.path)?;
            }
        }
        self.forget(id)
    }

    fn forget(&self, id: &str) -> io::Result<()> {
        entries(&self.root).remove(id)
    }

    /// Sends the webhook. Returns true if the server accepted it now.
    async fn notify(
        &self,
        id: &str,
        entry: &mut Entry,
        sidecar: &Sidecar,
        failures: u32,
    ) -> Result<bool, SendError> {
        let Some(webhook) = self.webhook.as_ref().filter(|_| !entry.notified) else {
            return Ok(false);
        };
        let file = self.root.path().join(with_ending(&entry.path, "wav"));
        let here = format!("file://{}", file.display());
        let location = entry.uploaded.as_ref().unwrap_or(&here);
        let old = entry.since.saturating_add(WEBHOOK_LIMIT.as_secs()) < unix().as_secs();
        let body = json!({
            "type": "recording.finished",
            "timestamp": rfc3339(unix()),
            "data": { "location": location, "recording": sidecar },
        });
        match webhook.send(&format!("rec_{}", sidecar.id), &body.to_string(), unix()).await {
            Ok(()) => {
                counters::WEBHOOKS.add(1);
            }
            Err(why @ WebhookError::Gone) => {
                warn!(recording = id, %why, "webhook refused for good")
            }
            Err(why) if old && failures >= WEBHOOK_TRIES => {
                error!(recording = id, %why, "webhook given up after three days");
                entry.notified = true;
                return Ok(false);
            }
            Err(why) => return Err(why.into()),
        }
        entry.notified = true;
        Ok(true)
    }

    /// Handles a missing recording: it was not moved to its place yet, or it was deleted.
    fn give_up(&self, id: &str, entry: &Entry) -> Result<Sent, SendError> {
        let on_its_way = ["wav", "json"].iter().any(|e| self.root.exists(&incomplete(id, e)));
        // the closer may have chosen another path since
        let moved = load(&self.root, id).is_ok_and(|now| now.path != entry.path);
        let there = self.root.exists(&with_ending(&entry.path, "json"))
            && self.root.exists(&with_ending(&entry.path, "wav"));
        if on_its_way || moved || there {
            return Err(io::Error::other("the recording is not in its place yet").into());
        }
        if entry.uploaded.is_none() {
            let file = entry.path.display();
            error!(recording = id, %file, "recording deleted before it was sent");
        }
        self.forget(id)?;
        Ok(DONE)
    }

    /// Rewrites an unreadable entry, as left by a power cut, from its recording.
    fn restore(&self, id: &str, why: &io::Error) -> Result<Sent, SendError> {
        let mut found = None;
        library::walk(&self.root, &mut |path, _| {
            let named = path.file_name().is_some_and(|n| n.to_string_lossy().contains(id));
            if named && library::read(&self.root, path).is_ok_and(|sidecar| sidecar.id == id) {
                found = Some(path.to_owned());
            }
        })?;
        let Some(path) = found else {
            error!(recording = id, %why, "unreadable entry without a recording: deleting it");
            self.forget(id)?;
            return Ok(DONE);
        };
        warn!(recording = id, %why, "outbox entry was unreadable: rewritten");
        put(&self.root, id, &path, true)?;
        Ok(Sent { answered: false, next: Some(self.first()) })
    }

    fn first(&self) -> Target {
        if self.uploader.is_some() { Target::Store } else { Target::Webhook }
    }
}

/// Notes the result of an attempt. Failures are logged the first time, and then ever more rarely.
fn note(schedule: &mut Schedule<Target, Entry>, (id, target, entry, result): Tried) {
    let now = Instant::now();
    let error = match result {
        Ok(sent) => {
            if sent.answered && schedule.answers(target) {
                info!(to = ?target, waiting = schedule.len(), "sending recordings works again");
            }
            return schedule.sent(&id, entry, sent.next, now);
        }
        Err(error) => error,
    };
    counters::SEND_ERRORS.add(1);
    // the next attempt reads the file again, unless this entry has more than its file
    let entry = entry.filter(|e| e.notified || e.uploaded.is_some() || e.multipart.is_some());
    let own = schedule.failed(&id, entry, now);
    let failed = match error.at() {
        Some(target) => schedule.close(target, now),
        None => Some(own),
    };
    if let Some(failed) = failed.filter(|f| f.failures.is_power_of_two()) {
        let (failures, wait_s, waiting) = (failed.failures, failed.wait.as_secs(), schedule.len());
        warn!(recording = id, %error, failures, wait_s, waiting, "cannot be sent; retrying");
    }
}

#[cfg(test)]
mod tests;
