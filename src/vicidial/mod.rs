//! VICIdial: what its calls are, its two HTTP APIs, and what trunkless does with them.
//!
//! A remote agent of VICIdial is a phone that is called with nothing but a call id in the caller's
//! name. Everything else is asked over HTTP, and calls are ended and transferred over HTTP, because
//! a BYE from us counts as an abandoned call.

pub mod agents;
pub mod answer;
pub mod api;
pub mod call_id;
pub mod check;
pub mod desk;
pub mod health;
pub mod keeper;
pub mod lead;
pub mod lookup;
pub mod own_call;
pub mod plan;
pub mod repair;
pub mod statuses;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::oneshot;

use crate::call::Owner;
use crate::call::live::{EventKind, LiveCall};
use crate::vicidial::agents::Agents;
use crate::vicidial::api::{Api, ApiSettings};
use crate::vicidial::desk::{Desk, DeskSettings};
use crate::vicidial::health::RemoteAgents;
use crate::vicidial::keeper::Keeper;
use crate::vicidial::repair::Repairs;

/// The settings of one VICIdial.
#[derive(Clone)]
pub struct VicidialSettings {
    pub api: ApiSettings,
    pub desk: DeskSettings,
    /// The first user of the remote agents, if they become inactive while no calls can be taken.
    pub remote_agent: Option<String>,
    /// Calls are kept here until VICIdial has their status, in a folder with the PBX's name.
    pub directory: PathBuf,
    /// True if the PBX is in ARI mode.
    pub ari: bool,
}

/// In ARI mode, customers of a killed trunkless are moved by VICIdial only for this long.
const RESCUE_LIMIT: Duration = Duration::from_secs(18);

/// One VICIdial.
struct Unit {
    api: Api,
    desk: Arc<Desk>,
    keeper: Keeper,
    /// They follow the health of the PBX, if there are some, until it is removed.
    agents: Option<RemoteAgents>,
    /// Stops the thread that keeps the calls when it is dropped.
    _stop: oneshot::Sender<()>,
}

/// Logins by URL and user, with the password.
type Logins = HashMap<(String, String), (SecretString, Api)>;

/// The owners of the calls of all VICIdials, by PBX name. Clones share them.
#[derive(Clone, Default)]
pub struct Vicidials {
    units: Arc<Mutex<BTreeMap<String, Unit>>>,
    /// One login for all PBXs of one VICIdial.
    apis: Arc<Mutex<Logins>>,
}

/// VICIdials that have been started. They are stopped again unless they are kept.
pub struct Started {
    all: Vicidials,
    names: Vec<String>,
}

impl Started {
    pub fn keep(mut self) {
        self.names.clear();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let mut units = self.all.units();
        self.names.iter().for_each(|name| drop(units.remove(name)));
    }
}

impl Vicidials {
    /// Starts to keep the calls of the VICIdials that are new. `settings`: by PBX name.
    ///
    /// # Errors
    /// Returns an error if the directory or an HTTP client cannot be set up. Then none is started.
    pub fn start(&self, settings: &BTreeMap<String, VicidialSettings>) -> io::Result<Started> {
        let mut started = Started { all: self.clone(), names: Vec::new() };
        for (name, vicidial) in settings {
            if self.desk(name).is_none() {
                let unit = self.unit(name, vicidial.clone())?;
                self.units().insert(name.clone(), unit);
                started.names.push(name.clone());
            }
        }
        Ok(started)
    }

    /// Takes these settings for new calls. Returns the remote agents that are to follow the health
    /// of their PBX from now on.
    pub fn change(&self, settings: &BTreeMap<String, VicidialSettings>) -> Vec<RemoteAgents> {
        let mut started = Vec::new();
        for (name, unit) in &mut *self.units() {
            let Some(vicidial) = settings.get(name) else { continue };
            unit.desk.change(vicidial.desk.clone());
            if unit.agents.is_none()
                && let Some(user) = vicidial.remote_agent.clone()
            {
                let new = RemoteAgents::new(name.clone(), unit.api.clone(), user);
                started.push(new.clone());
                unit.agents = Some(new);
            }
        }
        started
    }

    fn unit(&self, name: &str, settings: VicidialSettings) -> io::Result<Unit> {
        let VicidialSettings { api, desk, remote_agent, directory, ari } = settings;
        let api = self.api(api)?;
        let agents = Agents::new(api.clone(), remote_agent);
        // for a thread of its own
        let apart = api.apart().map_err(io::Error::other)?;
        let repairs = Repairs {
            agents: agents.apart(apart.clone()),
            api: apart,
            in_group: desk.in_group.clone(),
            crashed: desk.statuses.ai_error.clone(),
            // in ARI mode, trunkless sends the customers to the dialplan after 20 s
            rescue_limit: ari.then_some(RESCUE_LIMIT),
        };
        let folder = directory.join(name);
        let failed = |error: io::Error| {
            let key = format!("[pbx.{name}.vicidial] directory");
            io::Error::other(format!("{key}: {} cannot be used: {error}", folder.display()))
        };
        let (keeper, stop) = Keeper::start(folder.clone(), repairs).map_err(failed)?;
        let desk = Arc::new(Desk::new(api.clone(), agents, desk, Some(keeper.clone())));
        Ok(Unit { api, desk, keeper, agents: None, _stop: stop })
    }

    /// Returns the HTTP client, the same for all PBXs of one VICIdial.
    fn api(&self, settings: ApiSettings) -> io::Result<Api> {
        let mut apis = self.apis.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (settings.url.clone(), settings.user.clone());
        let password = settings.password.clone();
        if let Some((known, api)) = apis.get(&key)
            && known.expose_secret() == password.expose_secret()
        {
            return Ok(api.clone());
        }
        let api = Api::new(settings).map_err(io::Error::other)?;
        apis.insert(key, (password, api.clone()));
        Ok(api)
    }

    /// A panic in another thread leaves the table consistent, so poisoning is ignored.
    fn units(&self) -> MutexGuard<'_, BTreeMap<String, Unit>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn desk(&self, pbx: &str) -> Option<Arc<Desk>> {
        self.units().get(pbx).map(|unit| unit.desk.clone())
    }

    pub fn is_empty(&self) -> bool {
        self.units().is_empty()
    }

    /// Returns the owner of the calls of a PBX.
    pub fn owner(&self, pbx: &str) -> Option<Arc<dyn Owner>> {
        let desk: Arc<dyn Owner> = self.desk(pbx)?;
        Some(desk)
    }

    /// True if this PBX's customers were turned away a moment ago, because there was no room.
    pub fn overflows(&self, pbx: &str) -> bool {
        self.desk(pbx).is_some_and(|desk| desk.overflows())
    }

    /// Takes the event of any call.
    pub fn on_event(&self, call: &LiveCall, event: &EventKind<'_>) {
        if let Some(desk) = self.desk(&call.pbx) {
            desk.on_event(call, event);
        }
    }

    /// Makes the remote agents of all other PBXs inactive, because those were removed. The calls
    /// that are up keep their owner, and their statuses are still corrected.
    pub async fn retain(&self, wanted: &BTreeMap<String, VicidialSettings>) {
        let gone = |(name, unit): (&String, &mut Unit)| {
            (!wanted.contains_key(name)).then(|| unit.agents.take()).flatten()
        };
        let agents: Vec<RemoteAgents> = self.units().iter_mut().filter_map(gone).collect();
        join_all(agents.iter().map(RemoteAgents::stop)).await;
    }

    /// Makes all remote agents inactive, before the exit.
    pub async fn stop(&self) {
        let agents: Vec<RemoteAgents> =
            self.units().values().filter_map(|unit| unit.agents.clone()).collect();
        join_all(agents.iter().map(RemoteAgents::stop)).await;
    }

    /// Returns once all calls so far are on disk.
    pub async fn flush(&self) {
        let keepers: Vec<Keeper> = self.units().values().map(|unit| unit.keeper.clone()).collect();
        join_all(keepers.iter().map(Keeper::flush)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vicidial::statuses::Statuses;

    fn settings(directory: PathBuf, password: &str) -> VicidialSettings {
        VicidialSettings {
            api: ApiSettings {
                pbx: "main".to_owned(),
                url: "http://127.0.0.1:9".to_owned(),
                user: "api".to_owned(),
                password: password.to_owned().into(),
                tls: None,
            },
            desk: DeskSettings {
                wait_for_lead: Duration::ZERO,
                fields: Vec::new(),
                custom_fields: Vec::new(),
                in_group: None,
                statuses: Statuses::default(),
            },
            remote_agent: None,
            directory,
            ari: false,
        }
    }

    #[tokio::test]
    async fn a_configuration_that_is_refused_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        let all = Vicidials::default();
        let good = || settings(folder.path().to_owned(), "a");
        let both =
            [("a".to_owned(), good()), ("b".to_owned(), settings(file, "a"))].into_iter().collect();
        assert!(all.start(&both).is_err(), "a file in place of the directory");
        assert!(all.is_empty());
        // another part was refused
        let one = BTreeMap::from([("a".to_owned(), good())]);
        drop(all.start(&one).expect("started"));
        assert!(all.is_empty());
        all.start(&one).expect("started").keep();
        assert!(all.owner("a").is_some());
    }

    #[tokio::test]
    async fn another_password_is_another_login() {
        let (folder, all) = (tempfile::tempdir().expect("a directory"), Vicidials::default());
        let api = |password| settings(folder.path().to_owned(), password).api;
        let first = all.api(api("a")).expect("a client");
        assert!(first.is_same(&all.api(api("a")).expect("a client")));
        assert!(!first.is_same(&all.api(api("b")).expect("a client")));
    }
}
