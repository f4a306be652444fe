//! SIP signalling of the PBX: a registrar and one user agent for all calls. Owns its socket.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::bench::signalling::{Audio, Change, Signalling};
use crate::peer::registrar::Registrar;
use crate::sip::agent::{
    Agent, AgentConfig, CallEnd, CallKey, Command, Dial, Event, Input, Output,
};
use crate::sip::flow::{Flow, Transport};
use crate::sip::message::Message;
use crate::sip::sdp::{Codec, Remote};

/// Datagrams handled at a time, so that frames do not wait for a burst of SIP messages.
const BATCH: usize = 8;

/// The called URI, and the address its requests are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callee {
    pub uri: String,
    pub address: SocketAddr,
}

pub struct Telephony {
    socket: UdpSocket,
    /// Address of the socket.
    local: IpAddr,
    agent: Agent,
    registrar: Registrar,
    /// The callee: given at the start, or set by a registration.
    callee: Option<Callee>,
    /// The only codec offered.
    codec: Codec,
    /// True once the bridge has registered.
    registered: bool,
    /// Call numbers by the agent's keys.
    numbers: HashMap<CallKey, u32>,
    /// The agent's keys by call number.
    keys: HashMap<u32, CallKey>,
    /// Receive buffer.
    buffer: Vec<u8>,
    /// Changes to calls that have not been returned yet.
    changes: VecDeque<Change>,
}

impl Telephony {
    /// # Errors
    /// Returns an error if the socket cannot be used or the kernel gives no random bytes.
    pub fn new(
        socket: UdpSocket,
        registrar: Registrar,
        callee: Option<Callee>,
        codec: Codec,
        max_calls: usize,
    ) -> io::Result<Telephony> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| io::Error::other(e.to_string()))?;
        let config = AgentConfig {
            accounts: Vec::new(),
            listen_port: address.port(),
            max_calls,
            max_unacknowledged: max_calls,
        };
        Ok(Telephony {
            socket,
            local: address.ip(),
            agent: Agent::new(config, key),
            registrar,
            callee,
            codec,
            registered: false,
            numbers: HashMap::new(),
            keys: HashMap::new(),
            buffer: vec![0; 65_536],
            changes: VecDeque::new(),
        })
    }

    fn on_message(&mut self, now: Instant, remote: SocketAddr, data: &[u8]) {
        // outside a call there are only REGISTER and OPTIONS, which are for the registrar
        let asks = [&b"REGISTER "[..], b"OPTIONS "].iter().any(|method| data.starts_with(method));
        if asks
            && let Ok((message, None)) = Message::parse(data)
            && let Some(response) = self.registrar.answer(&message)
        {
            let _ = self.socket.send_to(&response.to_bytes(), remote);
            let good = message.method() == Some("REGISTER") && response.code() == Some(200);
            if let Some(uri) = self.registrar.contact.clone().filter(|_| good) {
                self.callee = Some(Callee { uri, address: remote });
                self.registered = true;
            }
            return;
        }
        self.feed(now, Input::Message { flow: Flow { transport: Transport::Udp, remote }, data });
    }

    fn feed(&mut self, now: Instant, input: Input<'_>) {
        self.agent.handle(now, input);
        while let Some(output) = self.agent.poll() {
            match output {
                // a failed send counts as a lost packet: SIP sends it again
                Output::Send { flow, data } => {
                    let _ = self.socket.send_to(&data, flow.remote);
                }
                Output::Resolve { .. } => {}
                Output::Event(event) => self.on_event(event),
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let number = |call: CallKey| self.numbers.get(&call).copied();
        let change = match event {
            Event::Answered { call, remote } => number(call).map(|number| {
                let line = None; // unchanged since dialling
                Change::Answered { number, line, audio: audio(&remote) }
            }),
            Event::Media { call, remote } => {
                number(call).map(|number| Change::Moved { number, audio: audio(&remote) })
            }
            Event::Ended { call, end } => {
                let code = if let CallEnd::Refused { code, .. } = end { code } else { 0 };
                self.numbers.remove(&call).map(|number| {
                    self.keys.remove(&number);
                    Change::Ended { number, line: None, code }
                })
            }
            _ => None,
        };
        self.changes.extend(change);
    }
}

fn audio(remote: &Remote) -> Audio {
    Audio { rtp: remote.rtp, payload_type: remote.payload_type }
}

impl Signalling for Telephony {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn is_ready(&self) -> bool {
        self.registered
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.agent.next_timeout()
    }

    fn on_timeout(&mut self, now: Instant) {
        self.feed(now, Input::Timeout);
    }

    fn on_readable(&mut self, now: Instant) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..BATCH {
            let Ok((n, remote)) = self.socket.recv_from(&mut buffer) else { break };
            self.on_message(now, remote, &buffer[..n]);
        }
        self.buffer = buffer;
    }

    fn dial(&mut self, now: Instant, number: u32, _line: usize, rtp: SocketAddr) -> bool {
        let Some(Callee { uri, address }) = self.callee.clone() else { return false };
        let call = self.agent.new_call_key();
        self.numbers.insert(call, number);
        self.keys.insert(number, call);
        let dial = Dial {
            call,
            flow: Flow { transport: Transport::Udp, remote: address },
            uri,
            local_ip: self.local,
            user: number.to_string(),
            password: None,
            rtp,
            headers: Vec::new(),
            codecs: vec![self.codec],
        };
        self.feed(now, Input::Command(Command::Dial(Box::new(dial))));
        true
    }

    fn hang_up(&mut self, now: Instant, number: u32) {
        let Some(call) = self.keys.get(&number).copied() else { return };
        let command = Command::Hangup { call, q850: 16, text: "normal clearing" };
        self.feed(now, Input::Command(command));
    }

    fn next_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }
}
