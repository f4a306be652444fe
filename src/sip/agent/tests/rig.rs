//! The scripted PBX: raw text in, parsed messages and events out.

use std::time::{Duration, Instant};

use crate::sip::agent::{
    AccountConfig, Agent, AgentConfig, AiDown, CallEnd, CallKey, Command, Event, Input, Output,
    Route, Routes, TimerKey,
};
use crate::sip::flow::{Flow, Transport};
use crate::sip::message::Message;
use crate::sip::registration::Settings;
use crate::testing::start;

pub const PBX: &str = "10.0.0.2:5060";
pub const SECOND_ADDRESS: &str = "10.0.0.3:5060";
pub const MAX_UNACKNOWLEDGED: usize = 20;
pub const STRANGER: &str = "203.0.113.9:5060";
pub const RTP: &str = "10.0.0.1:20000";

pub fn flow(remote: &str) -> Flow {
    Flow { transport: Transport::Udp, remote: remote.parse().unwrap() }
}

pub fn sdp(port: u16, direction: &str) -> String {
    format!(
        "v=0\r\no=- 1 1 IN IP4 10.0.0.2\r\ns=-\r\nc=IN IP4 10.0.0.2\r\nt=0 0\r\n\
         m=audio {port} RTP/AVP 0 101\r\na=rtpmap:101 telephone-event/8000\r\na={direction}\r\n"
    )
}

/// A request from the PBX, to be rendered as text.
#[derive(Clone)]
pub struct Text {
    pub method: &'static str,
    pub uri: String,
    pub number: u32,
    pub branch: String,
    pub call_id: String,
    pub from_tag: String,
    pub to_tag: Option<String>,
    pub lines: String,
    pub body: String,
}

impl Text {
    pub fn new(method: &'static str, number: u32) -> Text {
        Text {
            method,
            uri: "sip:ai@10.0.0.1:5070".to_owned(),
            number,
            branch: format!("z9hG4bKcall-1.{number}{method}"),
            call_id: "call-1".to_owned(),
            from_tag: "theirs".to_owned(),
            to_tag: None,
            lines: String::new(),
            body: String::new(),
        }
    }

    pub fn invite() -> Text {
        Text::new("INVITE", 10).sdp(&sdp(4000, "sendrecv"))
    }

    pub fn line(mut self, line: &str) -> Text {
        self.lines += &format!("{line}\r\n");
        self
    }

    pub fn sdp(self, body: &str) -> Text {
        self.body("application/sdp", body)
    }

    pub fn body(mut self, kind: &str, body: &str) -> Text {
        body.clone_into(&mut self.body);
        self.line(&format!("Content-Type: {kind}"))
    }

    pub fn branch(mut self, branch: &str) -> Text {
        self.branch = format!("z9hG4bK{branch}");
        self
    }

    /// Sets the Call-ID, and a branch derived from it.
    pub fn call_id(mut self, call_id: &str) -> Text {
        call_id.clone_into(&mut self.call_id);
        self.branch = format!("z9hG4bK{call_id}.{}{}", self.number, self.method);
        self
    }

    pub fn tagged(mut self, tag: &str) -> Text {
        self.to_tag = Some(tag.to_owned());
        self
    }

    pub fn uri(mut self, uri: &str) -> Text {
        uri.clone_into(&mut self.uri);
        self
    }

    pub fn render(&self) -> String {
        let Text { method, uri, number, branch, call_id, from_tag, lines, body, .. } = self;
        let tag = self.to_tag.as_ref().map(|t| format!(";tag={t}")).unwrap_or_default();
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {PBX};branch={branch};rport\r\n\
             Max-Forwards: 70\r\nFrom: \"Caller\" <sip:100@10.0.0.2>;tag={from_tag}\r\n\
             To: <sip:ai@10.0.0.1:5070>{tag}\r\nCall-ID: {call_id}\r\nCSeq: {number} {method}\r\n\
             Contact: <sip:100@{PBX}>\r\n{lines}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Returns the PBX's response to our request, with a To tag.
pub fn response(request: &Message, code: u16, lines: &str, body: &str) -> String {
    let text = String::from_utf8(Message::response(request, code, "Said", "pbx").to_bytes());
    let text = text.unwrap();
    let (head, _) = text.split_once("Content-Length").unwrap();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
    format!("{head}{lines}{kind}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A call as seen by the PBX.
#[derive(Clone)]
pub struct Dialog {
    pub key: CallKey,
    pub tag: String,
    pub call_id: String,
}

impl Dialog {
    pub fn request(&self, method: &'static str, number: u32) -> Text {
        Text::new(method, number).tagged(&self.tag).call_id(&self.call_id)
    }

    /// Returns the ACK for a 2xx, which has a new branch.
    pub fn ack(&self, number: u32) -> Text {
        self.request("ACK", number)
    }
}

pub fn account(username: &str, registration: Option<Settings>) -> AccountConfig {
    AccountConfig {
        name: "pbx".to_owned(),
        username: username.to_owned(),
        registration,
        transport: Transport::Udp,
        advertised: None,
        media_peers: Vec::new(),
        keepalive: Duration::ZERO,
        users: Vec::new(),
        ranges: Vec::new(),
        ai_down: AiDown::Stay,
    }
}

pub fn settings() -> Settings {
    Settings {
        registrar_uri: "sip:10.0.0.2".to_owned(),
        auth_username: "ai".to_owned(),
        password: "secret".into(),
        realm: None,
        expires_s: 120,
        keepalive: Duration::from_secs(2),
    }
}

pub struct Rig {
    pub agent: Agent,
    pub now: Instant,
    /// Messages sent by the agent and not yet checked by the test.
    sent: Vec<(Flow, Message)>,
    /// Events not yet checked by the test.
    events: Vec<Event>,
    /// Number of [`Output::Resolve`]s.
    pub lookups: usize,
    /// True if the agent registers with the PBX.
    registers: bool,
}

impl Rig {
    fn new(registration: Option<Settings>, max_calls: usize) -> Rig {
        let registers = registration.is_some();
        let mut rig = Rig::of(vec![account("ai", registration)], max_calls);
        rig.registers = registers;
        rig.resolve(&[PBX, SECOND_ADDRESS]);
        rig
    }

    /// Starts an agent with these accounts, whose addresses are not known yet.
    pub fn of(accounts: Vec<AccountConfig>, max_calls: usize) -> Rig {
        let max_unacknowledged = MAX_UNACKNOWLEDGED;
        let config = AgentConfig { accounts, listen_port: 5070, max_calls, max_unacknowledged };
        let agent = Agent::new(config, [3; 32]);
        let (sent, events) = (Vec::new(), Vec::new());
        let mut rig = Rig { agent, now: start(), sent, events, lookups: 0, registers: false };
        rig.drain();
        rig
    }

    /// Starts an agent whose PBX calls us without registration.
    pub fn trunk() -> Rig {
        Rig::new(None, 100)
    }

    pub fn trunk_with(max_calls: usize) -> Rig {
        Rig::new(None, max_calls)
    }

    /// Starts an agent that has sent its first REGISTER.
    pub fn registering() -> Rig {
        Rig::new(Some(settings()), 100)
    }

    /// Same as [`Rig::trunk`] or [`Rig::registering`], with this reaction to an AI that is down.
    pub fn with_ai_down(ai_down: AiDown, registration: Option<Settings>) -> Rig {
        let registers = registration.is_some();
        let mut rig = Rig::of(vec![AccountConfig { ai_down, ..account("ai", registration) }], 100);
        rig.registers = registers;
        rig.resolve(&[PBX]);
        rig
    }

    pub fn resolve(&mut self, addresses: &[&str]) {
        let route =
            |a: &&str| Route { remote: a.parse().unwrap(), local: "10.0.0.1".parse().unwrap() };
        let routes: Vec<Route> = addresses.iter().map(route).collect();
        let routes = match self.registers {
            true => Routes { registrar: Ok(routes), peers: Vec::new() },
            false => Routes { registrar: Ok(Vec::new()), peers: routes },
        };
        self.input(Input::Resolved { account: 0, routes });
    }

    pub fn input(&mut self, input: Input<'_>) {
        self.agent.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.agent.poll() {
            match output {
                Output::Send { flow, data } => {
                    let (message, fault) = Message::parse(&data).expect("the agent sends SIP");
                    // a 400 copies the malformed header fields of the request
                    let refusal = message.code() == Some(400);
                    assert!(fault.is_none() || refusal, "{}", String::from_utf8_lossy(&data));
                    self.sent.push((flow, message));
                }
                Output::Event(event) => self.events.push(event),
                Output::Resolve { .. } => self.lookups += 1,
            }
        }
    }

    pub fn feed(&mut self, remote: &str, text: &str) {
        self.input(Input::Message { flow: flow(remote), data: text.as_bytes() });
    }

    pub fn feed_tcp(&mut self, remote: &str, text: &str) {
        let flow = Flow { transport: Transport::Tcp, ..flow(remote) };
        self.input(Input::Message { flow, data: text.as_bytes() });
    }

    pub fn pbx(&mut self, text: &Text) {
        self.feed(PBX, &text.render());
    }

    /// The PBX answers our request.
    pub fn answer(&mut self, request: &Message, code: u16) {
        self.answer_with(request, code, "", "");
    }

    pub fn answer_with(&mut self, request: &Message, code: u16, lines: &str, body: &str) {
        self.feed(PBX, &response(request, code, lines, body));
    }

    pub fn command(&mut self, command: Command) {
        self.input(Input::Command(command));
    }

    /// Advances time, stopping at each timer.
    pub fn wait(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while let Some(at) = self.agent.next_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.input(Input::Timeout);
        }
        self.now = end;
    }

    pub fn sent(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.sent).into_iter().map(|(_, m)| m).collect()
    }

    pub fn sent_to(&mut self) -> Vec<(String, Message)> {
        std::mem::take(&mut self.sent).into_iter().map(|(f, m)| (f.remote.to_string(), m)).collect()
    }

    /// Returns the only message that was sent.
    #[track_caller]
    pub fn one(&mut self) -> Message {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    /// Returns the status codes and methods that were sent, in order.
    pub fn told(&mut self) -> Vec<String> {
        let word = |m: &Message| match m.code() {
            Some(code) => code.to_string(),
            None => m.method().unwrap_or("").to_owned(),
        };
        self.sent().iter().map(word).collect()
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Returns how the call ended, or `None` if it has not.
    pub fn ended(&mut self) -> Option<CallEnd> {
        let ends = self.events().into_iter().filter_map(|e| match e {
            Event::Ended { end, .. } => Some(end),
            _ => None,
        });
        let ends: Vec<CallEnd> = ends.collect();
        assert!(ends.len() <= 1, "{ends:?}");
        ends.into_iter().next()
    }

    /// Returns the only call that was offered.
    #[track_caller]
    pub fn offered(&mut self) -> CallKey {
        let offers = self.events().into_iter().filter_map(|e| match e {
            Event::Invite(invite) => Some(invite.call),
            _ => None,
        });
        let offers: Vec<CallKey> = offers.collect();
        assert_eq!(offers.len(), 1);
        offers[0]
    }

    /// Sends the INVITE and returns the call with our 200, not acknowledged yet.
    pub fn answered(&mut self, invite: &Text) -> (Dialog, Message) {
        self.pbx(invite);
        let key = self.offered();
        assert_eq!(self.told(), ["100"]);
        self.command(Command::Answer { call: key, rtp: RTP.parse().unwrap() });
        let ok = self.one();
        assert_eq!(ok.code(), Some(200));
        let tag = ok.to().unwrap().tag().unwrap().to_owned();
        (Dialog { key, tag, call_id: invite.call_id.clone() }, ok)
    }

    /// Establishes a call.
    pub fn up_with(&mut self, invite: &Text) -> Dialog {
        let (dialog, _) = self.answered(invite);
        self.pbx(&dialog.ack(invite.number));
        assert!(self.events().iter().any(|e| matches!(e, Event::Acked { .. })));
        assert_eq!(self.told(), [""; 0]);
        dialog
    }

    pub fn up(&mut self) -> Dialog {
        self.up_with(&Text::invite())
    }

    pub fn hang_up(&mut self, dialog: &Dialog) {
        self.command(Command::Hangup { call: dialog.key, q850: 16, text: "done" });
    }

    /// Checks that ended calls and transactions leave no state.
    #[track_caller]
    pub fn assert_empty(&mut self) {
        self.wait(65.0);
        assert_eq!(self.agent.call_count(), 0);
        assert_eq!(self.agent.transaction_count(), 0);
        assert!(self.agent.dialogs.is_empty() && self.agent.servers.is_empty());
        let account = |(_, key): &&(Instant, TimerKey)| !matches!(key, TimerKey::Account(_));
        assert_eq!(self.agent.timers.iter().filter(account).count(), 0);
    }
}
