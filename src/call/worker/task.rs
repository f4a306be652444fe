//! Moves a call's packets between its RTP sockets and its AI's WebSocket. Runs on a [`worker`] when
//! a socket, a timer or a waker is ready. Owns I/O.
//!
//! [`worker`]: crate::call::worker

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tracing::{debug, warn};

use crate::call::core::Call;
use crate::call::counters::PlayoutFloor;
use crate::call::end::EndReason;
use crate::call::leg::Channel;
use crate::call::recordings::CallRecordings;
use crate::call::words::{Input, Output, Seeds, Summary};
use crate::call::worker::event_loop::{Buffers, Live, MAX_MESSAGES};
use crate::call::worker::lines::Lines;
use crate::call::worker::pool::Workers;
use crate::call::{CallConfig, Offer, Signal, counters, parameters};
use crate::command::Command;
use crate::stream::closed::Closed;
use crate::stream::connect::Socket;
use crate::stream::dialect::{Dialect, sid};
use crate::stream::scratch::Scratch;
use crate::stream::socket::{AiSocket, Counts, Stop};
use crate::stream::unreachable::ConnectError;
use crate::stream::{FromAi, StreamInfo};

/// Datagrams read at once when a backlog is likely, for example after a stall of this process.
const BURST: usize = 16;
/// Datagrams read at once after a standstill of this process: all that the kernel has kept.
const BACKLOG: usize = 4096;
/// Packets of an ordinary stream are further apart than this; closer ones suggest a backlog.
const MIN_SPACING: Duration = Duration::from_millis(5);

/// The record of an ended call.
#[derive(Debug, Clone)]
pub struct Record {
    pub id: String,
    pub reason: EndReason,
    pub summary: Summary,
    /// Messages that were dropped because the AI was slow, or were not understood.
    pub ai: Counts,
    /// Why there was no stream to the AI, or how the AI ended it: "close frame 1000". `None` when
    /// trunkless ended it.
    pub ai_end: Option<String>,
    /// Ids of the call's recordings.
    pub recordings: Vec<String>,
}

/// Runs one call to its end, on the worker with the fewest calls. `stop` becomes true when all
/// calls have to end.
///
/// # Panics
/// Panics if the call panicked on its worker. The worker and its other calls continue.
pub async fn run(
    workers: &Workers,
    offer: Offer,
    config: Arc<CallConfig>,
    commands: mpsc::Receiver<Command>,
    stop: watch::Receiver<bool>,
) -> Record {
    let connecting = Connecting(tokio::spawn({
        let config = config.clone();
        async move { config.target.connect(config.answer_wait).await }
    }));
    let (done, record) = oneshot::channel();
    let running = Running::new(offer, &config);
    workers.take(Live::new(running, RareEvents::new(commands, stop, connecting), done));
    match record.await {
        Ok(record) => record,
        // without the panic hook, which has already reported the panic on the worker
        Err(_) => std::panic::resume_unwind(Box::new("the call panicked")),
    }
}

/// The task that connects to the AI. Dropping this cancels it.
pub(super) struct Connecting(JoinHandle<Result<Socket, ConnectError>>);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The sources of a call's rare events, apart from its signals. They are polled as futures when the
/// call is woken.
pub(super) struct RareEvents {
    /// `None` once the sender is gone.
    commands: Option<mpsc::Receiver<Command>>,
    /// Resolves when all calls have to end; `None` after that.
    stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// `None` once the AI has been connected, or could not be.
    connecting: Option<Connecting>,
}

impl RareEvents {
    fn new(
        commands: mpsc::Receiver<Command>,
        mut stop: watch::Receiver<bool>,
        connecting: Connecting,
    ) -> RareEvents {
        let stop = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let stop: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(stop);
        RareEvents { commands: Some(commands), stop: Some(stop), connecting: Some(connecting) }
    }
}

/// A running call, with its sockets.
pub(super) struct Running {
    pub offer: Offer,
    dialect: Dialect,
    /// See [`CallConfig::ping`].
    ping: Duration,
    info: StreamInfo,
    call: Call,
    recordings: CallRecordings,
    /// The AI's stream, while it is up.
    pub ai: Option<AiSocket>,
    /// A stream that the AI closed cleanly. The worker takes it to complete the close.
    pub closing: Option<Box<AiSocket>>,
    /// A copy of the stream's counts, because the stream may end before the call.
    ai_counts: Counts,
    /// See [`Record::ai_end`].
    ai_end: Option<String>,
    lines: Lines,
    /// The Q.850 cause with which the PBX hung up.
    hangup_cause: Option<u16>,
    /// True once an ignored message from the AI has been logged.
    ignored_logged: bool,
    /// True once RTP from an unannounced address has been logged.
    misdirected_logged: bool,
    /// True once RTP with another law than the agreed one has been logged.
    unagreed_logged: bool,
    playout_floor: PlayoutFloor,
    /// When a socket was last readable.
    last_readable: Option<Instant>,
    /// The end reason, once there is one.
    ended: Option<EndReason>,
}

impl Running {
    fn new(offer: Offer, config: &CallConfig) -> Running {
        let info = stream_info(&offer, config);
        let lines = Lines::new(&offer, config.target.shown());
        lines.offered(&offer, &info);
        let cname = format!("{}@trunkless", offer.id);
        let (signalling, remote) = (offer.leg.signalling, offer.remote);
        let (now, can_continue) = (Instant::now(), offer.can_continue);
        let call = Call::new(now, config, signalling, remote, can_continue, seeds(), cname);
        Running {
            recordings: CallRecordings::new(config.recorder.clone(), &offer, &info),
            dialect: config.target.dialect,
            ping: config.ping,
            info,
            call,
            offer,
            ai: None,
            closing: None,
            ai_counts: Counts::default(),
            ai_end: None,
            lines,
            hangup_cause: None,
            ignored_logged: false,
            misdirected_logged: false,
            unagreed_logged: false,
            playout_floor: PlayoutFloor::default(),
            last_readable: None,
            ended: None,
        }
    }

    /// Handles the rare events that are ready: signals from the call's source, commands, the
    /// outcome of connecting to the AI, and shutdown.
    pub fn handle_rare_events(
        &mut self,
        now: Instant,
        rare_events: &mut RareEvents,
        cx: &mut Context<'_>,
    ) {
        while let Poll::Ready(signal) = self.offer.signals.poll_recv(cx) {
            let ended = signal.is_none();
            let signal = signal.unwrap_or(Signal::Ended(EndReason::Internal));
            if let Signal::HangupCause(cause) = signal {
                self.hangup_cause = Some(cause);
                self.lines.hangup_cause(cause, self.call.announced());
            }
            self.call.handle(now, Input::Signal(signal));
            if ended {
                break;
            }
        }
        while let Some(commands) = &mut rare_events.commands
            && let Poll::Ready(command) = commands.poll_recv(cx)
        {
            match command {
                Some(Command::Record(command)) => self.call.handle(now, Input::Record(command)),
                None => rare_events.commands = None,
            }
        }
        if let Some(connecting) = &mut rare_events.connecting
            && !self.call.is_ended()
            && let Poll::Ready(connected) = Pin::new(&mut connecting.0).poll(cx)
        {
            rare_events.connecting = None;
            let fault = |e: JoinError| ConnectError::Internal(e.to_string());
            self.on_connected(now, connected.map_err(fault).flatten());
        }
        if let Some(stop) = &mut rare_events.stop
            && stop.as_mut().poll(cx).is_ready()
        {
            rare_events.stop = None;
            self.call.handle(now, Input::End(EndReason::Drain));
        }
    }

    /// Carries out what the call has decided. Returns the end reason if the call is over.
    pub fn act(&mut self, now: Instant, scratch: &mut Scratch) -> Option<EndReason> {
        loop {
            while let Some(output) = self.call.poll() {
                match output {
                    Output::Request(request) => (self.offer.requests)(request),
                    Output::Answered => self.lines.answered(&self.call.summary(now)),
                    Output::Rtp { to, packet } => self.offer.leg.send(Channel::Rtp, to, &packet),
                    Output::Rtcp { to, packet } => self.offer.leg.send(Channel::Rtcp, to, &packet),
                    Output::AiStart { burst } => {
                        self.ai.iter_mut().for_each(|ai| ai.start(now, burst));
                    }
                    Output::Ai(message) => {
                        if let Some(ai) = &mut self.ai {
                            ai.send(now, message, scratch);
                        }
                    }
                    Output::MissingRtp(missing) => self.lines.missing_rtp(&missing),
                    Output::Tap(tap) => self.recordings.tap(tap),
                    Output::Recording { command, index, law } => {
                        self.recordings.command(command, index, law);
                    }
                    Output::Ended(reason) => self.ended = Some(reason),
                }
            }
            let Some(ai) = &mut self.ai else { break };
            let pumped = ai.pump(now, scratch);
            self.ai_counts = ai.counts();
            match pumped {
                Err(closed) if self.ended.is_none() => self.on_closed(now, closed),
                _ => break,
            }
        }
        self.ended
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        let ai = self.ai.as_ref().and_then(AiSocket::next_timeout);
        self.call.next_timeout().into_iter().chain(ai).min()
    }

    /// Reads the AI's messages if silence is about to be sent in their place: after a stall of this
    /// process they may be waiting. Returns true if there are more than are read in one turn.
    pub fn read_before_silence(&mut self, now: Instant, scratch: &mut Scratch) -> bool {
        if !self.call.misses_speech(now) {
            return false;
        }
        self.ai.iter_mut().for_each(|ai| ai.readable(false));
        self.take_messages(now, MAX_MESSAGES, scratch)
    }

    /// Notes that this process stood still for `time`.
    pub fn stood_still(&mut self, now: Instant, time: Duration, buffers: &mut Buffers) {
        debug!(call = self.offer.id, "the process stood still for {time:?}");
        self.call.stood_still(now, time);
        self.ai.iter_mut().for_each(|ai| ai.stood_still(now, time));
        // before the timeline inserts silence for all of that time
        self.take_datagrams(now, Channel::Rtp, BACKLOG, &mut buffers.datagram);
    }

    /// Handles a deadline. Returns true if the AI has sent more than is read in one turn.
    pub fn on_timeout(&mut self, now: Instant, buffers: &mut Buffers) -> bool {
        let mut more = false;
        // after a stall of this process, packets may be waiting although the timeline is about to
        // insert silence, so they are read first
        if self.call.misses_audio(now) {
            self.take_datagrams(now, Channel::Rtp, BURST, &mut buffers.datagram);
        }
        let due = self.ai.as_ref().and_then(AiSocket::next_timeout);
        if due.is_some_and(|at| at <= now) {
            // the same for the AI's data, which proves that it is alive
            self.ai.iter_mut().for_each(|ai| ai.readable(false));
            more = self.take_messages(now, MAX_MESSAGES, &mut buffers.scratch);
            if let Some(closed) = self.ai.as_mut().and_then(|ai| ai.on_timeout(now)) {
                self.on_closed(now, closed);
            }
        }
        self.call.handle(now, Input::Timeout { unix: unix() });
        self.playout_floor.set(self.call.playout_floor_bytes());
        more
    }

    /// Reads from a readable socket: one datagram, or several if they arrive close together.
    pub fn on_readable(&mut self, now: Instant, channel: Channel, buffer: &mut [u8]) {
        let close = self.last_readable.replace(now).is_some_and(|at| now - at < MIN_SPACING);
        self.take_datagrams(now, channel, if close { BURST } else { 1 }, buffer);
    }

    /// Handles up to `limit` datagrams that have already arrived.
    fn take_datagrams(&mut self, now: Instant, channel: Channel, limit: usize, buffer: &mut [u8]) {
        for _ in 0..limit {
            let Ok((n, from)) = self.offer.leg.recv(channel, buffer) else { break };
            self.on_datagram(now, channel, from, &buffer[..n]);
        }
    }

    fn on_datagram(&mut self, now: Instant, channel: Channel, from: SocketAddr, data: &[u8]) {
        match channel {
            Channel::Rtp => self.call.handle(now, Input::Rtp { from, data }),
            Channel::Rtcp => self.call.handle(now, Input::Rtcp { data, unix: unix() }),
        }
        if !self.unagreed_logged
            && let Some(payload_type) = self.call.unagreed()
        {
            self.unagreed_logged = true;
            self.lines.unagreed(payload_type);
        }
        if !self.misdirected_logged
            && let Some((source, named)) = self.call.misdirected()
        {
            self.misdirected_logged = true;
            self.lines.misdirected(source, named);
        }
    }

    fn on_connected(&mut self, now: Instant, connected: Result<Socket, ConnectError>) {
        match connected {
            Ok(socket) => {
                let codec = self.dialect.codec(self.info.clone());
                self.ai = Some(AiSocket::new(now, socket, codec, self.ping));
                self.call.handle(now, Input::AiOpen);
            }
            Err(error) => {
                self.lines.ai_unreachable(&error.advice());
                self.ai_end = Some(error.to_string());
                self.call.handle(now, Input::AiFailed);
            }
        }
    }

    /// Handles up to `limit` messages from the AI. Returns true if more may be waiting.
    pub fn take_messages(&mut self, now: Instant, limit: usize, scratch: &mut Scratch) -> bool {
        let Running { ai, call, offer, ignored_logged, .. } = self;
        let Some(ai) = ai else { return false };
        let stop = ai.read(now, scratch, limit, &mut |message| {
            if let FromAi::Ignored(why) = message
                && !std::mem::replace(ignored_logged, true)
            {
                warn!(call = offer.id, "AI message ignored: {why} (logged once per call)");
            }
            call.handle(now, Input::Ai(message));
        });
        match stop {
            Stop::Empty => false,
            Stop::Turn => true,
            Stop::Closed(closed) => {
                // replies to earlier messages go out before the close frame is answered
                if closed.is_ordinary() {
                    self.act(now, scratch);
                }
                self.ai.iter_mut().for_each(AiSocket::answer_close);
                self.on_closed(now, closed);
                false
            }
        }
    }

    pub fn on_closed(&mut self, now: Instant, closed: Closed) {
        let Some(ai) = self.ai.take() else { return };
        self.lines.ai_closed(&closed);
        // a broken stream is dropped; a cleanly closed one has had its close frame answered, and is
        // kept until its connection ends
        self.ai_counts = ai.counts();
        self.ai_end = Some(closed.to_string());
        self.closing = closed.is_ordinary().then(|| Box::new(ai));
        self.call.handle(now, Input::AiClosed(&closed));
    }

    /// Logs the end of the call and frees its ports and its permit. Returns the record, and the
    /// AI's stream if it is still up and has to be closed.
    pub fn finish(self, reason: EndReason) -> (Record, Option<AiSocket>) {
        let summary = self.call.summary(Instant::now());
        let (recordings, lost_ms) = self.recordings.finish(reason, &summary);
        let dropped = self.ai_counts.dropped_audio;
        counters::add(&self.offer.pbx, reason, &summary, dropped);
        self.lines.ended(reason, self.hangup_cause, &summary, dropped, lost_ms);
        let id = self.offer.id.clone();
        let (ai, ai_end) = (self.ai_counts, self.ai_end);
        (Record { id, reason, summary, ai, ai_end, recordings }, self.ai)
    }
}

fn stream_info(offer: &Offer, config: &CallConfig) -> StreamInfo {
    let ours: [(&str, &str); 5] = [
        ("from_number", &offer.from_number),
        ("from_name", &offer.from_name),
        ("to_number", &offer.to_number),
        ("pbx", &offer.pbx),
        ("sip_call_id", &offer.native_id),
    ];
    StreamInfo {
        account_sid: config.account_sid.clone(),
        call_sid: sid("CA", &offer.sid_seed),
        stream_sid: sid("MZ", &offer.sid_seed),
        parameters: parameters::all(&ours, &offer.added, &config.parameters),
    }
}

fn seeds() -> Seeds {
    let mut bytes = [0u8; 10];
    // if this fails, the numbers are guessable but still valid
    let _ = getrandom::fill(&mut bytes);
    let [a, b, c, d, e, f, g, h, i, j] = bytes;
    Seeds {
        ssrc: u32::from_be_bytes([a, b, c, d]),
        sequence: u16::from_be_bytes([e, f]),
        timestamp: u32::from_be_bytes([g, h, i, j]),
    }
}

fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
