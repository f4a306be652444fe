//! Makes the pcapng file of a capture, part by part, as its client reads it. Owns the clock.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::capture::framing::{self, MAX_PAYLOAD, Tcp};
use crate::capture::pcapng::{self, LinkType, Packet};
use crate::capture::redact::Redactor;
use crate::capture::tap::{Queue, Tap, interface, queue, unix};
use crate::capture::{Captured, Direction, Kind};

/// Parts are collected for this long, and put in order of time.
const COLLECT: Duration = Duration::from_millis(100);
/// The interfaces of the file: for packets, and for messages in JSON.
const INTERFACES: [(LinkType, &str); 2] =
    [(LinkType::Raw, "network"), (LinkType::UpperPdu, "messages")];

/// The bounds of a capture.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The capture ends this long after it has begun.
    pub time: Duration,
    /// It is given up if no call has come after this long. `None`: there is a call already.
    pub wait: Option<Duration>,
    /// The capture ends once the file has this many bytes, exceeded by at most one part.
    pub bytes: u64,
}

/// Why a capture ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    CallEnded,
    Time(Duration),
    Size(u64),
    NoCall(Duration),
}

impl End {
    /// The reason in a sentence, for people.
    pub fn text(self) -> String {
        match self {
            End::CallEnded => "the call has ended".to_owned(),
            End::Time(limit) => format!("the time limit of {} s is reached", limit.as_secs()),
            End::Size(limit) => {
                format!("the size limit of {} MB is reached", limit.div_ceil(1_000_000))
            }
            End::NoCall(limit) => format!("no call came within {} s", limit.as_secs()),
        }
    }
}

/// Figures of a capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Packets and messages in the file, for each interface.
    pub written: [u64; 2],
    /// Those that are missing because the client read too slowly.
    pub dropped: [u64; 2],
    /// Bytes of the file.
    pub bytes: u64,
}

/// The reader of one capture.
pub struct Reader {
    queue: Queue,
    redactor: Redactor,
    limits: Limits,
    tcp: Tcp,
    /// When the capture ends, or is given up.
    until: Instant,
    /// True until the first packet.
    is_waiting: bool,
    has_header: bool,
    end: Option<End>,
    has_trailer: bool,
    figures: Figures,
    /// The comment at the beginning of the file.
    title: String,
}

/// Begins a capture. Returns the tap for its call, and the reader of the file.
pub fn begin(limits: Limits, redactor: Redactor, title: String) -> (Tap, Reader) {
    let (tap, queue) = queue();
    let reader = Reader {
        queue,
        redactor,
        limits,
        tcp: Tcp::default(),
        until: Instant::now() + limits.wait.unwrap_or(limits.time),
        is_waiting: limits.wait.is_some(),
        has_header: false,
        end: None,
        has_trailer: false,
        figures: Figures::default(),
        title,
    };
    (tap, reader)
}

impl Reader {
    /// Returns the id of the call, once there is one.
    pub fn call(&self) -> Option<&str> {
        self.queue.shared.call.get().map(String::as_str)
    }

    /// Removes these secrets from what follows.
    pub fn hide(&mut self, secrets: &[String]) {
        if self.redactor.secrets != secrets {
            self.redactor.secrets = secrets.to_vec();
        }
    }

    /// Returns why the capture ended, once it has.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    pub fn figures(&self) -> Figures {
        let dropped = [0, 1].map(|n| self.queue.shared.dropped[n].load(Ordering::Relaxed));
        Figures { dropped, ..self.figures }
    }

    /// Returns the next part of the file; `None` at its end.
    pub async fn part(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.has_header, true) {
            let application = concat!("trunkless ", env!("CARGO_PKG_VERSION"));
            pcapng::section(application, &self.title, &mut out);
            for (link, name) in INTERFACES {
                pcapng::interface(link, name, &mut out);
            }
        } else if self.end.is_none() {
            self.collect(&mut out).await;
        }
        if let Some(end) = self.end
            && !std::mem::replace(&mut self.has_trailer, true)
        {
            self.trailer(end, &mut out);
        }
        self.figures.bytes += out.len() as u64;
        (!out.is_empty()).then_some(out)
    }

    /// Waits for packets and appends them.
    async fn collect(&mut self, out: &mut Vec<u8>) {
        let mut all = Vec::new();
        // with a client that reads slowly, there is always something to read
        if Instant::now() >= self.until {
            self.end = Some(self.out_of_time());
            return;
        }
        match timeout_at(self.until, self.queue.wait(&mut all)).await {
            Ok(true) => {}
            Ok(false) => self.end = Some(End::CallEnded),
            Err(_) => self.end = Some(self.out_of_time()),
        }
        if self.end.is_none() {
            if std::mem::take(&mut self.is_waiting) {
                self.until = Instant::now() + self.limits.time;
            }
            sleep(COLLECT).await;
            self.queue.take(&mut all);
        }
        // what the call kept from before the capture comes after its first packets
        all.sort_by_key(|captured| captured.at);
        for captured in all {
            self.add(captured, out);
            if self.figures.bytes + out.len() as u64 >= self.limits.bytes {
                self.end = Some(End::Size(self.limits.bytes));
                break;
            }
        }
    }

    fn out_of_time(&self) -> End {
        match self.limits.wait.filter(|_| self.is_waiting) {
            Some(wait) => End::NoCall(wait),
            None => End::Time(self.limits.time),
        }
    }

    /// Appends a packet or message, without its secrets.
    fn add(&mut self, captured: Captured, out: &mut Vec<u8>) {
        let Captured { at, kind, direction, between, mut data, length, is_private } = captured;
        let (from, to) = match direction {
            Direction::Received => (between.1, between.0),
            Direction::Sent => between,
        };
        let mut frame = Vec::with_capacity(length.min(MAX_PAYLOAD) + 64);
        let (mut missing, mut comment) = (0, None);
        match kind {
            Kind::Rtp | Kind::Rtcp => {
                if kind == Kind::Rtp {
                    self.redactor.rtp(&mut data, is_private);
                }
                // the headers are those of the whole packet
                missing = length - data.len();
                data.resize(length, 0);
                framing::udp(from, to, &data, &mut frame);
                frame.truncate(frame.len().saturating_sub(missing));
                if missing > 0 {
                    comment = Some("audio left out: the recording was paused");
                }
            }
            Kind::Sip { tcp } => {
                let text = self.redactor.sip(&data, is_private);
                // longer ones do not fit below one header
                let text = &text[..text.len().min(MAX_PAYLOAD)];
                match tcp {
                    true => self.tcp.segment(from, to, text, &mut frame),
                    false => framing::udp(from, to, text, &mut frame),
                }
            }
            Kind::Ai | Kind::Ari => {
                let text = match data.len() < length {
                    true => format!("{{\"left_out\":\"{length} bytes\"}}").into_bytes(),
                    false => self.redactor.json(&data, is_private),
                };
                framing::json(from, to, &text, &mut frame);
                comment = Some(label(kind, direction));
            }
        }
        let (interface, length) = (interface(kind), frame.len() + missing);
        self.figures.written[interface] += 1;
        pcapng::packet(&Packet { interface, at, direction, data: &frame, length, comment }, out);
    }

    /// Appends how the capture ended.
    fn trailer(&self, end: End, out: &mut Vec<u8>) {
        let Figures { written, dropped, .. } = self.figures();
        let text = summary(end, dropped);
        for (interface, (written, dropped)) in written.into_iter().zip(dropped).enumerate() {
            let counts = [written + dropped, dropped];
            pcapng::statistics(interface, unix(), counts, &text, out);
        }
    }
}

/// The end of a capture, for people.
fn summary(end: End, dropped: [u64; 2]) -> String {
    match dropped.iter().sum::<u64>() {
        0 => format!("capture ended: {}", end.text()),
        missing => format!(
            "capture ended: {}; {missing} packets and messages are missing, because the capture \
             was read too slowly",
            end.text()
        ),
    }
}

/// The comment of a message.
pub fn label(kind: Kind, direction: Direction) -> &'static str {
    match (kind, direction) {
        (Kind::Ari, Direction::Received) => "ARI event",
        (Kind::Ari, Direction::Sent) => "ARI request",
        (_, Direction::Received) => "from the AI",
        (_, Direction::Sent) => "to the AI",
    }
}
