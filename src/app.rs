//! The composition root: starts all parts from the configuration, and shuts them down. Owns tasks.

mod access;
mod calls;
mod dial;
pub mod difference;
mod recording;
pub mod reload;
mod running;
mod secrets;
mod sources;
mod tools;
mod webhook;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::join_all;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::info;

use crate::app::reload::{Reloader, Reloads};
use crate::app::running::{Running, limits};
use crate::app::sources::serve;
use crate::app::webhook::Hook;
use crate::ari;
use crate::call::admission::Admission;
use crate::call::counters::ended_text;
use crate::call::ended::Record;
use crate::call::live::EventSink;
use crate::call::ports::PortPool;
use crate::call::switchboard::{CallStarter, Switchboard};
use crate::call::worker::pool::Workers;
use crate::call::{self, OrderRequest};
use crate::capture;
use crate::command::Failure;
use crate::config::Source;
use crate::config::plan::Plan;
use crate::control::doctor::{Checkup, Doctor};
use crate::control::events::Events;
use crate::control::health::Watched;
use crate::dns;
use crate::doctor;
use crate::doctor::finding::{Finding, Report};
use crate::notices;
use crate::record;
use crate::sip::endpoint;
use crate::status_callbacks::{self, StatusCallbacks};
use crate::stream::{breaker, prewarm};
use crate::telemetry;
use crate::telemetry::counter::{self, Counters, Labelled};
use crate::telemetry::histogram::Histogram;
use crate::traces::{self, Traces};
use crate::vicidial::{self, Vicidials};

/// Time limit for the calls that shutdown ends: the time on the ladder, and some more.
const END_CALLS: Duration = Duration::from_secs(13);
/// More of it where VICIdial has to take the customers away.
const END_BY_OWNER: Duration = Duration::from_secs(5);
/// Time limit for sending the last traces, and the last status callbacks.
const FLUSH: Duration = Duration::from_secs(2);
/// Interval between log lines with the totals.
const TOTALS: Duration = Duration::from_secs(60);
/// Queues have room for this many calls at least, because a reload may raise the limit.
const USUAL_CALLS: usize = 2000;

/// A running bridge.
pub struct App {
    /// The parts that a reload may change.
    running: Arc<Mutex<Running>>,
    switchboard: Switchboard,
    /// Set to true to end all calls.
    stop: watch::Sender<bool>,
    /// True once shutdown has begun, for `/readyz`.
    stopping: Arc<AtomicBool>,
    /// Becomes true when a call source ends by itself, which is an internal error.
    faults: watch::Receiver<bool>,
    /// Counts the configurations.
    changes: watch::Sender<u64>,
    /// The checks that the control API runs.
    doctor: Doctor,
    /// Takes the ends of calls for the collector of traces.
    traces: Option<Traces>,
    callbacks: StatusCallbacks,
    /// Address of the SIP sockets; `None` if no PBX was in SIP mode at the start.
    pub address: Option<SocketAddr>,
}

/// The counters of all parts.
pub static COUNTERS: Counters = &[
    call::counters::ALL,
    capture::counters::ALL,
    ari::client::counters::ALL,
    endpoint::counters::ALL,
    record::counters::ALL,
    notices::ALL,
    status_callbacks::ALL,
    vicidial::api::ALL,
    vicidial::keeper::ALL,
    vicidial::repair::ALL,
    breaker::ALL,
    prewarm::ALL,
    reload::ALL,
    telemetry::ALL,
    traces::ALL,
];

/// The histograms of all parts.
pub static HISTOGRAMS: &[&[&Histogram]] =
    &[call::counters::HISTOGRAMS, ari::client::counters::HISTOGRAMS];

/// The totals that have a label.
pub static LABELLED: &[&[&Labelled]] = &[endpoint::counters::LABELLED, call::counters::LABELLED];

impl App {
    /// Binds the sockets and starts serving. The record of each ended call is sent to `records`, if
    /// given.
    ///
    /// # Errors
    /// Returns an error if a socket cannot be bound or a thread cannot be started. For a socket, it
    /// names the key to change.
    pub async fn start(
        mut plan: Plan,
        records: Option<mpsc::UnboundedSender<Record>>,
    ) -> Result<App> {
        telemetry::count_panics();
        telemetry::process::started();
        dns::start();
        reload::note_start();
        let settings = &plan.settings;
        let (max_calls, range) = (settings.calls.max, settings.media.ports);
        let pbxs = plan.sip.len() + plan.ari.len();
        let (offers, incoming) = mpsc::channel(max_calls.max(USUAL_CALLS));
        let ports = PortPool::new(settings.sip.listen.ip(), range.first, range.last);
        let (all, own) = limits(&plan);
        let admission = Admission::new(&all, own, ports.clone(), offers);
        let switchboard = Switchboard::default();
        let (stop, stopped) = watch::channel(false);
        let (broken, faults) = watch::channel(false);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut running =
            Running::new(admission, switchboard.clone(), broken.clone(), stopping.clone());
        let watched = Watched {
            counters: COUNTERS,
            histograms: HISTOGRAMS,
            labelled: LABELLED,
            pbxs: running.sources.statuses.clone(),
            switchboard: switchboard.clone(),
            admission: running.admission.clone(),
            ports,
            stopping: stopping.clone(),
            recorder: running.recordings.shown(),
        };
        running.begin(&plan, watched).await?;
        let workers = Arc::new(Workers::start().context("cannot start the call threads")?);
        let traces = plan.traces.take().map(Traces::start).transpose();
        let traces = traces.context("[telemetry] otlp_endpoint")?;
        let (events, hook) = (running.events.clone(), running.hook.clone());
        let callbacks = StatusCallbacks::start().context("status callbacks")?;
        let owners = running.vicidials.clone();
        let events = sink(events, hook, callbacks.clone(), owners, traces.clone());
        let configs = running.configs.subscribe();
        let starter = CallStarter { configs, stopped, records, workers, events };
        serve(switchboard.clone().start_calls(starter, incoming), &broken);
        running.apply(plan).await?;
        tokio::spawn(log_totals());
        let (address, doctor) = (running.sources.address, running.doctor.clone());
        let (version, listen) = (env!("BUILD_VERSION"), address.map(tracing::field::display));
        info!(version, listen, pbxs, max_calls, "trunkless is up");
        Ok(App {
            running: Arc::new(Mutex::new(running)),
            switchboard,
            stop,
            stopping,
            faults,
            changes: watch::Sender::new(0),
            doctor,
            traces,
            callbacks,
            address,
        })
    }

    /// Lets the configuration be reloaded from this file.
    pub fn follow(&self, file: PathBuf, environment: HashMap<String, String>) -> Reloads {
        self.doctor.set(checkup(file.clone(), environment.clone()));
        let (running, stopping) = (self.running.clone(), self.stopping.clone());
        Reloader { file, environment, running, stopping, changes: self.changes.clone() }.start()
    }

    /// Ids of the live calls.
    pub fn calls(&self) -> Vec<String> {
        self.switchboard.ids()
    }

    /// Gives an order to a call.
    ///
    /// # Errors
    /// Returns the reason if the order was not queued.
    pub fn order(&self, call: &str, request: OrderRequest) -> Result<(), Failure> {
        self.switchboard.send(call, request)
    }

    /// Returns once no PBX can send calls any more: other programs have taken over all our Stasis
    /// applications, and the last call is over. Never returns while a PBX is in SIP mode.
    pub async fn all_replaced(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            let clients = self.running.lock().await.sources.ari_only();
            let all_replaced = async {
                match clients {
                    Some(clients) => join_all(clients.into_iter().map(|c| c.replaced())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = all_replaced => return,
                _ = changes.changed() => {}
            }
        }
    }

    /// Returns if a call source fails because of an internal error. Others may still end calls.
    pub async fn source_failed(&self) {
        let mut faults = self.faults.clone();
        if faults.wait_for(|broken| *broken).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Stops taking calls, lets live calls continue for the drain time, then ends the rest. The
    /// drain time ends early if `force` completes.
    pub async fn shutdown(self, force: impl Future<Output = ()>) {
        self.stopping.store(true, Ordering::Relaxed);
        tokio::pin!(force);
        // a reload that is under way comes first
        let mut running = self.running.lock().await;
        // calls that are already on their way must still reach us
        let forced = tokio::select! {
            () = running.vicidials.stop() => false,
            () = &mut force => true,
        };
        running.sources.stop().await;
        self.switchboard.close();
        if !self.switchboard.is_empty() {
            info!(
                calls = self.switchboard.len(),
                drain_s = running.drain.as_secs(),
                "waiting for calls to end"
            );
        }
        tokio::select! {
            () = self.switchboard.wait() => {}
            () = sleep(running.drain) => {}
            () = force, if !forced => {}
            () = std::future::ready(()), if forced => {}
        }
        self.stop.send_replace(true);
        let extra = if running.vicidials.is_empty() { Duration::ZERO } else { END_BY_OWNER };
        let _ = timeout(END_CALLS + extra, self.switchboard.wait()).await;
        running.sources.close().await;
        if let Some(traces) = &self.traces {
            let _ = timeout(FLUSH, traces.flush()).await;
        }
        self.callbacks.flush(FLUSH).await;
        running.close().await;
        log_totals_now();
    }
}

/// Returns the checks of `trunkless doctor`, with the configuration file as it is then.
fn checkup(file: PathBuf, environment: HashMap<String, String>) -> Checkup {
    Box::new(move || {
        let (file, environment) = (file.clone(), environment.clone());
        let (done, wait) = oneshot::channel();
        // on a thread of its own: a disk that hangs would hold up the PBXs' tasks
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let report = match (Source::read(&file), runtime) {
                (Ok(source), Ok(runtime)) => {
                    let options = doctor::Options::default();
                    runtime.block_on(doctor::run(&source, &environment, &options)).0
                }
                (Err(error), _) => unreadable(error.to_string()),
                (_, Err(error)) => unreadable(error.to_string()),
            };
            let _ = done.send(report.value());
        };
        let begun = thread::Builder::new().name("doctor".to_owned()).spawn(work);
        Box::pin(async move {
            match begun {
                Ok(_) => wait.await.unwrap_or_default(),
                Err(error) => unreadable(error.to_string()).value(),
            }
        })
    })
}

fn unreadable(why: String) -> Report {
    let remedy = "make the configuration file readable for the user of trunkless";
    Report { findings: vec![Finding::fault("configuration", why, remedy)] }
}

/// Returns the receiver of the events of all calls.
fn sink(
    events: Events,
    hook: Hook,
    callbacks: StatusCallbacks,
    owners: Vicidials,
    traces: Option<Traces>,
) -> EventSink {
    Arc::new(move |call, event| {
        events.send(call, event);
        hook.send(call, event);
        callbacks.send(call, event);
        traces.iter().for_each(|traces| traces.send(call, event));
        owners.on_event(call, event);
    })
}

/// Logs the totals once per interval in which a call ended.
async fn log_totals() {
    let mut before = ended_text();
    loop {
        sleep(TOTALS).await;
        let now = ended_text();
        if now != before {
            log_totals_now();
            before = now;
        }
    }
}

fn log_totals_now() {
    info!(ended = ended_text(), counters = counter::text(COUNTERS), "totals");
}
