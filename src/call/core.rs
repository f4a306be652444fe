//! The decisions of a call, without sockets or clocks. Pass an input to [`Call::handle`], drain
//! [`Call::poll`], then wait for the next input or for [`Call::next_timeout`].
//!
//! ```text
//! Connecting ──AI open, caller connected──> Talking ──AI closed or failed──> Finishing ──played──┐
//!     └──AI failed, cancelled──> Ended <───────┴──── hang-up, timeouts <───────────────────────┘
//! ```
//!
//! The answer is requested once the AI's socket is open, or at once if so configured. The source
//! reports when the caller is connected, which is time 0. [`Hearing`] handles the audio from the
//! caller to the AI, [`Playing`] the audio back. Both only return values; every decision is made
//! here.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod ai;
mod caller;
pub mod deafness;
mod ending;
mod falling;
mod figures;
mod leaving;
mod orders;
mod outgoing;
mod redirect;
mod speech;
mod state;
mod transfers;
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::call::core::state::{Falling, Orders};
use crate::call::departure::DeparturePolicy;
use crate::call::end::EndReason;
use crate::call::hearing::Hearing;
use crate::call::ladder::Rung;
use crate::call::limits::{Limits, Milestones};
use crate::call::playing::{DueFrame, Playing};
use crate::call::speech::Listener;
use crate::call::transfers::TransferRules;
use crate::call::turns::Turns;
use crate::call::variables::VariableRules;
use crate::call::vitals::Peaks;
use crate::call::words::{Input, Output, Seeds, caller_tap};
use crate::call::{
    AnswerWhen, CallConfig, Prompts, RecordPlan, RemoteMedia, Signal, SourceRequest,
};
use crate::command::RecordCommand;
use crate::media::dtmf::Origin;
use crate::media::frame::{self, FRAME_SAMPLES, SILENCE};
use crate::media::g711::Law;
use crate::media::rtcp::Rtcp;
use crate::record::recording::Tap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The AI's stream has not started.
    Connecting,
    Talking,
    /// The AI is gone. The queued audio is played, until `until` at the latest; then the call ends.
    Finishing {
        reason: EndReason,
        until: Option<Instant>,
    },
    /// The owner of the call was asked to end it, or to take the caller elsewhere.
    Leaving {
        reason: EndReason,
    },
    Ended,
}

/// The state of one call.
pub struct Call {
    phase: Phase,
    /// Outputs not polled yet.
    out: VecDeque<Output>,
    hearing: Hearing,
    playing: Playing,
    rtcp: Rtcp,
    /// The PBX's side of the media, once it is known.
    remote: Option<RemoteMedia>,
    created: Instant,
    /// The times of the call's events so far.
    past: Milestones,
    /// True while our answer is not acknowledged. RTP then goes to a trusted address only.
    unacknowledged: bool,
    /// True once the AI's WebSocket has opened.
    ai_open: bool,
    limits: Limits,
    /// Decides where the caller goes at the end.
    departure: DeparturePolicy,
    /// True if the source can return the caller to the dialplan.
    can_continue: bool,
    /// Set if the call has an owner, who ends it: see [`crate::call::Owner`].
    owned: Option<leaving::OwnedCall>,
    /// The steps to try when the AI fails.
    ladder: Arc<[Rung]>,
    /// The way down it, once it has failed.
    falling: Option<Falling>,
    /// Set if we place the call.
    outgoing: Option<outgoing::OutgoingCall>,
    /// True if the recording is required, and lacks audio.
    unrecorded: bool,
    /// When the call ends at the latest, because all calls have to.
    leave_by: Option<Instant>,
    /// The AI that is dialled first: its place in `ais`.
    first: usize,
    /// The AI that was dialled last.
    ai: usize,
    /// The names and URLs of all AIs.
    ais: Vec<(String, String)>,
    /// The silent timeout of each AI, and how long its audio still plays after it has closed.
    limits_by_ai: Vec<(Duration, Duration)>,
    /// Dial an AI again that has closed its stream.
    reconnect: bool,
    /// Since when that has been tried, if no stream has lasted since.
    reconnecting: Option<Instant>,
    answer: AnswerWhen,
    /// The prompts that may be played, by name.
    prompts: Prompts,
    /// Where the caller may be transferred to.
    transfers: TransferRules,
    /// Channel variables that may be set.
    variables: VariableRules,
    orders: Orders,
    /// `None` if the call is not to be recorded.
    record: Option<RecordPlan>,
    /// True while a recording is being made, or is paused.
    recording: bool,
    /// Number of recordings started.
    recordings: u32,
    /// Send RTP to where it comes from.
    symmetric: bool,
    /// True once missing RTP has been reported.
    missing_rtp_reported: bool,
    /// `None` if the turn latency is not measured.
    turns: Option<Box<Turns>>,
    /// `None` if nothing is made of the caller's voice.
    listener: Option<Box<Listener>>,
    /// The levels of the audio since the last [`Call::figures`].
    peaks: Peaks,
    /// True while someone listens in.
    listened: bool,
}

impl Call {
    /// `can_continue`: the source can return the caller to the dialplan. `cname`: our name in RTCP.
    pub fn new(
        now: Instant,
        config: &CallConfig,
        signalling: std::net::IpAddr,
        remote: Option<RemoteMedia>,
        can_continue: bool,
        seeds: Seeds,
        cname: String,
    ) -> Call {
        let mut call = Call {
            phase: Phase::Connecting,
            out: VecDeque::new(),
            hearing: Hearing::new(signalling, &config.media),
            playing: Playing::new(config, seeds),
            rtcp: Rtcp::new(cname),
            remote: None,
            created: now,
            past: Milestones::default(),
            unacknowledged: false,
            ai_open: false,
            limits: Limits::of(config),
            departure: config.departure,
            can_continue,
            owned: None,
            ladder: config.ladder.clone(),
            falling: None,
            outgoing: None,
            unrecorded: false,
            leave_by: None,
            first: config.first,
            ai: config.first,
            ais: config
                .ais
                .iter()
                .map(|ai| (ai.name.clone(), ai.target.url().to_owned()))
                .collect(),
            limits_by_ai: Limits::by_ai(config),
            reconnect: config.reconnect,
            reconnecting: None,
            answer: config.answer,
            prompts: config.prompts.clone(),
            transfers: config.transfers.clone(),
            variables: config.variables.clone(),
            orders: Orders::default(),
            record: config.record.clone(),
            recording: false,
            recordings: 0,
            symmetric: config.media.symmetric,
            missing_rtp_reported: false,
            turns: config.turn_latency.then(Box::default),
            listener: Listener::if_needed(config.speech, None),
            peaks: Peaks::default(),
            listened: false,
        };
        if let Some(remote) = remote {
            call.set_remote(now, remote);
        }
        match config.answer {
            AnswerWhen::AtOnce => call.answer(now),
            AnswerWhen::AiReady if config.ringing => {
                call.out.push_back(Output::Request(SourceRequest::Ringing));
            }
            AnswerWhen::AiReady => {}
        }
        call
    }

    pub fn poll(&mut self) -> Option<Output> {
        let output = self.out.pop_front();
        if output.is_none() {
            self.out.clear(); // starts over at its first slot, which is in the cache
        }
        output
    }

    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        if self.phase == Phase::Ended {
            return;
        }
        match input {
            // early media of the callee's network
            Input::Rtp { .. } if self.is_dialling() => {}
            Input::Rtp { from, data } => {
                self.hearing.receiver.on_packet(now, from, data);
                // the first packet may arrive before the source reports the connection
                if self.playing.is_early()
                    && self.past.answer_wanted.is_some()
                    && self.hearing.receiver.last_heard().is_some()
                {
                    self.connected(now);
                }
                self.take_frames(now);
            }
            Input::Rtcp { data, unix } => {
                self.rtcp.on_packet(now, unix, data, self.playing.sender.ssrc());
            }
            Input::AiOpen => {
                self.ai_open = true;
                self.playing.stream_opens();
                if self.phase != Phase::Connecting {
                    // it was dialled before the call went elsewhere
                    return self.out.push_back(Output::CloseAi);
                }
                if self.past.answer_wanted.is_none() {
                    self.answer(now);
                }
                self.start_stream(now);
            }
            Input::AiFailed => self.ai_unreachable(now),
            Input::Instead(rung) => self.instead(now, rung),
            Input::Ai(message) => self.on_ai(now, message),
            Input::AiClosed(closed) => self.on_ai_closed(now, closed),
            Input::Signal(signal) => self.on_signal(now, signal),
            Input::End(reason) => self.dismiss(now, reason),
            Input::Known => self.all_known(now),
            Input::RecordingLost => self.recording_lost(now),
            Input::Order { number, order } => self.on_order(now, number, order),
            Input::Timeout { unix } => self.on_timeout(now, unix),
        }
        self.play(now);
    }

    /// Notes that this process stood still for `time`, in which no RTP could be received.
    pub fn stood_still(&mut self, now: Instant, time: Duration) {
        if self.past.answered.is_some() {
            let since = self.past.resumed.max(self.hearing.receiver.last_heard());
            self.past.resumed = since.map(|at| now.min(at + time));
        }
        self.playing.stood_still(now, time);
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        if self.phase == Phase::Ended {
            return None;
        }
        let hearing = self.past.answered.and_then(|_| self.hearing.receiver.next_timeout());
        let limit = self.limit().map(|(at, _)| at);
        let missing = self.misses_rtp_at();
        let times = [
            self.playing.next_timeout(self.phase != Phase::Connecting),
            hearing,
            self.rtcp.next_timeout(),
            limit,
            missing,
            self.data_by().filter(|_| self.phase == Phase::Connecting),
        ];
        times.into_iter().flatten().min()
    }

    /// Requests the answer from the source.
    fn answer(&mut self, now: Instant) {
        self.past.answer_wanted = Some(now);
        self.out.push_back(Output::Request(SourceRequest::Answer));
    }

    /// Starts the call's clock: the caller is connected, and this is time 0.
    fn connected(&mut self, now: Instant) {
        if self.past.answered.is_some() {
            return;
        }
        self.past.answered = Some(now);
        self.out.push_back(Output::Answered);
        self.playing.start(now);
        self.hearing.receiver.start(now);
        self.rtcp.start(now);
        if self.records_always() && self.on_record(now, RecordCommand::Start).is_ok() {
            // audio and digits that arrived before the source reported the connection
            let (frames, digits) = self.hearing.preroll();
            let frames = frames.iter().map(|(index, frame)| caller_tap(*index, frame, None));
            let digits = digits.iter().map(|digit| Tap::Digit(*digit));
            self.out.extend(frames.chain(digits).map(Output::Tap));
        }
        self.start_stream(now);
        if self.falls() {
            self.next_rung(now);
        }
    }

    fn set_remote(&mut self, now: Instant, remote: RemoteMedia) {
        self.hearing.receiver.set_remote(remote.rtp, remote.format);
        self.remote = Some(remote);
        if remote.early {
            self.playing.start_early(now);
        }
    }

    fn on_signal(&mut self, now: Instant, signal: Signal) {
        match signal {
            Signal::Replied { order, result } => self.on_replied(now, order, result),
            Signal::Progress { order, state } => self.on_progress(order, state),
            Signal::Media(remote) => {
                if !remote.is_on_hold() && self.remote.is_some_and(|r| r.is_on_hold()) {
                    self.past.resumed = Some(now);
                    // the PBX still has this call
                    (self.past.pbx_lost, self.past.pbx_back) = (None, None);
                }
                self.set_remote(now, remote);
                self.tell_hold();
            }
            Signal::Answered => {
                self.unacknowledged = true;
                self.playing.hold(now, self.remote.is_some_and(|r| r.trusted));
                self.connected(now);
            }
            Signal::Connected => {
                self.unacknowledged = false;
                self.connected(now);
                self.playing.acknowledged(now);
            }
            Signal::Digit(digit) => {
                if self.remote.is_some_and(|r| r.early) {
                    self.hearing.receiver.key_taken_out(now);
                    self.take_frames(now);
                }
                if self.hearing.admits(now, digit, Origin::Info) {
                    self.on_digit(digit);
                }
            }
            Signal::PbxLost { gone } => {
                (self.past.pbx_lost, self.past.pbx_back) = (Some(now), None);
                self.past.pbx_gone = gone;
            }
            Signal::PbxBack => self.past.pbx_back = Some(now),
            Signal::PbxConfirms => (self.past.pbx_lost, self.past.pbx_back) = (None, None),
            Signal::HangupCause(_) => {}
            Signal::NotTaken => self.not_taken(now),
            Signal::Ringing => self.rings(),
            Signal::Unanswered { reason, .. } => self.end_with(reason, None),
            Signal::Ended(EndReason::CallerHangup) if self.past.answered.is_none() => {
                self.end(EndReason::Cancelled);
            }
            // the source has ended it, and nothing is asked of it
            Signal::Ended(reason @ EndReason::ApiHangup) => self.end_with(reason, None),
            Signal::Ended(reason) => self.end(reason),
        }
    }

    fn on_timeout(&mut self, now: Instant, unix: Duration) {
        if self.past.answered.is_some() {
            self.hearing.receiver.on_timeout(now);
            self.take_frames(now);
        }
        if self.rtcp.next_timeout().is_some_and(|at| at <= now) {
            self.report(now, unix);
        }
        if self.data_by().is_some_and(|by| by <= now) {
            self.all_known(now);
        }
        // an order behind the last audio comes before the end of the call
        self.take_cues(now);
        match self.limit().filter(|(at, _)| *at <= now) {
            _ if self.phase == Phase::Ended => return,
            // everything has been played
            Some((at, reason)) if self.finish_by() == Some(at) => self.played_out(now, reason),
            Some((_, reason @ EndReason::AiTimeout)) if !self.falls() => {
                self.out.push_back(Output::AiSilent(self.limits.silent_timeout));
                self.ai_failed(now, reason);
            }
            Some((_, reason)) => self.end(reason),
            None => {}
        }
        if let Some(missing) = self.missing_rtp(now) {
            self.out.push_back(Output::MissingRtp(missing));
        }
    }

    /// Sends the frames that are due to the caller.
    fn play(&mut self, now: Instant) {
        while self.phase != Phase::Ended
            && let Some(mut frame) = self.playing.next_frame(now)
        {
            self.send_frame(now, &mut frame);
            self.tap_marks();
            if let Phase::Finishing { until, .. } = &mut self.phase
                && frame.is_audio
                && !self.playing.has_audio()
                && !self.orders.pending()
            {
                // the last frame has been sent, but not yet played
                *until = [*until, self.playing.played_at()].into_iter().flatten().min();
            }
        }
        self.take_cues(now);
        self.settle(now);
    }

    fn send_frame(&mut self, now: Instant, frame: &mut DueFrame) {
        // on hold, the PBX provides the caller's audio
        let remote = self
            .remote
            .filter(|remote| remote.wants_audio && !self.orders.held && !self.orders.away);
        let heard = remote.is_some() && (frame.is_own || !self.orders.ai_muted);
        self.turn_sent(now, frame, heard);
        if !heard {
            frame.samples = [SILENCE; FRAME_SAMPLES];
        }
        if let Some(listener) = &mut self.listener {
            listener.sent(now, &frame.samples, frame.is_own);
        }
        if let Some(remote) = remote.filter(|remote| remote.trusted || !self.unacknowledged) {
            let source = self.hearing.receiver.source.current();
            let source = source.filter(|_| self.symmetric && !self.unacknowledged);
            let to = source.unwrap_or(remote.rtp);
            self.out.push_back(match frame.key.take() {
                Some(packet) => Output::KeyPress { to, packet },
                None => Output::Rtp { to, packet: self.playing.packet(&remote, frame) },
            });
        } else {
            self.playing.skip_packet();
        }
        self.peaks.ai = self.peaks.ai.max(frame::peak(Law::Mu, &frame.samples));
        if self.recording || self.listened {
            let (index, samples) = (frame.index, frame.samples);
            self.out.push_back(Output::Tap(Tap::Ai { index, samples }));
        }
    }
}
