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
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
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

/// The owners of the calls of all VICIdials. Clones share them.
#[derive(Clone, Default)]
pub struct Vicidials {
    desks: Arc<BTreeMap<String, Arc<Desk>>>,
    keepers: Vec<Keeper>,
    agents: Vec<RemoteAgents>,
    /// Stop the threads that keep the calls when the last clone is dropped.
    _stop: Arc<Vec<oneshot::Sender<()>>>,
}

impl Vicidials {
    /// Starts to keep calls, if there is a VICIdial. `settings`: by PBX name.
    ///
    /// # Errors
    /// Returns an error if the directory or an HTTP client cannot be set up.
    pub fn start(settings: &BTreeMap<String, VicidialSettings>) -> io::Result<Vicidials> {
        let (mut desks, mut keepers) = (BTreeMap::new(), Vec::new());
        let (mut remote, mut stop) = (Vec::new(), Vec::new());
        let mut apis: HashMap<(String, String), Api> = HashMap::new();
        for (name, vicidial) in settings {
            let VicidialSettings { api, desk, remote_agent, directory, ari } = vicidial.clone();
            // one login for all PBXs of one VICIdial
            let key = (api.url.clone(), api.user.clone());
            let api = match apis.get(&key) {
                Some(known) => Api::clone(known),
                None => Api::new(api).map_err(io::Error::other)?,
            };
            apis.insert(key, api.clone());
            let agents = Agents::new(api.clone(), remote_agent.clone());
            let of = |user| RemoteAgents::new(name.clone(), api.clone(), user);
            remote.extend(remote_agent.clone().map(of));
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
            let (keeper, handle) = Keeper::start(folder.clone(), repairs).map_err(failed)?;
            desks
                .insert(name.clone(), Arc::new(Desk::new(api, agents, desk, Some(keeper.clone()))));
            keepers.push(keeper);
            stop.push(handle);
        }
        Ok(Vicidials { desks: Arc::new(desks), keepers, agents: remote, _stop: Arc::new(stop) })
    }

    pub fn is_empty(&self) -> bool {
        self.desks.is_empty()
    }

    /// Returns the owner of the calls of a PBX.
    pub fn owner(&self, pbx: &str) -> Option<Arc<dyn Owner>> {
        let desk: Arc<dyn Owner> = self.desks.get(pbx)?.clone();
        Some(desk)
    }

    /// True if this PBX's customers were turned away a moment ago, because there was no room.
    pub fn overflows(&self, pbx: &str) -> bool {
        self.desks.get(pbx).is_some_and(|desk| desk.overflows())
    }

    /// Takes the event of any call.
    pub fn on_event(&self, call: &LiveCall, event: &EventKind<'_>) {
        if let Some(desk) = self.desks.get(&*call.pbx) {
            desk.on_event(call, event);
        }
    }

    /// The remote agents that show VICIdial whether calls can be taken.
    pub fn remote_agents(&self) -> &[RemoteAgents] {
        &self.agents
    }

    /// Makes all remote agents inactive, before the exit.
    pub async fn stop(&self) {
        join_all(self.agents.iter().map(RemoteAgents::stop)).await;
    }

    /// Returns once all calls so far are on disk.
    pub async fn flush(&self) {
        join_all(self.keepers.iter().map(Keeper::flush)).await;
    }
}
