//! Fuzzes SIP messages: each is parsed, written, parsed again, and fed to the agent as if the PBX
//! had sent it.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use trunkless::sip::agent::{
    AccountConfig, Agent, AgentConfig, Command, Event, Input, Output, Route, Routes,
};
use trunkless::sip::flow::{Flow, Transport};
use trunkless::sip::message::Message;

fuzz_target!(|data: &[u8]| {
    if let Ok((message, None)) = Message::parse(data) {
        let (again, fault) = Message::parse(&message.to_bytes()).expect("our own output parses");
        assert_eq!(fault, None);
        assert_eq!(again.body, message.body);
        assert_eq!(again.start, message.start);
    }
    let account = AccountConfig {
        name: "pbx".to_owned(),
        username: "ai".to_owned(),
        registration: None,
        transport: Transport::Udp,
        advertised: None,
        media_peers: Vec::new(),
        keepalive: Duration::ZERO,
        users: Vec::new(),
        ranges: Vec::new(),
        ai_down: Default::default(),
    };
    let accounts = vec![account];
    let config =
        AgentConfig { accounts, listen_port: 5070, max_calls: 4, max_unacknowledged: 4 };
    let mut agent = Agent::new(config, [1; 32]);
    let remote = "192.0.2.10:5060".parse().expect("an address");
    let route = Route { remote, local: "192.0.2.1".parse().expect("an address") };
    let routes = Routes { registrar: Ok(Vec::new()), peers: vec![route] };
    let now = Instant::now();
    agent.handle(now, Input::Resolved { account: 0, routes });
    let flow = Flow { transport: Transport::Udp, remote };
    agent.handle(now, Input::Message { flow, data });
    drain(now, &mut agent);
    agent.handle(now + Duration::from_secs(1), Input::Message { flow, data });
    drain(now + Duration::from_secs(1), &mut agent);
    for seconds in [40, 80, 120] {
        let now = now + Duration::from_secs(seconds);
        agent.handle(now, Input::Timeout);
        drain(now, &mut agent);
    }
    assert_eq!((agent.call_count(), agent.transaction_count()), (0, 0));
});

/// Handles the agent's output. All messages sent can be parsed. Calls are answered, and end later
/// because no ACK arrives.
fn drain(now: Instant, agent: &mut Agent) {
    while let Some(output) = agent.poll() {
        match output {
            Output::Send { data, .. } => {
                Message::parse(&data).expect("our own output parses");
            }
            Output::Event(Event::Invite(invite)) => {
                let rtp = "192.0.2.1:20000".parse().expect("an address");
                let answer = Command::Answer { call: invite.call, rtp };
                agent.handle(now, Input::Command(answer));
            }
            Output::Event(_) | Output::Resolve { .. } => {}
        }
    }
}
