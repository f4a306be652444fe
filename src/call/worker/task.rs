//! Moves a call's packets between its RTP sockets and its AI's WebSocket. Runs on a [`worker`] when
//! a socket, a timer or a waker is ready. Owns I/O.
//!
//! [`worker`]: crate::call::worker

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinError;
use tracing::debug;

use crate::call::admission::Permit;
use crate::call::core::Call;
use crate::call::counters::{PlayoutFloor, Traffic};
use crate::call::end::EndReason;
use crate::call::ended::{Dialled, Record};
use crate::call::leg::Channel;
use crate::call::live::{EventKind, State as LiveState};
use crate::call::recordings::CallRecordings;
use crate::call::words::{Input, Output, Seeds};
use crate::call::worker::described::{Observed, first_ai, outcome, stream_info};
use crate::call::worker::desk::Desk;
use crate::call::worker::dialling::Dialler;
use crate::call::worker::event_loop::{Buffers, Live, MAX_MESSAGES};
use crate::call::worker::lines::Lines;
use crate::call::worker::pool::Workers;
use crate::call::worker::rare_events::{RareEvents, Redial};
use crate::call::worker::tools::Tools;
use crate::call::worker::watching::Watching;
use crate::call::{CallConfig, CallRequest, Offer, Signal, counters};
use crate::capture;
use crate::capture::Direction;
use crate::record::recording::Tap;
use crate::stream::scratch::Scratch;
use crate::stream::socket::{AiSocket, Counts};
use crate::stream::unreachable::ConnectError;
use crate::stream::{StreamInfo, ToAi};
use crate::telemetry::Throttle;

/// Datagrams read at once when a backlog is likely, for example after a stall of this process.
const BURST: usize = 16;
/// Datagrams read at once after a standstill of this process: all that the kernel has kept.
const BACKLOG: usize = 4096;
/// Packets of an ordinary stream are further apart than this; closer ones suggest a backlog.
const MIN_SPACING: Duration = Duration::from_millis(5);

/// Runs one call to its end, on the worker with the fewest calls. `stop` becomes true when all
/// calls have to end. A `refused` call does not go to its AI, but down the ladder.
///
/// # Panics
/// Panics if the call panicked on its worker. The worker and its other calls continue.
pub async fn run(
    workers: &Workers,
    offer: Offer,
    config: Arc<CallConfig>,
    commands: mpsc::Receiver<CallRequest>,
    stop: watch::Receiver<bool>,
    observed: Observed,
    refused: Option<EndReason>,
) -> Record {
    let dialler = Dialler { config: config.clone(), runtime: Handle::current() };
    let (done, record) = oneshot::channel();
    let mut running = Running::new(offer, &config, observed);
    let connecting = refused.is_none().then(|| dialler.dial(running.dial(running.current, None)));
    refused.iter().for_each(|reason| running.call.refuse(Instant::now(), *reason));
    let rare_events = RareEvents::new(commands, stop, connecting, dialler);
    workers.take(Live::new(running, rare_events, done));
    match record.await {
        Ok(record) => record,
        // without the panic hook, which has already reported the panic on the worker
        Err(_) => std::panic::resume_unwind(Box::new("the call panicked")),
    }
}

/// Replies that are kept until the AI's stream has started.
const MAX_EARLY_REPLIES: usize = 100;
/// Problems reported by one AI that are logged: one per interval, and this many at once.
const WARNINGS: (Duration, u32) = (Duration::from_secs(30), 5);

/// A running call, with its sockets.
pub(super) struct Running {
    pub offer: Offer,
    pub(super) config: Arc<CallConfig>,
    /// The AI that was dialled last.
    pub(super) current: usize,
    pub redial: Option<Redial>,
    /// Outputs of tools, and what the owner sent about the call after the AI's stream started.
    pub(super) late: Vec<ToAi>,
    /// Replies for the AI from before the start of its stream; `None` after that.
    pub(super) early_replies: Option<Vec<ToAi>>,
    pub(super) info: StreamInfo,
    pub(super) call: Call,
    pub(super) recordings: CallRecordings,
    pub(super) desk: Desk,
    pub(super) tools: Tools,
    pub(super) observed: Observed,
    watching: Watching,
    /// The AI's stream, while it is up.
    pub ai: Option<AiSocket>,
    /// True once it has another connection, until the worker watches that.
    pub(super) ai_is_new: bool,
    /// True while its session is being set up.
    pub(super) ai_prepares: bool,
    pub(super) runtime: Handle,
    /// A stream that the AI closed cleanly. The worker takes it to complete the close.
    pub closing: Option<Box<AiSocket>>,
    /// A copy of the stream's counts, because the stream may end before the call.
    pub(super) ai_counts: Counts,
    /// See [`Record::ai_end`].
    pub(super) ai_end: Option<String>,
    pub(super) lines: Lines,
    /// The Q.850 cause with which the PBX hung up.
    hangup_cause: Option<u16>,
    /// True once an ignored message from the AI has been logged.
    pub(super) ignored_logged: bool,
    /// Limits the log lines about problems that the AI reports.
    pub(super) warnings: Throttle,
    /// True once RTP from an unannounced address has been logged.
    misdirected_logged: bool,
    /// True once RTP with another law than the agreed one has been logged.
    unagreed_logged: bool,
    playout_floor: PlayoutFloor,
    pub(super) traffic: Traffic,
    /// When the call was offered.
    pub(super) begun: Instant,
    /// The attempts to connect with an AI.
    pub(super) dialled: Vec<Dialled>,
    /// All attempts, including those that are not kept.
    pub(super) attempts: usize,
    /// When a socket was last readable.
    last_readable: Option<Instant>,
    /// The end reason, once there is one.
    ended: Option<EndReason>,
    /// Copies packets to a capture, while there is one.
    pub(super) tap: Option<capture::tap::Tap>,
}

impl Running {
    fn new(offer: Offer, config: &Arc<CallConfig>, observed: Observed) -> Running {
        let first = first_ai(&offer, config);
        let ai = config.ais.get(first);
        let info = ai.map(|ai| stream_info(&offer, ai, &config.transfers)).unwrap_or_default();
        let url = ai.map(|ai| ai.target.shown()).unwrap_or_default();
        let lines = Lines::new(&offer, url);
        lines.offered(&offer, &info, config.route.as_deref());
        observed.event(&EventKind::Started);
        let cname = format!("{}@trunkless", offer.id);
        let (signalling, remote) = (offer.leg.signalling, offer.remote);
        let (now, can_continue) = (Instant::now(), offer.can_continue);
        let mut call = Call::new(now, config, signalling, remote, can_continue, seeds(), cname);
        if let Some(outgoing) = &offer.outgoing {
            call.place(outgoing.ring, first, outgoing.record);
            outgoing.detection.iter().for_each(|wanted| call.detect(config.speech, *wanted));
        }
        if let Some(owned) = &offer.owned {
            call.own((!owned.wait.is_zero()).then(|| now + owned.wait), owned.max_status);
        }
        Running {
            recordings: CallRecordings::new(config, &offer, &info),
            config: config.clone(),
            current: first,
            redial: None,
            late: Vec::new(),
            early_replies: Some(Vec::new()),
            desk: Desk::new(&offer.id),
            tools: Tools::new(&offer.id),
            observed,
            watching: Watching::default(),
            info,
            call,
            offer,
            ai: None,
            ai_is_new: false,
            ai_prepares: false,
            runtime: Handle::current(),
            closing: None,
            ai_counts: Counts::default(),
            ai_end: None,
            lines,
            hangup_cause: None,
            ignored_logged: false,
            warnings: Throttle::with_burst(WARNINGS.0, WARNINGS.1),
            misdirected_logged: false,
            unagreed_logged: false,
            playout_floor: PlayoutFloor::default(),
            traffic: Traffic::default(),
            begun: now,
            dialled: Vec::new(),
            attempts: 0,
            last_readable: None,
            ended: None,
            tap: None,
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
            if let Signal::Unanswered { reason, code } = signal {
                self.lines.unanswered(reason, code);
                self.observed.call.update(|state| state.refused_code = code);
            }
            self.call.handle(now, Input::Signal(signal));
            if ended {
                break;
            }
        }
        while let Some(commands) = &mut rare_events.commands
            && let Poll::Ready(request) = commands.poll_recv(cx)
        {
            match request {
                Some(CallRequest::Listen(listener)) => {
                    self.watching.listen(&mut self.call, listener);
                }
                Some(CallRequest::Order(request)) => {
                    let (number, order) = self.desk.take_request(request);
                    self.call.handle(now, Input::Order { number, order });
                }
                Some(CallRequest::Capture(tap)) => self.capture(tap),
                None => rare_events.commands = None,
            }
        }
        while let Poll::Ready(result) = self.tools.poll(cx) {
            self.late.extend(result.map(|result| ToAi::ToolResult(Box::new(result))));
        }
        self.learn(now, cx);
        if let Some(connecting) = &mut rare_events.connecting
            && !self.call.is_ended()
            && let Poll::Ready(connected) = Pin::new(&mut connecting.task).poll(cx)
        {
            let times = (connecting.began, connecting.until);
            rare_events.connecting = None;
            let fault = |e: JoinError| ConnectError::Internal(e.to_string());
            self.on_connected(now, times, connected.map_err(fault).flatten());
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
            let unusable = std::mem::take(&mut self.desk.unusable);
            for message in unusable.into_iter().chain(std::mem::take(&mut self.late)) {
                self.send(now, message, scratch);
            }
            while let Some(output) = self.call.poll() {
                match output {
                    Output::Request(request) => self.request(request),
                    Output::Ringing => self.observed.event(&EventKind::Ringing),
                    Output::AiSilent(time) => self.ai_silent(time),
                    Output::Step(rung) => self.lines.step(&rung, &self.config.ais),
                    Output::Answered => self.answered(now),
                    Output::AnsweredBy(verdict) => {
                        self.observed.event(&EventKind::AnsweredBy(verdict));
                    }
                    Output::Rtp { to, packet } => self.send_packet(Channel::Rtp, to, &packet),
                    Output::Rtcp { to, packet } => self.send_packet(Channel::Rtcp, to, &packet),
                    Output::AiStart { burst } => {
                        self.ai.iter_mut().for_each(|ai| ai.start(now, burst));
                        for reply in self.early_replies.take().into_iter().flatten() {
                            self.send(now, reply, scratch);
                        }
                    }
                    Output::KeyPress { to, packet } => {
                        self.send_packet(Channel::Rtp, to, &packet);
                    }
                    Output::Reply { order, reply } => {
                        if let Some(message) = self.desk.reply(order, &reply, &self.observed) {
                            self.send(now, message, scratch);
                        }
                    }
                    Output::Disposition(disposition) => {
                        self.observed.call.update(|state| state.disposition = Some(disposition));
                    }
                    Output::Transferred => self.observed.event(&EventKind::Transferred),
                    Output::CloseAi => {
                        self.redial = Some(Redial::Stop);
                        self.close_ai(now, scratch);
                    }
                    Output::DialAi { ai, again } => {
                        if again.is_none() {
                            self.desk.change_ai();
                        }
                        self.leave_ai(now, ai, again.is_some(), scratch);
                        self.redial = Some(Redial::Dial(Box::new(self.dial(ai, again))));
                    }
                    Output::Held(on) => self.observed.event(&EventKind::Held(on)),
                    Output::Ai(message) => self.send(now, message, scratch),
                    Output::Turn(turn) => self.count_turn(now, &turn),
                    Output::Report => self.count_traffic(now),
                    Output::MissingRtp(missing) => self.lines.missing_rtp(&missing),
                    Output::Tap(tap) => self.tap(now, tap),
                    Output::Recording { command, index, law } => self.record(command, index, law),
                    Output::Leaving => self.leave(),
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

    /// Passes a frame, key or mark to the listeners and the recording.
    fn tap(&mut self, now: Instant, tap: Tap) {
        self.watching.pass(&mut self.call, &tap);
        if self.recordings.tap(tap) {
            self.call.handle(now, Input::RecordingLost);
        }
    }

    /// The call takes no place of others any more, unless it is beyond the limits.
    fn leave(&mut self) {
        if self.offer.refused.is_none() {
            self.offer.permit = Permit::none();
        }
    }

    /// Closes the AI's stream, behind what has been sent on it.
    fn close_ai(&mut self, now: Instant, scratch: &mut Scratch) {
        if let Some(mut ai) = self.ai.take() {
            let _ = ai.pump(now, scratch);
            self.ai_counts = ai.counts();
            self.closing = Some(Box::new(ai));
        }
    }

    /// Closes the stream of an AI that has failed, before another one is dialled. `again`: it is
    /// the same one.
    fn leave_ai(&mut self, now: Instant, next: usize, again: bool, scratch: &mut Scratch) {
        self.close_ai(now, scratch);
        self.early_replies = Some(Vec::new());
        self.tools.change_ai();
        self.current = next;
        self.observed.call.update(|state| state.ai = next);
        if let Some(ai) = self.config.ais.get(next) {
            let resumption = self.info.resumption.take().filter(|_| again);
            self.info = stream_info(&self.offer, ai, &self.config.transfers);
            (self.info.resumed, self.info.resumption) = (again, resumption);
            self.lines.dialled(ai.target.shown());
        }
    }

    fn send(&mut self, now: Instant, message: ToAi, scratch: &mut Scratch) {
        match (&mut self.early_replies, &mut self.ai) {
            (Some(early), _) if early.len() < MAX_EARLY_REPLIES => early.push(message),
            (None, Some(ai)) => ai.send(now, message, scratch),
            _ => {}
        }
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
        self.watching.publish(now, &mut self.call, &self.observed.call);
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
        if self.tap.is_some() {
            self.tap_packet(channel, Direction::Received, from, data);
        }
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

    /// Logs the end of the call and frees its ports and its permit. Returns the record, and the
    /// AI's stream if it is still up and has to be closed.
    pub fn finish(mut self, reason: EndReason) -> (Record, Option<AiSocket>) {
        let summary = self.call.summary(Instant::now());
        let commands = self.desk.close(&self.observed);
        let LiveState { disposition, details, .. } = self.observed.call.state();
        let outcome = outcome(&commands, disposition.as_ref(), self.call.turns());
        let (recordings, lost_ms) = self.recordings.finish(reason, &summary, outcome);
        let dropped = self.ai_counts.dropped_audio;
        self.traffic.count(&summary, dropped);
        counters::add(&self.offer.pbx, reason, &summary, &commands);
        self.lines.ended(reason, self.hangup_cause, &summary, dropped, lost_ms);
        let id = self.offer.id.clone();
        let record = Record {
            id,
            route: self.config.route.clone(),
            reason,
            summary,
            ai: self.ai_counts,
            ai_end: self.ai_end,
            recordings,
            commands,
            disposition,
            details,
            dialled: self.dialled,
            turns: self.call.turns().to_vec(),
        };
        self.observed.event(&EventKind::Ended(&record));
        (record, self.ai)
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
