//! The sources of calls: the SIP endpoint with its PBXs, and one ARI client per PBX. Starts,
//! changes and ends them one by one, so that none notices what happens to another. Owns tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::app::calls::{overflow, owner};
use crate::ari::client::{AriChange, AriConfig, AriHandle, AriPbx, Source};
use crate::call::admission::Admission;
use crate::call::placing::Submit;
use crate::config::plan::{Plan, SipPbx};
use crate::config::values::HostPort;
use crate::sip::agent::AccountId;
use crate::sip::endpoint::{Endpoint, EndpointConfig, EndpointHandle, Peer};
use crate::sip::flow::Transport;
use crate::telemetry::{PbxStatus, PbxStatuses};
use crate::vicidial::Vicidials;

/// Time limit for unregistering.
const UNREGISTER: Duration = Duration::from_secs(2);
/// Time limit for the answers to the last BYEs, and for cleaning up over ARI.
const BYES: Duration = Duration::from_secs(2);

/// The PBX knows a registration by this. If any of it changes, the old one has to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// The registrar and the user; `None` for a trunk.
    registered: Option<(Option<HostPort>, String, Option<IpAddr>)>,
    transport: Transport,
}

impl Place {
    fn of(pbx: &SipPbx) -> Place {
        let account = &pbx.account;
        let user = (pbx.hosts.first().cloned(), account.username.clone(), account.advertised);
        let registered = account.registration.is_some().then_some(user);
        Place { registered, transport: account.transport }
    }
}

/// One PBX in SIP mode.
struct SipAccount {
    id: AccountId,
    place: Place,
    status: Arc<PbxStatus>,
}

/// The SIP endpoint, and its PBXs by name.
struct SipSide {
    handle: EndpointHandle,
    task: JoinHandle<()>,
    accounts: BTreeMap<String, SipAccount>,
}

/// The client of one PBX in ARI mode.
struct AriSide {
    /// The PBX, for its calls.
    name: String,
    handle: AriHandle,
    task: JoinHandle<()>,
    /// Its URL and application.
    place: (String, String),
    stage: Arc<Stage>,
}

/// A client takes calls, lets the last ones end, or is closed.
struct Stage(AtomicU8);

const TAKING: u8 = 0;
const LEAVING: u8 = 1;
const CLOSING: u8 = 2;

impl Stage {
    /// Moves on, unless it is elsewhere by now.
    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn is(&self, stage: u8) -> bool {
        self.0.load(Ordering::Acquire) == stage
    }
}

/// The parts prepared for a configuration, which cannot fail any more.
#[derive(Default)]
pub(super) struct Prepared {
    endpoint: Option<(Endpoint, EndpointHandle)>,
    clients: BTreeMap<String, (Source, AriHandle)>,
}

/// All sources.
pub(super) struct Sources {
    admission: Admission,
    vicidials: Vicidials,
    pub statuses: PbxStatuses,
    /// Becomes true when a source ends by itself, which is an internal error.
    broken: watch::Sender<bool>,
    sip: Option<SipSide>,
    ari: BTreeMap<String, AriSide>,
    /// Clients of PBXs that were removed and still have calls.
    former: Vec<AriSide>,
    /// Address of the SIP sockets; `None` if no PBX has been in SIP mode.
    pub address: Option<SocketAddr>,
}

impl Sources {
    pub(super) fn new(
        admission: Admission,
        vicidials: Vicidials,
        broken: watch::Sender<bool>,
    ) -> Sources {
        Sources {
            admission,
            vicidials,
            statuses: PbxStatuses::default(),
            broken,
            sip: None,
            ari: BTreeMap::new(),
            former: Vec::new(),
            address: None,
        }
    }

    /// Binds the SIP sockets, if that is new, and makes the clients of new PBXs.
    ///
    /// # Errors
    /// Returns an error with the key to change if that is not possible. Nothing has changed then.
    pub(super) async fn prepare(&self, plan: &Plan) -> anyhow::Result<Prepared> {
        let mut prepared = Prepared::default();
        if !plan.sip.is_empty() && self.sip.is_none() {
            let settings = &plan.settings;
            let config = EndpointConfig {
                listen: settings.sip.listen,
                max_calls: settings.calls.max,
                max_unacknowledged: settings.max_unacknowledged(),
                admission: self.admission.clone(),
                peers: Vec::new(),
            };
            prepared.endpoint = Some(Endpoint::bind(config).await?);
        }
        for (pbx, _) in &plan.ari {
            let stays = self.ari.get(&pbx.name).is_some_and(|side| side.place == place(pbx));
            if stays {
                continue;
            }
            let client = Source::new(AriConfig {
                // shown once the client runs
                status: Arc::new(PbxStatus::new(&pbx.name, "ari")),
                overflow: overflow(plan, &pbx.name, true),
                owner: owner(plan, &pbx.name, &self.vicidials),
                pbx: pbx.clone(),
                max_calls: plan.settings.calls.max,
                admission: self.admission.clone(),
            })?;
            prepared.clients.insert(pbx.name.clone(), client);
        }
        Ok(prepared)
    }

    /// Starts, changes and ends sources. Returns the names of those that were started.
    pub(super) async fn apply(&mut self, plan: &Plan, prepared: Prepared) -> Vec<String> {
        let Prepared { endpoint, clients } = prepared;
        if let Some((endpoint, handle)) = endpoint {
            self.serve_sip(endpoint, handle);
        }
        let mut started = self.apply_sip(plan).await;
        started.extend(self.apply_ari(plan, clients).await);
        let sip = plan.sip.iter().map(|pbx| &*pbx.account.name);
        let names: BTreeSet<&str> = sip.chain(plan.ari.iter().map(|(pbx, _)| &*pbx.name)).collect();
        self.statuses.retain(|status| names.contains(&*status.name));
        started
    }

    fn serve_sip(&mut self, endpoint: Endpoint, handle: EndpointHandle) {
        self.address = Some(endpoint.address());
        let (broken, watched) = (self.broken.clone(), handle.clone());
        tokio::spawn(async move {
            watched.broken().await;
            broken.send_replace(true);
        });
        let task = serve(endpoint.run(), &self.broken);
        self.sip = Some(SipSide { handle, task, accounts: BTreeMap::new() });
    }

    async fn apply_sip(&mut self, plan: &Plan) -> Vec<String> {
        let Some(side) = &mut self.sip else { return Vec::new() };
        let settings = &plan.settings;
        side.handle.set_limits(settings.calls.max, settings.max_unacknowledged()).await;
        let wanted: BTreeMap<&str, Place> =
            plan.sip.iter().map(|pbx| (&*pbx.account.name, Place::of(pbx))).collect();
        let gone = |name: &str, account: &SipAccount| wanted.get(name) != Some(&account.place);
        let gone: Vec<(String, SipAccount)> =
            side.accounts.extract_if(.., |name, account| gone(name, account)).collect();
        // an old registration may have the same contact as the new one
        join_all(gone.iter().map(|(name, account)| leave(&side.handle, name, account))).await;
        let mut started = Vec::new();
        for pbx in &plan.sip {
            let name = &pbx.account.name;
            if let Some(account) = side.accounts.get(name) {
                let peer = peer(plan, pbx, account.status.clone(), &self.vicidials);
                side.handle.change(account.id, peer).await;
                continue;
            }
            let status = self.statuses.add(name, "sip");
            let peer = peer(plan, pbx, status.clone(), &self.vicidials);
            let Some(id) = side.handle.add(peer).await else { continue };
            let account = SipAccount { id, place: Place::of(pbx), status };
            side.accounts.insert(name.clone(), account);
            started.push(name.clone());
        }
        started
    }

    async fn apply_ari(
        &mut self,
        plan: &Plan,
        mut clients: BTreeMap<String, (Source, AriHandle)>,
    ) -> Vec<String> {
        let wanted: BTreeMap<&str, _> =
            plan.ari.iter().map(|(pbx, _)| (&*pbx.name, place(pbx))).collect();
        self.former.retain(|side| !side.task.is_finished());
        let gone = |name: &str, side: &AriSide| wanted.get(name) != Some(&side.place);
        let gone: Vec<(String, AriSide)> =
            self.ari.extract_if(.., |name, side| gone(name, side)).collect();
        for (name, side) in gone {
            side.leave(name);
            self.former.push(side);
        }
        let mut started = Vec::new();
        for (pbx, _) in &plan.ari {
            let former = match self.ari.contains_key(&pbx.name) {
                true => None,
                false => self.returning(pbx),
            };
            if let Some(found) = former {
                let side = self.former.remove(found);
                self.ari.insert(pbx.name.clone(), side);
            } else if let Some((mut source, handle)) = clients.remove(&pbx.name) {
                source.show_in(self.statuses.add(&pbx.name, "ari"));
                let task = serve(source.run(), &self.broken);
                let stage = Arc::new(Stage(AtomicU8::new(TAKING)));
                let name = pbx.name.clone();
                let side = AriSide { name, handle, task, place: place(pbx), stage };
                self.ari.insert(pbx.name.clone(), side);
                started.push(pbx.name.clone());
                continue;
            }
            let Some(side) = self.ari.get(&pbx.name) else { continue };
            let is_back = side.stage.change(LEAVING, TAKING);
            let change = AriChange {
                pbx: pbx.clone(),
                status: is_back.then(|| self.statuses.add(&pbx.name, "ari")),
                overflow: overflow(plan, &pbx.name, true),
                owner: owner(plan, &pbx.name, &self.vicidials),
            };
            side.handle.change(change).await;
        }
        started
    }

    /// The place in `former` of a client that can take calls of this PBX again.
    fn returning(&self, pbx: &AriPbx) -> Option<usize> {
        // its calls have its name
        let same = |side: &AriSide| {
            side.name == pbx.name && side.place == place(pbx) && side.stage.is(LEAVING)
        };
        self.former.iter().position(same)
    }

    /// The account of each PBX in SIP mode, and the endpoint.
    pub(super) fn sip_accounts(&self) -> Vec<(String, AccountId, EndpointHandle)> {
        let all = self.sip.iter().flat_map(|side| {
            let of = |(name, account): (&String, &SipAccount)| {
                (name.clone(), account.id, side.handle.clone())
            };
            side.accounts.iter().map(of)
        });
        all.collect()
    }

    /// The way to place calls through a PBX; `None` if it has no source.
    pub(super) fn submit(&self, pbx: &str) -> Option<Submit> {
        if let Some(side) = &self.sip
            && let Some(account) = side.accounts.get(pbx)
        {
            let (handle, id) = (side.handle.clone(), account.id);
            return Some(Arc::new(move |new| handle.place(id, new)));
        }
        let handle = self.ari.get(pbx)?.handle.clone();
        Some(Arc::new(move |new| handle.place(new)))
    }

    /// The clients of the PBXs in ARI mode; `None` if there is one in SIP mode.
    pub(super) fn ari_only(&self) -> Option<Vec<AriHandle>> {
        let has_sip = self.sip.as_ref().is_some_and(|side| !side.accounts.is_empty());
        (!has_sip).then(|| self.ari.values().map(|side| side.handle.clone()).collect())
    }

    fn clients(&self) -> impl Iterator<Item = &AriSide> {
        self.ari.values().chain(&self.former)
    }

    /// Takes no more calls, and unregisters.
    pub(super) async fn stop(&self) {
        for side in self.clients() {
            side.handle.stop().await;
        }
        if let Some(side) = &self.sip
            && timeout(UNREGISTER, side.handle.shutdown()).await.is_err()
        {
            warn!("unregistering timed out: no answer from the PBX");
        }
    }

    /// Waits until the last BYEs are answered and our objects on ARI PBXs are deleted, then ends.
    pub(super) async fn close(&self) {
        let _ = timeout(BYES, async {
            if let Some(side) = &self.sip {
                side.handle.idle().await;
            }
            join_all(self.clients().map(|side| side.handle.close())).await;
        })
        .await;
        self.sip.iter().for_each(|side| side.task.abort());
        self.clients().for_each(|side| side.task.abort());
    }
}

impl AriSide {
    /// Takes no more calls, and closes the client once the last one has ended.
    fn leave(&self, pbx: String) {
        let (handle, task) = (self.handle.clone(), self.task.abort_handle());
        let stage = self.stage.clone();
        stage.change(TAKING, LEAVING);
        info!(pbx, "PBX removed: no new calls from its Stasis application; its calls continue");
        tokio::spawn(async move {
            if handle.leave().await && stage.change(LEAVING, CLOSING) {
                let _ = timeout(BYES, handle.close()).await;
                task.abort();
            }
        });
    }
}

/// Unregisters at a PBX that was removed or has moved.
async fn leave(endpoint: &EndpointHandle, pbx: &str, account: &SipAccount) {
    info!(pbx, "PBX removed, or its registration changed: unregistering; its calls continue");
    if timeout(UNREGISTER, endpoint.remove(account.id)).await.is_err() {
        warn!(pbx, "unregistering timed out: no answer from the PBX");
    }
}

/// The URL and the application of a PBX.
fn place(pbx: &AriPbx) -> (String, String) {
    (pbx.target.base.clone(), pbx.app.clone())
}

fn peer(plan: &Plan, pbx: &SipPbx, status: Arc<PbxStatus>, vicidials: &Vicidials) -> Peer {
    Peer {
        account: pbx.account.clone(),
        status,
        hosts: pbx.hosts.iter().map(|h| (h.host.clone(), h.port)).collect(),
        x_headers: pbx.ai.x_headers.clone(),
        sip_headers: pbx.ai.sip_headers.clone(),
        port_probe: pbx.port_probe,
        overflow: overflow(plan, &pbx.account.name, false),
        owner: owner(plan, &pbx.account.name, vicidials),
    }
}

/// Starts a part without which no call can be taken.
pub(super) fn serve(
    part: impl Future<Output = ()> + Send + 'static,
    broken: &watch::Sender<bool>,
) -> JoinHandle<()> {
    tokio::spawn(guarded(part, broken.clone()))
}

/// Runs a part without which no call can be taken. If it panics, `broken` becomes true.
async fn guarded(part: impl Future<Output = ()>, broken: watch::Sender<bool>) {
    if AssertUnwindSafe(part).catch_unwind().await.is_err() {
        error!("internal error: a part that takes calls panicked; shutting down");
        broken.send_replace(true);
    }
}
