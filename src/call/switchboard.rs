//! The switchboard starts a call for every offer and keeps the live calls by id: it counts them,
//! passes commands to them, and waits for them at shutdown.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::call::departure::DeparturePolicy;
use crate::call::dispatch::{awaits_campaign, learn_campaign, place};
use crate::call::end::EndReason;
use crate::call::ended::Record;
use crate::call::listening::Listener;
use crate::call::live::{EventKind, EventSink, LiveCall};
use crate::call::words::Summary;
use crate::call::worker::described::{Observed, live_call};
use crate::call::worker::pool::Workers;
use crate::call::worker::task::run;
use crate::call::{CallConfig, CallRequest, Offer, OrderRequest, SourceRequest, counters};
use crate::capture::tap::Tap;
use crate::command::Failure;
use crate::record::recorder::Recorder;
use crate::stream::socket::Counts;

/// At most this many commands are queued for one call.
const MAX_COMMANDS: usize = 16;

/// The settings of calls, by the name of their PBX.
pub type CallConfigs = Vec<(Arc<str>, Arc<CallConfig>)>;

/// Calls that have ended and can still be shown.
const MAX_ENDED: usize = 1000;

/// A call and the sender of its orders.
struct Entry {
    live: Arc<LiveCall>,
    requests: mpsc::Sender<CallRequest>,
    /// The last capture of the call.
    tap: Option<Tap>,
}

/// A capture of a call that has not come yet.
struct Awaited {
    /// The name of the call's PBX; `None` for any.
    pbx: Option<String>,
    tap: Tap,
}

/// Why a capture was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotCaptured {
    NoSuchCall,
    /// The call is being captured already.
    Already,
    /// Too many commands are open in the call.
    Busy,
}

#[derive(Default)]
struct Calls {
    /// The live calls by id.
    live: HashMap<String, Entry>,
    /// The ids of live calls by their `callSid`.
    by_sid: HashMap<String, String>,
    /// The last calls that have ended, oldest first.
    ended: VecDeque<Arc<LiveCall>>,
    /// Captures of the next calls, in the order of their requests.
    awaited: Vec<Awaited>,
    /// The settings of new calls, by PBX; `None` before calls are taken.
    configs: Option<watch::Receiver<CallConfigs>>,
    /// The number of calls that have ended so far.
    ended_count: u64,
}

/// The live calls. Clones share them.
#[derive(Clone, Default)]
pub struct Switchboard {
    calls: Arc<Mutex<Calls>>,
    /// One task per call, which ends with the call.
    tasks: TaskTracker,
}

/// The settings and shared parts for new calls.
pub struct CallStarter {
    /// Follows the configuration.
    pub configs: watch::Receiver<CallConfigs>,
    /// Becomes true when all calls have to end.
    pub stopped: watch::Receiver<bool>,
    /// Receives the record of every ended call.
    pub records: Option<mpsc::UnboundedSender<Record>>,
    pub workers: Arc<Workers>,
    /// Receives the events of all calls.
    pub events: EventSink,
}

impl Switchboard {
    /// Starts a call for every offer, each in its own task, so a panic ends only that call.
    pub async fn start_calls(self, starter: CallStarter, mut offers: mpsc::Receiver<Offer>) {
        self.lock().configs = Some(starter.configs.clone());
        let starter = Arc::new(starter);
        while let Some(mut offer) = offers.recv().await {
            let config = {
                let configs = starter.configs.borrow();
                let known = configs.iter().find(|(name, _)| *name == offer.pbx);
                known.map(|(_, config)| config.clone())
            };
            let Some(config) = config else {
                refuse(&offer, EndReason::Internal);
                continue;
            };
            if let Some(owner) = &config.owner {
                offer = owner.adopt(offer);
            }
            if awaits_campaign(&offer, &config) {
                let (switchboard, starter) = (self.clone(), starter.clone());
                self.tasks.spawn(async move {
                    learn_campaign(&mut offer).await;
                    switchboard.start(&starter, offer, config);
                });
            } else {
                self.start(&starter, offer, config);
            }
        }
    }

    /// Starts a call. `config`: the settings of its PBX.
    fn start(&self, starter: &CallStarter, mut offer: Offer, config: Arc<CallConfig>) {
        let (config, refused) = place(&mut offer, config);
        let recorded = config.record.as_ref().and(config.recorder.as_ref());
        let unrecorded = recorded.is_some_and(Recorder::refuses);
        if unrecorded {
            let (call, pbx) = (&offer.id, &*offer.pbx);
            warn!(call, pbx, "call not offered to the AI: it could not be recorded");
        }
        let refused = refused.or(unrecorded.then_some(EndReason::NotRecorded));
        let (stopped, records) = (starter.stopped.clone(), starter.records.clone());
        // a second copy, to end the caller's side if the call panics
        let requests: Arc<dyn Fn(SourceRequest) + Send + Sync> = Arc::from(offer.requests);
        let for_call = requests.clone();
        offer.requests = Box::new(move |request| for_call(request));
        let (id, pbx, switchboard) = (offer.id.clone(), offer.pbx.clone(), self.clone());
        let workers = starter.workers.clone();
        let observed = Observed { call: live_call(&offer, &config), sink: starter.events.clone() };
        let (live, sink) = (observed.call.clone(), observed.sink.clone());
        let orders = self.add(live.clone());
        let outcome = offer.outgoing.as_mut().and_then(|outgoing| outgoing.outcome.take());
        if let Some(outcome) = outcome {
            // the request may be gone, and the call lasts
            let _ = outcome.send(Ok(live.clone()));
        }
        let (departure, can_continue) = (config.departure, offer.can_continue);
        self.tasks.spawn(async move {
            let call = run(&workers, offer, config, orders, stopped, observed, refused);
            let result = AssertUnwindSafe(call).catch_unwind().await;
            let panicked = result.is_err().then(|| end_panicked(&live)).flatten();
            switchboard.remove(&id);
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
                    if let Some(record) = panicked {
                        sink(&live, &EventKind::Ended(&record));
                    }
                }
            }
        });
    }

    /// A panic in another thread leaves the table consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a call and returns the receiver of its orders.
    fn add(&self, live: Arc<LiveCall>) -> mpsc::Receiver<CallRequest> {
        let (requests, receiver) = mpsc::channel(MAX_COMMANDS);
        let mut calls = self.lock();
        calls.awaited.retain(|awaited| awaited.tap.is_open());
        let matches = |a: &Awaited| a.pbx.as_ref().is_none_or(|pbx| **pbx == *live.pbx);
        let next = calls.awaited.iter().position(matches);
        let tap = next.map(|at| calls.awaited.remove(at).tap);
        if let Some(tap) = tap.clone() {
            tap.belongs_to(&live.id);
            let _ = requests.try_send(CallRequest::Capture(tap));
        }
        calls.by_sid.insert(live.call_sid.clone(), live.id.clone());
        calls.live.insert(live.id.clone(), Entry { live, requests, tap });
        receiver
    }

    fn remove(&self, id: &str) {
        let mut calls = self.lock();
        let Some(Entry { live, .. }) = calls.live.remove(id) else { return };
        calls.by_sid.remove(&live.call_sid);
        if calls.ended.len() >= MAX_ENDED {
            calls.ended.pop_front();
        }
        calls.ended.push_back(live);
        calls.ended_count += 1;
    }

    /// The number of calls that have ended so far, and those of them after the first `known`, as
    /// far as they are still kept, newest first.
    pub fn ended_since(&self, known: u64) -> (u64, Vec<Arc<LiveCall>>) {
        let calls = self.lock();
        let new = calls.ended_count.saturating_sub(known);
        let new = calls.ended.iter().rev().take(usize::try_from(new).unwrap_or(usize::MAX));
        (calls.ended_count, new.cloned().collect())
    }

    /// The live calls, oldest first.
    pub fn live(&self) -> Vec<Arc<LiveCall>> {
        let mut live: Vec<_> = self.lock().live.values().map(|entry| entry.live.clone()).collect();
        live.sort_by_key(|call| call.started);
        live
    }

    /// Finds a call by its id or `callSid`, among the live ones and the last ended ones.
    pub fn find(&self, id: &str) -> Option<Arc<LiveCall>> {
        let calls = self.lock();
        let by_sid = calls.by_sid.get(id).map_or(id, String::as_str);
        let live = calls.live.get(by_sid).map(|entry| entry.live.clone());
        let ended = || calls.ended.iter().rev().find(|c| c.id == id || c.call_sid == id).cloned();
        live.or_else(ended)
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
        self.lock().live.keys().cloned().collect()
    }

    /// Gives an order to a call.
    ///
    /// # Errors
    /// Returns the reason if the order was not queued.
    pub fn send(&self, call: &str, request: OrderRequest) -> Result<(), Failure> {
        self.request(call, CallRequest::Order(request))
    }

    /// Passes a live call's audio to a listener.
    ///
    /// # Errors
    /// Returns the reason if the call does not take it.
    pub fn listen(&self, call: &str, listener: Listener) -> Result<(), Failure> {
        self.request(call, CallRequest::Listen(listener))
    }

    fn request(&self, call: &str, request: CallRequest) -> Result<(), Failure> {
        let calls = self.lock();
        let entry = calls.live.get(call).ok_or(Failure::NoSuchCall)?;
        entry.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => Failure::QueueFull,
            TrySendError::Closed(_) => Failure::NoSuchCall,
        })
    }

    /// Starts a capture of a live call, given by its id or `callSid`.
    ///
    /// # Errors
    /// Returns the reason if the capture was not started.
    pub fn capture(&self, call: &str, tap: Tap) -> Result<(), NotCaptured> {
        let mut calls = self.lock();
        let id = calls.by_sid.get(call).map_or(call, String::as_str).to_owned();
        let entry = calls.live.get_mut(&id).ok_or(NotCaptured::NoSuchCall)?;
        if entry.tap.as_ref().is_some_and(Tap::is_open) {
            return Err(NotCaptured::Already);
        }
        let sent = entry.requests.try_send(CallRequest::Capture(tap.clone()));
        sent.map_err(|error| match error {
            TrySendError::Full(_) => NotCaptured::Busy,
            TrySendError::Closed(_) => NotCaptured::NoSuchCall,
        })?;
        tap.belongs_to(&id);
        entry.tap = Some(tap);
        Ok(())
    }

    /// True if calls of a PBX with this name are taken.
    pub fn has_pbx(&self, name: &str) -> bool {
        let calls = self.lock();
        let configs = calls.configs.as_ref().map(|configs| configs.borrow());
        configs.is_some_and(|configs| configs.iter().any(|(pbx, _)| **pbx == *name))
    }

    /// Starts a capture with the next call, of this PBX or of any.
    pub fn capture_next(&self, pbx: Option<String>, tap: Tap) {
        let mut calls = self.lock();
        calls.awaited.retain(|awaited| awaited.tap.is_open());
        calls.awaited.push(Awaited { pbx, tap });
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

/// Notes the end of a call that panicked, and returns its record, without figures; `None` if it had
/// ended before.
fn end_panicked(live: &LiveCall) -> Option<Record> {
    let state = live.state();
    if state.ended.is_some() {
        return None;
    }
    let answered = state.answered.is_some();
    let record = Record {
        id: live.id.clone(),
        route: live.route.clone(),
        reason: EndReason::Internal,
        summary: Summary { answered, ..Summary::default() },
        ai: Counts::default(),
        ai_end: None,
        recordings: Vec::new(),
        commands: Vec::new(),
        disposition: state.disposition,
        details: state.details,
        dialled: Vec::new(),
        turns: Vec::new(),
    };
    live.note(&EventKind::Ended(&record));
    Some(record)
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
    use crate::command::{Command, Order, Sender, When};

    fn request() -> OrderRequest {
        let (by, command) = (Sender::Http("desk".to_owned()), Command::Hold(true));
        let order = Order { id: String::new(), by, when: When::Now, command };
        OrderRequest { order, replies: mpsc::unbounded_channel().0 }
    }

    fn live() -> LiveCall {
        let strings = || [const { String::new() }; 3];
        let ids = ["1".to_owned(), "CA1".to_owned(), "AC1".to_owned()];
        LiveCall::new(ids, "main".into(), strings(), String::new())
    }

    #[test]
    fn a_call_that_panicked_has_ended_once() {
        let call = live();
        call.note(&EventKind::Answered);
        let record = end_panicked(&call).expect("its record");
        assert!(record.reason == EndReason::Internal && record.summary.answered);
        assert_eq!(call.json()["state"], "ended");
        assert_eq!(EventKind::Ended(&record).json(&call)["data"]["summary"]["answered"], true);
        assert!(end_panicked(&call).is_none());
    }

    #[test]
    fn an_order_that_is_not_queued_has_a_reason() {
        let switchboard = Switchboard::default();
        assert_eq!(switchboard.send("1", request()), Err(Failure::NoSuchCall));
        let orders = switchboard.add(Arc::new(live()));
        assert!(switchboard.find("CA1").is_some_and(|call| call.id == "1"));
        for _ in 0..MAX_COMMANDS {
            assert_eq!(switchboard.send("1", request()), Ok(()));
        }
        assert_eq!(switchboard.send("1", request()), Err(Failure::QueueFull));
        drop(orders);
        assert_eq!(switchboard.send("1", request()), Err(Failure::NoSuchCall));
        switchboard.remove("1");
        let ids = |known| switchboard.ended_since(known).1.iter().map(|c| c.id.clone()).collect();
        assert_eq!((switchboard.ended_since(0).0, ids(0)), (1, vec!["1".to_owned()]));
        assert_eq!((ids(1), ids(9)), (Vec::<String>::new(), Vec::new()));
        assert!(switchboard.live().is_empty() && switchboard.find("CA1").is_some());
    }
}
