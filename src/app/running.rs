//! The parts of a running bridge that a configuration makes, and the way from one configuration to
//! the next. What can fail is prepared first, so that a configuration takes effect as a whole or
//! not at all. Owns tasks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tracing::{error, warn};

use crate::app::access::access;
use crate::app::calls::{Common, call_configs};
use crate::app::dial::lines;
use crate::app::difference::{Difference, need_restart, now_in_effect};
use crate::app::recording::Recordings;
use crate::app::sources::Sources;
use crate::app::webhook::Hook;
use crate::call::admission::{Admission, CallLimits};
use crate::call::placing::Placer;
use crate::call::switchboard::{CallConfigs, Switchboard};
use crate::config::keys::Keys;
use crate::config::plan::Plan;
use crate::control::doctor::Doctor;
use crate::control::events::Events;
use crate::control::health::{self, Watched};
use crate::control::status::Status;
use crate::control::tokens::Access;
use crate::control::{self, Control};
use crate::faults::{DESCRIPTORS, descriptors_for};
use crate::stream::breaker;
use crate::telemetry;
use crate::vicidial::Vicidials;
use crate::vicidial::health::RemoteAgents;

/// Time limit for writing the last events of calls to disk.
const FLUSH: Duration = Duration::from_secs(2);

/// The running parts.
pub(super) struct Running {
    pub admission: Admission,
    pub switchboard: Switchboard,
    /// Places calls.
    pub placer: Placer,
    pub events: Events,
    pub vicidials: Vicidials,
    pub hook: Hook,
    pub recordings: Recordings,
    pub sources: Sources,
    /// The settings of new calls.
    pub configs: watch::Sender<CallConfigs>,
    pub common: Common,
    access: watch::Sender<Access>,
    http: Vec<JoinHandle<()>>,
    /// True once the control API has its port.
    has_control: bool,
    /// True once shutdown has begun.
    stopping: Arc<AtomicBool>,
    /// The checks that the control API runs.
    pub doctor: Doctor,
    /// They show each PBX in SIP mode whether an AI can be reached.
    ai_watches: Vec<AbortHandle>,
    /// Calls may continue for this long after shutdown has begun.
    pub drain: Duration,
    /// Reload when the file changes.
    pub watch_file: bool,
    /// The digest of the file that was read last; `None` before that.
    pub loaded: Option<Vec<u8>>,
    /// The keys of the configuration.
    keys: Keys,
    /// The keys that the parts have been started with.
    in_effect: Keys,
}

/// The effects of a change of the configuration.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub difference: Difference,
    /// Keys that have another value only after a restart.
    pub need_restart: Vec<String>,
}

impl Running {
    pub(super) fn new(
        admission: Admission,
        switchboard: Switchboard,
        broken: watch::Sender<bool>,
        stopping: Arc<AtomicBool>,
    ) -> Running {
        let vicidials = Vicidials::default();
        let sources = Sources::new(admission.clone(), vicidials.clone(), broken);
        Running {
            admission,
            switchboard,
            placer: Placer::default(),
            events: Events::default(),
            vicidials,
            hook: Hook::default(),
            recordings: Recordings::new(),
            sources,
            configs: watch::Sender::new(CallConfigs::new()),
            common: Common::default(),
            access: watch::Sender::new(Access::default()),
            http: Vec::new(),
            has_control: false,
            stopping,
            doctor: Doctor::default(),
            ai_watches: Vec::new(),
            drain: Duration::ZERO,
            watch_file: false,
            loaded: None,
            keys: Keys::new(),
            in_effect: Keys::new(),
        }
    }

    /// Serves health and metrics, and remembers the first configuration. The control API has the
    /// same server if it has the same address.
    ///
    /// # Errors
    /// Returns an error if the address cannot be bound.
    pub(super) async fn begin(&mut self, plan: &Plan, watched: Watched) -> Result<()> {
        (self.keys, self.in_effect) = (plan.keys.clone(), plan.keys.clone());
        let Some(listen) = plan.settings.http.listen else { return Ok(()) };
        let mut routes = health::routes(watched);
        if plan.settings.control.listen == listen {
            routes = routes.merge(self.control());
            self.has_control = true;
        }
        self.serve_http(listen, "[http] listen", routes).await
    }

    /// Replaces the configuration. Live calls keep what they began with.
    ///
    /// # Errors
    /// Returns an error if a part cannot be started. Then the configuration from before stays.
    pub(super) async fn apply(&mut self, mut plan: Plan) -> Result<Applied> {
        let difference = Difference::new(&self.keys, &plan.keys);
        let is_first = self.configs.borrow().is_empty();
        let is_new = |tables: &[&str]| is_first || difference.touches(tables);
        // what can fail
        let recordings = self.recordings.prepare(plan.recording.take())?;
        let hook = match is_new(&["webhook"]) {
            true => Some(self.hook.prepare(plan.notices.take()).context("[webhook] directory")?),
            false => None,
        };
        let vicidials = self.vicidials.start(&plan.vicidials).context("VICIdial")?;
        let sources = self.sources.prepare(&plan).await?;
        if !self.has_control && !plan.tokens.is_empty() {
            let listen = plan.settings.control.listen;
            self.serve_http(listen, "[control] listen", self.control()).await?;
            self.has_control = true;
            set(&mut self.in_effect, &plan.keys, "control.listen");
        }
        // what cannot
        vicidials.keep();
        let settings = &plan.settings;
        if difference.touches(&["log.level"])
            && let Err(why) = telemetry::set_level(&settings.log.level)
        {
            warn!("the log level stays as it was: {why}");
        }
        raise_file_limit(settings.calls.max);
        (self.drain, self.watch_file) = (settings.calls.drain.0, settings.reload.watch);
        if let Some(hook) = hook {
            self.hook.apply(hook);
        }
        let (all, own) = limits(&plan);
        self.admission.set_limits(&all, own);
        if difference.changed.iter().any(|key| key.ends_with("ca_file")) {
            // an AI that could not be reached may be trusted now
            self.common.forget_breakers();
        }
        let recorder = recordings.recorder();
        let new = call_configs(&plan, &mut self.common, recorder, &self.vicidials);
        let new_access = access(&mut plan, &self.access.borrow(), recorder, &new);
        self.access.send_replace(new_access);
        self.configs.send_replace(self.with_former(new));
        let outbox = is_new(&["recording"]);
        if self.recordings.is_off() {
            for key in ["recording.directory", "recording.require_mount"] {
                set(&mut self.in_effect, &plan.keys, key);
            }
        }
        if let Err(why) = self.recordings.apply(recordings, outbox) {
            error!("finished recordings are not sent until a restart: {why:#}");
        }
        let started = self.sources.apply(&plan, sources).await;
        let (vicidials, wanted) = (self.vicidials.clone(), plan.vicidials.clone());
        tokio::spawn(async move { vicidials.retain(&wanted).await });
        let lines = lines(&plan, &self.configs.borrow(), &self.sources);
        self.placer.set(lines);
        self.watch_ais();
        self.follow_health(self.vicidials.change(&plan.vicidials));
        self.in_effect = now_in_effect(&self.in_effect, &plan.keys, &started);
        let need_restart = need_restart(&self.in_effect, &plan.keys);
        self.keys = plan.keys;
        Ok(Applied { difference, need_restart })
    }

    /// A call of a PBX that is being removed may just have been offered, so its settings stay until
    /// the next reload.
    fn with_former(&self, mut configs: CallConfigs) -> CallConfigs {
        let before = self.configs.borrow();
        let of_before = |name: &str| self.sources.statuses.all().iter().any(|s| s.name == name);
        let former = before
            .iter()
            .filter(|(name, _)| of_before(name) && !configs.iter().any(|(other, _)| other == name));
        let former: Vec<_> = former.cloned().collect();
        configs.extend(former);
        configs
    }

    fn control(&self) -> Router {
        let status = Status {
            pbxs: self.sources.statuses.clone(),
            recorder: self.recordings.shown(),
            stopping: self.stopping.clone(),
            doctor: self.doctor.clone(),
        };
        let (switchboard, events) = (self.switchboard.clone(), self.events.clone());
        let placer = self.placer.clone();
        Control::new(switchboard, placer, events, self.access.subscribe(), status).routes()
    }

    async fn serve_http(&mut self, listen: SocketAddr, key: &str, routes: Router) -> Result<()> {
        self.http.push(tokio::spawn(control::bind(listen, key, routes).await?));
        Ok(())
    }

    /// Reports to the SIP endpoint when no AI can be reached for the calls of a PBX.
    fn watch_ais(&mut self) {
        self.ai_watches.drain(..).for_each(|watch| watch.abort());
        let configs = self.configs.borrow();
        for (name, id, endpoint) in self.sources.sip_accounts() {
            let config = configs.iter().find(|(pbx, _)| **pbx == *name);
            let Some((_, config)) = config else { continue };
            let mut watch = breaker::Watch::new(&config.breakers());
            let task = tokio::spawn(async move {
                while let Some(down) = watch.changed().await {
                    endpoint.set_ai_down(id, down).await;
                }
            });
            self.ai_watches.push(task.abort_handle());
        }
    }

    /// Shows new VICIdials whether calls can be taken.
    fn follow_health(&self, agents: Vec<RemoteAgents>) {
        for agents in agents {
            let (configs, statuses) = (self.configs.subscribe(), self.sources.statuses.clone());
            let (all, pbx) = (self.vicidials.clone(), agents.pbx.clone());
            let is_good = move || {
                let configs = configs.borrow();
                let config = configs.iter().find(|(name, _)| **name == *pbx);
                let is_down = |breaker: &Arc<breaker::Breaker>| breaker.is_open();
                let has_ai = config.is_some_and(|(_, c)| !c.breakers().iter().all(is_down));
                let is_ready = statuses.all().iter().any(|s| s.name == pbx && s.get().0);
                is_ready && has_ai && !all.overflows(&pbx)
            };
            tokio::spawn(agents.follow(is_good));
        }
    }

    /// Writes what is left to disk, and ends.
    pub(super) async fn close(&mut self) {
        self.http.iter().for_each(JoinHandle::abort);
        let _ = timeout(FLUSH, self.hook.close()).await;
        let _ = timeout(FLUSH, self.vicidials.flush()).await;
        self.recordings.close().await;
    }
}

fn set(keys: &mut Keys, from: &Keys, key: &str) {
    match from.get(key) {
        Some(digest) => drop(keys.insert(key.to_owned(), digest.clone())),
        None => drop(keys.remove(key)),
    }
}

/// The limits of all calls together, and those of each PBX.
pub(super) fn limits(plan: &Plan) -> (CallLimits, Vec<(String, CallLimits)>) {
    let calls = &plan.settings.calls;
    let all = CallLimits { max: Some(calls.max), per_second: calls.per_second };
    let own = plan.settings.pbx.iter();
    (all, own.map(|(name, pbx)| (name.0.clone(), pbx.calls.limits())).collect())
}

/// Raises the limit on open files to suit this many calls.
fn raise_file_limit(calls: usize) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let wanted = descriptors_for(calls);
    let mut limit = getrlimit(Resource::Nofile);
    let enough = |current: Option<u64>| current.is_none_or(|current| current >= wanted);
    if enough(limit.current) {
        return;
    }
    limit.current = limit.maximum.map_or(Some(wanted), |maximum| Some(wanted.min(maximum)));
    if setrlimit(Resource::Nofile, limit).is_err() || !enough(limit.current) {
        let limit = getrlimit(Resource::Nofile).current;
        warn!(limit, wanted, "{DESCRIPTORS}");
    }
}
