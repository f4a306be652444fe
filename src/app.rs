//! The composition root: starts all parts from the configuration, and shuts them down. Owns tasks.

mod calls;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::app::calls::{call_configs, overflow};
use crate::ari;
use crate::ari::client::{AriConfig, AriHandle, Source};
use crate::call::admission::{Admission, CallLimits};
use crate::call::counters::ended_text;
use crate::call::ended::Record;
use crate::call::live::EventSink;
use crate::call::ports::PortPool;
use crate::call::switchboard::{CallConfigs, CallStarter, Switchboard};
use crate::call::worker::pool::Workers;
use crate::call::{self, Offer, OrderRequest};
use crate::command::Failure;
use crate::config::plan::Plan;
use crate::control::events::Events;
use crate::control::health::{self, Watched};
use crate::control::{self, Control};
use crate::dns;
use crate::notices::{self, Notices};
use crate::record;
use crate::record::disk;
use crate::record::outbox::Outbox;
use crate::record::recorder::Recorder;
use crate::record::upload::Uploader;
use crate::sip::endpoint::{self, Endpoint, EndpointConfig, EndpointHandle, Peer};
use crate::stream::breaker;
use crate::telemetry::counter::{self, Counters, Labelled};
use crate::telemetry::histogram::Histogram;
use crate::telemetry::{self, PbxStatus};
use crate::traces::{self, Traces};
use crate::vicidial::{self, Vicidials};

/// Time limit for unregistering.
const UNREGISTER: Duration = Duration::from_secs(2);
/// Time limit for the calls that shutdown ends: the time on the ladder, and some more.
const END_CALLS: Duration = Duration::from_secs(13);
/// More of it where VICIdial has to take the customers away.
const END_BY_OWNER: Duration = Duration::from_secs(5);
/// Time limit for the answers to the last BYEs, and for cleaning up over ARI.
const BYES: Duration = Duration::from_secs(2);
/// Time limit for writing the last events of calls to disk.
const FLUSH: Duration = Duration::from_secs(2);
/// Interval between log lines with the totals.
const TOTALS: Duration = Duration::from_secs(60);

/// A running bridge.
pub struct App {
    /// The SIP endpoint and its task; `None` if no PBX is in SIP mode.
    sip: Option<(EndpointHandle, JoinHandle<()>)>,
    /// The ARI client of each PBX in ARI mode, and its task.
    ari: Vec<(AriHandle, JoinHandle<()>)>,
    /// The HTTP servers.
    http: Vec<JoinHandle<()>>,
    switchboard: Switchboard,
    /// Set to true to end all calls.
    stop: watch::Sender<bool>,
    /// True once shutdown has begun, for `/readyz`.
    stopping: Arc<AtomicBool>,
    /// Becomes true when a call source ends by itself, which is an internal error.
    faults: watch::Receiver<bool>,
    /// Calls may continue for this long after shutdown has begun.
    drain: Duration,
    recorder: Option<Recorder>,
    /// Stops the outbox thread when dropped.
    outbox: Option<oneshot::Sender<()>>,
    /// Takes the events of calls for the webhook, and stops its thread when dropped.
    notices: Option<RunningNotices>,
    /// Takes the ends of calls for the collector of traces.
    traces: Option<Traces>,
    vicidials: Vicidials,
    /// Address of the SIP sockets; `None` if no PBX is in SIP mode.
    pub address: Option<SocketAddr>,
}

/// The counters of all parts.
pub static COUNTERS: Counters = &[
    call::counters::ALL,
    ari::client::counters::ALL,
    endpoint::counters::ALL,
    record::counters::ALL,
    notices::ALL,
    vicidial::api::ALL,
    vicidial::keeper::ALL,
    vicidial::repair::ALL,
    breaker::ALL,
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
        let (recorder, outbox) = open_recordings(&mut plan)?;
        let settings = &plan.settings;
        let max_calls = settings.calls.max;
        let (offers, incoming) = mpsc::channel(max_calls);
        let admission = admission(&plan, offers);
        let ports = admission.ports().clone();
        let vicidials = Vicidials::start(&plan.vicidials).context("VICIdial")?;
        let configs = call_configs(&plan, recorder.as_ref(), &vicidials);
        let (drain, pbxs) = (settings.calls.drain.0, configs.len());
        let mut statuses = Vec::new();
        let switchboard = Switchboard::default();
        let (stop, stopped) = watch::channel(false);
        let stopping = Arc::new(AtomicBool::new(false));
        let (sip, address) = start_sip(&plan, &admission, &mut statuses, &vicidials).await?;
        watch_ais(&plan, &configs, sip.as_ref().map(|(_, handle)| handle));
        let ari = start_ari(&plan, &admission, &mut statuses, &vicidials)?;
        follow_health(&vicidials, &configs, &statuses);
        let watched = Watched {
            counters: COUNTERS,
            histograms: HISTOGRAMS,
            labelled: LABELLED,
            pbxs: statuses.into(),
            switchboard: switchboard.clone(),
            max_calls,
            ports,
            stopping: stopping.clone(),
            recorder: recorder.clone(),
        };
        let events = Events::default();
        let http = start_http(&plan, watched, &switchboard, &events).await?;
        info!(listen = address.map(tracing::field::display), pbxs, max_calls, "trunkless is up");
        let workers = Arc::new(Workers::start().context("cannot start the call threads")?);
        let (notices, traces) = start_reports(&mut plan)?;
        let hook = notices.as_ref().map(|(notices, _)| notices.clone());
        let events = sink(events, hook, vicidials.clone(), traces.clone());
        let starter = CallStarter { configs, stopped, records, workers, events };
        let (broken, faults) = watch::channel(false);
        let calls = switchboard.clone().start_calls(starter, incoming);
        tokio::spawn(guarded(calls, broken.clone()));
        tokio::spawn(log_totals());
        let sip = sip.map(|(endpoint, handle)| (handle, serve(endpoint.run(), &broken)));
        let ari = ari.into_iter().map(|(source, handle)| (handle, serve(source.run(), &broken)));
        let ari = ari.collect();
        let outbox =
            outbox.map(Outbox::start).transpose().context("cannot start the outbox thread")?;
        let running = App {
            sip,
            ari,
            http,
            switchboard,
            stop,
            stopping,
            faults,
            drain,
            recorder,
            outbox,
            notices,
            traces,
            vicidials,
            address,
        };
        Ok(running)
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
    /// applications, and the last call is over. Never returns if a PBX is in SIP mode.
    pub async fn all_replaced(&self) {
        if self.sip.is_some() {
            std::future::pending::<()>().await;
        }
        for (handle, _) in &self.ari {
            handle.clone().replaced().await;
        }
    }

    /// Returns if a call source fails because of an internal error. Others may still end calls.
    pub async fn source_failed(&self) {
        let mut faults = self.faults.clone();
        let endpoint = async {
            match &self.sip {
                Some((endpoint, _)) => endpoint.clone().broken().await,
                None => std::future::pending().await,
            }
        };
        let stopped = async {
            if faults.wait_for(|broken| *broken).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stopped => {}
            () = endpoint => {}
        }
    }

    /// Stops taking calls, lets live calls continue for the drain time, then ends the rest. The
    /// drain time ends early if `force` completes.
    pub async fn shutdown(self, force: impl Future<Output = ()>) {
        self.stopping.store(true, Ordering::Relaxed);
        tokio::pin!(force);
        // calls that are already on their way must still reach us
        let forced = tokio::select! {
            () = self.vicidials.stop() => false,
            () = &mut force => true,
        };
        for (handle, _) in &self.ari {
            handle.stop().await;
        }
        if let Some((endpoint, _)) = &self.sip
            && timeout(UNREGISTER, endpoint.shutdown()).await.is_err()
        {
            warn!("unregistering timed out: no answer from the PBX");
        }
        self.switchboard.close();
        if !self.switchboard.is_empty() {
            info!(
                calls = self.switchboard.len(),
                drain_s = self.drain.as_secs(),
                "waiting for calls to end"
            );
        }
        tokio::select! {
            () = self.switchboard.wait() => {}
            () = sleep(self.drain) => {}
            () = force, if !forced => {}
            () = std::future::ready(()), if forced => {}
        }
        self.stop.send_replace(true);
        let extra = if self.vicidials.is_empty() { Duration::ZERO } else { END_BY_OWNER };
        let _ = timeout(END_CALLS + extra, self.switchboard.wait()).await;
        // lost BYEs are resent until the PBX answers, and our objects on ARI PBXs are deleted
        let _ = timeout(BYES, async {
            if let Some((endpoint, _)) = &self.sip {
                endpoint.idle().await;
            }
            join_all(self.ari.iter().map(|(handle, _)| handle.close())).await;
        })
        .await;
        let tasks = self.sip.iter().map(|(_, t)| t).chain(self.ari.iter().map(|(_, t)| t));
        tasks.chain(&self.http).for_each(JoinHandle::abort);
        if let Some((notices, _stop)) = &self.notices {
            let _ = timeout(FLUSH, notices.flush()).await;
        }
        if let Some(traces) = &self.traces {
            let _ = timeout(FLUSH, traces.flush()).await;
        }
        let _ = timeout(FLUSH, self.vicidials.flush()).await;
        drop((self.outbox, self.notices, self.vicidials));
        if let Some(recorder) = self.recorder {
            close(recorder).await;
        }
        log_totals_now();
    }
}

/// The events of calls on their way to the webhook, and the end of their thread.
type RunningNotices = (Notices, oneshot::Sender<()>);

/// Starts what reports the events and the ends of calls to others: the webhook and the traces.
fn start_reports(plan: &mut Plan) -> Result<(Option<RunningNotices>, Option<Traces>)> {
    let notices = plan.notices.take().map(Notices::start).transpose();
    let traces = plan.traces.take().map(Traces::start).transpose();
    let notices = notices.context("[webhook] directory")?;
    Ok((notices, traces.context("[telemetry] otlp_endpoint")?))
}

/// Closes the recorder on a thread of its own, not behind others that block.
async fn close(recorder: Recorder) {
    let (done, wait) = oneshot::channel();
    let closing = recorder.clone();
    let work = move || {
        closing.close();
        let _ = done.send(());
    };
    match thread::Builder::new().name("close".to_owned()).spawn(work) {
        Ok(_) => drop(wait.await),
        Err(_) => recorder.close(),
    }
}

/// Starts a call source.
fn serve(
    source: impl Future<Output = ()> + Send + 'static,
    broken: &watch::Sender<bool>,
) -> JoinHandle<()> {
    tokio::spawn(guarded(source, broken.clone()))
}

/// Runs a part without which no call can be taken. If it panics, `broken` becomes true.
async fn guarded(part: impl Future<Output = ()>, broken: watch::Sender<bool>) {
    if AssertUnwindSafe(part).catch_unwind().await.is_err() {
        error!("internal error: a part that takes calls panicked; shutting down");
        broken.send_replace(true);
    }
}

/// Returns the receiver of the events of all calls.
fn sink(
    events: Events,
    hook: Option<Notices>,
    owners: Vicidials,
    traces: Option<Traces>,
) -> EventSink {
    Arc::new(move |call, event| {
        events.send(call, event);
        hook.iter().for_each(|hook| hook.send(call, event));
        traces.iter().for_each(|traces| traces.send(call, event));
        owners.on_event(call, event);
    })
}

/// Shows each VICIdial whether calls can be taken.
fn follow_health(vicidials: &Vicidials, configs: &CallConfigs, statuses: &Statuses) {
    for agents in vicidials.remote_agents() {
        let status = statuses.iter().find(|status| status.name == agents.pbx).cloned();
        let config = configs.iter().find(|(name, _)| **name == *agents.pbx);
        let (Some(status), Some((_, config))) = (status, config) else { continue };
        let breakers = config.breakers();
        let all = vicidials.clone();
        let is_good = move || {
            let has_ai = !breakers.iter().all(|breaker| breaker.is_open());
            status.get().0 && has_ai && !all.overflows(&status.name)
        };
        tokio::spawn(agents.clone().follow(is_good));
    }
}

fn admission(plan: &Plan, offers: mpsc::Sender<Offer>) -> Admission {
    let settings = &plan.settings;
    let range = settings.media.ports;
    let ports = PortPool::new(settings.sip.listen.ip(), range.first, range.last);
    let all = CallLimits { max: Some(settings.calls.max), per_second: settings.calls.per_second };
    let own = settings.pbx.iter().map(|(name, pbx)| (name.0.clone(), pbx.calls.limits()));
    Admission::new(&all, own, ports, offers)
}

/// Reports to the SIP endpoint when no AI can be reached for the calls of a PBX.
fn watch_ais(plan: &Plan, configs: &CallConfigs, endpoint: Option<&EndpointHandle>) {
    let Some(endpoint) = endpoint else { return };
    for (id, pbx) in plan.sip.iter().enumerate() {
        let config = configs.iter().find(|(name, _)| **name == *pbx.account.name);
        let Some((_, config)) = config else { continue };
        let mut watch = breaker::Watch::new(&config.breakers());
        let endpoint = endpoint.clone();
        tokio::spawn(async move {
            while let Some(down) = watch.changed().await {
                endpoint.set_ai_down(id, down).await;
            }
        });
    }
}

type Statuses = Vec<Arc<PbxStatus>>;

fn status(statuses: &mut Statuses, name: &str, mode: &'static str) -> Arc<PbxStatus> {
    let status = Arc::new(PbxStatus::new(name, mode));
    statuses.push(status.clone());
    status
}

/// Binds the SIP endpoint, if a PBX is in SIP mode.
async fn start_sip(
    plan: &Plan,
    admission: &Admission,
    statuses: &mut Statuses,
    vicidials: &Vicidials,
) -> Result<(Option<(Endpoint, EndpointHandle)>, Option<SocketAddr>)> {
    if plan.sip.is_empty() {
        return Ok((None, None));
    }
    let config = EndpointConfig {
        listen: plan.settings.sip.listen,
        max_calls: plan.settings.calls.max,
        max_unacknowledged: plan
            .settings
            .sip
            .max_unacknowledged
            .unwrap_or_else(|| (plan.settings.calls.max / 2).max(10)),
        admission: admission.clone(),
        peers: plan
            .sip
            .iter()
            .map(|pbx| Peer {
                account: pbx.account.clone(),
                status: status(statuses, &pbx.account.name, "sip"),
                hosts: pbx.hosts.iter().map(|h| (h.host.clone(), h.port)).collect(),
                x_headers: pbx.ai.x_headers.clone(),
                sip_headers: pbx.ai.sip_headers.clone(),
                port_probe: pbx.port_probe,
                overflow: overflow(plan, &pbx.account.name, false),
                owner: vicidials.owner(&pbx.account.name),
            })
            .collect(),
    };
    let (endpoint, handle) = Endpoint::bind(config).await?;
    let address = endpoint.address();
    Ok((Some((endpoint, handle)), Some(address)))
}

fn start_ari(
    plan: &Plan,
    admission: &Admission,
    statuses: &mut Statuses,
    vicidials: &Vicidials,
) -> Result<Vec<(Source, AriHandle)>> {
    plan.ari
        .iter()
        .map(|(pbx, _)| {
            Source::new(AriConfig {
                status: status(statuses, &pbx.name, "ari"),
                overflow: overflow(plan, &pbx.name, true),
                owner: vicidials.owner(&pbx.name),
                pbx: pbx.clone(),
                max_calls: plan.settings.calls.max,
                admission: admission.clone(),
            })
        })
        .collect()
}

/// Starts the HTTP servers: one, if health and the control API have the same address.
async fn start_http(
    plan: &Plan,
    watched: Watched,
    switchboard: &Switchboard,
    events: &Events,
) -> Result<Vec<JoinHandle<()>>> {
    let settings = &plan.settings;
    let mut routes: Vec<(SocketAddr, &str, Router)> = Vec::new();
    if let Some(listen) = settings.http.listen {
        routes.push((listen, "[http] listen", health::routes(watched)));
    }
    if !plan.tokens.is_empty() {
        let (tokens, hosts) = (plan.tokens.clone(), settings.control.hosts.clone());
        let control = Control::new(switchboard.clone(), events.clone(), tokens, hosts);
        let listen = settings.control.listen;
        match routes.iter_mut().find(|(other, ..)| *other == listen) {
            Some((.., routes)) => *routes = std::mem::take(routes).merge(control.routes()),
            None => routes.push((listen, "[control] listen", control.routes())),
        }
    }
    let mut servers = Vec::new();
    for (listen, key, routes) in routes {
        servers.push(tokio::spawn(control::bind(listen, key, routes).await?));
    }
    Ok(servers)
}

/// Starts the recorder, and prepares the outbox if there is an upload or a webhook.
fn open_recordings(plan: &mut Plan) -> Result<(Option<Recorder>, Option<Outbox>)> {
    let Some(recording) = plan.recording.take() else { return Ok((None, None)) };
    let uploader = recording.upload.as_ref().map(Uploader::new).transpose();
    let uploader = uploader.context("[recording.upload] url")?;
    let added = Arc::new(Notify::new());
    let outbox = recording.settings.outbox.then(|| Outbox {
        root: disk::root(&recording.settings),
        uploader,
        webhook: recording.webhook,
        delete_after: recording.delete_after,
        added: added.clone(),
    });
    let recorder = Recorder::new(recording.settings, move || added.notify_one());
    Ok((Some(recorder.context("cannot start the recording threads")?), outbox))
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
