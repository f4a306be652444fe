//! The agent under test, and its reaction to a message.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use trunkless::sip::agent::{
    AccountConfig, Agent, AgentConfig, Command, Event, Input, Output, Route, Routes,
};
use trunkless::sip::flow::{Flow, Transport};
use trunkless::sip::message::Message;
use trunkless::sip::registration::Settings;

pub const MAX_CALLS: usize = 50;

/// The kind of account that the agent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Registers as the user `ai`.
    Extension,
    /// Does not register, and accepts calls to any user.
    Trunk,
}

/// The agent's reaction to a message.
#[derive(Debug, Default)]
pub struct Found {
    /// Statuses of the responses sent.
    pub codes: Vec<u16>,
    /// Calls offered to the application.
    pub offers: usize,
}

pub struct Subject {
    pub agent: Agent,
    /// Current virtual time.
    pub now: Instant,
    /// OPTIONS requests sent by [`Subject::is_alive`].
    probes: u32,
}

impl Subject {
    pub fn new(who: Who) -> Subject {
        let registration = (who == Who::Extension).then(|| Settings {
            registrar_uri: "sip:192.0.2.200".to_owned(),
            auth_username: "ai".to_owned(),
            password: "secret".into(),
            realm: None,
            expires_s: 120,
            keepalive: Duration::ZERO,
        });
        let account = AccountConfig {
            name: "pbx".to_owned(),
            username: "ai".to_owned(),
            registration,
            transport: Transport::Udp,
            advertised: None,
            media_peers: Vec::new(),
            keepalive: std::time::Duration::ZERO,
            users: Vec::new(),
            ranges: Vec::new(),
            ai_down: Default::default(),
        };
        let config = AgentConfig {
            accounts: vec![account],
            listen_port: 5070,
            max_calls: MAX_CALLS,
            max_unacknowledged: MAX_CALLS,
        };
        let mut subject =
            Subject { agent: Agent::new(config, [9; 32]), now: Instant::now(), probes: 0 };
        let local = "192.0.2.100".parse().expect("an address");
        let route = Route { remote: pbx(), local };
        let routes = Routes { registrar: Ok(vec![route]), peers: vec![route] };
        subject.input(Input::Resolved { account: 0, routes });
        subject
    }

    pub fn feed(&mut self, data: &[u8]) -> Found {
        let flow = Flow { transport: Transport::Udp, remote: pbx() };
        self.input(Input::Message { flow, data })
    }

    /// Advances time, firing every timer that becomes due.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.agent.next_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.input(Input::Timeout);
        }
        self.now = end;
    }

    /// Returns true if a valid OPTIONS is answered with 200.
    pub fn is_alive(&mut self) -> bool {
        self.probes += 1;
        let n = self.probes;
        let text = format!(
            "OPTIONS sip:ai@192.0.2.100:5070 SIP/2.0\r\n\
             Via: SIP/2.0/UDP 192.0.2.200;branch=z9hG4bKprobe{n};rport\r\nMax-Forwards: 70\r\n\
             From: <sip:pbx@192.0.2.200>;tag=probe{n}\r\nTo: <sip:ai@192.0.2.100>\r\n\
             Call-ID: probe{n}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
        );
        self.feed(text.as_bytes()).codes == [200]
    }

    /// Passes an input to the agent and returns its reaction. Calls offered by the agent are then
    /// answered or rejected alternately; the output of that is discarded.
    fn input(&mut self, input: Input<'_>) -> Found {
        self.agent.handle(self.now, input);
        let mut found = Found::default();
        let mut offers = Vec::new();
        while let Some(output) = self.agent.poll() {
            match output {
                Output::Send { data, .. } => {
                    let (message, _) = Message::parse(&data).expect("the agent sends SIP");
                    found.codes.extend(message.code());
                }
                Output::Event(Event::Invite(invite)) => offers.push(invite.call),
                Output::Event(_) | Output::Resolve { .. } => {}
            }
        }
        found.offers = offers.len();
        for call in offers {
            let rtp = "192.0.2.100:20000".parse().expect("an address");
            let reason = "Busy Here";
            let command = match call.0 % 2 {
                0 => Command::Answer { call, rtp },
                _ => Command::Reject { call, code: 486, reason, retry_after_s: None },
            };
            self.agent.handle(self.now, Input::Command(command));
            while self.agent.poll().is_some() {}
        }
        found
    }
}

fn pbx() -> SocketAddr {
    "192.0.2.200:5060".parse().expect("an address")
}
