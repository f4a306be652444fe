//! OPTIONS: to the registrar while we are registered, and to the peers of a trunk, which send us
//! calls without a registration.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::sip::agent::{AccountId, Agent, Event, PRODUCT, Purpose, Route, TimerKey, client_key};
use crate::sip::flow::{Flow, Transport};
use crate::sip::message::Message;
use crate::sip::uri::escape_user;

/// A peer counts as silent after this many OPTIONS without an answer, each given one interval.
const MAX_UNANSWERED: u32 = 3;
/// At most this many addresses per trunk are sent OPTIONS. The others never count as silent.
pub(super) const MAX_PEERS: usize = 64;

/// The peers of a trunk, each asked at the interval. Their answers only decide if the trunk is
/// ready: calls from a silent peer are accepted.
pub(super) struct Monitor {
    interval: Duration,
    peers: Vec<Peer>,
}

struct Peer {
    remote: SocketAddr,
    /// Number of OPTIONS sent since the last message from this peer.
    unanswered: u32,
    /// Time of the next OPTIONS.
    next: Instant,
    /// Key of the latest OPTIONS' transaction.
    open: Option<String>,
}

impl Peer {
    fn is_silent(&self) -> bool {
        self.unanswered > MAX_UNANSWERED
    }
}

impl Monitor {
    /// Returns `None` if the interval is zero: the peers are never asked.
    pub fn new(interval: Duration) -> Option<Monitor> {
        let monitor = Monitor { interval, peers: Vec::new() };
        (!interval.is_zero()).then_some(monitor)
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.peers.iter().map(|peer| peer.next).min()
    }

    pub fn stop(&mut self) {
        self.peers.clear();
    }

    /// Takes the addresses of a lookup. New ones are asked at once.
    fn take_routes(&mut self, now: Instant, routes: &[Route]) {
        self.peers.retain(|peer| routes.iter().any(|route| route.remote == peer.remote));
        for Route { remote, .. } in routes {
            let known = self.peers.iter().any(|peer| peer.remote == *remote);
            if !known && self.peers.len() < MAX_PEERS {
                self.peers.push(Peer { remote: *remote, unanswered: 0, next: now, open: None });
            }
        }
    }
}

impl Agent {
    pub(super) fn monitor_peers(&mut self, now: Instant, id: AccountId) {
        let account = &mut self.accounts[id];
        let Some(monitor) = account.monitor.as_mut().filter(|_| !self.stopping) else { return };
        monitor.take_routes(now, &account.peers);
        self.arm(TimerKey::Account(id));
    }

    /// Sends the OPTIONS that are due, and reports the peers that did not answer the last ones.
    pub(super) fn ask_peers(&mut self, now: Instant, id: AccountId) {
        let account = &mut self.accounts[id];
        let transport = account.config.transport;
        let Some(monitor) = account.monitor.as_mut() else { return };
        let mut due = Vec::new();
        for peer in monitor.peers.iter_mut().filter(|peer| peer.next <= now) {
            peer.next = now + monitor.interval;
            let was_silent = peer.is_silent();
            peer.unanswered = peer.unanswered.saturating_add(1);
            due.push((peer.remote, peer.open.take(), peer.is_silent() && !was_silent));
        }
        for (remote, open, lost) in due {
            if let Some(key) = open {
                self.clients.remove(&key); // at most one is open per peer
            }
            if lost {
                self.event(Event::Peer { account: id, remote, answers: false });
            }
            let parameter = if transport == Transport::Tcp { ";transport=tcp" } else { "" };
            let uri = format!("sip:{remote}{parameter}");
            let branch = self.send_options(now, id, Flow { transport, remote }, &uri, None);
            let peers = self.accounts[id].monitor.iter_mut().flat_map(|m| &mut m.peers);
            peers.filter(|p| p.remote == remote).for_each(|peer| {
                peer.open = branch.as_deref().map(|branch| client_key(branch, "OPTIONS"));
            });
        }
    }

    /// Notes a message from a peer. A response counts for the address that the request was sent
    /// to; a request for every port of its address, because it may come from any port.
    pub(super) fn heard_from(&mut self, ip: IpAddr, port: Option<u16>) {
        let mut back = Vec::new();
        for (id, account) in self.accounts.iter_mut().enumerate() {
            for peer in account.monitor.iter_mut().flat_map(|m| &mut m.peers) {
                let here = peer.remote.ip() == ip && port.is_none_or(|p| p == peer.remote.port());
                if here {
                    if peer.is_silent() {
                        back.push((id, peer.remote));
                    }
                    peer.unanswered = 0;
                }
            }
        }
        for (account, remote) in back {
            self.event(Event::Peer { account, remote, answers: true });
        }
    }

    /// Sends OPTIONS and returns their branch. `host`: the domain of our From; by default our
    /// address.
    pub(super) fn send_options(
        &mut self,
        now: Instant,
        id: AccountId,
        flow: Flow,
        uri: &str,
        host: Option<&str>,
    ) -> Option<String> {
        let local_ip = self.local_ip(id, flow.remote.ip())?;
        let own = SocketAddr::new(local_ip, self.config_port).to_string();
        let user = escape_user(&self.accounts[id].config.username);
        let from = format!("<sip:{user}@{}>", host.unwrap_or(&own));
        let (via, branch) = self.via(local_ip, flow.transport);
        let tag = self.random.token();
        let request = Message::request("OPTIONS", uri)
            .with("Via", via)
            .with("Max-Forwards", "70")
            .with("From", format!("{from};tag={tag}"))
            .with("To", format!("<{uri}>"))
            .with("Call-ID", format!("{}@trunkless", self.random.token()))
            .with("CSeq", "1 OPTIONS")
            .with("User-Agent", PRODUCT);
        Some(self.send_request(now, flow, branch, &request, Purpose::Keepalive(id)))
    }
}
