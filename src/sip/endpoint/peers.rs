//! The PBXs: their addresses, port probes and registrations. Owns tasks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::call::Signal;
use crate::sip::agent::{AccountId, CallKey, Route};
use crate::sip::endpoint::port_probe::probe;
use crate::sip::endpoint::{Endpoint, Internal, Peer, resolve};
use crate::sip::flow::Transport;
use crate::sip::registration::Status;
use crate::sip::uri::Host;
use crate::telemetry::PbxStatus;

/// Interval between lookups of a trunk's peers.
const PEERS_AGAIN: Duration = Duration::from_secs(60);
/// The same, after a lookup that failed.
const PEERS_RETRY: Duration = Duration::from_secs(2);

/// The endpoint's state for one PBX.
pub(super) struct PeerState {
    pub name: Arc<str>,
    pub status: Arc<PbxStatus>,
    pub hosts: Vec<(Host, Option<u16>)>,
    pub transport: Transport,
    /// True if we register there; false for a trunk.
    pub registers: bool,
    /// The first of `hosts` as text, for the log.
    pub registrar: String,
    pub x_headers: Vec<String>,
    /// True while we are registered there.
    pub registered: bool,
    /// True once the port was reported closed while we were registered, by a probe that never found
    /// it open. Later reports of that kind are ignored while registered.
    pub doubted: bool,
    /// The probed address, and the handle that stops the probe.
    pub port_probe: Option<(SocketAddr, tokio::task::AbortHandle)>,
}

impl PeerState {
    pub(super) fn new(peer: &Peer) -> PeerState {
        PeerState {
            name: peer.account.name.as_str().into(),
            status: peer.status.clone(),
            hosts: peer.hosts.clone(),
            transport: peer.account.transport,
            registers: peer.account.registration.is_some(),
            registrar: peer.hosts.first().map(shown).unwrap_or_default(),
            x_headers: peer.x_headers.clone(),
            registered: false,
            doubted: false,
            port_probe: None,
        }
    }
}

impl Endpoint {
    pub(super) fn resolve(&self, account: AccountId) {
        let peer = &self.peers[account];
        let (hosts, transport, bound) = (peer.hosts.clone(), peer.transport, self.bound.ip());
        let internal = self.internal_tx.clone();
        tokio::spawn(async move {
            let mut all = Vec::new();
            let mut error = None;
            for (host, port) in hosts {
                match resolve::routes(&host, port, transport, bound).await {
                    Ok(routes) => all.extend(routes),
                    Err(why) => error = Some(why),
                }
            }
            let result = match error {
                Some(why) if all.is_empty() => Err(why),
                Some(why) => {
                    warn!("PBX address ignored: {why}");
                    Ok(all)
                }
                None => Ok(all),
            };
            let _ = internal.send(Internal::Resolved(account, result)).await;
        });
    }

    /// Schedules the next lookup of a trunk's peers. Without a registration, nothing else would
    /// notice that a peer has a new address.
    pub(super) fn resolve_later(&self, account: AccountId, found: bool) {
        let internal = self.internal_tx.clone();
        let wait = if found { PEERS_AGAIN } else { PEERS_RETRY };
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = internal.send(Internal::ResolveAgain(account)).await;
        });
    }

    /// Starts probing a registrar's UDP port, unless that address is probed already.
    pub(super) fn probe_port(&mut self, account: AccountId, routes: &[Route]) {
        let peer = &mut self.peers[account];
        let Some(remote) = routes.first().map(|r| r.remote) else { return };
        let same = peer.port_probe.as_ref().is_some_and(|(to, _)| *to == remote);
        if same || !peer.registers || peer.transport != Transport::Udp {
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

    pub(super) fn on_registration(&mut self, account: AccountId, status: Status) {
        self.peers[account].registered =
            matches!(status, Status::Registered { .. } | Status::Conflict { .. });
        let ready = self.peers[account].registered;
        self.peers[account].status.set(ready, status_word(&status));
        let registrar = self.peers[account].registrar.as_str();
        let pbx = &*self.peers[account].name;
        match &status {
            Status::Registered { expires_s } => info!(pbx, registrar, expires_s, "registered"),
            Status::Refused { code, hint, retry } => {
                let retry_s = retry.as_secs();
                warn!(pbx, registrar, code, retry_s, "registration refused: {hint}");
            }
            Status::Failing { why } => {
                warn!(pbx, registrar, "registration failed: {why}; retrying")
            }
            Status::Lost { why } => {
                warn!(pbx, "registrar lost: {why}; retrying every second")
            }
            Status::Conflict { contact } => {
                warn!(
                    pbx,
                    contact, "another device is registered as the same user: calls may go there"
                );
            }
            Status::Unregistered => info!(pbx, "unregistered"),
        }
        let signal = match status {
            Status::Lost { .. } => Signal::PbxLost,
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
        Status::Unregistered => "unregistered",
    }
}

/// Formats `host:port`, or the host alone if no port is configured.
fn shown((host, port): &(Host, Option<u16>)) -> String {
    port.map_or_else(|| host.to_string(), |port| format!("{host}:{port}"))
}
