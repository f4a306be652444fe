//! The webhook for the events of calls. Each event is a file in the outbox until the server has
//! accepted it, so that none is lost by a restart. Owns files, tasks and a thread.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tracing::{error, info, warn};

use crate::call::live::{EventKind, LiveCall};
use crate::folder::Root;
use crate::outbox::backlog::{Backlog, Bounds};
use crate::outbox::entries::Entries;
use crate::outbox::schedule::{self, Schedule};
use crate::outbox::webhook::{Webhook, WebhookError};
use crate::telemetry::counter::counters;

/// Folder of the entries, below the directory.
const FOLDER: &str = "outbox";
/// Events that may wait for the disk. Beyond that, they are lost, and counted.
const MAX_WAITING: usize = 10_000;
/// Bounds on the events that the server has not accepted. Beyond them, the oldest are given up.
const BOUNDS: Bounds = Bounds {
    items: 100_000,
    bytes: 256 << 20,
    age: Duration::from_secs(3 * 86_400),
    known: Duration::from_secs(900),
};
/// Interval between attempts to take the lock from another process, and to look for its entries.
const LOOK: Duration = Duration::from_secs(60);
const OTHER: Duration = Duration::from_secs(2);

counters! {
    total SENT = "webhook_events", "Call events that the webhook has accepted.";
    total ERRORS = "webhook_errors", "Attempts to send a call event that failed.";
    total LOST = "webhook_events_lost", "Call events given up, refused or damaged.";
    gauge WAITING = "webhook_events_waiting", "Call events that wait to be sent.";
}

/// One event, as it is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    /// The text that is sent.
    body: String,
    /// Time of the event in seconds since 1970.
    since: u64,
}

/// The only target of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Server;

impl schedule::Target for Server {
    const ALL: &'static [Server] = &[Server];

    fn index(self) -> usize {
        0
    }
}

/// The settings of the webhook.
pub struct NoticesSettings {
    pub webhook: Webhook,
    pub directory: PathBuf,
}

/// A message to the thread.
enum Message {
    Event(String, Entry),
    /// Notify the sender once all earlier events are on disk.
    Flush(oneshot::Sender<()>),
}

/// Takes the events of calls. Never blocks.
#[derive(Clone)]
pub struct Notices(mpsc::Sender<Message>);

impl Notices {
    /// Starts the thread that writes and sends the events. It ends when the handle is dropped.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be created, or the thread not be started.
    pub fn start(settings: NoticesSettings) -> io::Result<(Notices, oneshot::Sender<()>)> {
        std::fs::create_dir_all(settings.directory.join(FOLDER))?;
        let (events, receiver) = mpsc::channel(MAX_WAITING);
        let (handle, dropped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let root = Arc::new(Root::new(settings.directory));
        let sender = Arc::new(Sender { root, webhook: settings.webhook });
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = sender.run(receiver) => {}
                    _ = dropped => {}
                }
            });
            runtime.shutdown_background();
        };
        thread::Builder::new().name("notices".to_owned()).spawn(run)?;
        Ok((Notices(events), handle))
    }

    /// Queues an event. Held calls and commands are not sent.
    pub fn send(&self, call: &LiveCall, event: &EventKind<'_>) {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if !event.is_for_webhook() {
            return;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { body: event.json(call).to_string(), since: unix().as_secs() };
        let id = format!("{}-{number:06}", call.id);
        if self.0.try_send(Message::Event(id, entry)).is_err() {
            LOST.add(1);
        }
    }

    /// Returns once all events so far are on disk.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.0.send(Message::Flush(done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

struct Sender {
    root: Arc<Root>,
    webhook: Webhook,
}

/// The result of an attempt.
enum Outcome {
    Sent,
    /// The server refuses it for good.
    Gone,
    /// Another process has sent it.
    Missing,
    /// Its file is damaged, for example by a power cut.
    Damaged(io::Error),
    NotRead(io::Error),
    NotSent(WebhookError),
}

impl Sender {
    fn entries(&self) -> Entries<'_> {
        Entries::new(&self.root, FOLDER)
    }

    async fn run(self: Arc<Self>, mut events: mpsc::Receiver<Message>) {
        let mut queue = Queue::new(self.clone(), BOUNDS);
        let (mut lock, mut shared) = (None, false);
        let mut tasks: JoinSet<(String, Outcome)> = JoinSet::new();
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if lock.is_none() {
                // another process may still send its events from here; a disk that fails has none
                let locked = self.entries().lock();
                shared = matches!(&locked, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
                lock = locked.ok();
            }
            if next_look <= now {
                queue.look(now, !shared);
                next_look = now + if shared { OTHER } else { LOOK };
            }
            while !shared && let Some((id, ..)) = queue.schedule.start(now) {
                let (this, unsaved) = (self.clone(), queue.unsaved.get(&id).cloned());
                tasks.spawn(async move {
                    let outcome = this.attempt(&id, unsaved).await;
                    (id, outcome)
                });
            }
            WAITING.set(queue.schedule.len() as u64);
            let due = queue.schedule.next(now).filter(|_| !shared);
            let next = due.map_or(next_look, |at| at.min(next_look));
            tokio::select! {
                Some(message) = events.recv() => match message {
                    Message::Event(id, entry) => queue.add(id, entry, Instant::now()),
                    Message::Flush(done) => {
                        queue.save_again();
                        let _ = done.send(());
                    }
                },
                Some(Ok((id, outcome))) = tasks.join_next() => {
                    queue.note(&id, outcome, Instant::now());
                }
                () = sleep_until(next.into()) => {}
            }
        }
    }

    /// Makes one attempt. `unsaved`: the event, if it is not on disk.
    async fn attempt(&self, id: &str, unsaved: Option<Arc<Entry>>) -> Outcome {
        let loaded = unsaved.map_or_else(|| self.entries().load(id).map(Arc::new), Ok);
        let entry: Arc<Entry> = match loaded {
            Ok(entry) => entry,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Outcome::Missing,
            Err(why) if why.kind() == io::ErrorKind::InvalidData => return Outcome::Damaged(why),
            Err(why) => return Outcome::NotRead(why),
        };
        match self.webhook.send(&format!("evt_{id}"), &entry.body, unix()).await {
            Ok(()) => Outcome::Sent,
            Err(WebhookError::Gone) => Outcome::Gone,
            Err(why) => Outcome::NotSent(why),
        }
    }
}

/// The events that wait.
struct Queue {
    sender: Arc<Sender>,
    schedule: Schedule<Server, ()>,
    backlog: Backlog,
    /// Events that could not be written to disk. They are among the others, too.
    unsaved: BTreeMap<String, Arc<Entry>>,
    /// Events that are done, but whose files could not be deleted.
    done: BTreeSet<String>,
    /// Events given up because there were too many, since the last line in the log about it.
    too_many: u64,
}

impl Queue {
    fn new(sender: Arc<Sender>, bounds: Bounds) -> Queue {
        Queue {
            sender,
            schedule: Schedule::new(Server),
            backlog: Backlog::new(bounds),
            unsaved: BTreeMap::new(),
            done: BTreeSet::new(),
            too_many: 0,
        }
    }

    /// Writes an event to disk, or keeps it in memory if that fails.
    fn add(&mut self, id: String, entry: Entry, now: Instant) {
        self.backlog.add(&id, Duration::from_secs(entry.since), entry.body.len() as u64, now);
        self.schedule.add(id.clone(), now);
        if let Err(why) = self.sender.entries().save(&id, &entry, true) {
            if (self.unsaved.len() + 1).is_power_of_two() {
                error!(event = id, %why, "call event cannot be written to disk; kept in memory");
            }
            self.unsaved.insert(id, Arc::new(entry));
        }
        self.drop_excess();
    }

    /// Gives up the oldest events beyond the bounds.
    fn drop_excess(&mut self) {
        for id in self.backlog.excess() {
            if self.schedule.forget(&id) {
                self.finish(&id);
                LOST.add(1);
                self.too_many += 1;
            }
        }
    }

    /// Looks for events of other processes, and gives up old ones. `ours`: no other process sends
    /// the events in the folder.
    fn look(&mut self, now: Instant, ours: bool) {
        match self.sender.entries().list() {
            Ok(found) => {
                let known: BTreeSet<String> = self.backlog.ids().cloned().collect();
                let ids: BTreeSet<&String> = found.iter().map(|found| &found.id).collect();
                self.done.retain(|id| ids.contains(id));
                for id in known {
                    let gone = !ids.contains(&id) && !self.unsaved.contains_key(&id);
                    if gone && self.schedule.forget(&id) {
                        self.backlog.remove(&id);
                    }
                }
                for one in found.iter().filter(|one| !self.done.contains(&one.id)) {
                    self.backlog.add(&one.id, one.since, one.bytes, now);
                    self.schedule.add(one.id.clone(), now);
                }
            }
            Err(why) => error!(%why, "the folder of the call events cannot be read"),
        }
        if !ours {
            return;
        }
        for id in std::mem::take(&mut self.done) {
            self.delete(&id);
        }
        self.save_again();
        self.drop_excess();
        if self.schedule.is_closed(Server) {
            self.give_up_old(now);
        }
        if self.too_many > 0 {
            let events = std::mem::take(&mut self.too_many);
            error!(events, "call events given up: too many wait for the webhook");
        }
    }

    /// Gives up the events that are too old, without an attempt for each.
    fn give_up_old(&mut self, now: Instant) {
        let old = self.backlog.old(unix(), now);
        let old: Vec<_> = old.into_iter().filter(|id| self.schedule.forget(id)).collect();
        old.iter().for_each(|id| self.finish(id));
        if !old.is_empty() {
            LOST.add(old.len() as u64);
            error!(events = old.len(), "call events given up after three days");
        }
    }

    /// Writes the events to disk that could not be written before.
    fn save_again(&mut self) {
        while let Some((id, entry)) = self.unsaved.first_key_value() {
            if self.sender.entries().save(id, &**entry, true).is_err() {
                return;
            }
            self.unsaved.pop_first();
        }
    }

    /// Notes the result of an attempt.
    fn note(&mut self, id: &str, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Sent | Outcome::Gone => {
                if matches!(outcome, Outcome::Sent) {
                    SENT.add(1);
                } else {
                    LOST.add(1);
                    warn!(event = id, "webhook refused the event for good");
                }
                if self.schedule.answers(Server) {
                    info!(waiting = self.schedule.len(), "sending call events works again");
                }
                self.sent(id, now);
            }
            Outcome::Missing => self.sent(id, now),
            Outcome::Damaged(why) => {
                LOST.add(1);
                error!(event = id, %why, "call event lost: its file is damaged");
                self.sent(id, now);
            }
            Outcome::NotRead(error) => {
                ERRORS.add(1);
                let failed = self.schedule.failed(id, None, now);
                if failed.failures.is_power_of_two() {
                    let wait_s = failed.wait.as_secs();
                    warn!(event = id, %error, wait_s, "call event cannot be read; retrying");
                }
                self.give_up_if_old(id, &error, now);
            }
            Outcome::NotSent(error) => {
                ERRORS.add(1);
                self.schedule.failed(id, None, now);
                let closed = self.schedule.close(Server, now);
                if let Some(failed) = closed.filter(|failed| failed.failures.is_power_of_two()) {
                    let (wait_s, waiting) = (failed.wait.as_secs(), self.schedule.len());
                    warn!(event = id, %error, wait_s, waiting, "call event not sent; retrying");
                }
                self.give_up_if_old(id, &error, now);
            }
        }
    }

    fn sent(&mut self, id: &str, now: Instant) {
        self.schedule.sent(id, None, None, now);
        self.finish(id);
    }

    fn give_up_if_old(&mut self, id: &str, why: &dyn std::fmt::Display, now: Instant) {
        if self.backlog.is_old(id, unix(), now) && self.schedule.forget(id) {
            LOST.add(1);
            error!(event = id, %why, "call event given up after three days");
            self.finish(id);
        }
    }

    /// Forgets an event that the schedule does not have any more.
    fn finish(&mut self, id: &str) {
        self.backlog.remove(id);
        if self.unsaved.remove(id).is_none() {
            self.delete(id);
        }
    }

    fn delete(&mut self, id: &str) {
        if self.sender.entries().remove(id).is_err() {
            self.done.insert(id.to_owned());
        }
    }
}

fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;
