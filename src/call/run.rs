//! Moves a call's packets: one task owns its RTP sockets and its AI WebSocket. Owns I/O.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::{Either, pending};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

use crate::call::core::Call;
use crate::call::end::EndReason;
use crate::call::leg::{Channel, MAX_DATAGRAM};
use crate::call::tape::Tape;
use crate::call::words::{Input, Output, Seeds, Summary};
use crate::call::{CallConfig, Command, Offer, Signal};
use crate::stream::connect::{ConnectError, Socket};
use crate::stream::socket::{AiSocket, Closed, Counts, SocketEvent};
use crate::stream::{FromAi, StreamInfo, twilio};
use crate::telemetry::{COUNTERS, Masked};

/// Datagrams taken in one go before the rest of the loop has its turn.
const BURST: usize = 16;

/// How a call ended, for whoever started it.
#[derive(Debug, Clone)]
pub struct Record {
    pub id: String,
    pub reason: EndReason,
    pub summary: Summary,
    /// What the AI's socket could not take or not understand.
    pub ai: Counts,
    /// Ids of its recordings.
    pub recordings: Vec<String>,
}

/// Runs one call to its end. `stop` becomes true when the program wants all calls ended.
pub async fn run(
    offer: Offer,
    config: Arc<CallConfig>,
    mut commands: mpsc::Receiver<Command>,
    mut stop: watch::Receiver<bool>,
) -> Record {
    offer.leg.ready().await;
    let mut running = Running::new(offer, &config);
    let mut connecting = Some(Box::pin(config.target.connect(config.answer_wait)));
    let mut buffer = [0u8; MAX_DATAGRAM];
    let reason = loop {
        if let Some(reason) = running.act() {
            break reason;
        }
        let timer = match running.next_timeout() {
            Some(at) => Either::Left(sleep_until(at.into())),
            None => Either::Right(pending()),
        };
        let (dialling, ai) = (connecting.is_some(), running.ai.is_some());
        tokio::select! {
            signal = running.offer.signals.recv() => {
                let signal = signal.unwrap_or(Signal::Ended(EndReason::Internal));
                running.call.handle(Instant::now(), Input::Signal(signal));
            }
            Some(Command::Record(command)) = commands.recv() => {
                running.call.handle(Instant::now(), Input::Record(command));
            }
            received = running.offer.leg.recv(&mut buffer) => {
                if let Ok((channel, n, from)) = received {
                    running.on_datagram(channel, from, &buffer[..n]);
                    running.take_datagrams(&mut buffer);
                }
            }
            () = timer => running.on_timeout(&mut buffer),
            connected = async { connecting.as_mut().expect("guarded").await }, if dialling => {
                connecting = None;
                running.on_connected(connected);
            }
            event = async { running.ai.as_mut().expect("guarded").next().await }, if ai => {
                running.on_ai(event);
            }
            _ = stop.wait_for(|stop| *stop) => {
                running.call.handle(Instant::now(), Input::End(EndReason::Drain));
            }
        }
    };
    drop(connecting);
    running.finish(reason).await
}

/// What belongs to one call while it runs.
struct Running {
    offer: Offer,
    info: StreamInfo,
    call: Call,
    tape: Tape,
    ai: Option<AiSocket>,
    /// Kept beside the socket, which may be gone before the call's end.
    ai_counts: Counts,
    /// A message of the AI was ignored, and the log has been told.
    ignored_before: bool,
    /// RTP from an unnamed address was told of.
    misdirected_told: bool,
}

impl Running {
    fn new(offer: Offer, config: &CallConfig) -> Running {
        let info = stream_info(&offer, config);
        info!(
            call = offer.id,
            pbx = &*offer.pbx,
            from = %Masked(&offer.from_number),
            to = offer.to_number,
            call_sid = info.call_sid,
            native_id = offer.native_id,
            "call offered"
        );
        let cname = format!("{}@trunkless", offer.id);
        let (signalling, remote) = (offer.leg.signalling, offer.remote);
        let call = Call::new(Instant::now(), config, signalling, remote, seeds(), cname);
        Running {
            tape: Tape::new(config.recorder.clone(), &offer, &info),
            info,
            call,
            offer,
            ai: None,
            ai_counts: Counts::default(),
            ignored_before: false,
            misdirected_told: false,
        }
    }

    /// Does what the call has decided; the reason when it is over.
    fn act(&mut self) -> Option<EndReason> {
        let mut end = None;
        while let Some(output) = self.call.poll() {
            match output {
                Output::Request(request) => (self.offer.requests)(request),
                Output::Rtp { to, packet } => self.offer.leg.send(Channel::Rtp, to, &packet),
                Output::Rtcp { to, packet } => self.offer.leg.send(Channel::Rtcp, to, &packet),
                Output::AiStart { burst } => self.ai.iter_mut().for_each(|ai| ai.start(burst)),
                Output::Ai(message) => {
                    if let Some(ai) = &mut self.ai {
                        ai.send(message);
                    }
                }
                Output::Tap(tap) => self.tape.tap(tap),
                Output::Recording { command, index, law } => {
                    self.tape.command(command, index, law);
                }
                Output::Ended(reason) => end = Some(reason),
            }
        }
        self.ai_counts = self.ai.as_ref().map_or(self.ai_counts, |ai| ai.counts);
        end
    }

    fn stalls_at(&self) -> Option<Instant> {
        self.ai.as_ref().and_then(AiSocket::stalls_at)
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.call.next_timeout().into_iter().chain(self.stalls_at()).min()
    }

    fn on_timeout(&mut self, buffer: &mut [u8]) {
        // what has come already is heard before the clock fills with silence: after a standstill of
        // this process both are due
        self.take_datagrams(buffer);
        let now = Instant::now();
        if self.stalls_at().is_some_and(|at| at <= now) {
            warn!(call = self.offer.id, pbx = &*self.offer.pbx, "the AI takes nothing");
            self.ai = None;
            self.call.handle(now, Input::AiClosed(&Closed::Stalled));
        }
        self.call.handle(now, Input::Timeout { unix: unix() });
    }

    /// Takes datagrams that are there already.
    fn take_datagrams(&mut self, buffer: &mut [u8]) {
        for _ in 0..BURST {
            let Ok((channel, n, from)) = self.offer.leg.try_recv(buffer) else { break };
            self.on_datagram(channel, from, &buffer[..n]);
        }
    }

    fn on_datagram(&mut self, channel: Channel, from: SocketAddr, data: &[u8]) {
        let now = Instant::now();
        match channel {
            Channel::Rtp => self.call.handle(now, Input::Rtp { from, data }),
            Channel::Rtcp => self.call.handle(now, Input::Rtcp { data, unix: unix() }),
        }
        if !self.misdirected_told
            && let Some((source, named)) = self.call.misdirected()
        {
            self.misdirected_told = true;
            warn!(
                call = self.offer.id,
                pbx = &*self.offer.pbx,
                "RTP comes from {source}, but the PBX's SDP names {named}: dropped; in Asterisk \
                 set media_address and bind_rtp_to_media_address"
            );
        }
    }

    fn on_connected(&mut self, connected: Result<Socket, ConnectError>) {
        match connected {
            Ok(socket) => {
                self.ai = Some(AiSocket::new(socket, self.info.clone()));
                self.call.handle(Instant::now(), Input::AiOpen);
            }
            Err(error) => {
                let (call, pbx) = (&self.offer.id, &*self.offer.pbx);
                warn!(call, pbx, %error, "the AI cannot be reached");
                self.call.handle(Instant::now(), Input::AiFailed);
            }
        }
    }

    fn on_ai(&mut self, event: SocketEvent) {
        let now = Instant::now();
        match event {
            SocketEvent::Message(message) => {
                if let FromAi::Ignored(why) = message
                    && !std::mem::replace(&mut self.ignored_before, true)
                {
                    let call = &self.offer.id;
                    warn!(call, why, "a message of the AI was ignored (told once a call)");
                }
                self.call.handle(now, Input::Ai(message));
            }
            SocketEvent::Closed(closed) => {
                match &closed {
                    Closed::Orderly(how) => debug!(call = self.offer.id, how, "the AI closes"),
                    Closed::Failed(why) | Closed::Protocol(why) => {
                        warn!(call = self.offer.id, pbx = &*self.offer.pbx, why, "the AI is gone");
                    }
                    Closed::Stalled => {
                        warn!(call = self.offer.id, pbx = &*self.offer.pbx, "the AI takes nothing");
                    }
                }
                self.call.handle(now, Input::AiClosed(&closed));
                // a stream that is gone needs no farewell; an orderly close has been answered
                // already, and is followed to its end
                if let (Some(ai), Closed::Orderly(_)) = (self.ai.take(), closed) {
                    tokio::spawn(ai.finish());
                }
            }
        }
    }

    async fn finish(self, reason: EndReason) -> Record {
        let summary = self.call.summary(Instant::now());
        let (recordings, lost_ms) = self.tape.finish(reason, &summary);
        log_end(&self.offer, reason, &summary, self.ai_counts.dropped_audio, lost_ms);
        let id = self.offer.id.clone();
        // the farewell to an AI that does not answer holds neither ports nor admission
        drop(self.offer);
        if let Some(ai) = self.ai {
            ai.finish().await;
        }
        Record { id, reason, summary, ai: self.ai_counts, recordings }
    }
}

fn stream_info(offer: &Offer, config: &CallConfig) -> StreamInfo {
    let mut parameters = vec![
        ("from_number".to_owned(), offer.from_number.clone()),
        ("to_number".to_owned(), offer.to_number.clone()),
        ("sip_call_id".to_owned(), offer.native_id.clone()),
    ];
    // what a caller or the dialplan adds does not replace what we and the configuration say
    let mut taken: Vec<String> = parameters.iter().map(|(name, _)| name.clone()).collect();
    taken.extend(config.parameters.iter().map(|(name, _)| name.clone()));
    for (name, value) in &offer.vars {
        if !taken.contains(name) {
            taken.push(name.clone());
            parameters.push((name.clone(), value.clone()));
        }
    }
    parameters.extend(config.parameters.iter().cloned());
    StreamInfo {
        account_sid: config.account_sid.clone(),
        call_sid: twilio::sid("CA", &offer.sid_seed),
        stream_sid: twilio::sid("MZ", &offer.sid_seed),
        parameters,
    }
}

fn seeds() -> Seeds {
    let mut bytes = [0u8; 10];
    // without a random source the numbers are merely guessable
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

/// The one line that a call leaves.
fn log_end(offer: &Offer, reason: EndReason, summary: &Summary, dropped: u64, unrecorded_ms: u64) {
    COUNTERS.ended(reason);
    COUNTERS.media(summary, dropped);
    let row = reason.row();
    let seconds = |d: Duration| (d.as_secs_f64() * 1000.0).round() / 1000.0;
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                call = offer.id,
                pbx = &*offer.pbx,
                reason = row.label,
                answered = summary.answered,
                setup_ms = summary.setup.as_micros() as f64 / 1000.0,
                talk_s = seconds(summary.talk),
                packets_in = summary.received.sequence.received,
                packets_out = summary.packets_sent,
                lost = summary.received.sequence.lost,
                late = summary.received.late(),
                duplicates = summary.received.sequence.duplicates,
                wrong_source = summary.received.wrong_source,
                ai_dropped_frames = dropped,
                ai_discarded_bytes = summary.playout_discarded,
                preroll_dropped = summary.preroll_dropped,
                unrecorded_ms,
                round_trip_ms = summary.round_trip.map(|d| d.as_millis() as u64),
                "call ended"
            )
        };
    }
    match row.level {
        tracing::Level::ERROR => line!(error),
        tracing::Level::WARN => line!(warn),
        _ => line!(info),
    }
}
