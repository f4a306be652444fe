//! Runs the agent on one UDP socket and one TCP listener, shared by all PBXs. Converts the agent's
//! events into [`Offer`]s and signals, and the calls' requests into commands. Owns I/O.
//!
//! [`Offer`]: crate::call::Offer

mod changes;
pub mod counters;
mod events;
mod inbox;
mod messages;
mod offers;
mod orders;
mod outgoing;
mod peers;
mod port_probe;
mod recovery;
pub mod resolve;
mod tcp;
mod transfer;
mod translate;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{debug, warn};

use crate::call::admission::{Admission, MAX_BEYOND};
use crate::call::fault_point::fault_point_of_message;
use crate::call::ladder::Overflow;
use crate::call::placing::NewCall;
use crate::call::{Owner, RemoteMedia, Signal, SourceRequest};
use crate::capture::Direction;
use crate::capture::tap::unix;
use crate::sip::agent::{
    AccountConfig, AccountId, Agent, AgentConfig, CallKey, Command, Event, Input, Output, Place,
    Route,
};
use crate::sip::endpoint::changes::Change;
use crate::sip::endpoint::counters::{RETRANSMISSIONS, STRANGERS, STRAY_RESPONSES, UNREADABLE};
use crate::sip::endpoint::messages::CallMessages;
use crate::sip::endpoint::peers::PeerState;
use crate::sip::endpoint::tcp::{Connections, TcpEvent};
use crate::sip::endpoint::transfer::Transfer;
use crate::sip::flow::{Flow, Transport};
use crate::sip::stream::Broken;
use crate::sip::uri::Host;
use crate::telemetry::{PbxStatus, Throttle};

/// One PBX: its account, its addresses and its status.
pub struct Peer {
    pub account: AccountConfig,
    pub status: Arc<PbxStatus>,
    /// The registrar first, if there is one; then further peers.
    pub hosts: Vec<(Host, Option<u16>)>,
    /// X- headers that become parameters; `*` means all.
    pub x_headers: Vec<String>,
    /// Further header fields that become parameters.
    pub sip_headers: Vec<String>,
    /// Probe the registrar's UDP port.
    pub port_probe: bool,
    /// For callers whom no call can be started for.
    pub overflow: Overflow,
    /// Decides over them first.
    pub owner: Option<Arc<dyn Owner>>,
}

pub struct EndpointConfig {
    pub listen: SocketAddr,
    pub peers: Vec<Peer>,
    pub max_calls: usize,
    /// See [`AgentConfig::max_unacknowledged`].
    pub max_unacknowledged: usize,
    pub admission: Admission,
}

/// A host of the configuration.
type HostAndPort = (Host, Option<u16>);

/// Queues have room for this many calls at least.
const USUAL_CALLS: usize = 2000;

/// Minimum time between log lines about requests from unknown addresses.
const STRANGER_LOG: Duration = Duration::from_secs(60);
/// The same for refused INVITEs, of which there may be this many in a row.
const REFUSAL_LOG: (Duration, u32) = (Duration::from_secs(1), 20);

/// A message to the endpoint from a call, a background task or the handle.
enum Internal {
    /// Place a call through this PBX.
    Place(AccountId, Box<NewCall>),
    /// A call's request.
    Request(CallKey, SourceRequest),
    /// The result of a lookup of these hosts.
    Resolved(AccountId, Vec<HostAndPort>, Vec<Result<Vec<Route>, String>>),
    /// A registrar's port is closed. `was_open` is true if a probe has ever found it open.
    Closed { account: AccountId, remote: SocketAddr, was_open: bool },
    /// The next lookup is due.
    ResolveAgain(AccountId),
    /// The owner has not taken away the caller of a call that could not be started.
    Left(AccountId, CallKey),
    /// No AI can be reached for the calls of this PBX, or one can again.
    AiDown(AccountId, bool),
    /// The configuration has changed.
    Change(Change),
    /// Notify the sender when no call is left.
    Idle(oneshot::Sender<()>),
    /// Unregister, then notify the sender.
    Shutdown(oneshot::Sender<()>),
}

/// Stops a running endpoint.
#[derive(Clone)]
pub struct EndpointHandle {
    internal: mpsc::Sender<Internal>,
    broken: watch::Receiver<bool>,
}

impl EndpointHandle {
    /// Refuses new calls and unregisters; returns when that is done. Live calls continue.
    pub async fn shutdown(&self) {
        let (done, wait) = oneshot::channel();
        if self.internal.send(Internal::Shutdown(done)).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// Sets whether an AI can be reached for the calls of a PBX; see [`AiDown`].
    ///
    /// [`AiDown`]: crate::sip::agent::AiDown
    pub async fn set_ai_down(&self, account: AccountId, down: bool) {
        let _ = self.internal.send(Internal::AiDown(account, down)).await;
    }

    /// Returns if the endpoint keeps panicking. It still ends calls, but handles no timeouts.
    pub async fn broken(mut self) {
        if self.broken.wait_for(|broken| *broken).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when no call is left and all BYEs are answered.
    pub async fn idle(&self) {
        let (done, wait) = oneshot::channel();
        if self.internal.send(Internal::Idle(done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

/// The event that the endpoint handles next.
enum Turn {
    /// A datagram of this length is in the buffer.
    Datagram(usize, SocketAddr),
    Tcp(TcpEvent),
    Accepted(io::Result<(TcpStream, SocketAddr)>),
    Internal(Internal),
    Timeout,
}

/// The calls that the agent may have: those that end, and those whom an owner is to take away, come
/// on top.
fn agent_calls(max_calls: usize) -> usize {
    2 * max_calls + 2 * MAX_BEYOND
}

/// Binds UDP and TCP to the same port. With port 0 the kernel chooses a port that is free for UDP;
/// if another program has it for TCP, another one is tried.
async fn bind_both(listen: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempts = if listen.port() == 0 { 20 } else { 1 };
    loop {
        let udp = UdpSocket::bind(listen).await?;
        attempts -= 1;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if attempts == 0 || error.kind() != io::ErrorKind::AddrInUse => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
}

/// The endpoint's state for one call.
struct CallLink {
    /// Queue to the call.
    signals: mpsc::Sender<Signal>,
    account: AccountId,
    /// Our RTP address, for the SDP answer.
    rtp: SocketAddr,
    /// Source address of the INVITE.
    signalling: IpAddr,
    /// True once the call has asked for the 200. From then on it ends with BYE, not a refusal.
    answered: bool,
    /// True if we place the call.
    outgoing: bool,
    /// The call to be placed, until it is.
    dial: Option<Box<Place>>,
    /// The order that our open re-INVITE carries out.
    holding: Option<u32>,
    /// Orders to press keys by INFO, with the keys that are left. The first is being sent.
    keys: VecDeque<(u32, VecDeque<char>)>,
    /// The caller's side of the media.
    media: Option<RemoteMedia>,
    /// The transfer that is not complete.
    transfer: Option<Transfer>,
}

pub struct Endpoint {
    agent: Agent,
    udp: UdpSocket,
    tcp: TcpListener,
    /// TCP connections in both directions.
    connections: Connections,
    /// Events of `connections`.
    tcp_events: mpsc::Receiver<TcpEvent>,
    internal: mpsc::Receiver<Internal>,
    /// Cloned for calls and background tasks.
    internal_tx: mpsc::Sender<Internal>,
    /// The PBXs, indexed by account id.
    peers: Vec<PeerState>,
    /// Calls from their offer to their end.
    calls: HashMap<CallKey, CallLink>,
    /// The second calls of transfers, with the calls that they belong to.
    consults: HashMap<CallKey, CallKey>,
    /// The SIP messages of the calls, for captures.
    messages: CallMessages,
    /// When transfers fail.
    deadlines: BTreeSet<(Instant, CallKey)>,
    /// When we end calls that were handed over, if the PBX has not done so.
    lingering: BTreeSet<(Instant, CallKey)>,
    admission: Admission,
    /// Address of the sockets.
    bound: SocketAddr,
    /// True once calls are refused because of a shutdown.
    draining: bool,
    /// PBXs that were removed, and whom to notify once they are unregistered.
    leaving: Vec<(AccountId, oneshot::Sender<()>)>,
    /// Notified when the agent has unregistered everywhere, after a shutdown.
    stopping: Option<oneshot::Sender<()>>,
    /// Notified when no call is left.
    idle: Option<oneshot::Sender<()>>,
    /// No TCP connection is accepted before this time.
    accept_after: Instant,
    /// Limits the log line about requests from unknown addresses.
    stranger_log: Throttle,
    /// Limits the log lines about refused INVITEs.
    refusal_log: Throttle,
    /// The same for other requests.
    request_log: Throttle,
    /// Timeouts in a row that panicked.
    failed_timeouts: u32,
    /// Set to true to complete [`EndpointHandle::broken`].
    broken: watch::Sender<bool>,
}

impl Endpoint {
    /// Binds the sockets. [`Endpoint::run`] then serves them.
    ///
    /// # Errors
    /// Returns an error with the address and the cause if a socket cannot be bound.
    pub async fn bind(config: EndpointConfig) -> io::Result<(Endpoint, EndpointHandle)> {
        let explain = |e: io::Error| {
            let why = format!("cannot listen on {}: {e}; set [sip] listen", config.listen);
            io::Error::new(e.kind(), why)
        };
        let (udp, tcp) = bind_both(config.listen).await.map_err(explain)?;
        let bound = udp.local_addr()?;
        let peers: Vec<PeerState> = config.peers.iter().map(PeerState::new).collect();
        let mut key = [0u8; 32];
        getrandom::fill(&mut key).map_err(|e| io::Error::other(e.to_string()))?;
        let accounts = config.peers.into_iter().map(|peer| peer.account).collect();
        let max_calls = config.max_calls;
        let agent_config = AgentConfig {
            accounts,
            listen_port: bound.port(),
            max_calls: agent_calls(max_calls),
            max_unacknowledged: config.max_unacknowledged,
        };
        // a reload may raise the limit on calls
        let (internal_tx, internal) = mpsc::channel(4 * max_calls.max(USUAL_CALLS) + 64);
        let (tcp_tx, tcp_events) = mpsc::channel(256);
        let (broken, broken_rx) = watch::channel(false);
        let endpoint = Endpoint {
            agent: Agent::new(agent_config, key),
            udp,
            tcp,
            connections: Connections::new(tcp_tx),
            tcp_events,
            internal,
            internal_tx: internal_tx.clone(),
            peers,
            calls: HashMap::new(),
            consults: HashMap::new(),
            messages: CallMessages::default(),
            deadlines: BTreeSet::new(),
            lingering: BTreeSet::new(),
            admission: config.admission,
            bound,
            draining: false,
            leaving: Vec::new(),
            stopping: None,
            idle: None,
            accept_after: Instant::now(),
            stranger_log: Throttle::new(STRANGER_LOG),
            refusal_log: Throttle::with_burst(REFUSAL_LOG.0, REFUSAL_LOG.1),
            request_log: Throttle::with_burst(REFUSAL_LOG.0, REFUSAL_LOG.1),
            failed_timeouts: 0,
            broken,
        };
        Ok((endpoint, EndpointHandle { internal: internal_tx, broken: broken_rx }))
    }

    /// Returns the address of the sockets.
    pub fn address(&self) -> SocketAddr {
        self.bound
    }

    /// Serves forever. Dropping the future closes the sockets.
    pub async fn run(mut self) {
        let mut buffer = vec![0u8; 65_536];
        // try_send_to fails until the reactor has reported the socket writable once
        let _ = self.udp.writable().await;
        self.drain();
        loop {
            let now = Instant::now();
            let next = self.agent.next_timeout().filter(|_| !self.is_broken());
            let transfers = [self.deadlines.first(), self.lingering.first()];
            let transfers = transfers.into_iter().flatten().map(|(at, _)| *at);
            let next = next.into_iter().chain(transfers).min();
            let next = next.unwrap_or_else(|| now + Duration::from_secs(3600));
            let accepting = now >= self.accept_after;
            let next = if accepting { next } else { next.min(self.accept_after) };
            let turn = tokio::select! {
                received = self.udp.recv_from(&mut buffer) => {
                    let Ok((n, remote)) = received else { continue };
                    Turn::Datagram(n, remote)
                }
                Some(event) = self.tcp_events.recv() => Turn::Tcp(event),
                accepted = self.tcp.accept(), if accepting => Turn::Accepted(accepted),
                Some(internal) = self.internal.recv() => Turn::Internal(internal),
                () = sleep_until(next.into()) => Turn::Timeout,
            };
            self.guarded(turn, &buffer);
        }
    }

    fn on_turn(&mut self, turn: Turn, buffer: &[u8]) {
        match turn {
            Turn::Datagram(n, remote) => {
                let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
                let flow = Flow { transport: Transport::Udp, remote };
                self.notice_stranger(remote.ip());
                self.feed(Input::Message { flow, data: &buffer[..n] });
            }
            Turn::Tcp(event) => self.on_tcp(event),
            Turn::Accepted(Ok((stream, remote))) => {
                let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
                match self.agent.knows(remote.ip()) {
                    true => {
                        let busy = || self.agent.flows_in_use();
                        self.connections.accepted(remote, stream, busy);
                    }
                    false => self.agent.counts.strangers += 1,
                }
            }
            // probably out of descriptors: pause instead of spinning
            Turn::Accepted(Err(_)) => {
                self.accept_after = Instant::now() + Duration::from_millis(50);
            }
            Turn::Internal(internal) => self.on_internal(internal),
            Turn::Timeout => {
                self.move_transfers(Instant::now());
                self.feed(Input::Timeout);
            }
        }
    }

    /// Logs a request from an unknown address, which the agent will ignore. The log line is
    /// throttled, because such requests may be a scan or a flood.
    fn notice_stranger(&mut self, ip: IpAddr) {
        if !self.agent.knows(ip) && self.stranger_log.admits(Instant::now()) {
            warn!(
                "SIP from {ip} ignored: not the address of a configured PBX; if it is a PBX, add \
                 it to peers (logged at most once a minute)"
            );
        }
    }

    fn feed(&mut self, input: Input<'_>) {
        if let Input::Message { flow, .. } = &input
            && self.agent.lacks_local_ip(flow.remote.ip())
            && let Ok(local) = resolve::local_ip(flow.remote, self.bound.ip())
        {
            self.agent.set_local_ip(flow.remote.ip(), local);
        }
        self.agent.set_full(self.admission.is_full());
        if let Input::Message { flow, data } = &input {
            fault_point_of_message("message", data);
            if self.agent.knows(flow.remote.ip()) {
                self.messages.note(unix(), Direction::Received, *flow, data);
            }
        }
        self.agent.handle(Instant::now(), input);
        self.drain();
    }

    fn command(&mut self, command: Command) {
        self.feed(Input::Command(command));
    }

    fn drain(&mut self) {
        while let Some(output) = self.agent.poll() {
            match output {
                Output::Send { flow, data } => self.send(flow, data),
                Output::Resolve { account } => self.resolve(account),
                Output::Event(event) => self.on_event(event),
            }
        }
        self.messages.tidy();
        if self.agent.call_count() == 0
            && let Some(done) = self.idle.take()
        {
            let _ = done.send(());
        }
        self.report_removed();
        STRANGERS.set(self.agent.counts.strangers);
        UNREADABLE.set(self.agent.counts.unreadable);
        STRAY_RESPONSES.set(self.agent.counts.stray_responses);
        RETRANSMISSIONS.set(self.agent.counts.retransmissions);
    }

    fn send(&mut self, flow: Flow, data: Vec<u8>) {
        self.messages.note(unix(), Direction::Sent, flow, &data);
        match flow.transport {
            Transport::Tcp => self.connections.send(flow.remote, data),
            Transport::Udp => {
                let to = match (self.bound, flow.remote) {
                    (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                        SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port())
                    }
                    (_, remote) => remote,
                };
                // SIP's timers resend lost datagrams
                if let Err(why) = self.udp.try_send_to(&data, to) {
                    debug!(%to, %why, "SIP datagram not sent");
                }
            }
        }
    }

    fn on_tcp(&mut self, event: TcpEvent) {
        match event {
            TcpEvent::Message(remote, data) => {
                self.connections.received(remote);
                let flow = Flow { transport: Transport::Tcp, remote };
                self.feed(Input::Message { flow, data: &data });
            }
            TcpEvent::Stray(source) => {
                self.agent.counts.unreadable += 1;
                let why = "stray bytes between two messages";
                self.on_event(Event::Unreadable { source, why });
            }
            TcpEvent::Broken { remote, generation, broken } => {
                let Broken { head, why } = broken;
                let flow = Flow { transport: Transport::Tcp, remote };
                self.feed(Input::Broken { flow, head: &head, why });
                self.connections.finish(remote, generation);
            }
            TcpEvent::Closed { remote, generation, gone } => {
                if self.connections.closed(remote, generation) {
                    self.feed(Input::Unreachable { remote, gone });
                }
            }
        }
    }
}
