//! The user agent: takes datagrams, timers and commands, gives datagrams and events.
//!
//! Sans-IO: call [`Agent::handle`], then drain [`Agent::poll`], then wait until
//! [`Agent::next_timeout`] or the next input. Nothing here knows a socket or a clock.
//!
//! Where to look: [`api`] the words it speaks, [`accounts`] registrations and who may talk to us,
//! [`receive`] the way of a message to its transaction, [`uas`] calls that come in, [`in_dialog`]
//! requests within a call, [`uac`] requests of ours and their answers.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod accounts;
mod api;
mod in_dialog;
mod receive;
mod requests;
mod uac;
mod uas;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

pub use api::*;

use crate::sip::dialog::Dialog;
use crate::sip::digest::Session;
use crate::sip::flow::{Flow, Transport};
use crate::sip::message::Message;
use crate::sip::random::Random;
use crate::sip::registration::Registration;
use crate::sip::sdp::{Local, Remote};
use crate::sip::session_timer::SessionTimer;
use crate::sip::transaction::{AwaitAck, Client, Server};

/// Most transactions at once, of each side; a request over it is answered 503 without state.
const MAX_TRANSACTIONS: usize = 8192;
/// Methods that we take, for Allow.
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

/// What a client transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Register(AccountId),
    Keepalive(AccountId),
    Invite(CallKey),
    Reinvite(CallKey),
    Update(CallKey),
    Bye(CallKey),
    /// CANCEL and INFO: nothing follows from the answer.
    Other,
}

struct ServerEntry {
    tx: Server,
    flow: Flow,
    /// The call whose INVITE this is.
    call: Option<CallKey>,
    /// Call-ID, CSeq number and From tag, to tell merged requests.
    merge_key: Option<String>,
}

struct ClientEntry {
    tx: Client,
    flow: Flow,
    method: &'static str,
    purpose: Purpose,
    cseq: u32,
}

struct Account {
    config: AccountConfig,
    registration: Option<Registration>,
    routes: Vec<Route>,
    /// Which of the routes REGISTER goes to.
    target: usize,
    register_call_id: String,
    register_tag: String,
    register_cseq: u32,
    /// Branches of the REGISTERs that are still open, oldest first.
    register_branches: VecDeque<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallState {
    /// INVITE received, no final answer yet.
    Offered,
    /// INVITE sent, no final answer yet.
    Dialling,
    /// CANCEL sent, or to be sent at the first provisional answer.
    Cancelling,
    Up,
    /// BYE is out, or waits for the ACK that must come first (RFC 3261 §15).
    Ending,
}

/// Our credentials for a call that we make.
struct CallAuth {
    user: String,
    password: secrecy::SecretString,
    tries: u32,
    session: Option<(&'static str, Session)>,
}

struct Call {
    state: CallState,
    account: Option<AccountId>,
    flow: Flow,
    dialog: Dialog,
    /// `<sip:user@address:port>` for Contact.
    contact: String,
    /// Address for Via.
    local_ip: IpAddr,
    /// The INVITE to answer, with its transaction.
    invite: Option<(Message, String)>,
    awaiting_ack: Option<AwaitAck>,
    /// The 2xx's answer comes in the ACK.
    late_offer: bool,
    /// What the INVITE offered, until we answer.
    offer: Option<Remote>,
    /// The Reason of a BYE that waits for the ACK.
    bye_reason: Option<String>,
    local: Option<Local>,
    sdp: String,
    session_timer: Option<SessionTimer>,
    peer_allows_update: bool,
    /// A re-INVITE or UPDATE of ours is open: the peer's is answered 491.
    refreshing: bool,
    auth: Option<CallAuth>,
    dial: Option<Box<Dial>>,
    /// The ACK of our last re-INVITE or INVITE, to be sent again with its 2xx.
    last_ack: Option<(u32, Vec<u8>)>,
}

pub struct Agent {
    config_port: u16,
    max_calls: usize,
    random: Random,
    accounts: Vec<Account>,
    servers: HashMap<String, ServerEntry>,
    merge_keys: HashMap<String, String>,
    clients: HashMap<String, ClientEntry>,
    calls: HashMap<CallKey, Call>,
    /// Call-ID and our tag.
    dialogs: HashMap<(String, String), CallKey>,
    /// Where our own calls went to: their answers come from there.
    dialled: Vec<IpAddr>,
    next_call: u64,
    /// What each owner waits for. An entry that its owner has left behind is dropped when it fires.
    timers: BTreeSet<(Instant, TimerKey)>,
    out: VecDeque<Output>,
    pub counts: Counts,
    stopping: bool,
    told_unregistered: bool,
}

impl Agent {
    /// `key` seeds tags, branches and cnonces: random in production, fixed in tests.
    pub fn new(config: AgentConfig, key: [u8; 32]) -> Agent {
        let mut agent = Agent {
            config_port: config.listen_port,
            max_calls: config.max_calls,
            random: Random::new(key),
            accounts: Vec::new(),
            servers: HashMap::new(),
            merge_keys: HashMap::new(),
            clients: HashMap::new(),
            calls: HashMap::new(),
            dialogs: HashMap::new(),
            dialled: Vec::new(),
            next_call: 0,
            timers: BTreeSet::new(),
            out: VecDeque::new(),
            counts: Counts::default(),
            stopping: false,
            told_unregistered: false,
        };
        for account in config.accounts {
            agent.add_account(account);
        }
        agent
    }

    /// A key for [`Command::Dial`].
    pub fn new_call_key(&mut self) -> CallKey {
        self.next_call += 1;
        CallKey(self.next_call)
    }

    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Message { flow, data } => self.on_message(now, flow, data),
            Input::Resolved { account, routes } => self.on_resolved(now, account, routes),
            Input::Unreachable { remote } => self.on_unreachable(now, remote),
            Input::Timeout => {}
            Input::Command(command) => self.on_command(now, command),
        }
        self.run_timers(now);
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Input::Timeout`] is due. May be early: stale timers are dropped when they fire.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Whether an address is one of a PBX of ours, or of one that we call.
    pub fn knows(&self, ip: IpAddr) -> bool {
        self.accounts_at(ip).next().is_some() || self.dialled.contains(&ip)
    }

    /// Calls that are not over yet.
    pub fn call_count(&self) -> usize {
        self.calls.len()
    }

    /// Open transactions, both sides: zero when nothing is going on.
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
            Command::Hangup { call, q850, text } => self.hangup(now, call, q850, text),
            Command::Dial(dial) => self.dial(now, dial),
            Command::Direction { call, direction } => self.change_direction(now, call, direction),
            Command::Info { call, digit } => self.send_digit(now, call, digit),
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

    /// Sends a request in a new client transaction; returns its branch.
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

    /// Sends `response` within the server transaction `key`.
    fn respond(&mut self, now: Instant, key: &str, response: &Message) {
        let code = response.code().unwrap_or(500);
        if code >= 400 {
            self.counts.refused_requests += 1;
        }
        let bytes = response.to_bytes();
        let Some(entry) = self.servers.get_mut(key) else { return };
        entry.tx.respond(now, code, &bytes);
        let flow = entry.flow;
        self.send(flow, bytes);
        self.arm(TimerKey::Server(key.to_owned()));
    }

    /// Enters the owner's next timer into the queue.
    fn arm(&mut self, key: TimerKey) {
        if let Some(at) = self.owner_timeout(&key) {
            self.timers.insert((at, key));
        }
    }

    fn owner_timeout(&self, key: &TimerKey) -> Option<Instant> {
        match key {
            TimerKey::Account(id) => self.accounts[*id].registration.as_ref()?.next_timeout(),
            TimerKey::Server(key) => self.servers.get(key)?.tx.next_timeout(),
            TimerKey::Client(key) => self.clients.get(key)?.tx.next_timeout(),
            TimerKey::Call(key) => self.calls.get(key)?.next_timeout(),
        }
    }

    fn run_timers(&mut self, now: Instant) {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.timers.pop_first() else { break };
            // the owner may have moved on since this entry was made, and may have made no other
            if self.owner_timeout(&key).is_none_or(|at| at > now) {
                self.arm(key);
                continue;
            }
            match &key {
                TimerKey::Account(id) => self.on_account_timeout(now, *id),
                TimerKey::Server(name) => self.on_server_timeout(now, name),
                TimerKey::Client(name) => self.on_client_timeout(now, name),
                TimerKey::Call(call) => self.on_call_timeout(now, *call),
            }
            self.arm(key);
        }
    }

    /// Forgets a call and says why.
    fn end_call(&mut self, key: CallKey, end: CallEnd) {
        let waits_for = self.owner_timeout(&TimerKey::Call(key));
        let Some(call) = self.calls.remove(&key) else { return };
        if let Some(at) = waits_for {
            // an hour's session timer should not outlive its call
            self.timers.remove(&(at, TimerKey::Call(key)));
        }
        if call.refreshing {
            // a re-INVITE that has seen a 1xx has no timer of its own
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
        ack.into_iter().chain(session).min()
    }

    /// Whether a re-INVITE or UPDATE of ours may go out: one at a time in either direction
    /// (RFC 3261 §14.1).
    fn may_refresh(&self) -> bool {
        self.state == CallState::Up && !self.refreshing && self.awaiting_ack.is_none()
    }
}

/// INVITE's ACK shares its branch; CANCEL has the branch of what it cancels.
fn client_key(branch: &str, method: &str) -> String {
    format!("{branch}|{method}")
}
