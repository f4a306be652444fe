//! What finished recordings are still to be sent: an entry a recording under `outbox/`, so that
//! nothing is forgotten over a restart; upload first, then the webhook. Owns files and tasks.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, sleep_until};
use tracing::{error, info, warn};

use crate::record::disk::{Root, with_ending};
use crate::record::layout::OUTBOX;
use crate::record::sidecar::{Sidecar, Upload, rfc3339};
use crate::record::upload::{UploadError, Uploader};
use crate::record::webhook::{Webhook, WebhookError};
use crate::record::{library, retention};
use crate::telemetry::COUNTERS;

/// Recordings that are sent at the same time.
const AT_ONCE: usize = 4;
/// Waits between tries: doubled from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(300);
/// A webhook that is refused for so long is given up; an upload never is.
const WEBHOOK_LIMIT: Duration = Duration::from_secs(3 * 86_400);
/// Several recordings that finish together are looked for once.
const GATHER: Duration = Duration::from_millis(200);
/// Interval of looking without news.
const LOOK: Duration = Duration::from_secs(60);

/// One file under `outbox/`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Entry {
    /// The recording's, below its directory, without ending.
    pub path: PathBuf,
    /// Seconds since 1970 when it was put there.
    pub since: u64,
    /// The store's name of a multipart upload that may be unfinished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multipart: Option<String>,
    /// Where the audio is, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded: Option<String>,
}

fn entry_path(id: &str) -> PathBuf {
    Path::new(OUTBOX).join(format!("{id}.json"))
}

/// Notes that a recording is to be sent.
///
/// # Errors
/// The kernel's.
pub fn put(root: &Root, id: &str, path: &Path, durable: bool) -> io::Result<()> {
    let entry = Entry { path: path.to_owned(), since: unix().as_secs(), ..Entry::default() };
    save(root, id, &entry, durable)
}

/// # Errors
/// The kernel's.
pub fn save(root: &Root, id: &str, entry: &Entry, durable: bool) -> io::Result<()> {
    let text = serde_json::to_string(entry).map_err(io::Error::other)?;
    root.replace(&entry_path(id), &text, durable)
}

/// The recordings that wait.
pub fn ids(root: &Root) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.path().join(OUTBOX)) else { return Vec::new() };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    let ours = names.filter(|n| !n.starts_with('.'));
    ours.filter_map(|n| n.strip_suffix(".json").map(str::to_owned)).collect()
}

/// # Errors
/// The kernel's, or the JSON reader's.
pub fn load(root: &Root, id: &str) -> io::Result<Entry> {
    let text = std::fs::read(root.path().join(entry_path(id)))?;
    serde_json::from_slice(&text).map_err(io::Error::other)
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

/// Sends what waits in the outbox.
pub struct Outbox {
    pub root: Root,
    pub uploader: Option<Uploader>,
    pub webhook: Option<Webhook>,
    /// Delete a recording here when it has been sent.
    pub delete_after: bool,
    /// Told when something new waits.
    pub news: Arc<Notify>,
}

/// When an entry is tried again.
#[derive(Debug, Clone, Copy)]
struct Try {
    failures: u32,
    at: Instant,
}

impl Outbox {
    /// For ever.
    pub async fn run(self) {
        let this = Arc::new(self);
        let mut waiting: HashMap<String, Try> = HashMap::new();
        let mut running = BTreeSet::new();
        let mut tasks = JoinSet::new();
        this.look(&mut waiting).await;
        loop {
            let now = Instant::now();
            let due = waiting.iter().filter(|(id, t)| t.at <= now && !running.contains(*id));
            let room = AT_ONCE.saturating_sub(running.len());
            let due: Vec<String> = due.map(|(id, _)| id.clone()).take(room).collect();
            for id in due {
                running.insert(id.clone());
                let this = this.clone();
                tasks.spawn(async move {
                    let result = this.send(&id).await;
                    (id, result)
                });
            }
            COUNTERS.outbox_waiting.store(waiting.len() as u64, Ordering::Relaxed);
            let next = waiting.iter().filter(|(id, _)| !running.contains(*id)).map(|(_, t)| t.at);
            let next = next.min().filter(|_| running.len() < AT_ONCE);
            let next = next.map_or(now + LOOK, |at| at.min(now + LOOK));
            tokio::select! {
                () = this.news.notified() => {
                    sleep(GATHER).await;
                    this.look(&mut waiting).await;
                }
                Some(done) = tasks.join_next() => {
                    // a panic is told by its hook; its entry is found again at the next start
                    let Ok((id, result)) = done else { continue };
                    running.remove(&id);
                    this.note(&mut waiting, &id, result);
                }
                () = sleep_until(next.into()) => {
                    if waiting.is_empty() {
                        this.look(&mut waiting).await;
                    }
                }
            }
        }
    }

    /// Takes over what is in the folder and not known yet.
    async fn look(self: &Arc<Self>, waiting: &mut HashMap<String, Try>) {
        let this = self.clone();
        let found = spawn_blocking(move || ids(&this.root)).await.unwrap_or_default();
        for id in found {
            waiting.entry(id).or_insert(Try { failures: 0, at: Instant::now() });
        }
    }

    fn note(&self, waiting: &mut HashMap<String, Try>, id: &str, result: Result<(), SendError>) {
        let Err(error) = result else {
            waiting.remove(id);
            return;
        };
        COUNTERS.outbox_errors.fetch_add(1, Ordering::Relaxed);
        let Some(entry) = waiting.get_mut(id) else { return };
        entry.failures += 1;
        let doubled = FIRST_WAIT * 2u32.saturating_pow((entry.failures - 1).min(16));
        // spread out, so that a store that returns is not met by all at once
        let spread = id.bytes().fold(0u64, |sum, b| sum.wrapping_mul(31) + u64::from(b)) % 1000;
        let wait = doubled.min(LAST_WAIT) + Duration::from_millis(spread);
        entry.at = Instant::now() + wait;
        // the first, and then ever more seldom
        if entry.failures.is_power_of_two() {
            let (failures, wait_s) = (entry.failures, wait.as_secs());
            warn!(recording = id, %error, failures, wait_s, "cannot be sent yet, tried again");
        }
    }

    /// All that is to be done for one entry, from where it stands.
    async fn send(&self, id: &str) -> Result<(), SendError> {
        let mut entry = match load(&self.root, id) {
            Ok(entry) => entry,
            // somebody else was quicker
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut sidecar = match library::read(&self.root, &entry.path) {
            Ok(sidecar) => sidecar,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.give_up(id, &entry);
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(uploader) = self.uploader.as_ref().filter(|_| entry.uploaded.is_none()) {
            let url = uploader.audio(&self.root, id, &mut entry, &sidecar).await?;
            sidecar.upload = Some(Upload { url: url.clone(), at: rfc3339(unix()) });
            let json = with_ending(&entry.path, "json");
            self.root.replace(&json, &sidecar.text(), true)?;
            uploader.sidecar(&entry.path, sidecar.text()).await?;
            (entry.uploaded, entry.multipart) = (Some(url.clone()), None);
            save(&self.root, id, &entry, true)?;
            COUNTERS.uploads.fetch_add(1, Ordering::Relaxed);
            info!(recording = id, url, "recording uploaded");
        }
        if let Some(webhook) = &self.webhook {
            self.tell(webhook, id, &entry, &sidecar).await?;
        }
        if self.delete_after && entry.uploaded.is_some() {
            retention::delete(&self.root, &entry.path)?;
        }
        Ok(self.root.remove(&entry_path(id))?)
    }

    async fn tell(
        &self,
        webhook: &Webhook,
        id: &str,
        entry: &Entry,
        sidecar: &Sidecar,
    ) -> Result<(), SendError> {
        let file = self.root.path().join(with_ending(&entry.path, "wav"));
        let here = format!("file://{}", file.display());
        let location = entry.uploaded.as_ref().unwrap_or(&here);
        match webhook.tell(sidecar, location, unix()).await {
            Ok(()) => {
                COUNTERS.webhooks.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(why @ WebhookError::Gone) => {
                warn!(recording = id, %why, "webhook");
                Ok(())
            }
            Err(why) if unix().as_secs() > entry.since + WEBHOOK_LIMIT.as_secs() => {
                error!(recording = id, %why, "the webhook is given up after three days");
                Ok(())
            }
            Err(why) => Err(why.into()),
        }
    }

    /// The recording is not there: not moved to its place yet, or deleted by somebody.
    fn give_up(&self, id: &str, entry: &Entry) -> Result<(), SendError> {
        if unix().as_secs() < entry.since + LOOK.as_secs() {
            return Err(io::Error::other("the recording is not in its place yet").into());
        }
        if entry.uploaded.is_none() {
            let file = entry.path.display();
            error!(recording = id, %file, "it was deleted before it was sent");
        }
        Ok(self.root.remove(&entry_path(id))?)
    }
}
