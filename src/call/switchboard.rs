//! The switchboard starts a call for every offer and keeps the live calls by id: it counts them,
//! passes commands to them, and waits for them at shutdown.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::call::departure::DeparturePolicy;
use crate::call::end::EndReason;
use crate::call::worker::pool::Workers;
use crate::call::worker::task::{Record, run};
use crate::call::{CallConfig, Offer, SourceRequest, counters};
use crate::command::{Command, NotQueued};
use crate::record::recorder::Recorder;

/// At most this many commands are queued for one call.
const MAX_COMMANDS: usize = 16;

/// The settings of calls, by the name of their PBX.
pub type CallConfigs = Vec<(Arc<str>, Arc<CallConfig>)>;

type Calls = HashMap<String, mpsc::Sender<Command>>;

/// The live calls. Clones share them.
#[derive(Clone, Default)]
pub struct Switchboard {
    /// The sender of each call's commands, by the call's id.
    calls: Arc<Mutex<Calls>>,
    /// One task per call, which ends with the call.
    tasks: TaskTracker,
}

/// The settings and shared parts for new calls.
pub struct CallStarter {
    pub configs: CallConfigs,
    /// Becomes true when all calls have to end.
    pub stopped: watch::Receiver<bool>,
    /// Receives the record of every ended call.
    pub records: Option<mpsc::UnboundedSender<Record>>,
    pub workers: Arc<Workers>,
}

impl Switchboard {
    /// Starts a call for every offer, each in its own task, so a panic ends only that call.
    pub async fn start_calls(self, starter: CallStarter, mut offers: mpsc::Receiver<Offer>) {
        while let Some(offer) = offers.recv().await {
            let known = starter.configs.iter().find(|(name, _)| *name == offer.pbx);
            let Some(config) = known.map(|(_, config)| config.clone()) else {
                refuse(&offer, EndReason::Internal);
                continue;
            };
            let recorded = config.record.as_ref().and(config.recorder.as_ref());
            if recorded.is_some_and(Recorder::refuses) {
                let reason = EndReason::NotRecorded;
                counters::refused(&offer.pbx, reason);
                let (call, pbx) = (&offer.id, &*offer.pbx);
                warn!(call, pbx, "call refused: it could not be recorded");
                refuse(&offer, reason);
                continue;
            }
            self.start(&starter, offer, config);
        }
    }

    fn start(&self, starter: &CallStarter, mut offer: Offer, config: Arc<CallConfig>) {
        let (stopped, records) = (starter.stopped.clone(), starter.records.clone());
        // a second copy, to end the caller's side if the call panics
        let requests: Arc<dyn Fn(SourceRequest) + Send + Sync> = Arc::from(offer.requests);
        let for_call = requests.clone();
        offer.requests = Box::new(move |request| for_call(request));
        let (id, pbx, switchboard) = (offer.id.clone(), offer.pbx.clone(), self.clone());
        let workers = starter.workers.clone();
        let commands = self.add(&id);
        let (departure, can_continue) = (config.departure, offer.can_continue);
        self.tasks.spawn(async move {
            let call = run(&workers, offer, config, commands, stopped);
            let result = AssertUnwindSafe(call).catch_unwind().await;
            switchboard.lock().remove(&id);
            match result {
                Ok(record) => {
                    if let Some(records) = records {
                        let _ = records.send(record);
                    }
                }
                Err(_) => {
                    counters::panicked(&pbx);
                    error!(call = id, "call ended: internal error (panic)");
                    let reason = EndReason::Internal;
                    if let Some(departure) = departure.departure(reason, true, can_continue) {
                        requests(SourceRequest::End { reason, departure });
                    }
                }
            }
        });
    }

    /// A panic in another thread leaves the table consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a call and returns the receiver of its commands.
    fn add(&self, call: &str) -> mpsc::Receiver<Command> {
        let (to_call, commands) = mpsc::channel(MAX_COMMANDS);
        self.lock().insert(call.to_owned(), to_call);
        commands
    }

    /// The number of live calls.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Ids of the live calls.
    pub fn ids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Sends a command to a call.
    ///
    /// # Errors
    /// Returns the reason if the command was not queued.
    pub fn send(&self, call: &str, command: Command) -> Result<(), NotQueued> {
        let calls = self.lock();
        let to = calls.get(call).ok_or(NotQueued::NoSuchCall)?;
        to.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => NotQueued::QueueFull,
            TrySendError::Closed(_) => NotQueued::NoSuchCall,
        })
    }

    /// Lets [`Switchboard::wait`] return once all calls have ended.
    pub fn close(&self) {
        self.tasks.close();
    }

    /// Waits until all calls have ended.
    pub async fn wait(&self) {
        self.tasks.wait().await;
    }
}

/// Ends an offered call that was not started.
fn refuse(offer: &Offer, reason: EndReason) {
    let departure = DeparturePolicy::default().departure(reason, false, offer.can_continue);
    if let Some(departure) = departure {
        (offer.requests)(SourceRequest::End { reason, departure });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::RecordCommand;

    #[test]
    fn a_command_that_is_not_queued_has_a_reason() {
        let switchboard = Switchboard::default();
        let command = Command::Record(RecordCommand::Start);
        assert_eq!(switchboard.send("1", command), Err(NotQueued::NoSuchCall));
        let commands = switchboard.add("1");
        for _ in 0..MAX_COMMANDS {
            assert_eq!(switchboard.send("1", command), Ok(()));
        }
        assert_eq!(switchboard.send("1", command), Err(NotQueued::QueueFull));
        drop(commands);
        assert_eq!(switchboard.send("1", command), Err(NotQueued::NoSuchCall));
    }
}
