//! A PBX, a call and an AI in virtual time, with a bad network between PBX and call. A seed makes
//! the network repeatable.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkless::call::SourceRequest;
use trunkless::call::answering::Verdict;
use trunkless::call::core::Call;
use trunkless::call::end::EndReason;
use trunkless::call::words::{Input, Output, Seeds};
use trunkless::call::{CallConfig, Prompts, RecordPlan, RemoteMedia, Signal};
use trunkless::command::{Command, Order, Reply, Sender, When};
use trunkless::media::frame::Samples;
use trunkless::media::g711::Law;
use trunkless::media::receiver::Format;
use trunkless::media::rtp::Packet;
use trunkless::media::sender;
use trunkless::peer::pattern;
use trunkless::record;
use trunkless::stream::{CallState, FromAi, HeardSign, ToAi};

use crate::call_config::call_config;
use crate::film::Film;

/// Impairments of the path from the PBX.
#[derive(Debug, Clone, Copy, Default)]
pub struct Network {
    /// Lost packets per thousand.
    pub loss: u32,
    /// Duplicated packets per thousand.
    pub duplicate: u32,
    /// Each packet is delayed by a random time up to this.
    pub jitter: Duration,
    /// Each packet is delayed by this as well, but none overtakes another because of it.
    pub delay: Duration,
    /// How much faster the caller's clock is, in parts per million.
    pub drift_ppm: i64,
}

pub fn config() -> CallConfig {
    let record = Some(RecordPlan { when: record::When::Always, notice: Bytes::new() });
    CallConfig { record, ..call_config() }
}

/// Output of the call. Times are in ms since the answer.
#[derive(Debug, Default)]
pub struct Heard {
    /// `timestamp` of each media message to the AI, and the number of its frame if it has one.
    pub ai: Vec<(u64, Option<u32>)>,
    pub digits: String,
    pub marks: Vec<(f64, String)>,
    /// Time, RTP timestamp and frame number of each packet to the caller.
    pub caller: Vec<(f64, u32, Option<u32>)>,
    /// Time and payload of each packet of a key press.
    pub keys: Vec<(f64, Vec<u8>)>,
    /// Time, number of the order, and reply.
    pub replies: Vec<(f64, u32, Reply)>,
    pub requests: Vec<SourceRequest>,
    /// The AIs that were dialled after the first one.
    pub dialled: Vec<usize>,
    /// True if the AI's stream was closed while the call continued.
    pub closed: bool,
    /// Signs of the caller's voice, and the interruptions by the caller.
    pub signs: Vec<(f64, HeardSign)>,
    pub interruptions: Vec<f64>,
    /// The findings about who has answered.
    pub verdicts: Vec<(f64, Verdict)>,
    /// The states that the AI was sent.
    pub states: Vec<CallState>,
    /// The distinct samples that were sent to the caller.
    pub sounds: BTreeSet<u8>,
    pub ended: Option<EndReason>,
    pub ended_at: f64,
}

pub struct World {
    pub call: Call,
    /// Current virtual time.
    pub now: Instant,
    /// Time of the answer.
    pub t0: Instant,
    pub heard: Heard,
    pub film: Film,
    /// Packets lost by the network.
    pub lost: u64,
    network: Network,
    random: seeded::Random,
    /// The caller's RTP sender.
    sender: sender::Sender,
    /// Packet slots of the caller so far, including those in which the phone was paused.
    sent: u64,
    /// When the last packet had passed the part of the path with the constant delay.
    delayed: Instant,
    /// Packets in transit: arrival, packet count, bytes.
    on_the_way: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    /// Frames that the caller sends first.
    pub voice: VecDeque<Samples>,
    /// While true, the caller sends numbered frames; otherwise silence.
    pub talking: bool,
    /// In every period of this many seconds, the caller's phone sends nothing during the last half
    /// second and resumes with a marker. With 0 it always sends.
    pub pauses_every: u64,
    /// True if the phone resumes with a new SSRC and timestamp.
    pub restarts: bool,
    /// True while the phone sends nothing.
    paused: bool,
    /// Number of the next numbered frame.
    number: u32,
    /// Orders given so far.
    orders: u32,
}

/// A small random number generator, so that a run can be repeated from its seed.
pub mod seeded {
    pub struct Random(pub u64);

    impl Random {
        pub fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit.max(1)
        }
    }
}

pub fn pbx() -> SocketAddr {
    "10.0.0.2:4000".parse().expect("an address")
}

impl World {
    /// Creates a call that is answered at time 0, with the AI's stream started.
    pub fn new(seed: u64, network: Network) -> World {
        World::with(seed, network, false)
    }

    /// Creates such a call. With `early`, RTP may flow before the answer, as in ARI mode.
    pub fn with(seed: u64, network: Network, early: bool) -> World {
        let mut world = World::unanswered(seed, network, early);
        world.feed(Input::Signal(Signal::Connected));
        world
    }

    /// Creates such a call whose AI may play prompts.
    pub fn with_prompts(seed: u64, prompts: Prompts) -> World {
        World::of(seed, &CallConfig { prompts, ..config() })
    }

    /// Creates such a call with this configuration.
    pub fn of(seed: u64, config: &CallConfig) -> World {
        let mut world = World::configured(seed, Network::default(), false, config);
        world.feed(Input::Signal(Signal::Connected));
        world
    }

    /// Creates such a call before its answer, with the AI's WebSocket open.
    pub fn unanswered(seed: u64, network: Network, early: bool) -> World {
        World::configured(seed, network, early, &config())
    }

    fn configured(seed: u64, network: Network, early: bool, config: &CallConfig) -> World {
        println!("seed {seed}, {network:?}");
        let now = Instant::now();
        let remote = RemoteMedia {
            rtp: pbx(),
            rtcp: "10.0.0.2:4001".parse().expect("an address"),
            format: Format { law: Law::Mu, payload_type: 0, dtmf_payload_type: Some(101) },
            wants_audio: true,
            sends_audio: true,
            early,
            trusted: true,
        };
        let seeds = Seeds { ssrc: 1, sequence: 65_000, timestamp: u32::MAX - 5000 };
        let call = Call::new(now, config, pbx().ip(), Some(remote), false, seeds, "sim".into());
        let mut world = World {
            call,
            now,
            t0: now,
            heard: Heard::default(),
            film: Film::new(),
            lost: 0,
            network,
            random: seeded::Random(seed | 1),
            sender: sender::Sender::new(7, 65_500, 0),
            sent: 0,
            delayed: now,
            on_the_way: BinaryHeap::new(),
            voice: VecDeque::new(),
            talking: true,
            pauses_every: 0,
            restarts: false,
            paused: false,
            number: 0,
            orders: 0,
        };
        world.feed(Input::AiOpen);
        world
    }

    /// Turns the loss of all packets on or off.
    pub fn silence(&mut self, on: bool) {
        self.network.loss = if on { 1000 } else { 0 };
    }

    /// Delays each packet by this from now on, besides the jitter. Packets stay in order.
    pub fn delay(&mut self, delay: Duration) {
        self.network.delay = delay;
    }

    /// The caller says nothing more, and the network is good again.
    pub fn calm_down(&mut self) {
        self.talking = false;
        self.network = Network { drift_ppm: self.network.drift_ppm, ..Network::default() };
    }

    /// Numbered frames that the caller has sent.
    pub fn said(&self) -> u64 {
        u64::from(self.number)
    }

    pub fn feed(&mut self, input: Input<'_>) {
        self.call.handle(self.now, input);
        let ms = (self.now - self.t0).as_secs_f64() * 1000.0;
        while let Some(output) = self.call.poll() {
            match output {
                Output::Ai(ToAi::Audio { samples, t_ms }) => {
                    self.heard.ai.push((t_ms, pattern::read(&samples).map(|(_, n)| n)));
                }
                Output::Ai(ToAi::Digit(digit)) => self.heard.digits.push(digit),
                Output::AnsweredBy(verdict) => self.heard.verdicts.push((ms, verdict)),
                Output::Ai(ToAi::Heard(sign)) => self.heard.signs.push((ms, sign)),
                Output::Ai(ToAi::Cleared { by_caller: true, .. }) => {
                    self.heard.interruptions.push(ms);
                }
                Output::Ai(ToAi::Mark { name, .. }) => self.heard.marks.push((ms, name)),
                Output::Rtp { packet, .. } => {
                    let packet = Packet::parse(&packet).expect("RTP");
                    let number = pattern::read(packet.payload).map(|(_, n)| n);
                    self.heard.sounds.extend(packet.payload);
                    self.heard.caller.push((ms, packet.timestamp, number));
                }
                Output::Tap(tap) => self.film.tap(tap),
                Output::Recording { command, .. } => self.film.command(command),
                Output::KeyPress { packet, .. } => {
                    let packet = Packet::parse(&packet).expect("RTP");
                    self.heard.keys.push((ms, packet.payload.to_vec()));
                }
                Output::Reply { order, reply } => self.heard.replies.push((ms, order, reply)),
                Output::DialAi { ai, .. } => self.heard.dialled.push(ai),
                Output::CloseAi => self.heard.closed = true,
                Output::Ai(ToAi::State(state)) => self.heard.states.push(state),
                Output::Request(request) => self.heard.requests.push(request),
                Output::Ended(reason) => {
                    (self.heard.ended, self.heard.ended_at) = (Some(reason), ms);
                }
                _ => {}
            }
        }
    }

    /// Gives the call an order of the AI, and returns its number.
    pub fn order(&mut self, command: Command) -> u32 {
        self.order_when(When::Now, command)
    }

    pub fn order_when(&mut self, when: When, command: Command) -> u32 {
        self.order_by(Sender::Ai, when, command)
    }

    pub fn order_by(&mut self, by: Sender, when: When, command: Command) -> u32 {
        self.orders += 1;
        let number = self.orders;
        let order = Order { id: String::new(), by, when, command };
        self.feed(Input::Order { number, order });
        number
    }

    pub fn say(&mut self, message: FromAi<'_>) {
        self.feed(Input::Ai(message));
    }

    /// Returns when the caller's next packet leaves the PBX.
    fn next_packet(&self) -> Instant {
        let ideal = self.sent as i64 * 20_000;
        let micros = ideal - ideal * self.network.drift_ppm / 1_000_000;
        self.t0 + Duration::from_micros(micros as u64)
    }

    fn send_packet(&mut self) {
        let voice = self.voice.pop_front();
        let samples = match self.talking {
            _ if voice.is_some() => voice.unwrap_or([0xff; 160]),
            true => {
                self.number += 1;
                pattern::frame(7, self.number - 1)
            }
            false => [0xff; 160],
        };
        let marker = self.sent == 0 || self.paused;
        let cycle = self.pauses_every * 50;
        let pausing = cycle > 0 && self.sent % cycle >= cycle - 25;
        if self.paused && !pausing && self.restarts {
            let (ssrc, sequence) = (self.sent as u32, self.random.below(65_536) as u16);
            self.sender = sender::Sender::new(ssrc, sequence, self.random.below(1 << 32) as u32);
        }
        self.paused = pausing;
        let packet = self.sender.audio(0, self.sent, &samples, marker);
        self.sent += 1;
        if pausing {
            return;
        }
        let leaves = self.now;
        if self.random.below(1000) < u64::from(self.network.loss) {
            self.lost += 1;
            return;
        }
        let copies = 1 + u32::from(self.random.below(1000) < u64::from(self.network.duplicate));
        for _ in 0..copies {
            let delay = self.random.below(self.network.jitter.as_micros() as u64 + 1);
            let ready = self.delayed.max(leaves + self.network.delay);
            self.delayed = ready;
            let at = ready + Duration::from_micros(delay);
            self.on_the_way.push(Reverse((at, self.sent, packet.to_vec())));
        }
    }

    /// Advances time to `ms` after the answer, or until the call ends.
    pub fn run_to(&mut self, ms: u64) {
        self.run_until(Duration::from_millis(ms));
    }

    pub fn run_until(&mut self, passed: Duration) {
        let end = self.t0 + passed;
        loop {
            let arrival = self.on_the_way.peek().map(|Reverse((at, ..))| *at);
            let times = [Some(self.next_packet()), arrival, self.call.next_timeout()];
            let next =
                times.into_iter().flatten().min().expect("the caller always has a next packet");
            if next > end || self.heard.ended.is_some() {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if arrival.is_some_and(|at| at <= self.now) {
                if let Some(Reverse((_, _, data))) = self.on_the_way.pop() {
                    self.feed(Input::Rtp { from: pbx(), data: &data });
                }
            } else if self.next_packet() <= self.now {
                self.send_packet();
            } else {
                self.feed(Input::Timeout { unix: Duration::from_secs(1_800_000_000) });
            }
        }
    }
}
