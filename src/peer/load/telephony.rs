//! The PBX's signalling: a registrar, and one user agent for all calls. Owns its socket.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use crate::peer::registrar::Registrar;
use crate::sip::agent::{
    Agent, AgentConfig, CallEnd, CallKey, Command, Dial, Event, Input, Output,
};
use crate::sip::flow::{Flow, Transport};
use crate::sip::message::Message;
use crate::sip::sdp::{Codec, Remote};

/// Datagrams taken at once, so that frames do not wait for a burst of messages.
const BATCH: usize = 8;

/// Who is called: the URI, and where its messages go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callee {
    pub uri: String,
    pub address: SocketAddr,
}

/// What happened to the call of a slot.
#[derive(Debug)]
pub enum Told {
    Answered(usize, Remote),
    /// Its audio goes elsewhere from now on.
    Moved(usize, Remote),
    Ended(usize, CallEnd),
}

pub struct Telephony {
    pub socket: UdpSocket,
    local: IpAddr,
    agent: Agent,
    registrar: Registrar,
    /// Known from the start, or since somebody has registered.
    callee: Option<Callee>,
    pub registered: bool,
    slots: HashMap<CallKey, usize>,
    buffer: Vec<u8>,
    /// In order; whoever drives this takes them.
    pub told: VecDeque<Told>,
}

impl Telephony {
    /// # Errors
    /// When the socket is of no use.
    pub fn new(
        socket: UdpSocket,
        registrar: Registrar,
        callee: Option<Callee>,
        max_calls: usize,
    ) -> io::Result<Telephony> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| io::Error::other(e.to_string()))?;
        let config = AgentConfig { accounts: Vec::new(), listen_port: address.port(), max_calls };
        Ok(Telephony {
            socket,
            local: address.ip(),
            agent: Agent::new(config, key),
            registrar,
            callee,
            registered: false,
            slots: HashMap::new(),
            buffer: vec![0; 65_536],
            told: VecDeque::new(),
        })
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.agent.next_timeout()
    }

    pub fn on_timeout(&mut self, now: Instant) {
        self.feed(now, Input::Timeout);
    }

    /// Calls the callee; `None` while there is none.
    pub fn dial(
        &mut self,
        now: Instant,
        slot: usize,
        from: u32,
        rtp: SocketAddr,
    ) -> Option<CallKey> {
        let Callee { uri, address } = self.callee.clone()?;
        let call = self.agent.new_call_key();
        self.slots.insert(call, slot);
        let dial = Dial {
            call,
            flow: Flow { transport: Transport::Udp, remote: address },
            uri,
            local_ip: self.local,
            user: from.to_string(),
            password: None,
            rtp,
            headers: Vec::new(),
            codecs: vec![Codec::Pcmu],
        };
        self.feed(now, Input::Command(Command::Dial(Box::new(dial))));
        Some(call)
    }

    pub fn hang_up(&mut self, now: Instant, call: CallKey) {
        let command = Command::Hangup { call, q850: 16, text: "normal clearing" };
        self.feed(now, Input::Command(command));
    }

    pub fn on_readable(&mut self, now: Instant) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..BATCH {
            let Ok((n, remote)) = self.socket.recv_from(&mut buffer) else { break };
            self.on_message(now, remote, &buffer[..n]);
        }
        self.buffer = buffer;
    }

    fn on_message(&mut self, now: Instant, remote: SocketAddr, data: &[u8]) {
        // the registrar's requests are the only ones outside calls
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
                // what the socket does not take is sent again, as after any loss
                Output::Send { flow, data } => {
                    let _ = self.socket.send_to(&data, flow.remote);
                }
                Output::Resolve { .. } => {}
                Output::Event(event) => self.on_event(event),
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Answered { call, remote } => {
                let slot = self.slots.get(&call);
                self.told.extend(slot.map(|slot| Told::Answered(*slot, remote)));
            }
            Event::Media { call, remote } => {
                let slot = self.slots.get(&call);
                self.told.extend(slot.map(|slot| Told::Moved(*slot, remote)));
            }
            Event::Ended { call, end } => {
                let slot = self.slots.remove(&call);
                self.told.extend(slot.map(|slot| Told::Ended(slot, end)));
            }
            _ => {}
        }
    }
}
