//! Accounts: the addresses of each PBX, and which calls are whose.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::sip::agent::monitor::Monitor;
use crate::sip::agent::{
    Account, AccountConfig, AccountId, Agent, CallKey, Output, Purpose, Route, Routes,
};
use crate::sip::flow::Transport;
use crate::sip::registration::Registration;
use crate::sip::transaction::State;
use crate::sip::uri::escape_user;

/// At most this many peers within ranges are remembered.
const MAX_RANGE_PEERS: usize = 4096;
/// Maximum number of times that a call changes to a TCP connection to another port.
const MAX_RECONNECTS: u8 = 2;
/// Minimum time between two rounds through addresses whose ports are closed.
const ROUND: Duration = Duration::from_secs(1);

impl Agent {
    pub(super) fn add_account(&mut self, mut config: AccountConfig) -> AccountId {
        let registration = config.registration.take().map(Registration::new);
        let monitor = Monitor::new(config.keepalive).filter(|_| registration.is_none());
        let id = self.accounts.len();
        self.accounts.push(Account {
            registration,
            monitor,
            config,
            registrar: Vec::new(),
            peers: Vec::new(),
            target: 0,
            round: (None, 0),
            silent: Vec::new(),
            former: Vec::new(),
            register_call_id: format!("{}@trunkless", self.random.token()),
            register_tag: self.random.token(),
            register_cseq: 0,
            register_branches: VecDeque::new(),
            ai_down: false,
            retired: false,
        });
        self.out.push_back(Output::Resolve { account: id });
        id
    }

    /// Returns the accounts whose PBX has this address.
    pub(super) fn accounts_at(&self, ip: IpAddr) -> impl Iterator<Item = (AccountId, &Account)> {
        let all = self.accounts.iter().enumerate();
        all.filter(move |(_, account)| !account.retired && account.is_at(ip))
    }

    /// True if this is an address of the PBX, which may have been removed.
    pub(super) fn is_of(&self, id: AccountId, ip: IpAddr) -> bool {
        self.accounts[id].is_at(ip)
    }

    /// True if this is a peer within a range, and our address towards it is not known. Pass it to
    /// [`Agent::set_local_ip`] before the peer's message.
    pub fn lacks_local_ip(&self, ip: IpAddr) -> bool {
        let in_range = |a: &Account| a.config.ranges.iter().any(|n| n.contains(ip));
        !self.range_locals.contains_key(&ip) && self.accounts.iter().any(in_range)
    }

    pub fn set_local_ip(&mut self, peer: IpAddr, local: IpAddr) {
        if self.range_locals.len() >= MAX_RANGE_PEERS {
            self.range_locals.clear();
        }
        self.range_locals.insert(peer, local);
    }

    /// Returns the account that takes a call from `remote` to `user`. `via_port` is the port in the
    /// Via of the INVITE. If several do, the port decides, then how exactly the user is configured.
    pub(super) fn account_for(
        &self,
        remote: SocketAddr,
        via_port: u16,
        user: &str,
    ) -> Option<AccountId> {
        let here = self.accounts_at(remote.ip());
        let ranked = here.filter_map(|(id, account)| {
            let of_port = |port: u16| {
                let at = SocketAddr::new(remote.ip(), port);
                account.routes().any(|route| route.remote == at)
            };
            let port = if of_port(remote.port()) { 2 } else { u8::from(of_port(via_port)) };
            Some((id, (port, account.accepts(user)?)))
        });
        // the first of the best
        ranked.min_by_key(|(_, rank)| std::cmp::Reverse(*rank)).map(|(id, _)| id)
    }

    /// True if a call or a transaction still uses this address of an earlier lookup. Requests
    /// within a call, and resent ones, are accepted from it until then; new calls are not.
    pub(super) fn was_at(&self, ip: IpAddr) -> bool {
        self.accounts.iter().any(|a| a.former.contains(&ip)) && self.uses(ip)
    }

    fn uses(&self, ip: IpAddr) -> bool {
        self.calls.values().any(|c| c.flow.remote.ip() == ip)
            || self.servers.answers(ip)
            || self.clients.values().any(|c| c.flow.remote.ip() == ip)
    }

    /// The addresses that calls and registrations send to, whose connections must stay open.
    pub fn flows_in_use(&self) -> HashSet<SocketAddr> {
        let registrars = (0..self.accounts.len()).filter_map(|id| self.register_flow(id));
        let calls = self.calls.values().map(|call| call.flow);
        calls.chain(registrars).map(|flow| flow.remote).collect()
    }

    /// Returns our address towards `remote`, for Contact, Via and SDP.
    pub(super) fn local_ip(&self, account: AccountId, remote: IpAddr) -> Option<IpAddr> {
        let account = &self.accounts[account];
        let exact = account.routes().find(|r| r.remote.ip() == remote).map(|r| r.local);
        let in_range = || self.range_locals.get(&remote).copied();
        let any = || account.routes().next().map(|r| r.local);
        account.config.advertised.or(exact).or_else(in_range).or_else(any)
    }

    pub(super) fn contact_uri(&self, account: AccountId, local_ip: IpAddr) -> String {
        let config = &self.accounts[account].config;
        contact_uri(&config.username, SocketAddr::new(local_ip, self.config_port), config.transport)
    }

    pub(super) fn on_resolved(&mut self, now: Instant, id: AccountId, routes: Routes) {
        let account = &mut self.accounts[id];
        if account.retired {
            return;
        }
        let before: Vec<IpAddr> = account.routes().map(|r| r.remote.ip()).collect();
        account.peers = routes.peers;
        let mut moved = false;
        let failed = match routes.registrar {
            Ok(routes) if !routes.is_empty() => {
                moved = account.take_registrar(routes);
                None
            }
            Ok(_) => Some("the registrar's name has no address".to_owned()),
            Err(why) => Some(why),
        };
        let known = !account.registrar.is_empty();
        let why = failed.unwrap_or_default();
        self.keep_former(id, &before);
        self.monitor_peers(now, id);
        if moved {
            self.report_registrar(id);
        }
        self.with_registration(now, id, |registration, random| {
            if moved {
                registration.on_address_changed(now, random);
            }
            // if the lookup failed, the PBX may still be at the addresses we know
            if known {
                registration.on_resolved(now, random);
            } else {
                registration.on_resolve_failed(now, why, random);
            }
        });
    }

    /// Remembers the addresses of the lookup `before` that calls still use.
    fn keep_former(&mut self, id: AccountId, before: &[IpAddr]) {
        let account = &self.accounts[id];
        let current: Vec<IpAddr> = account.routes().map(|r| r.remote.ip()).collect();
        let mut former: Vec<IpAddr> = account.former.iter().chain(before).copied().collect();
        former.retain(|ip| !current.contains(ip) && self.uses(*ip));
        former.sort();
        former.dedup();
        self.accounts[id].former = former;
    }

    pub(super) fn on_unreachable(&mut self, now: Instant, remote: SocketAddr, gone: bool) {
        let calls = self.calls.iter();
        let over = calls.filter(|(_, c)| c.flow.transport == Transport::Tcp);
        let over: Vec<CallKey> =
            over.filter(|(_, c)| c.flow.remote == remote).map(|(key, _)| *key).collect();
        over.into_iter().for_each(|key| self.reconnect(key));
        let ids: Vec<AccountId> = (0..self.accounts.len())
            .filter(|id| self.register_flow(*id).is_some_and(|f| f.remote == remote))
            .collect();
        for id in ids {
            self.next_target(id);
            let account = &mut self.accounts[id];
            let registered = account.registration.as_ref().is_some_and(Registration::is_registered);
            // a PBX that restarts comes back at the same address
            let has_next = !registered && account.next_in_round(now);
            self.with_registration(now, id, |registration, _| {
                registration.on_unreachable(now, has_next, gone);
            });
        }
    }

    /// After the end of a call's TCP connection, its requests go over one to the address in the
    /// route set or Contact, and if that cannot be made either, to the PBX's usual port. The
    /// connection that ended may have been made by the PBX, whose port there accepts nothing.
    fn reconnect(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(&key).filter(|c| c.reconnects < MAX_RECONNECTS) else {
            return;
        };
        let before = call.flow.remote;
        let next = {
            let account = call.account.map(|id| &self.accounts[id]);
            let mut known = account.into_iter().flat_map(Account::routes).map(|r| r.remote);
            let usual = known.clone().find(|r| r.ip() == before.ip() && *r != before);
            let hop = call.dialog.next_hop().filter(|_| call.reconnects == 0).map(|uri| {
                // behind NAT, the PBX may give an address that only it can reach
                let ip = uri.host.ip().filter(|ip| known.any(|r| r.ip() == *ip));
                SocketAddr::new(ip.unwrap_or(before.ip()), uri.port.unwrap_or(5060))
            });
            hop.filter(|hop| *hop != before).or(usual)
        };
        let Some(next) = next else { return };
        call.reconnects += 1;
        call.flow.remote = next;
        let flow = call.flow;
        // a BYE on the connection that ended is lost
        let lost = self.clients.values_mut().filter(|entry| {
            let open = matches!(entry.tx.state, State::Trying | State::Proceeding);
            entry.purpose == Purpose::Bye(key) && entry.flow.remote == before && open
        });
        let lost: Vec<Vec<u8>> = lost
            .map(|entry| {
                entry.flow = flow;
                entry.tx.request.clone()
            })
            .collect();
        lost.into_iter().for_each(|bye| self.send(flow, bye));
    }

    pub(super) fn on_account_timeout(&mut self, now: Instant, id: AccountId) {
        self.with_registration(now, id, |registration, random| {
            registration.on_timeout(now, random)
        });
        self.ask_peers(now, id);
    }
}

impl Account {
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let registration = self.registration.as_ref().and_then(Registration::next_timeout);
        registration.or_else(|| self.monitor.as_ref()?.next_timeout())
    }

    fn is_at(&self, ip: IpAddr) -> bool {
        self.routes().any(|r| r.remote.ip() == ip)
            || self.config.ranges.iter().any(|n| n.contains(ip))
    }

    /// All addresses from which calls are accepted.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Route> + Clone {
        self.registrar.iter().chain(&self.peers)
    }

    /// How exactly this user is configured; `None` if calls to it are not accepted.
    fn accepts(&self, user: &str) -> Option<u8> {
        let registers = self.registration.is_some();
        let listed = self.config.users.iter().any(|pattern| pattern.matches(user));
        match registers && self.config.username == user {
            true => Some(2),
            false if listed => Some(1),
            false => (!registers && self.config.users.is_empty()).then_some(0),
        }
    }

    /// Counts an unreachable address. True if the next one may be asked at once: each address is
    /// asked at most once per [`ROUND`] in this way.
    fn next_in_round(&mut self, now: Instant) -> bool {
        let (begin, unreachable) = &mut self.round;
        if begin.is_none_or(|begin| begin + ROUND <= now) {
            (*begin, *unreachable) = (Some(now), 0);
        }
        *unreachable += 1;
        *unreachable < self.registrar.len()
    }

    /// Takes the registrar's addresses. One that is in use stays in use, wherever it is in the new
    /// list. Returns true if REGISTER goes to another address from now on.
    fn take_registrar(&mut self, routes: Vec<Route>) -> bool {
        let used = self.registrar.get(self.target).copied();
        self.registrar = routes;
        let same = |r: &Route| used.is_some_and(|used| used.remote == r.remote);
        let place = self.registrar.iter().position(same);
        self.target = place.unwrap_or(0);
        if place.is_none()
            && let Some(used) = used
            && self.registration.as_ref().is_some_and(Registration::is_registered)
        {
            // calls come from there until we are registered elsewhere, and it may be the only
            // address that answers
            self.registrar.push(used);
        }
        place.is_none()
    }
}

pub(super) fn contact_uri(user: &str, address: SocketAddr, transport: Transport) -> String {
    let parameter = if transport == Transport::Tcp { ";transport=tcp" } else { "" };
    match user {
        "" => format!("sip:{address}{parameter}"), // a trunk may call the address without a user
        user => format!("sip:{}@{address}{parameter}", escape_user(user)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_without_a_user_has_no_at_sign() {
        let address = "192.0.2.1:5070".parse().unwrap();
        assert_eq!(contact_uri("", address, Transport::Udp), "sip:192.0.2.1:5070");
        let tcp = contact_uri("a b", address, Transport::Tcp);
        assert_eq!(tcp, "sip:a%20b@192.0.2.1:5070;transport=tcp");
    }
}
