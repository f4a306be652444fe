//! The only place where the parts are put together: configuration in, a running bridge out.
//! Owns tasks.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::call::end::EndReason;
use crate::call::ports::PortPool;
use crate::call::run::{Record, run};
use crate::call::{CallConfig, Offer, Request};
use crate::config::resolve::{AiPlan, Plan};
use crate::media::frame::RATE;
use crate::media::playout::Budget;
use crate::record::writer::Recorder;
use crate::sip::endpoint::{Endpoint, EndpointConfig, EndpointHandle, Peer};
use crate::telemetry::COUNTERS;

/// How long giving the registrations back may take.
const UNREGISTER: Duration = Duration::from_secs(2);
/// What calls that are ended by us get to say goodbye.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long the answers to our last BYEs may take.
const BYES: Duration = Duration::from_secs(2);
/// Interval of the line with the totals.
const TOTALS: Duration = Duration::from_secs(60);

/// A running bridge.
pub struct App {
    endpoint: EndpointHandle,
    serving: JoinHandle<()>,
    calls: TaskTracker,
    stop: watch::Sender<bool>,
    drain: Duration,
    recorder: Option<Recorder>,
    /// Where SIP is served.
    pub address: SocketAddr,
}

impl App {
    /// Binds the sockets and starts to serve. Ended calls' records go to `records`, if given.
    ///
    /// # Errors
    /// What cannot be opened, and the key to change.
    pub async fn start(plan: Plan, records: Option<mpsc::UnboundedSender<Record>>) -> Result<App> {
        let settings = &plan.settings;
        let recorder = plan.recordings.clone().map(open_recordings).transpose()?;
        let max_calls = settings.calls.max;
        let ports = settings.media.ports;
        let (offers, incoming) = mpsc::channel(max_calls);
        let budget = Budget::new(settings.calls.playout_budget_mb << 20);
        let configs: Vec<(Arc<str>, Arc<CallConfig>)> = plan
            .pbxs
            .iter()
            .map(|pbx| {
                let config = call_config(&plan, &pbx.ai, budget.clone(), recorder.clone());
                (pbx.account.name.as_str().into(), Arc::new(config))
            })
            .collect();
        let drain = settings.calls.drain.0;
        let config = EndpointConfig {
            listen: settings.sip.listen,
            max_calls,
            ports: PortPool::new(settings.sip.listen.ip(), ports.first, ports.last),
            offers,
            peers: plan
                .pbxs
                .into_iter()
                .map(|pbx| Peer {
                    account: pbx.account,
                    hosts: pbx.hosts.into_iter().map(|h| (h.host, h.port)).collect(),
                    x_headers: pbx.ai.x_headers,
                })
                .collect(),
        };
        let (endpoint, handle) = Endpoint::bind(config).await?;
        let address = endpoint.address();
        info!(listen = %address, pbxs = configs.len(), max_calls, "trunkless is up");
        let (stop, stopped) = watch::channel(false);
        let calls = TaskTracker::new();
        tokio::spawn(take_offers(incoming, configs, calls.clone(), stopped, records));
        tokio::spawn(log_totals());
        let serving = tokio::spawn(endpoint.run());
        Ok(App { endpoint: handle, serving, calls, stop, drain, recorder, address })
    }

    /// Unregisters, lets calls end by themselves for the drain time, ends the rest. `hurry` cuts
    /// the waiting short.
    pub async fn shutdown(self, hurry: impl Future<Output = ()>) {
        if timeout(UNREGISTER, self.endpoint.shutdown()).await.is_err() {
            warn!("the PBX does not answer to the end of the registration");
        }
        self.calls.close();
        if !self.calls.is_empty() {
            info!(
                calls = self.calls.len(),
                drain_s = self.drain.as_secs(),
                "waiting for calls to end"
            );
        }
        tokio::select! {
            () = self.calls.wait() => {}
            () = sleep(self.drain) => {}
            () = hurry => {}
        }
        self.stop.send_replace(true);
        let _ = timeout(FAREWELL, self.calls.wait()).await;
        // a BYE that was lost is sent again until the PBX answers
        let _ = timeout(BYES, self.endpoint.idle()).await;
        self.serving.abort();
        if let Some(recorder) = self.recorder {
            let _ = tokio::task::spawn_blocking(move || recorder.flush()).await;
        }
        COUNTERS.log();
    }
}

fn open_recordings(directory: PathBuf) -> Result<Recorder> {
    let name = directory.display().to_string();
    Recorder::new(directory).with_context(|| format!("[recording] directory {name} cannot be used"))
}

fn call_config(plan: &Plan, ai: &AiPlan, budget: Budget, recorder: Option<Recorder>) -> CallConfig {
    let calls = &plan.settings.calls;
    CallConfig {
        target: ai.target.clone(),
        account_sid: ai.account_sid.clone(),
        parameters: ai.parameters.clone(),
        answer: calls.answer.when(),
        answer_wait: calls.answer_wait.0,
        ringing: calls.ringing,
        drain_on_close: calls.drain_on_close.0,
        prompt: plan.prompt.clone(),
        max_duration: calls.max_duration.0,
        silent_timeout: ai.silent_timeout,
        media_timeout: calls.media_timeout.0,
        reorder_wait: plan.settings.media.reorder_wait.0,
        playout_bytes: calls.playout_minutes as usize * 60 * RATE as usize,
        playout_budget: budget,
        recorder,
    }
}

/// Gives every offer a task of its own; a panic in one ends that call alone.
async fn take_offers(
    mut incoming: mpsc::Receiver<Offer>,
    configs: Vec<(Arc<str>, Arc<CallConfig>)>,
    calls: TaskTracker,
    stopped: watch::Receiver<bool>,
    records: Option<mpsc::UnboundedSender<Record>>,
) {
    while let Some(mut offer) = incoming.recv().await {
        let Some(config) =
            configs.iter().find(|(name, _)| *name == offer.pbx).map(|(_, c)| c.clone())
        else {
            (offer.requests)(Request::End(EndReason::Internal));
            continue;
        };
        let (stopped, records) = (stopped.clone(), records.clone());
        let requests: Arc<dyn Fn(Request) + Send + Sync> = Arc::from(offer.requests);
        let for_call = requests.clone();
        offer.requests = Box::new(move |request| for_call(request));
        calls.spawn(async move {
            let id = offer.id.clone();
            match AssertUnwindSafe(run(offer, config, stopped)).catch_unwind().await {
                Ok(record) => {
                    if let Some(records) = records {
                        let _ = records.send(record);
                    }
                }
                Err(_) => {
                    COUNTERS.panics.fetch_add(1, Ordering::Relaxed);
                    COUNTERS.ended(EndReason::Internal);
                    error!(call = id, "a fault of ours has ended this call");
                    requests(Request::End(EndReason::Internal));
                }
            }
        });
    }
}

async fn log_totals() {
    let mut before = String::new();
    loop {
        sleep(TOTALS).await;
        let now = COUNTERS.summary();
        if now != before {
            COUNTERS.log();
            before = now;
        }
    }
}
