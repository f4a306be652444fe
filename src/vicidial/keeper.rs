//! Keeps the calls of one VICIdial on disk, from their beginning until VICIdial has their status:
//!
//! - A call that VICIdial left as abandoned or undecided gets its real status.
//! - Calls that were up when this program was killed are sent to humans at the next start.
//!
//! One at a time, so that the changes of a lead keep their order. Owns a thread, files and the
//! clock.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use crate::folder::Root;
use crate::outbox::entries::Entries;
use crate::telemetry::counter::counters;
use crate::vicidial::answer::Fault;
use crate::vicidial::api::ApiError;
use crate::vicidial::call_id::CallId;
use crate::vicidial::repair::{Repairs, Settled};

/// The folder of the calls, in the directory.
const FOLDER: &str = "calls";
/// Messages that may wait for the thread.
const MAX_WAITING: usize = 10_000;
/// The pause after an error that may pass.
const PAUSE: Duration = Duration::from_secs(5);
/// The pause after an error that an admin has to correct.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// The pause before the lock of another process is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(100);
/// A status is given up after a day: the log of the lead has other entries by then.
const TOO_OLD: Duration = Duration::from_secs(24 * 3600);
/// How often a call is tried that has no entry in VICIdial's log, or whose customer is up without
/// an agent, with growing pauses.
const MAX_TRIES: u32 = 6;

counters! {
    total GIVEN_UP = "vicidial_statuses_given_up", "Calls whose status could not be corrected.";
    total LOST = "vicidial_calls_not_kept", "Calls that could not be kept: too many waited.";
}

/// A call on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    pub call: String,
    /// When it began: seconds since 1970.
    since: u64,
    pub answered: bool,
    /// The status that the AI has given so far.
    pub given: Option<String>,
    /// `None` while it is up.
    pub end: Option<End>,
}

/// The end of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub status: String,
    /// The customer has hung up, or was hung up: if VICIdial still has the call, it is to end it.
    /// Otherwise the customer may be with a human.
    pub hang_up: bool,
}

enum Message {
    Begun(Kept),
    Answered(String),
    /// The AI has given a status.
    Given(String, String),
    Ended(String, End),
    /// Notify the sender once all earlier messages are on disk.
    Flush(oneshot::Sender<()>),
}

/// Takes the calls. Never blocks.
#[derive(Clone)]
pub struct Keeper(mpsc::Sender<Message>);

impl Keeper {
    /// Starts the thread. It ends when the second value is dropped.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be created, or the thread not be started.
    pub fn start(
        directory: PathBuf,
        repairs: Repairs,
    ) -> io::Result<(Keeper, oneshot::Sender<()>)> {
        std::fs::create_dir_all(directory.join(FOLDER))?;
        let (messages, receiver) = mpsc::channel(MAX_WAITING);
        let (handle, dropped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (settle, ended) = mpsc::unbounded_channel();
        let books = Books {
            root: Root::new(directory.clone()),
            settle,
            own: HashSet::new(),
            unreadable: false,
        };
        let root = Root::new(directory);
        let (queue, reported) = (VecDeque::new(), HashSet::new());
        let started = Instant::now();
        let settler = Settler { root, repairs, queue, paused: None, started, reported };
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = async { tokio::join!(books.run(receiver), settler.run(ended)); } => {}
                    _ = dropped => {}
                }
            });
            runtime.shutdown_background();
        };
        thread::Builder::new().name("vicidial".to_owned()).spawn(run)?;
        Ok((Keeper(messages), handle))
    }

    pub fn begun(&self, call: &CallId) {
        self.send(Message::Begun(Kept::new(call.as_str().to_owned())));
    }

    pub fn answered(&self, call: &CallId) {
        self.send(Message::Answered(call.as_str().to_owned()));
    }

    /// The AI has given a status.
    pub fn given(&self, call: &CallId, status: &str) {
        self.send(Message::Given(call.as_str().to_owned(), status.to_owned()));
    }

    pub fn ended(&self, call: &CallId, end: End) {
        self.send(Message::Ended(call.as_str().to_owned(), end));
    }

    fn send(&self, message: Message) {
        if self.0.try_send(message).is_err() {
            LOST.add(1);
            error!("a call of VICIdial is not kept: the disk is too slow, or trunkless stops");
        }
    }

    /// Returns once everything so far is on disk.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.0.send(Message::Flush(done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

/// Writes the calls to disk.
struct Books {
    root: Root,
    /// Takes the calls to be settled.
    settle: mpsc::UnboundedSender<Kept>,
    /// The live calls of this process.
    own: HashSet<String>,
    /// True once it was logged that the folder cannot be read.
    unreadable: bool,
}

impl Books {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut lock = self.find();
        loop {
            tokio::select! {
                biased;
                message = messages.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                () = sleep(LOCK_RETRY), if lock.is_none() => lock = self.find(),
            }
        }
    }

    fn entries(&self) -> Entries<'_> {
        Entries::new(&self.root, FOLDER)
    }

    /// Settles the calls of the process before: first those that were up. `None` while another
    /// process has the folder, whose calls are its own.
    fn find(&mut self) -> Option<File> {
        let lock = match self.entries().lock() {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(why) => {
                let folder = self.root.path().join(FOLDER);
                if !std::mem::replace(&mut self.unreadable, true) {
                    error!(?folder, %why, "the calls of an earlier process cannot be read");
                }
                return None;
            }
        };
        let ids = self.entries().ids().into_iter().filter(|id| !self.own.contains(id));
        let load = |id: String| match self.entries().load::<Kept>(&id) {
            Ok(kept) => Some(kept),
            Err(why) => {
                error!(vici_call_id = id, %why, "the file of the call cannot be read");
                None
            }
        };
        let mut found: Vec<Kept> = ids.filter_map(load).collect();
        found.sort_by_key(|kept| (kept.end.is_some(), kept.since));
        let calls = found.iter().filter(|kept| kept.end.is_none()).count();
        if calls > 0 {
            warn!(calls, "trunkless was killed during calls of VICIdial: they go to humans now");
        }
        found.into_iter().for_each(|kept| self.settle(kept));
        Some(lock)
    }

    /// Does nothing once the program stops: then the call stays on disk.
    fn settle(&self, kept: Kept) {
        let _ = self.settle.send(kept);
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Begun(kept) => {
                self.save(&kept, true);
                self.own.insert(kept.call);
            }
            // its end may have come before
            Message::Answered(call) | Message::Given(call, _) if !self.own.contains(&call) => {}
            Message::Answered(call) => {
                let kept = self.load(call);
                self.save(&Kept { answered: true, ..kept }, false);
            }
            Message::Given(call, status) => {
                let kept = self.load(call);
                self.save(&Kept { given: Some(status), ..kept }, false);
            }
            Message::Ended(call, end) => {
                self.own.remove(&call);
                let kept = Kept { end: Some(end), ..self.load(call) };
                self.save(&kept, true);
                self.settle(kept);
            }
            Message::Flush(done) => drop(done.send(())),
        }
    }

    /// A call whose file cannot be read is settled all the same.
    fn load(&self, call: String) -> Kept {
        self.entries().load(&call).unwrap_or_else(|_| Kept::new(call))
    }

    /// `durable`: the file survives a power cut.
    fn save(&self, kept: &Kept, durable: bool) {
        if let Err(why) = self.entries().save(&kept.call, kept, durable) {
            error!(vici_call_id = kept.call, %why, "the call cannot be kept on disk");
        }
    }
}

/// A call to be settled.
struct Item {
    kept: Kept,
    tries: u32,
    due: Instant,
}

/// Settles calls, one at a time.
struct Settler {
    root: Root,
    repairs: Repairs,
    queue: VecDeque<Item>,
    /// VICIdial is not asked before this time.
    paused: Option<Instant>,
    started: Instant,
    /// The faults that an admin has to correct, and that were logged.
    reported: HashSet<Fault>,
}

impl Settler {
    async fn run(mut self, mut ended: mpsc::UnboundedReceiver<Kept>) {
        loop {
            let due = self.queue.iter().map(|item| item.due).min().max(self.paused);
            let work = due.filter(|_| !self.queue.is_empty());
            tokio::select! {
                biased;
                kept = ended.recv() => {
                    let Some(kept) = kept else { return };
                    self.queue.push_back(Item { kept, tries: 0, due: Instant::now() });
                }
                () = sleep_until(work.unwrap_or_else(Instant::now)), if work.is_some() => {
                    self.settle_next().await;
                }
            }
        }
    }

    /// Settles the first call that is due.
    async fn settle_next(&mut self) {
        let now = Instant::now();
        let Some(place) = self.queue.iter().position(|item| item.due <= now) else { return };
        let Some(item) = self.queue.remove(place) else { return };
        let (id, tries) = (item.kept.call.clone(), item.tries + 1);
        let again = |pause: Duration, item| Item { tries, due: Instant::now() + pause, ..item };
        match self.settle(&item).await {
            Ok(()) => {}
            Err(why) if is_old(&item.kept) => self.give_up(&item.kept, &why),
            // something is wrong with the web server or the database, or with this call
            Err(ApiError::Fault(Fault::Unreadable)) => {
                return self.queue.push_back(again(PAUSE * (tries * tries).min(720), item));
            }
            Err(why) if why.may_pass() => {
                self.paused = Some(Instant::now() + PAUSE);
                return self.queue.push_front(item);
            }
            Err(ApiError::Stopped | ApiError::Fault(Fault::Login)) => {
                self.paused = Some(Instant::now() + LONG_PAUSE);
                return self.queue.push_front(item);
            }
            // the others may need other functions
            Err(ApiError::Fault(fault)) if fault.is_for_an_admin() => {
                if self.reported.insert(fault) {
                    let why = fault.to_string();
                    warn!(vici_call_id = id, why, "a status waits for an admin of VICIdial");
                }
                return self.queue.push_back(again(LONG_PAUSE * tries.min(60), item));
            }
            Err(ApiError::Fault(Fault::NoLogEntry | Fault::NotLoggedIn)) if tries < MAX_TRIES => {
                return self.queue.push_back(again(PAUSE * tries, item));
            }
            Err(why) => self.give_up(&item.kept, &why),
        }
        if let Err(why) = Entries::new(&self.root, FOLDER).remove(&id) {
            error!(vici_call_id = id, %why, "the file of the call cannot be deleted");
        }
    }

    fn give_up(&self, kept: &Kept, why: &ApiError) {
        GIVEN_UP.add(1);
        let (vici_call_id, status) = (&kept.call, self.repairs.status(kept));
        error!(vici_call_id, status, %why, "the status of the call cannot be corrected");
    }

    async fn settle(&self, item: &Item) -> Result<(), ApiError> {
        let vici_call_id = item.kept.call.as_str();
        let (after, last) = (self.started.elapsed(), item.tries + 1 >= MAX_TRIES);
        match self.repairs.settle(&item.kept, after, last).await? {
            Settled::AsItIs => {}
            Settled::Superseded => {
                info!(vici_call_id, "the lead has a newer result in VICIdial, which is kept");
            }
            Settled::Rescued => info!(vici_call_id, "the customer of a lost call goes to humans"),
            Settled::Ended => info!(vici_call_id, "VICIdial has ended a call that it still had"),
            Settled::Corrected { was, status, shows: true } => {
                info!(vici_call_id, was, status, "status corrected in VICIdial");
            }
            Settled::Corrected { was, status, shows: false } => {
                warn!(vici_call_id, was, status, "status sent to VICIdial, but it shows another");
            }
        }
        Ok(())
    }
}

impl Kept {
    fn new(call: String) -> Kept {
        Kept { call, since: unix(), ..Kept::default() }
    }
}

fn is_old(kept: &Kept) -> bool {
    kept.since + TOO_OLD.as_secs() < unix()
}

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
