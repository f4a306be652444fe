//! The PBXs: their addresses, port probes and registrations. Owns tasks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::AbortHandle;
use tracing::field::display;
use tracing::{info, warn};

use crate::call::ladder::Overflow;
use crate::call::{Owner, Signal};
use crate::faults::{REGISTRAR_SILENT, REGISTRAR_SILENT_CURE, REGISTRATION_REFUSED, TWO_DEVICES};
use crate::sip::agent::{AccountId, AiDown, CallKey, Command, Route, Routes};
use crate::sip::endpoint::counters::{CONFLICTS, REGISTRATIONS_LOST};
use crate::sip::endpoint::port_probe::probe;
use crate::sip::endpoint::{Endpoint, HostAndPort, Internal, Peer, resolve};
use crate::sip::flow::Transport;
use crate::sip::network::Network;
use crate::sip::registration::Status;
use crate::sip::uri::Host;
use crate::telemetry::PbxStatus;

/// Interval between lookups of a PBX's names. Otherwise a PBX with a new address would be noticed
/// only when the old one stops answering, and a new peer never.
const LOOKUP_AGAIN: Duration = Duration::from_secs(60);
/// The same for a trunk, after a lookup that failed.
const LOOKUP_RETRY: Duration = Duration::from_secs(2);

/// A host in the configuration and the result of its lookups.
#[derive(Clone)]
pub(super) struct KnownHost {
    host: Host,
    port: Option<u16>,
    /// Its addresses from the last lookup that succeeded.
    routes: Vec<Route>,
    /// True if the last lookup failed.
    failed: bool,
}

/// The endpoint's state for one PBX.
pub(super) struct PeerState {
    pub name: Arc<str>,
    pub status: Arc<PbxStatus>,
    /// The registrar first, if there is one; then further peers.
    hosts: Vec<KnownHost>,
    pub transport: Transport,
    /// True if we register there; false for a trunk.
    pub registers: bool,
    /// The first of `hosts` as text, for the log.
    pub registrar: String,
    pub x_headers: Vec<String>,
    pub sip_headers: Vec<String>,
    pub overflow: Overflow,
    pub owner: Option<Arc<dyn Owner>>,
    ai_down: AiDown,
    /// Networks of the PBX's media, if they are configured.
    pub media_peers: Vec<Network>,
    /// True if calls are also accepted from ranges of addresses.
    has_ranges: bool,
    /// The addresses of a trunk that do not answer OPTIONS.
    silent: Vec<SocketAddr>,
    /// True while we are registered there.
    pub registered: bool,
    /// True once the port was reported closed while we were registered, by a probe that never found
    /// it open. Later reports of that kind are ignored while registered.
    pub doubted: bool,
    /// True if the registrar's port may be probed.
    may_probe: bool,
    /// The probed address, and the handle that stops the probe.
    pub port_probe: Option<(SocketAddr, AbortHandle)>,
    /// Stops the timer of the next lookup.
    next_lookup: Option<AbortHandle>,
    /// True while no AI can be reached for its calls.
    lacks_ai: bool,
    /// True once the PBX was removed.
    pub retired: bool,
}

impl PeerState {
    pub(super) fn new(peer: &Peer) -> PeerState {
        PeerState {
            name: peer.account.name.as_str().into(),
            status: peer.status.clone(),
            hosts: peer.hosts.iter().map(KnownHost::new).collect(),
            transport: peer.account.transport,
            registers: peer.account.registration.is_some(),
            registrar: peer.hosts.first().map(shown).unwrap_or_default(),
            x_headers: peer.x_headers.clone(),
            sip_headers: peer.sip_headers.clone(),
            overflow: peer.overflow.clone(),
            owner: peer.owner.clone(),
            ai_down: peer.account.ai_down,
            media_peers: peer.account.media_peers.clone(),
            has_ranges: !peer.account.ranges.is_empty(),
            silent: Vec::new(),
            registered: false,
            doubted: false,
            may_probe: peer.port_probe && peer.account.transport == Transport::Udp,
            port_probe: None,
            next_lookup: None,
            lacks_ai: false,
            retired: false,
        }
    }

    /// Takes other settings. Hosts that stay keep their addresses.
    pub(super) fn change(&mut self, peer: &Peer) {
        let before = std::mem::take(&mut self.hosts);
        let known = |host: &HostAndPort| {
            let same = before.iter().find(|known| (&known.host, known.port) == (&host.0, host.1));
            same.cloned().unwrap_or_else(|| KnownHost::new(host))
        };
        self.hosts = peer.hosts.iter().map(known).collect();
        self.registrar = peer.hosts.first().map(shown).unwrap_or_default();
        self.x_headers.clone_from(&peer.x_headers);
        self.sip_headers.clone_from(&peer.sip_headers);
        self.overflow = peer.overflow.clone();
        self.owner.clone_from(&peer.owner);
        self.ai_down = peer.account.ai_down;
        self.media_peers.clone_from(&peer.account.media_peers);
        self.has_ranges = !peer.account.ranges.is_empty();
        self.may_probe = peer.port_probe && self.transport == Transport::Udp;
        if !self.may_probe {
            self.stop_probe();
        }
    }

    /// The PBX was removed: nothing is asked of it any more.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.stop_probe();
        self.next_lookup.take().iter().for_each(AbortHandle::abort);
    }

    fn stop_probe(&mut self) {
        self.port_probe.take().iter().for_each(|(_, task)| task.abort());
    }

    fn host_names(&self) -> Vec<HostAndPort> {
        self.hosts.iter().map(|known| (known.host.clone(), known.port)).collect()
    }
}

impl PeerState {
    /// Sets the status of a trunk. It is ready if one of its addresses is not silent; addresses
    /// within a range are not asked, so they count as not silent.
    fn show_trunk(&self) {
        let mut known = self.hosts.iter().flat_map(|host| &host.routes).map(|r| r.remote);
        let found = self.has_ranges || known.clone().next().is_some();
        let ready = self.has_ranges || known.any(|remote| !self.silent.contains(&remote));
        let silent: Vec<String> = self.silent.iter().map(SocketAddr::to_string).collect();
        let silent = silent.join(", ");
        let state = match (found, ready) {
            (false, _) => "peers not found".to_owned(),
            (true, true) if silent.is_empty() => "trunk".to_owned(),
            (true, true) => format!("trunk; no answer to OPTIONS from {silent}"),
            (true, false) => format!("no answer to OPTIONS from {silent}"),
        };
        self.status.set(ready, state);
    }
}

impl KnownHost {
    fn new((host, port): &(Host, Option<u16>)) -> KnownHost {
        KnownHost { host: host.clone(), port: *port, routes: Vec::new(), failed: false }
    }
}

impl Endpoint {
    pub(super) fn resolve(&self, account: AccountId) {
        let peer = &self.peers[account];
        let hosts = peer.host_names();
        let (transport, bound) = (peer.transport, self.bound.ip());
        let internal = self.internal_tx.clone();
        tokio::spawn(async move {
            let lookups = hosts.iter().map(|(host, port)| {
                resolve::routes(host, *port, transport, bound) // one slow name delays no other
            });
            let found = join_all(lookups).await;
            let _ = internal.send(Internal::Resolved(account, hosts, found)).await;
        });
    }

    /// Takes the results of a lookup, unless it was of other hosts than there are now. A host whose
    /// lookup failed keeps its last addresses.
    pub(super) fn on_resolved(
        &mut self,
        account: AccountId,
        hosts: &[HostAndPort],
        found: Vec<Result<Vec<Route>, String>>,
    ) -> Option<Routes> {
        let peer = &mut self.peers[account];
        if peer.retired || peer.host_names() != hosts {
            return None;
        }
        let pbx = &*peer.name;
        let (mut registrar, mut peers, mut error) = (Ok(Vec::new()), Vec::new(), None);
        for (n, (host, result)) in peer.hosts.iter_mut().zip(found).enumerate() {
            let is_registrar = peer.registers && n == 0;
            let failed = result.is_err();
            match result {
                Ok(routes) if !routes.is_empty() => host.routes = routes,
                Ok(_) => {}
                Err(why) if is_registrar => registrar = Err(why), // logged with the registration
                Err(why) => {
                    if !host.failed {
                        warn!(pbx, known = host.routes.len(), "PBX address ignored: {why}");
                    }
                    error = Some(why);
                }
            }
            host.failed = failed;
            if is_registrar {
                registrar = registrar.map(|_: Vec<Route>| host.routes.clone());
            } else {
                peers.extend_from_slice(&host.routes);
            }
        }
        if !peer.registers {
            let found = !peers.is_empty() || peer.has_ranges;
            if let Some(why) = error.filter(|_| !found) {
                warn!(pbx, "peers not found: {why}; retrying");
            }
            peer.silent.retain(|silent| peers.iter().any(|r| r.remote == *silent));
            peer.show_trunk();
        }
        self.resolve_later(account);
        Some(Routes { registrar, peers })
    }

    /// Schedules the next lookup of a PBX's names.
    fn resolve_later(&mut self, account: AccountId) {
        let peer = &mut self.peers[account];
        if !peer.hosts.iter().any(|h| matches!(h.host, Host::Name(_))) {
            return;
        }
        let found = peer.registers || peer.hosts.iter().any(|h| !h.routes.is_empty());
        let wait = if found { LOOKUP_AGAIN } else { LOOKUP_RETRY };
        let internal = self.internal_tx.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = internal.send(Internal::ResolveAgain(account)).await;
        });
        if let Some(before) = peer.next_lookup.replace(task.abort_handle()) {
            before.abort();
        }
    }

    /// Starts probing a registrar's UDP port, unless that address is probed already.
    pub(super) fn probe_port(&mut self, account: AccountId, remote: SocketAddr) {
        let peer = &mut self.peers[account];
        let same = peer.port_probe.as_ref().is_some_and(|(to, _)| *to == remote);
        if same || !peer.may_probe {
            return;
        }
        let internal = self.internal_tx.clone();
        // if the queue is full, the next probe reports it again
        let closed = move |was_open| {
            let _ = internal.try_send(Internal::Closed { account, remote, was_open });
            !internal.is_closed()
        };
        let task = tokio::spawn(probe(remote, closed));
        if let Some((_, before)) = peer.port_probe.replace((remote, task.abort_handle())) {
            before.abort();
        }
    }

    /// Shows a PBX that no AI can be reached for its calls, or that one can again.
    pub(super) fn on_ai_down(&mut self, account: AccountId, down: bool) {
        let peer = &mut self.peers[account];
        if std::mem::replace(&mut peer.lacks_ai, down) == down {
            return;
        }
        let pbx = &*peer.name;
        match (peer.ai_down, down) {
            (AiDown::Stay, _) => {}
            (AiDown::RefuseOptions, true) => warn!(pbx, "no AI can be reached: OPTIONS get 503"),
            (AiDown::RefuseOptions, false) => info!(pbx, "AI reachable again: OPTIONS get 200"),
            (AiDown::Unregister, true) => warn!(pbx, "no AI can be reached: unregistering"),
            (AiDown::Unregister, false) => info!(pbx, "AI reachable again: registering"),
        }
        self.command(Command::AiDown { account, down });
    }

    /// Reports a peer of a trunk that stopped answering OPTIONS, or answers again.
    pub(super) fn on_peer(&mut self, account: AccountId, remote: SocketAddr, answers: bool) {
        let peer = &mut self.peers[account];
        peer.silent.retain(|silent| *silent != remote);
        if !answers {
            peer.silent.push(remote);
        }
        peer.show_trunk();
        let (pbx, address) = (&*peer.name, display(remote));
        match answers {
            true => info!(pbx, address, "peer answers again"),
            false => warn!(pbx, address, "peer does not answer OPTIONS: its calls are still taken"),
        }
    }

    pub(super) fn on_registration(
        &mut self,
        account: AccountId,
        remote: Option<SocketAddr>,
        status: Status,
    ) {
        let was = self.peers[account].registered;
        self.peers[account].registered =
            matches!(status, Status::Registered { .. } | Status::Conflict { .. });
        let ready = self.peers[account].registered;
        if was && !ready && status != Status::Unregistered {
            REGISTRATIONS_LOST.add(1);
        }
        self.peers[account].status.set(ready, status_word(&status));
        let registrar = self.peers[account].registrar.as_str();
        let pbx = &*self.peers[account].name;
        let address = remote.map(display);
        match &status {
            Status::Registered { expires_s } => {
                info!(pbx, registrar, address, expires_s, "registered");
            }
            Status::Refused { code, hint, retry } => {
                let retry_s = retry.as_secs();
                warn!(pbx, registrar, address, code, retry_s, "{REGISTRATION_REFUSED}: {hint}");
            }
            Status::Failing { why } => {
                warn!(pbx, registrar, address, "registration failed: {why}; retrying")
            }
            Status::Lost { why, .. } => {
                warn!(pbx, registrar, address, "registrar lost: {why}; retrying every second")
            }
            Status::Silent => {
                warn!(
                    pbx,
                    registrar,
                    address,
                    "{REGISTRAR_SILENT}: trying its next address, if it has one, and again every \
                     second; {REGISTRAR_SILENT_CURE}"
                );
            }
            Status::Conflict { contact } => {
                CONFLICTS.add(1);
                warn!(pbx, registrar, address, contact, "{TWO_DEVICES}");
            }
            Status::Unregistered => info!(pbx, "unregistered"),
        }
        let signal = match status {
            Status::Lost { gone, .. } => Signal::PbxLost { gone },
            Status::Registered { .. } | Status::Conflict { .. } => Signal::PbxBack,
            _ => return,
        };
        let calls = self.calls.iter().filter(|(_, link)| link.account == account);
        let calls: Vec<CallKey> = calls.map(|(key, _)| *key).collect();
        calls.into_iter().for_each(|call| self.signal(call, signal));
    }
}

fn status_word(status: &Status) -> &'static str {
    match status {
        Status::Registered { .. } => "registered",
        Status::Conflict { .. } => "registered beside another device",
        Status::Refused { .. } => "registration refused",
        Status::Failing { .. } => "registration failed",
        Status::Lost { .. } => "registrar lost",
        Status::Silent => "registrar does not answer",
        Status::Unregistered => "unregistered",
    }
}

/// Formats `host:port`, or the host alone if no port is configured.
fn shown((host, port): &(Host, Option<u16>)) -> String {
    port.map_or_else(|| host.to_string(), |port| format!("{host}:{port}"))
}
