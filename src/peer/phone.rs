//! A SIP phone without a user: it dials, plays audio from a source, and reports everything it
//! hears. It can also act as a registrar, and so as a small PBX. Owns sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use crate::media::frame::{FRAME_TIME, SILENCE, Samples};
use crate::media::g711;
use crate::media::rtp::Packet;
use crate::media::sender::Sender;
use crate::peer::registrar::Registrar;
use crate::sip::agent::{
    Agent, AgentConfig, CallEnd, CallKey, Command, Dial, Event, Input, Output,
};
use crate::sip::flow::{Flow, Transport};
use crate::sip::message::Message;
use crate::sip::sdp::{Codec, Direction, Remote};

/// Returns frame number `index`, or `None` for silence.
pub type AudioSource = Box<dyn FnMut(u64) -> Option<Samples> + Send>;

pub struct PhoneConfig {
    /// Our address, for SIP and RTP.
    pub local: IpAddr,
    /// 0 picks a free port.
    pub sip_port: u16,
    pub user: String,
    pub password: Option<SecretString>,
    pub headers: Vec<(String, String)>,
    pub codecs: Vec<Codec>,
    pub registrar: Option<Registrar>,
    /// Our address in Contact and SDP, if it is not `local`.
    pub advertised: Option<IpAddr>,
    /// The first and last port for RTP; by default any.
    pub rtp_ports: Option<(u16, u16)>,
    pub source: AudioSource,
}

impl PhoneConfig {
    /// A phone that offers PCMU and sends silence.
    pub fn new(local: IpAddr, user: &str) -> PhoneConfig {
        PhoneConfig {
            local,
            sip_port: 0,
            user: user.to_owned(),
            password: None,
            headers: Vec::new(),
            codecs: vec![Codec::Pcmu],
            registrar: None,
            advertised: None,
            rtp_ports: None,
            source: Box::new(|_| None),
        }
    }
}

/// Duration of a key held beside audio, in frames: a second.
const HELD_FRAMES: u16 = 50;

/// How key presses are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    Rtp,
    Info,
    /// By RTP, for a second in which the audio continues, in the same stream.
    BesideAudio,
}

#[derive(Debug)]
pub enum PhoneCommand {
    /// Calls `uri` at the address `target`.
    Dial {
        uri: String,
        target: SocketAddr,
    },
    Press(char, Keys),
    /// Holds or resumes the call.
    Direction(Direction),
    Hangup,
}

/// A received RTP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub at: Instant,
    pub from: SocketAddr,
    pub sequence: u16,
    pub timestamp: u32,
    pub ssrc: u32,
    pub marker: bool,
    pub payload_type: u8,
    /// In mu-law, whatever the codec.
    pub samples: Vec<u8>,
}

#[derive(Debug)]
pub enum PhoneEvent {
    /// A client registered with this phone.
    Registered {
        contact: String,
    },
    Unregistered,
    Progress(u16),
    Answered {
        at: Instant,
    },
    /// The peer's address for our RTP, before [`PhoneEvent::Answered`].
    Media {
        rtp: SocketAddr,
    },
    Sent {
        at: Instant,
        samples: Samples,
    },
    Heard(Heard),
    Ended(CallEnd),
}

/// A running phone. Dropping it stops it at once.
pub struct Phone {
    pub commands: mpsc::UnboundedSender<PhoneCommand>,
    pub events: mpsc::UnboundedReceiver<PhoneEvent>,
    /// Its SIP address.
    pub address: SocketAddr,
    /// Its RTP address, as the peer has it.
    pub rtp: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Phone {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Phone {
    /// Opens the sockets and starts the phone.
    ///
    /// # Errors
    /// Returns an error if its sockets cannot be opened.
    pub async fn start(config: PhoneConfig) -> io::Result<Phone> {
        let sip = UdpSocket::bind((config.local, config.sip_port)).await?;
        let rtp = rtp_socket(config.local, config.rtp_ports).await?;
        // until the reactor has reported a socket as writable, `try_send_to` sends nothing
        sip.writable().await?;
        rtp.writable().await?;
        let address = sip.local_addr()?;
        let rtp_ip = config.advertised.unwrap_or(config.local);
        let rtp_address = SocketAddr::new(rtp_ip, rtp.local_addr()?.port());
        let mut key = [0u8; 32];
        getrandom::fill(&mut key).map_err(|e| io::Error::other(e.to_string()))?;
        let agent_config = AgentConfig {
            accounts: Vec::new(),
            listen_port: address.port(),
            max_calls: 1,
            max_unacknowledged: 1,
        };
        let (commands, command_queue) = mpsc::unbounded_channel();
        let (event_queue, events) = mpsc::unbounded_channel();
        let line = Line {
            agent: Agent::new(agent_config, key),
            sender: Sender::new(u32::from_be_bytes([key[0], key[1], key[2], key[3]]), 1, 0),
            config,
            sip,
            rtp,
            call: None,
            remote: None,
            started: None,
            index: 0,
            keys: Vec::new(),
            held: None,
            events: event_queue,
        };
        let task = tokio::spawn(line.run(command_queue));
        Ok(Phone { commands, events, address, rtp: rtp_address, task })
    }

    pub fn command(&self, command: PhoneCommand) {
        let _ = self.commands.send(command);
    }
}

/// Opens a socket on an even port, as RTP expects (RFC 3550 §11).
async fn rtp_socket(local: IpAddr, ports: Option<(u16, u16)>) -> io::Result<UdpSocket> {
    if let Some((first, last)) = ports {
        // from the end, because a running bridge begins at the other one
        for port in (first..=last).rev().filter(|port| port % 2 == 0) {
            if let Ok(socket) = UdpSocket::bind((local, port)).await {
                return Ok(socket);
            }
        }
        return Err(io::Error::other(format!("no UDP port from {first} to {last} is free")));
    }
    loop {
        let socket = UdpSocket::bind((local, 0)).await?;
        if socket.local_addr()?.port() % 2 == 0 {
            return Ok(socket);
        }
    }
}

/// The task of a phone, with at most one call.
struct Line {
    config: PhoneConfig,
    agent: Agent,
    sip: UdpSocket,
    rtp: UdpSocket,
    sender: Sender,
    /// The call that is being set up or in progress.
    call: Option<CallKey>,
    /// The peer's media, once the call is answered.
    remote: Option<Remote>,
    /// When the call was answered and frame 0 was due.
    started: Option<Instant>,
    /// Number of the next frame.
    index: u64,
    /// Packets of key presses, in reverse order; one is sent per tick instead of audio.
    keys: Vec<Vec<u8>>,
    /// The key held beside audio, the number of its first frame, and the frames still to come.
    held: Option<(char, u64, u16)>,
    events: mpsc::UnboundedSender<PhoneEvent>,
}

impl Line {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<PhoneCommand>) {
        let (mut sip_buffer, mut rtp_buffer) = (vec![0u8; 65_536], [0u8; 2048]);
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            let timer = self.agent.next_timeout().unwrap_or(far);
            let frame = self.started.map_or(far, |at| at + FRAME_TIME * self.index as u32);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                received = self.sip.recv_from(&mut sip_buffer) => {
                    if let Ok((n, remote)) = received {
                        self.on_sip(remote, &sip_buffer[..n]);
                    }
                }
                received = self.rtp.recv_from(&mut rtp_buffer) => {
                    if let Ok((n, from)) = received {
                        self.on_rtp(from, &rtp_buffer[..n]);
                    }
                }
                () = sleep_until(frame.into()) => self.play(),
                () = sleep_until(timer.into()) => self.feed(Input::Timeout),
            }
        }
    }

    fn emit(&self, event: PhoneEvent) {
        let _ = self.events.send(event);
    }

    fn feed(&mut self, input: Input<'_>) {
        self.agent.handle(Instant::now(), input);
        while let Some(output) = self.agent.poll() {
            match output {
                Output::Send { flow, data } => {
                    let _ = self.sip.try_send_to(&data, flow.remote);
                }
                Output::Resolve { .. } => {}
                Output::Event(event) => self.on_event(event),
            }
        }
    }

    fn on_sip(&mut self, remote: SocketAddr, data: &[u8]) {
        if let Some(registrar) = &mut self.config.registrar
            && let Ok((message, None)) = Message::parse(data)
            && let Some(response) = registrar.answer(&message)
        {
            let registration = message.method() == Some("REGISTER") && response.code() == Some(200);
            let _ = self.sip.try_send_to(&response.to_bytes(), remote);
            if registration {
                let event = match registrar.contact.clone() {
                    Some(contact) => PhoneEvent::Registered { contact },
                    None => PhoneEvent::Unregistered,
                };
                self.emit(event);
            }
            return;
        }
        self.feed(Input::Message { flow: Flow { transport: Transport::Udp, remote }, data });
    }

    fn on_command(&mut self, command: PhoneCommand) {
        let command = match (command, self.call) {
            (PhoneCommand::Dial { uri, target }, None) => {
                let call = self.agent.new_call_key();
                self.call = Some(call);
                let Ok(bound) = self.rtp.local_addr() else { return };
                let local_ip = self.config.advertised.unwrap_or(self.config.local);
                let rtp = SocketAddr::new(local_ip, bound.port());
                Command::Dial(Box::new(Dial {
                    call,
                    flow: Flow { transport: Transport::Udp, remote: target },
                    uri,
                    local_ip,
                    user: self.config.user.clone(),
                    password: self.config.password.clone(),
                    rtp,
                    headers: self.config.headers.clone(),
                    codecs: self.config.codecs.clone(),
                }))
            }
            (PhoneCommand::Press(digit, Keys::Info), Some(call)) => Command::Info { call, digit },
            (PhoneCommand::Press(digit, Keys::Rtp), Some(_)) => {
                if let Some(pt) = self.remote.as_ref().and_then(|r| r.dtmf_payload_type) {
                    let packets = self.sender.key_press(pt, digit, self.index);
                    self.keys.splice(0..0, packets.into_iter().rev());
                }
                return;
            }
            (PhoneCommand::Press(digit, Keys::BesideAudio), Some(_)) => {
                self.held = Some((digit, self.index, HELD_FRAMES));
                return;
            }
            (PhoneCommand::Direction(direction), Some(call)) => {
                Command::Direction { call, direction }
            }
            (PhoneCommand::Hangup, Some(call)) => {
                Command::Hangup { call, q850: 16, text: "normal clearing" }
            }
            _ => return,
        };
        self.feed(Input::Command(command));
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Progress { code, .. } => self.emit(PhoneEvent::Progress(code)),
            Event::Answered { remote, .. } => {
                let at = Instant::now();
                self.emit(PhoneEvent::Media { rtp: remote.rtp });
                self.remote = Some(remote);
                self.started = Some(at);
                self.emit(PhoneEvent::Answered { at });
            }
            Event::Media { remote, .. } => self.remote = Some(remote),
            Event::Ended { end, .. } => {
                (self.started, self.remote, self.call) = (None, None, None);
                self.emit(PhoneEvent::Ended(end));
            }
            _ => {}
        }
    }

    /// Sends the packet that is due: the next one of a key press, or audio.
    fn play(&mut self) {
        let index = self.index;
        self.index += 1;
        let Some(remote) = self.remote.clone() else { return };
        if let Some(packet) = self.keys.pop() {
            let _ = self.rtp.try_send_to(&packet, remote.rtp);
            return;
        }
        let samples = (self.config.source)(index);
        let mut payload = samples.unwrap_or([SILENCE; 160]);
        if remote.codec == Codec::Pcma {
            g711::mu_to_a(&mut payload);
        }
        self.send_held_key(&remote);
        let packet = self.sender.audio(remote.payload_type, index, &payload, index == 0);
        let at = Instant::now();
        let _ = self.rtp.try_send_to(&packet, remote.rtp);
        if let Some(samples) = samples {
            self.emit(PhoneEvent::Sent { at, samples });
        }
    }

    /// Sends the event packet that is due beside the audio, if a key is held.
    fn send_held_key(&mut self, remote: &Remote) {
        let Some((digit, first, left)) = self.held else { return };
        let Some(payload_type) = remote.dtmf_payload_type else { return };
        let end = left == 1;
        let frames = HELD_FRAMES + 1 - left;
        let begins = frames == 1;
        let packet = self.sender.event(payload_type, digit, first, frames * 160, end, begins);
        let _ = self.rtp.try_send_to(&packet, remote.rtp);
        self.held = (!end).then_some((digit, first, left - 1));
    }

    fn on_rtp(&mut self, from: SocketAddr, data: &[u8]) {
        let at = Instant::now();
        let Some(packet) = Packet::parse(data) else { return };
        let mut samples = packet.payload.to_vec();
        if packet.payload_type == Codec::Pcma.payload_type() {
            g711::a_to_mu(&mut samples);
        }
        self.emit(PhoneEvent::Heard(Heard {
            at,
            from,
            sequence: packet.sequence,
            timestamp: packet.timestamp,
            ssrc: packet.ssrc,
            marker: packet.marker,
            payload_type: packet.payload_type,
            samples,
        }));
    }
}
