//! Moves a call's packets: one task owns its RTP sockets and its AI WebSocket. Owns I/O.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::{Either, pending};
use tokio::sync::watch;
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

use crate::call::core::Call;
use crate::call::end::EndReason;
use crate::call::leg::{Channel, Leg, MAX_DATAGRAM};
use crate::call::words::{Input, Output, Seeds, Summary};
use crate::call::{CallConfig, Offer, Signal};
use crate::record::writer::Track;
use crate::stream::connect::ConnectError;
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
    pub recording: Option<std::path::PathBuf>,
}

/// Runs one call to its end. `stop` becomes true when the program wants all calls ended.
pub async fn run(
    mut offer: Offer,
    config: Arc<CallConfig>,
    mut stop: watch::Receiver<bool>,
) -> Record {
    offer.leg.ready().await;
    let info = stream_info(&offer, &config);
    info!(
        call = offer.id,
        pbx = &*offer.pbx,
        from = %Masked(&offer.from_number),
        to = offer.to_number,
        call_sid = info.call_sid,
        native_id = offer.native_id,
        "call offered"
    );
    let mut call = Call::new(
        Instant::now(),
        &config,
        offer.leg.signalling,
        offer.remote,
        seeds(),
        format!("{}@trunkless", offer.id),
    );
    let mut recording = config.recorder.as_ref().map(|r| r.start(&offer.id));
    let mut connecting = Some(Box::pin(config.target.connect(config.answer_wait)));
    let mut ai: Option<AiSocket> = None;
    let mut ai_counts = Counts::default();
    let mut reason = EndReason::Internal;
    let mut ignored_before = false;
    let mut buffer = [0u8; MAX_DATAGRAM];
    loop {
        while let Some(output) = call.poll() {
            match output {
                Output::Request(request) => (offer.requests)(request),
                Output::Rtp { to, packet } => offer.leg.send(Channel::Rtp, to, &packet),
                Output::Rtcp { to, packet } => offer.leg.send(Channel::Rtcp, to, &packet),
                Output::AiStart { burst } => ai.iter_mut().for_each(|ai| ai.start(burst)),
                Output::Ai(message) => {
                    if let Some(ai) = &mut ai {
                        ai.send(message);
                    }
                }
                Output::RecordCaller { index, samples } => {
                    recording.iter_mut().for_each(|r| r.tap(Track::Caller, index, &samples));
                }
                Output::RecordAi { index, samples } => {
                    recording.iter_mut().for_each(|r| r.tap(Track::Ai, index, &samples));
                }
                Output::Ended(why) => reason = why,
            }
        }
        // kept here, because the socket may be gone before the call's end
        ai_counts = ai.as_ref().map_or(ai_counts, |ai| ai.counts);
        if call.is_ended() {
            break;
        }
        let stalls_at = ai.as_ref().and_then(AiSocket::stalls_at);
        let deadline = call.next_timeout().into_iter().chain(stalls_at).min();
        let timer = match deadline {
            Some(at) => Either::Left(sleep_until(at.into())),
            None => Either::Right(pending()),
        };
        tokio::select! {
            signal = offer.signals.recv() => {
                let signal = signal.unwrap_or(Signal::Ended(EndReason::Internal));
                call.handle(Instant::now(), Input::Signal(signal));
            }
            received = offer.leg.recv(&mut buffer) => {
                if let Ok((channel, n, from)) = received {
                    on_datagram(&mut call, channel, from, &buffer[..n]);
                    take_datagrams(&mut call, &offer.leg, &mut buffer);
                }
            }
            () = timer => {
                // what has come already is heard before the clock fills with silence: after a
                // standstill of this process both are due
                take_datagrams(&mut call, &offer.leg, &mut buffer);
                let now = Instant::now();
                if stalls_at.is_some_and(|at| at <= now) {
                    ai = None;
                    call.handle(now, Input::AiClosed(&Closed::Stalled));
                }
                call.handle(now, Input::Timeout { unix: unix() });
            }
            connected = async { connecting.as_mut().expect("guarded").await }, if connecting.is_some() => {
                connecting = None;
                on_connected(&offer, &mut call, &mut ai, connected, &info);
            }
            event = async { ai.as_mut().expect("guarded").next().await }, if ai.is_some() => {
                match event {
                    SocketEvent::Message(message) => {
                        on_message(&offer.id, &mut call, message, &mut ignored_before);
                    }
                    SocketEvent::Closed(closed) => {
                        debug!(call = offer.id, ?closed, "AI stream closed");
                        call.handle(Instant::now(), Input::AiClosed(&closed));
                        close(&mut ai, &closed);
                    }
                }
            }
            _ = stop.wait_for(|stop| *stop) => {
                call.handle(Instant::now(), Input::End(EndReason::Drain));
            }
        }
    }
    let summary = call.summary(Instant::now());
    let path = recording.map(|r| r.finish());
    log_end(&offer, reason, &summary, ai_counts.dropped_audio);
    drop(connecting);
    // the farewell to an AI that does not answer holds neither ports nor admission
    let id = std::mem::take(&mut offer.id);
    drop(offer);
    if let Some(ai) = ai {
        ai.finish().await;
    }
    Record { id, reason, summary, ai: ai_counts, recording: path }
}

/// Takes datagrams that are there already.
fn take_datagrams(call: &mut Call, leg: &Leg, buffer: &mut [u8]) {
    for _ in 0..BURST {
        let Ok((channel, n, from)) = leg.try_recv(buffer) else { break };
        on_datagram(call, channel, from, &buffer[..n]);
    }
}

fn on_datagram(call: &mut Call, channel: Channel, from: std::net::SocketAddr, data: &[u8]) {
    let now = Instant::now();
    match channel {
        Channel::Rtp => call.handle(now, Input::Rtp { from, data }),
        Channel::Rtcp => call.handle(now, Input::Rtcp { data, unix: unix() }),
    }
}

fn on_connected(
    offer: &Offer,
    call: &mut Call,
    ai: &mut Option<AiSocket>,
    connected: Result<crate::stream::connect::Socket, ConnectError>,
    info: &StreamInfo,
) {
    match connected {
        Ok(socket) => {
            *ai = Some(AiSocket::new(socket, info.clone()));
            call.handle(Instant::now(), Input::AiOpen);
        }
        Err(error) => {
            warn!(call = offer.id, pbx = &*offer.pbx, %error, "the AI cannot be reached");
            call.handle(Instant::now(), Input::AiFailed);
        }
    }
}

fn on_message(id: &str, call: &mut Call, message: FromAi, ignored_before: &mut bool) {
    if let FromAi::Ignored(why) = message
        && !std::mem::replace(ignored_before, true)
    {
        warn!(call = id, why, "a message of the AI was ignored (told once a call)");
    }
    call.handle(Instant::now(), Input::Ai(message));
}

/// A stream that is gone needs no farewell; an orderly close has been answered already.
fn close(ai: &mut Option<AiSocket>, closed: &Closed) {
    match closed {
        Closed::Orderly(_) => {
            if let Some(ai) = ai.take() {
                tokio::spawn(ai.finish());
            }
        }
        Closed::Failed(_) | Closed::Protocol(_) | Closed::Stalled => *ai = None,
    }
}

fn stream_info(offer: &Offer, config: &CallConfig) -> StreamInfo {
    let mut parameters = vec![
        ("from_number".to_owned(), offer.from_number.clone()),
        ("to_number".to_owned(), offer.to_number.clone()),
        ("sip_call_id".to_owned(), offer.native_id.clone()),
    ];
    parameters.extend(offer.vars.iter().cloned());
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
fn log_end(offer: &Offer, reason: EndReason, summary: &Summary, dropped: u64) {
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
