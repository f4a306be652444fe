//! What a call decides, without sockets and clocks: [`Call::handle`], then drain [`Call::poll`],
//! then wait for the next input or [`Call::next_timeout`].
//!
//! ```text
//! Connecting ──AI open, connected──> Talking ──AI closed──> Draining ──played──┐
//!     │                                 │ ──AI failed──> Prompting ──played──┤
//!     └──AI failed, cancelled ──> Ended <┴── hang-up, time-outs <──────────────┘
//! ```
//!
//! The answer is asked for when the AI's socket is open, or at once; the source says when the
//! caller is connected, and that is time 0.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::call::end::EndReason;
use crate::call::words::{Input, Output, Seeds, Summary};
use crate::call::{AnswerWhen, CallConfig, RemoteMedia, Request, Signal};
use crate::media::dtmf::{DigitGate, Origin};
use crate::media::frame::{FRAME_TIME, Frame, SILENCE, Samples};
use crate::media::g711::{self, Law};
use crate::media::pacer::Pacer;
use crate::media::playout::Playout;
use crate::media::receiver::Receiver;
use crate::media::rtcp::Rtcp;
use crate::media::sender::Sender;
use crate::stream::socket::Closed;
use crate::stream::{FromAi, ToAi};

/// Frames kept for an AI that is not there yet: 2 s.
const MAX_PREROLL: usize = 100;
/// So many packets from elsewhere, a second's worth, are no stray ones.
const MISDIRECTED: u64 = 50;
/// With the PBX silent on the signalling side, so long without RTP means that it is gone.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// A source that does not connect an answered caller has failed.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Talking,
    /// The AI has closed; what it had queued is played, until then.
    Draining {
        until: Instant,
    },
    /// The AI has failed; the prompt is played.
    Prompting {
        reason: EndReason,
    },
    Ended,
}

pub struct Call {
    phase: Phase,
    out: VecDeque<Output>,
    receiver: Receiver,
    playout: Playout,
    sender: Sender,
    rtcp: Rtcp,
    gate: DigitGate,
    remote: Option<RemoteMedia>,
    pacer: Option<Pacer>,
    /// Silence before time 0, where the PBX wants it.
    early: Option<Pacer>,
    created: Instant,
    answer_wanted: Option<Instant>,
    /// Time 0: when the caller was connected.
    answered: Option<Instant>,
    ai_open: bool,
    ai_started: Option<Instant>,
    ai_heard: bool,
    preroll: VecDeque<(u64, Samples)>,
    preroll_digits: Vec<char>,
    preroll_dropped: u64,
    frames: u64,
    pbx_lost: Option<Instant>,
    pbx_back: Option<Instant>,
    /// When the last hold ended.
    resumed: Option<Instant>,
    packet: Vec<u8>,
    limits: Limits,
    prompt: Option<bytes::Bytes>,
}

/// The times of [`CallConfig`] that the decisions need.
#[derive(Debug, Clone, Copy)]
struct Limits {
    drain_on_close: Duration,
    max_duration: Duration,
    silent_timeout: Duration,
    media_timeout: Duration,
}

impl Call {
    pub fn new(
        now: Instant,
        config: &CallConfig,
        signalling: std::net::IpAddr,
        remote: Option<RemoteMedia>,
        seeds: Seeds,
        cname: String,
    ) -> Call {
        let mut call = Call {
            phase: Phase::Connecting,
            out: VecDeque::new(),
            receiver: Receiver::new(signalling, config.reorder_wait),
            playout: Playout::new(config.playout_bytes, config.playout_budget.clone()),
            sender: Sender::new(seeds.ssrc, seeds.sequence, seeds.timestamp),
            rtcp: Rtcp::new(cname),
            gate: DigitGate::default(),
            remote: None,
            pacer: None,
            early: None,
            created: now,
            answer_wanted: None,
            answered: None,
            ai_open: false,
            ai_started: None,
            ai_heard: false,
            preroll: VecDeque::new(),
            preroll_digits: Vec::new(),
            preroll_dropped: 0,
            frames: 0,
            pbx_lost: None,
            pbx_back: None,
            resumed: None,
            packet: Vec::new(),
            limits: Limits {
                drain_on_close: config.drain_on_close,
                max_duration: config.max_duration,
                silent_timeout: config.silent_timeout,
                media_timeout: config.media_timeout,
            },
            prompt: config.prompt.clone(),
        };
        if let Some(remote) = remote {
            call.set_remote(now, remote);
        }
        match config.answer {
            AnswerWhen::AtOnce => call.answer(now),
            AnswerWhen::AiReady if config.ringing => {
                call.out.push_back(Output::Request(Request::Ringing));
            }
            AnswerWhen::AiReady => {}
        }
        call
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        if self.phase == Phase::Ended {
            return;
        }
        match input {
            Input::Rtp { from, data } => {
                self.receiver.on_packet(now, from, data);
                // the first packet may be quicker than the source's word
                if self.early.is_some()
                    && self.answer_wanted.is_some()
                    && self.receiver.last_heard().is_some()
                {
                    self.connected(now);
                }
                self.take_frames(now);
            }
            Input::Rtcp { data, unix } => {
                self.rtcp.on_packet(now, unix, data, self.sender.ssrc());
            }
            Input::AiOpen => {
                self.ai_open = true;
                if self.answer_wanted.is_none() {
                    self.answer(now);
                }
                self.start_stream(now);
            }
            Input::AiFailed => self.ai_failed(now, EndReason::AiUnreachable),
            Input::Ai(message) => self.on_ai(message),
            Input::AiClosed(closed) => self.on_ai_closed(now, closed),
            Input::Signal(signal) => self.on_signal(now, signal),
            Input::End(reason) => self.end(reason),
            Input::Timeout { unix } => self.on_timeout(now, unix),
        }
        self.play(now);
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        if self.phase == Phase::Ended {
            return None;
        }
        let playing = self.pacer.as_ref().map(|p| p.deadline(self.playout.has_audio()));
        let early = self.early.as_ref().map(|p| p.deadline(false));
        let hearing = self.answered.and_then(|_| self.receiver.next_timeout());
        let limit = self.limit().map(|(at, _)| at);
        let times = [playing, early, hearing, self.rtcp.next_timeout(), limit];
        times.into_iter().flatten().min()
    }

    /// RTP comes, but from another address than the PBX has named, and nothing is heard.
    pub fn misdirected(&self) -> Option<(SocketAddr, SocketAddr)> {
        let counts = self.receiver.counts();
        let deaf = counts.wrong_source >= MISDIRECTED && counts.sequence.received == 0;
        self.receiver.source.refused().filter(|_| deaf)
    }

    pub fn summary(&self, now: Instant) -> Summary {
        Summary {
            talk: self.answered.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
            setup: self.answered.unwrap_or(now).saturating_duration_since(self.created),
            answered: self.answered.is_some(),
            received: self.receiver.counts(),
            packets_sent: self.sender.packets(),
            preroll_dropped: self.preroll_dropped,
            playout_discarded: self.playout.discarded_bytes,
            round_trip: self.rtcp.peer.and_then(|p| p.round_trip),
        }
    }

    fn answer(&mut self, now: Instant) {
        self.answer_wanted = Some(now);
        self.out.push_back(Output::Request(Request::Answer));
    }

    /// Time 0.
    fn connected(&mut self, now: Instant) {
        if self.answered.is_some() {
            return;
        }
        if let Some(early) = self.early.take() {
            self.sender.rebase(early.index());
        }
        self.answered = Some(now);
        self.pacer = Some(Pacer::new(now));
        self.receiver.start(now);
        self.rtcp.start(now);
        self.start_stream(now);
    }

    fn start_stream(&mut self, now: Instant) {
        if self.phase != Phase::Connecting || !self.ai_open || self.answered.is_none() {
            return;
        }
        self.phase = Phase::Talking;
        self.ai_started = Some(now);
        let preroll = std::mem::take(&mut self.preroll);
        self.out.push_back(Output::AiStart { burst: preroll.len() });
        for (index, samples) in preroll {
            self.out.push_back(Output::Ai(audio(index, samples)));
        }
        for digit in std::mem::take(&mut self.preroll_digits) {
            self.out.push_back(Output::Ai(ToAi::Digit(digit)));
        }
    }

    fn set_remote(&mut self, now: Instant, remote: RemoteMedia) {
        self.receiver.set_remote(remote.rtp, remote.format);
        self.remote = Some(remote);
        if remote.early && self.early.is_none() && self.answered.is_none() {
            self.early = Some(Pacer::new(now));
        }
    }

    /// What the receiver has ready goes to the AI and into the recording.
    fn take_frames(&mut self, now: Instant) {
        while let Some(frame) = self.receiver.next_frame() {
            self.on_caller_frame(frame);
        }
        while let Some(digit) = self.receiver.next_digit() {
            self.on_digit(now, digit, Origin::Rtp);
        }
    }

    fn on_caller_frame(&mut self, frame: Frame) {
        let (index, samples) = (self.frames, frame.samples);
        self.frames += 1;
        self.out.push_back(Output::RecordCaller { index, samples });
        match self.phase {
            Phase::Talking => self.out.push_back(Output::Ai(audio(index, samples))),
            Phase::Connecting => {
                if self.preroll.len() == MAX_PREROLL {
                    self.preroll.pop_front();
                    self.preroll_dropped += 1;
                }
                self.preroll.push_back((index, samples));
            }
            Phase::Draining { .. } | Phase::Prompting { .. } | Phase::Ended => {}
        }
    }

    fn on_digit(&mut self, now: Instant, digit: char, origin: Origin) {
        if !self.gate.admits(now, digit, origin) {
            return;
        }
        match self.phase {
            Phase::Talking => self.out.push_back(Output::Ai(ToAi::Digit(digit))),
            Phase::Connecting if self.preroll_digits.len() < 32 => self.preroll_digits.push(digit),
            _ => {}
        }
    }

    fn on_ai(&mut self, message: FromAi) {
        self.ai_heard = true;
        if self.phase != Phase::Talking {
            return;
        }
        match message {
            FromAi::Audio(audio) => {
                self.playout.push_audio(audio);
            }
            FromAi::Mark(name) => self.playout.push_mark(name),
            FromAi::Clear => self.playout.clear(),
            FromAi::Ignored(_) => {}
        }
        self.return_marks();
    }

    fn return_marks(&mut self) {
        while let Some(name) = self.playout.next_mark() {
            if self.phase == Phase::Talking {
                self.out.push_back(Output::Ai(ToAi::Mark(name)));
            }
        }
    }

    fn on_ai_closed(&mut self, now: Instant, closed: &Closed) {
        // one that has failed already is told to stop, and closes
        if matches!(self.phase, Phase::Prompting { .. }) {
            return;
        }
        match closed {
            Closed::Orderly(_) if self.phase == Phase::Talking => {
                let until = now + self.limits.drain_on_close;
                match self.playout.has_audio() && until > now {
                    true => self.phase = Phase::Draining { until },
                    false => self.end(EndReason::AiHangup),
                }
            }
            Closed::Orderly(_) => self.ai_failed(now, EndReason::AiClosed),
            Closed::Failed(_) => self.ai_failed(now, EndReason::AiClosed),
            Closed::Protocol(_) => self.ai_failed(now, EndReason::AiProtocol),
            Closed::Stalled => self.ai_failed(now, EndReason::AiTimeout),
        }
    }

    /// The place where a transfer to a human will stand beside prompt and hang-up.
    fn ai_failed(&mut self, _now: Instant, reason: EndReason) {
        match (&self.prompt, self.answered) {
            (Some(prompt), Some(_)) => {
                if self.phase == Phase::Talking {
                    self.out.push_back(Output::Ai(ToAi::Stop));
                }
                self.playout.clear();
                while self.playout.next_mark().is_some() {}
                self.playout.push_audio(prompt.clone());
                if !self.playout.has_audio() {
                    return self.end(reason); // no room for it: rather no prompt than silence
                }
                self.phase = Phase::Prompting { reason };
            }
            _ => self.end(reason),
        }
    }

    fn on_signal(&mut self, now: Instant, signal: Signal) {
        match signal {
            Signal::Media(remote) => {
                let held = |r: RemoteMedia| !r.wants_audio || !r.sends_audio;
                if !held(remote) && self.remote.is_some_and(held) {
                    self.resumed = Some(now);
                }
                self.set_remote(now, remote);
            }
            Signal::Connected => self.connected(now),
            Signal::Digit(digit) => {
                if self.remote.is_some_and(|r| r.early) {
                    self.receiver.key_taken_out(now);
                    self.take_frames(now);
                }
                self.on_digit(now, digit, Origin::Info);
            }
            Signal::PbxLost => (self.pbx_lost, self.pbx_back) = (Some(now), None),
            Signal::PbxBack => self.pbx_back = Some(now),
            Signal::PbxConfirms => (self.pbx_lost, self.pbx_back) = (None, None),
            Signal::Ended(EndReason::CallerHangup) if self.answered.is_none() => {
                self.end(EndReason::Cancelled);
            }
            Signal::Ended(reason) => self.end(reason),
        }
    }

    fn on_timeout(&mut self, now: Instant, unix: Duration) {
        if self.answered.is_some() {
            self.receiver.on_timeout(now);
            self.take_frames(now);
        }
        if self.rtcp.next_timeout().is_some_and(|at| at <= now) {
            self.report(now, unix);
        }
        match self.limit().filter(|(at, _)| *at <= now) {
            Some((_, reason @ EndReason::AiTimeout)) => self.ai_failed(now, reason),
            Some((_, reason)) => self.end(reason),
            None => {}
        }
    }

    fn report(&mut self, now: Instant, unix: Duration) {
        let lost = self.receiver.counts().sequence.lost;
        let passed = self.answered.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let index = (passed.as_micros() / FRAME_TIME.as_micros()) as u64;
        let reception = self.receiver.reception();
        let packet = self.rtcp.report(now, unix, &self.sender, index, reception, lost);
        let to = self.remote.map(|r| r.rtcp).filter(|to| !to.ip().is_unspecified());
        if let (Some(packet), Some(to)) = (packet, to) {
            self.out.push_back(Output::Rtcp { to, packet });
        }
    }

    /// The earliest of the times that end the call, and why it ends then.
    fn limit(&self) -> Option<(Instant, EndReason)> {
        let after = |since: Option<Instant>, limit: Duration, reason: EndReason| {
            since.filter(|_| !limit.is_zero()).map(|at| (at + limit, reason))
        };
        let heard = self.receiver.last_heard().filter(|_| self.answered.is_some());
        let on_hold = self.remote.is_some_and(|r| !r.wants_audio || !r.sends_audio);
        let expected = heard.max(self.resumed).filter(|_| !on_hold);
        let silent = self.ai_started.filter(|_| !self.ai_heard && self.phase == Phase::Talking);
        // a PBX that is back knows this call if its RTP flows again
        let survived = self.pbx_back.is_some_and(|back| heard.is_some_and(|at| at > back));
        let unsure = self.pbx_lost.is_some() && !survived;
        let lost = heard.max(self.pbx_lost).filter(|_| unsure && !on_hold);
        let unconnected = self.answer_wanted.filter(|_| self.answered.is_none());
        let drained = match self.phase {
            Phase::Draining { until } => Some((until, EndReason::AiHangup)),
            _ => None,
        };
        let limits = &self.limits;
        let times = [
            drained,
            after(self.answered, limits.max_duration, EndReason::MaxDuration),
            after(lost, LOST_AFTER, EndReason::PbxLost),
            after(unconnected, CONNECT_LIMIT, EndReason::PbxError),
            after(expected, limits.media_timeout, EndReason::MediaTimeout),
            after(silent, limits.silent_timeout, EndReason::AiTimeout),
        ];
        times.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Silence before time 0.
    fn play_early(&mut self, now: Instant) {
        while let Some(early) = &mut self.early {
            if self.phase == Phase::Ended || early.deadline(false) > now {
                return;
            }
            let index = early.take(now, false).index;
            self.send_frame(index, false, [SILENCE; 160]);
        }
    }

    fn send_frame(&mut self, index: u64, marker: bool, mut samples: Samples) {
        let marker = marker || self.sender.packets() == 0;
        if let Some(remote) = self.remote.filter(|r| r.wants_audio) {
            if remote.format.law == Law::A {
                g711::mu_to_a(&mut samples);
            }
            let payload_type = remote.format.payload_type;
            self.sender.audio(payload_type, index, &samples, marker, &mut self.packet);
            let packet = self.packet.clone();
            self.out.push_back(Output::Rtp { to: remote.rtp, packet });
        }
    }

    /// Sends what is due to the caller.
    fn play(&mut self, now: Instant) {
        self.play_early(now);
        while let Some(pacer) = &mut self.pacer {
            let audio = self.playout.has_audio();
            if self.phase == Phase::Ended || pacer.deadline(audio) > now {
                return;
            }
            let slot = pacer.take(now, audio);
            let samples = self.playout.next_frame().unwrap_or([SILENCE; 160]);
            self.out.push_back(Output::RecordAi { index: slot.index, samples });
            self.send_frame(slot.index, slot.marker, samples);
            self.return_marks();
            if !self.playout.has_audio() {
                match self.phase {
                    Phase::Draining { .. } if audio => self.end(EndReason::AiHangup),
                    Phase::Prompting { reason } if audio => self.end(reason),
                    _ => {}
                }
            }
        }
    }

    fn end(&mut self, reason: EndReason) {
        let source_knows = matches!(
            reason,
            EndReason::CallerHangup
                | EndReason::Cancelled
                | EndReason::Transferred
                | EndReason::NoAck
                | EndReason::SessionExpired
                | EndReason::BadMedia
        );
        if !source_knows {
            let talked = self.answered.is_some();
            self.out.push_back(Output::Request(Request::End { reason, talked }));
        }
        if self.phase == Phase::Talking {
            self.out.push_back(Output::Ai(ToAi::Stop));
        }
        self.phase = Phase::Ended;
        self.out.push_back(Output::Ended(reason));
    }
}

fn audio(index: u64, samples: Samples) -> ToAi {
    ToAi::Audio { samples, t_ms: index * FRAME_TIME.as_millis() as u64 }
}
