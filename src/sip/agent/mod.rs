//! The user agent: messages, timers and commands go in, messages and events come out.
//!
//! Sans-IO: call [`Agent::handle`], then drain [`Agent::poll`], then wait until
//! [`Agent::next_timeout`] or the next input. Nothing here uses a socket or a clock.
//!
//! - [`api`]: inputs, outputs, commands and events
//! - `changing`: PBXs that are added, changed and removed
//! - [`accounts`]: registrations, and the addresses from which we accept messages
//! - [`receive`]: a message's path to its transaction
//! - [`servers`]: the table of server transactions
//! - [`monitor`]: OPTIONS to registrars and to the peers of trunks
//! - [`recovery`]: the state after a panic
//! - `refer`: transfers
//! - [`refusal`]: refused requests
//! - [`uas`]: incoming calls and other requests outside dialogs
//! - [`in_dialog`]: requests within a call
//! - [`requests`]: our requests within calls
//! - `direction`: hold and resume
//! - [`credentials`]: the answers to challenges
//! - [`uac`]: outgoing calls
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod accounts;
mod api;
mod changing;
mod credentials;
mod direction;
mod in_dialog;
mod monitor;
mod receive;
mod recovery;
mod refer;
mod refusal;
mod registering;
mod requests;
mod servers;
mod uac;
mod uas;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

pub use api::*;

use crate::sip::agent::credentials::CallAuth;
use crate::sip::agent::direction::Directing;
use crate::sip::agent::monitor::Monitor;
use crate::sip::agent::refer::Referring;
use crate::sip::agent::servers::Servers;
use crate::sip::dialog::Dialog;
use crate::sip::flow::{Flow, Transport};
use crate::sip::message::Message;
use crate::sip::random::Random;
use crate::sip::registration::Registration;
use crate::sip::sdp::{Direction, Local, Remote};
use crate::sip::session_timer::SessionTimer;
use crate::sip::transaction::{AwaitAck, Client};

/// The methods we support, for Allow.
const ALLOW: &str = "INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, UPDATE, NOTIFY";
/// Sent as User-Agent and Server.
const PRODUCT: &str = concat!("trunkless/", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum TimerKey {
    Account(AccountId),
    Server(String),
    Client(String),
    Call(CallKey),
}

/// The purpose of a client transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Register(AccountId),
    Keepalive(AccountId),
    Invite(CallKey),
    Reinvite(CallKey),
    Update(CallKey),
    Bye(CallKey),
    Info(CallKey),
    Refer(CallKey),
    /// CANCEL, whose responses have no effect.
    Other,
}

/// A client transaction and its context.
struct ClientEntry {
    tx: Client,
    /// Destination of the request.
    flow: Flow,
    method: &'static str,
    purpose: Purpose,
    /// CSeq number of the request.
    cseq: u32,
}

/// The state of one PBX.
struct Account {
    config: AccountConfig,
    /// `None` for a trunk.
    registration: Option<Registration>,
    /// Sends OPTIONS to the peers of a trunk.
    monitor: Option<Monitor>,
    /// The registrar's addresses from the last successful lookup.
    registrar: Vec<Route>,
    /// Further addresses from which calls are accepted.
    peers: Vec<Route>,
    /// Index of the registrar's address that REGISTER is sent to.
    target: usize,
    /// When the present round through the addresses began, and how many of them were unreachable.
    round: (Option<Instant>, usize),
    /// Addresses reported as silent since we were last registered.
    silent: Vec<SocketAddr>,
    /// Addresses of earlier lookups that calls still use.
    former: Vec<IpAddr>,
    /// Call-ID of all REGISTERs.
    register_call_id: String,
    /// From tag of all REGISTERs.
    register_tag: String,
    /// CSeq number of the last REGISTER.
    register_cseq: u32,
    /// Branches of the outstanding REGISTERs, oldest first.
    register_branches: VecDeque<String>,
    /// True while no AI can be reached for the calls of this PBX.
    ai_down: bool,
    /// True once the PBX was removed: no new calls, only the end of those that it has.
    retired: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallState {
    /// INVITE received, no final response sent yet.
    Offered,
    /// INVITE sent, no final response received yet.
    Dialling,
    /// CANCEL sent, or to be sent after the first provisional response.
    Cancelling,
    Up,
    /// BYE sent, or to be sent after the ACK, which must come first (RFC 3261 §15).
    Ending,
}

/// The state of one call.
struct Call {
    state: CallState,
    /// The PBX's account; `None` for an outgoing call.
    account: Option<AccountId>,
    /// Destination of our requests and of resent 2xx.
    flow: Flow,
    /// Number of TCP connections that were replaced by one to another port.
    reconnects: u8,
    dialog: Dialog,
    /// `<sip:user@address:port>` for Contact.
    contact: String,
    /// Our address for Via.
    local_ip: IpAddr,
    /// The INVITE that has no final response yet, with the key of its server transaction.
    invite: Option<(Message, String)>,
    /// True once the 200 to the INVITE has been acknowledged.
    acknowledged: bool,
    /// The time of the call's entry in [`Agent::timers`].
    armed: Option<Instant>,
    /// Resends our 2xx until its ACK arrives.
    awaiting_ack: Option<AwaitAck>,
    /// True if our 2xx contains the offer, so that the answer comes in the ACK.
    late_offer: bool,
    /// The peer's latest offer.
    offer: Option<Remote>,
    /// The Reason of our BYE, which cannot be sent before the ACK arrives and may be challenged.
    bye_reason: Option<String>,
    /// Our side of the audio stream, once we have answered or dialled.
    local: Option<Local>,
    /// Our latest SDP.
    sdp: String,
    session_timer: Option<SessionTimer>,
    /// True if the peer supports UPDATE.
    peer_allows_update: bool,
    /// True while our re-INVITE or UPDATE is open; offers from the peer are then answered 491.
    refreshing: bool,
    /// The change of direction that the peer has not accepted yet.
    directing: Option<Directing>,
    /// The last REFER.
    referring: Option<Referring>,
    /// The direction that is wanted next, because another re-INVITE or UPDATE is open.
    next_direction: Option<Direction>,
    /// Credentials: an outgoing call's own, or the PBX's once it has asked for them.
    auth: Option<CallAuth>,
    /// The command that started an outgoing call.
    dial: Option<Box<Dial>>,
    /// CSeq number and bytes of our last ACK for a 2xx, to be resent if the 2xx arrives again.
    last_ack: Option<(u32, Vec<u8>)>,
}

pub struct Agent {
    /// Our port, for Via and Contact.
    config_port: u16,
    max_calls: usize,
    max_unacknowledged: usize,
    random: Random,
    accounts: Vec<Account>,
    servers: Servers,
    /// Client transactions by branch and method.
    clients: HashMap<String, ClientEntry>,
    calls: HashMap<CallKey, Call>,
    /// Calls by Call-ID and our tag.
    dialogs: HashMap<(String, String), CallKey>,
    /// Our address towards each peer within a range.
    range_locals: HashMap<IpAddr, IpAddr>,
    /// Addresses that we have called, from which we accept messages.
    dialled: Vec<IpAddr>,
    /// Number of call keys given out.
    next_call: u64,
    /// Timeouts and their owners. An entry that its owner no longer needs is dropped when it fires.
    timers: BTreeSet<(Instant, TimerKey)>,
    /// Owner of the timeout that is being handled.
    running: Option<TimerKey>,
    /// Outputs to be returned by [`Agent::poll`].
    out: VecDeque<Output>,
    pub counts: Counts,
    /// True after [`Command::Shutdown`].
    stopping: bool,
    /// See [`Agent::set_full`].
    full: bool,
    /// True once [`Event::Unregistered`] has been sent.
    told_unregistered: bool,
}

impl Agent {
    /// `key` seeds tags, branches and cnonces: random in production, fixed in tests.
    pub fn new(config: AgentConfig, key: [u8; 32]) -> Agent {
        let mut agent = Agent {
            config_port: config.listen_port,
            max_calls: config.max_calls,
            max_unacknowledged: config.max_unacknowledged,
            random: Random::new(key),
            accounts: Vec::new(),
            servers: Servers::default(),
            clients: HashMap::new(),
            calls: HashMap::new(),
            dialogs: HashMap::new(),
            range_locals: HashMap::new(),
            dialled: Vec::new(),
            next_call: 0,
            timers: BTreeSet::new(),
            running: None,
            out: VecDeque::new(),
            counts: Counts::default(),
            stopping: false,
            full: false,
            told_unregistered: false,
        };
        for account in config.accounts {
            agent.add_account(account);
        }
        agent
    }

    /// Returns an unused key, for [`Command::Dial`] or an incoming call.
    pub fn new_call_key(&mut self) -> CallKey {
        self.next_call += 1;
        CallKey(self.next_call)
    }

    /// Returns an unused Call-ID, for [`Command::Place`].
    pub fn new_call_id(&mut self) -> String {
        format!("{}@trunkless", self.random.token())
    }

    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Message { flow, data } => self.on_message(now, flow, data),
            Input::Broken { flow, head, why } => self.on_broken(flow, head, why),
            Input::Resolved { account, routes } => self.on_resolved(now, account, routes),
            Input::Unreachable { remote, gone } => self.on_unreachable(now, remote, gone),
            Input::Timeout => {}
            Input::Command(command) => self.on_command(now, command),
        }
        self.run_timers(now);
    }

    /// Sets that `[calls] max` is reached, over all PBXs: OPTIONS are answered 503.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Returns when [`Input::Timeout`] is due. May be early, because stale timers are dropped only
    /// when they fire.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// True until the call is over.
    pub fn has_call(&self, call: CallKey) -> bool {
        self.calls.contains_key(&call)
    }

    /// True if the address belongs to a configured PBX or to a call.
    pub fn knows(&self, ip: IpAddr) -> bool {
        self.accounts_at(ip).next().is_some() || self.dialled.contains(&ip) || self.was_at(ip)
    }

    /// Returns the number of calls that have not ended.
    pub fn call_count(&self) -> usize {
        self.calls.len()
    }

    /// Returns the number of open client and server transactions, which is zero when idle.
    pub fn transaction_count(&self) -> usize {
        self.servers.len() + self.clients.len()
    }

    fn on_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Answer { call, rtp } => self.answer(now, call, rtp),
            Command::Ringing { call } => self.provisional(now, call),
            Command::Reject { call, code, reason, retry_after_s } => {
                self.reject(now, call, code, reason, retry_after_s);
            }
            Command::Redirect { call, user } => self.redirect(now, call, &user),
            Command::Hangup { call, q850, text } => self.hangup(now, call, q850, text),
            Command::Dial(dial) => self.dial(now, dial),
            Command::Place(place) => self.place(now, *place),
            Command::Direction { call, direction } => self.change_direction(now, call, direction),
            Command::Info { call, digit } => self.send_digit(now, call, digit),
            Command::Consult { of, call, user } => self.consult(now, of, call, &user),
            Command::Refer { call, user, replaces } => self.refer(now, call, &user, replaces),
            Command::AiDown { account, down } => self.on_ai_down(now, account, down),
            Command::Add(config) => drop(self.add_account(*config)),
            Command::Change { account, config } => self.change_account(now, account, *config),
            Command::Retire { account } => self.retire_account(now, account),
            Command::Limits { max_calls, max_unacknowledged } => {
                (self.max_calls, self.max_unacknowledged) = (max_calls, max_unacknowledged);
            }
            Command::Shutdown => self.shutdown(now),
        }
    }

    fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    fn send(&mut self, flow: Flow, data: Vec<u8>) {
        self.out.push_back(Output::Send { flow, data });
    }

    fn via(&mut self, local_ip: IpAddr, transport: Transport) -> (String, String) {
        let branch = self.random.branch();
        let sent_by = SocketAddr::new(local_ip, self.config_port);
        let via = format!("SIP/2.0/{} {sent_by};rport;branch={branch}", transport.via());
        (via, branch)
    }

    /// Sends a request in a new client transaction and returns its branch.
    fn send_request(
        &mut self,
        now: Instant,
        flow: Flow,
        branch: String,
        request: &Message,
        purpose: Purpose,
    ) -> String {
        let method = match request.method() {
            Some("INVITE") => "INVITE",
            Some("REGISTER") => "REGISTER",
            Some("OPTIONS") => "OPTIONS",
            Some("BYE") => "BYE",
            Some("UPDATE") => "UPDATE",
            Some("CANCEL") => "CANCEL",
            Some("REFER") => "REFER",
            _ => "INFO",
        };
        let bytes = request.to_bytes();
        let tx = Client::new(now, method == "INVITE", flow.transport.reliable(), bytes.clone());
        let cseq = request.cseq().map_or(0, |(n, _)| n);
        let key = client_key(&branch, method);
        self.clients.insert(key.clone(), ClientEntry { tx, flow, method, purpose, cseq });
        self.arm(TimerKey::Client(key));
        self.send(flow, bytes);
        branch
    }

    /// Sends `response` in the server transaction `key`.
    fn respond(&mut self, now: Instant, key: &str, response: &Message) {
        let code = response.code().unwrap_or(500);
        let bytes = response.to_bytes();
        let Some(flow) = self.servers.respond(now, key, code, &bytes) else { return };
        self.send(flow, bytes);
        self.arm(TimerKey::Server(key.to_owned()));
    }

    /// Queues the owner's next timeout.
    fn arm(&mut self, key: TimerKey) {
        let Some(at) = self.owner_timeout(&key) else { return };
        if let TimerKey::Call(call) = &key
            && let Some(call) = self.calls.get_mut(call)
        {
            // one entry per call: a peer may refresh it as often as it likes
            if call.armed.is_some_and(|set| set <= at) {
                return;
            }
            if let Some(set) = call.armed.replace(at) {
                self.timers.remove(&(set, key.clone()));
            }
        }
        self.timers.insert((at, key));
    }

    fn owner_timeout(&self, key: &TimerKey) -> Option<Instant> {
        match key {
            TimerKey::Account(id) => self.accounts[*id].next_timeout(),
            TimerKey::Server(key) => self.servers.find(key)?.tx.next_timeout(),
            TimerKey::Client(key) => self.clients.get(key)?.tx.next_timeout(),
            TimerKey::Call(key) => self.calls.get(key)?.next_timeout(),
        }
    }

    fn run_timers(&mut self, now: Instant) {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.timers.pop_first() else { break };
            if let TimerKey::Call(call) = &key
                && let Some(call) = self.calls.get_mut(call)
            {
                call.armed = None;
            }
            // the owner's timeout may have changed since, without a new entry
            if self.owner_timeout(&key).is_none_or(|at| at > now) {
                self.arm(key);
                continue;
            }
            self.running = Some(key.clone());
            match &key {
                TimerKey::Account(id) => self.on_account_timeout(now, *id),
                TimerKey::Server(name) => self.on_server_timeout(now, name),
                TimerKey::Client(name) => self.on_client_timeout(now, name),
                TimerKey::Call(call) => self.on_call_timeout(now, *call),
            }
            self.running = None;
            self.arm(key);
        }
    }

    /// Removes a call and reports why it ended.
    fn end_call(&mut self, key: CallKey, end: CallEnd) {
        let Some(call) = self.calls.remove(&key) else { return };
        if let Some(at) = call.armed {
            // otherwise a session timer of an hour would outlive its call
            self.timers.remove(&(at, TimerKey::Call(key)));
        }
        if call.refreshing {
            // a re-INVITE that received a 1xx has no timer to end it
            self.clients.retain(|_, entry| entry.purpose != Purpose::Reinvite(key));
        }
        self.dialogs.remove(&(call.dialog.call_id, call.dialog.local_tag));
        self.event(Event::Ended { call: key, end });
    }
}

impl Call {
    fn next_timeout(&self) -> Option<Instant> {
        let ack = self.awaiting_ack.as_ref().map(AwaitAck::next_timeout);
        let session = self.session_timer.as_ref().filter(|_| self.state == CallState::Up);
        let session = session.map(|timer| match self.may_refresh() {
            true => timer.next_timeout(),
            false => timer.expires_at(),
        });
        let retry = self.directing.and_then(|directing| directing.retry_at);
        let retry = retry.filter(|_| self.may_refresh());
        ack.into_iter().chain(session).chain(retry).min()
    }

    /// True if we may send a re-INVITE or UPDATE: only one may be open, in either direction
    /// (RFC 3261 §14.1).
    fn may_refresh(&self) -> bool {
        self.state == CallState::Up && !self.refreshing && self.awaiting_ack.is_none()
    }
}

/// Returns the key of a client transaction. It includes the method, because an ACK or CANCEL may
/// share the branch of its INVITE.
fn client_key(branch: &str, method: &str) -> String {
    format!("{branch}|{method}")
}
