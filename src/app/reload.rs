//! Reloads the configuration: on SIGHUP, for `trunkless reload` and, if that is configured, when
//! the file changes. One reload at a time; requests that come while one is running share the next.
//! Owns tasks, file reading and the clock.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::app::running::{Applied, Running};
use crate::config::{Source, inspect};
use crate::control::local;
use crate::telemetry::counter::counters;

counters! {
    state SUCCESSFUL = "config_last_reload_successful",
        "1 if the last reload of the configuration took effect, 0 if it was refused.";
    state SUCCEEDED_AT = "config_last_reload_success_timestamp_seconds",
        "When the present configuration was read, in seconds since 1970.";
    total REFUSED = "config_reloads_refused",
        "Reloads that were refused; the configuration from before stayed.";
}

/// Requests that may wait; beyond that, the next reload serves them all the same.
const MAX_WAITING: usize = 64;
/// Interval between two looks at the file.
const LOOK: Duration = Duration::from_secs(2);
/// Time limit for reading the configuration and the files that it names.
const READ_LIMIT: Duration = Duration::from_secs(15);

/// The outcome of a reload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// True if the file is in effect now.
    pub ok: bool,
    /// Keys with another value.
    #[serde(default)]
    pub changed: Vec<String>,
    /// PBXs by name.
    #[serde(default)]
    pub added: Vec<String>,
    #[serde(default)]
    pub removed: Vec<String>,
    /// Keys whose new value takes effect after a restart.
    #[serde(default)]
    pub needs_restart: Vec<String>,
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why the file was refused.
    #[serde(default)]
    pub errors: Vec<String>,
}

impl Outcome {
    fn refused(errors: Vec<String>) -> Outcome {
        Outcome { errors, ..Outcome::default() }
    }

    fn applied(applied: Applied, warnings: Vec<String>) -> Outcome {
        let Applied { difference, need_restart } = applied;
        Outcome {
            ok: true,
            changed: difference.changed,
            added: difference.added,
            removed: difference.removed,
            needs_restart: need_restart,
            warnings,
            errors: Vec::new(),
        }
    }
}

fn stopping() -> Outcome {
    Outcome::refused(vec!["trunkless is shutting down, live calls continue".to_owned()])
}

type Request = oneshot::Sender<Outcome>;

/// Asks for reloads. Clones share the queue.
#[derive(Clone)]
pub struct Reloads(mpsc::Sender<Request>);

impl Reloads {
    /// Reloads without waiting for the outcome, which is logged.
    pub fn ask(&self) {
        // if the queue is full, there is a reload to come anyway
        let _ = self.0.try_send(oneshot::channel().0);
    }

    /// Reloads, and returns the outcome.
    pub async fn reload(&self) -> Outcome {
        let (done, wait) = oneshot::channel();
        match self.0.send(done).await {
            Ok(()) => wait.await.unwrap_or_else(|_| stopping()),
            Err(_) => stopping(),
        }
    }
}

/// The configuration file, and the parts that it changes.
pub(super) struct Reloader {
    pub file: PathBuf,
    pub environment: HashMap<String, String>,
    pub running: Arc<Mutex<Running>>,
    /// True once shutdown has begun.
    pub stopping: Arc<AtomicBool>,
    /// Counts the configurations.
    pub changes: watch::Sender<u64>,
}

/// Notes that the configuration of the start is in effect.
pub(super) fn note_start() {
    SUCCESSFUL.set(1);
    SUCCEEDED_AT.set(unix_time());
}

impl Reloader {
    /// Starts the tasks.
    pub(super) fn start(self) -> Reloads {
        let (requests, queue) = mpsc::channel(MAX_WAITING);
        let reloads = Reloads(requests);
        let file = self.file.clone();
        tokio::spawn(watch_file(file.clone(), self.running.clone(), reloads.clone()));
        match local::listen(&file) {
            Ok(listener) => {
                let reloads = reloads.clone();
                let respond = move || {
                    let reloads = reloads.clone();
                    async move {
                        let outcome = reloads.reload().await;
                        serde_json::to_string(&outcome).unwrap_or_default()
                    }
                };
                tokio::spawn(local::serve(listener, respond));
            }
            Err(error) => warn!(
                %error,
                "trunkless reload cannot reach this program: another one may run with the same \
                 file; SIGHUP reloads it all the same"
            ),
        }
        tokio::spawn(self.run(queue));
        reloads
    }

    async fn run(self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.recv().await {
            let mut waiting = vec![first];
            waiting.extend(std::iter::from_fn(|| queue.try_recv().ok()));
            let reload = AssertUnwindSafe(self.reload()).catch_unwind().await;
            let panicked = |_| {
                let why = "internal error: the reload panicked; restart trunkless when no calls \
                           are up";
                Outcome::refused(vec![why.to_owned()])
            };
            let outcome = reload.unwrap_or_else(panicked);
            self.report(&outcome);
            for request in waiting {
                let _ = request.send(outcome.clone());
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    async fn reload(&self) -> Outcome {
        // shutdown keeps the parts to itself until the last call has ended
        if self.is_stopping() {
            return stopping();
        }
        let (file, environment) = (self.file.clone(), self.environment.clone());
        let read = spawn_blocking(move || {
            Source::read(&file)
                .map(|source| (digest_of(source.text.as_bytes()), inspect(&source, &environment)))
        });
        let (digest, (plan, report)) = match timeout(READ_LIMIT, read).await {
            Ok(Ok(Ok(read))) => read,
            Ok(Ok(Err(error))) => return Outcome::refused(vec![error.to_string()]),
            Ok(Err(_)) => {
                let why = "internal error: reading the configuration panicked";
                return Outcome::refused(vec![why.to_owned()]);
            }
            Err(_) => {
                let file = self.file.display();
                let why = format!("{file}: not read within {READ_LIMIT:?}: a disk hangs");
                return Outcome::refused(vec![why]);
            }
        };
        let texts = |all: Vec<crate::config::ConfigError>| -> Vec<String> {
            all.iter().map(ToString::to_string).collect()
        };
        let mut running = self.running.lock().await;
        if self.is_stopping() {
            return stopping();
        }
        // a refused file is not read again by itself until it changes
        running.loaded = Some(digest);
        let Some(plan) = plan else { return Outcome::refused(texts(report.findings.errors)) };
        match running.apply(plan).await {
            Ok(applied) => Outcome::applied(applied, texts(report.findings.warnings)),
            Err(error) => Outcome::refused(vec![format!("{error:#}")]),
        }
    }

    /// Logs and counts an outcome.
    fn report(&self, outcome: &Outcome) {
        let file = self.file.display();
        if !outcome.ok {
            SUCCESSFUL.set(0);
            REFUSED.add(1);
            for why in &outcome.errors {
                error!("configuration not reloaded, the one from before stays: {why}");
            }
            return;
        }
        SUCCESSFUL.set(1);
        SUCCEEDED_AT.set(unix_time());
        self.changes.send_modify(|count| *count += 1);
        for warning in &outcome.warnings {
            warn!("configuration: {warning}");
        }
        let list = |keys: &[String]| (!keys.is_empty()).then(|| keys.join(", "));
        let (changed, added) = (list(&outcome.changed), list(&outcome.added));
        let removed = list(&outcome.removed);
        match changed.is_none() && added.is_none() && removed.is_none() {
            true => info!("{file} reloaded: nothing has changed"),
            false => info!(changed, added, removed, "{file} reloaded, for new calls"),
        }
        if let Some(keys) = list(&outcome.needs_restart) {
            warn!(keys, "these keys have their new values only after a restart of trunkless");
        }
    }
}

/// Reloads when the content of the file has changed and then stayed the same for one interval. The
/// content is compared: a notification by the kernel would be lost when a file that is mounted into
/// a container is replaced.
async fn watch_file(file: PathBuf, running: Arc<Mutex<Running>>, reloads: Reloads) {
    if running.lock().await.watch_file {
        let content = digest(&file).await;
        running.lock().await.loaded = content;
    }
    let mut last = None;
    loop {
        sleep(LOOK).await;
        if !running.lock().await.watch_file {
            continue;
        }
        // while the file is being replaced, there may be none
        let Some(content) = digest(&file).await else { continue };
        let is_new = running.lock().await.loaded.as_ref() != Some(&content);
        if is_new && last.as_ref() == Some(&content) {
            // once, even if it cannot be read as a configuration
            running.lock().await.loaded = Some(content.clone());
            reloads.ask();
        }
        last = Some(content);
    }
}

async fn digest(file: &Path) -> Option<Vec<u8>> {
    let file = file.to_owned();
    let read = spawn_blocking(move || std::fs::read(file).ok());
    read.await.ok().flatten().map(|content| digest_of(&content))
}

fn digest_of(content: &[u8]) -> Vec<u8> {
    Sha256::digest(content).to_vec()
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
