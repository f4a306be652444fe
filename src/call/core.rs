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
use crate::call::limits::{Limits, Milestones, State};
use crate::call::words::{Input, Output, Seeds, Summary};
use crate::call::{AnswerWhen, CallConfig, RecordPlan, RemoteMedia, Request, Signal};
use crate::media::dtmf::{DigitGate, Origin};
use crate::media::frame::{FRAME_SAMPLES, FRAME_TIME, Frame, Kind, SILENCE, Samples};
use crate::media::g711::{self, Law};
use crate::media::pacer::Pacer;
use crate::media::playout::Playout;
use crate::media::receiver::Receiver;
use crate::media::rtcp::Rtcp;
use crate::media::sender::Sender;
use crate::record::recording::Tap;
use crate::record::{RecordCommand, When};
use crate::stream::socket::Closed;
use crate::stream::{FromAi, ToAi};

/// Frames kept for an AI that is not there yet: 2 s.
const MAX_PREROLL: usize = 100;
/// So many packets from elsewhere, a second's worth, are no stray ones.
const MISDIRECTED: u64 = 50;

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
    past: Milestones,
    ai_open: bool,
    preroll: VecDeque<(u64, Frame)>,
    preroll_digits: Vec<char>,
    preroll_dropped: u64,
    /// The caller's frames so far, and where the AI's audio stands.
    frames: u64,
    played: u64,
    limits: Limits,
    prompt: Option<bytes::Bytes>,
    /// How this call is recorded, if it may be.
    record: Option<RecordPlan>,
    recording: bool,
    /// What is left of the announcement that it is recorded.
    notice: bytes::Bytes,
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
            past: Milestones::default(),
            ai_open: false,
            preroll: VecDeque::new(),
            preroll_digits: Vec::new(),
            preroll_dropped: 0,
            frames: 0,
            played: 0,
            limits: Limits::of(config),
            prompt: config.prompt.clone(),
            record: config.record.clone(),
            recording: false,
            notice: bytes::Bytes::new(),
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
        let output = self.out.pop_front();
        if output.is_none() {
            self.out.clear(); // its first places again, which are in the cache
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
            Input::Rtp { from, data } => {
                self.receiver.on_packet(now, from, data);
                // the first packet may be quicker than the source's word
                if self.early.is_some()
                    && self.past.answer_wanted.is_some()
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
                if self.past.answer_wanted.is_none() {
                    self.answer(now);
                }
                self.start_stream(now);
            }
            Input::AiFailed => self.ai_failed(now, EndReason::AiUnreachable),
            Input::Ai(message) => self.on_ai(message),
            Input::AiClosed(closed) => self.on_ai_closed(now, closed),
            Input::Signal(signal) => self.on_signal(now, signal),
            Input::End(reason) => self.end(reason),
            Input::Record(command) => self.on_record(command),
            Input::Timeout { unix } => self.on_timeout(now, unix),
        }
        self.play(now);
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        if self.phase == Phase::Ended {
            return None;
        }
        let playing = self.pacer.as_ref().map(|p| p.deadline(self.has_audio()));
        let early = self.early.as_ref().map(|p| p.deadline(false));
        let hearing = self.past.answered.and_then(|_| self.receiver.next_timeout());
        let limit = self.limit().map(|(at, _)| at);
        let times = [playing, early, hearing, self.rtcp.next_timeout(), limit];
        times.into_iter().flatten().min()
    }

    /// So long nothing has been heard that the timeline fills with silence now.
    pub fn misses_audio(&self, now: Instant) -> bool {
        self.past.answered.is_some() && self.receiver.next_timeout().is_some_and(|at| at <= now)
    }

    /// RTP comes, but from another address than the PBX has named, and nothing is heard.
    pub fn misdirected(&self) -> Option<(SocketAddr, SocketAddr)> {
        let counts = self.receiver.counts();
        let deaf = counts.wrong_source >= MISDIRECTED && counts.sequence.received == 0;
        self.receiver.source.refused().filter(|_| deaf)
    }

    pub fn summary(&self, now: Instant) -> Summary {
        Summary {
            talk: self.past.answered.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
            setup: self.past.answered.unwrap_or(now).saturating_duration_since(self.created),
            answered: self.past.answered.is_some(),
            received: self.receiver.counts(),
            packets_sent: self.sender.packets(),
            preroll_dropped: self.preroll_dropped,
            playout_discarded: self.playout.discarded_bytes,
            round_trip: self.rtcp.peer.and_then(|p| p.round_trip),
        }
    }

    fn answer(&mut self, now: Instant) {
        self.past.answer_wanted = Some(now);
        self.out.push_back(Output::Request(Request::Answer));
    }

    /// Time 0.
    fn connected(&mut self, now: Instant) {
        if self.past.answered.is_some() {
            return;
        }
        if let Some(early) = self.early.take() {
            self.sender.rebase(early.index());
        }
        self.past.answered = Some(now);
        self.pacer = Some(Pacer::new(now));
        self.receiver.start(now);
        self.rtcp.start(now);
        if self.record.as_ref().is_some_and(|plan| plan.when == When::Always) {
            self.on_record(RecordCommand::Start);
            // what was quicker than the source's word
            for (index, frame) in &self.preroll {
                self.out.push_back(Output::Tap(caller_tap(*index, frame, None)));
            }
            let digits = self.preroll_digits.iter();
            self.out.extend(digits.map(|digit| Output::Tap(Tap::Digit(*digit))));
        }
        self.start_stream(now);
    }

    /// Before time 0 there is nothing to record, and with `never` there is no plan.
    fn on_record(&mut self, command: RecordCommand) {
        let Some(plan) = self.record.as_ref().filter(|_| self.past.answered.is_some()) else {
            return;
        };
        match command {
            RecordCommand::Start if self.recording => return,
            RecordCommand::Start => {
                self.recording = true;
                self.notice = plan.notice.clone();
            }
            RecordCommand::Stop => self.recording = false,
            RecordCommand::Pause | RecordCommand::Resume => {}
        }
        let law = self.remote.map_or(Law::Mu, |r| r.format.law);
        self.out.push_back(Output::Recording { command, index: self.played, law });
    }

    fn start_stream(&mut self, now: Instant) {
        if self.phase != Phase::Connecting || !self.ai_open || self.past.answered.is_none() {
            return;
        }
        self.phase = Phase::Talking;
        self.past.ai_started = Some(now);
        let preroll = std::mem::take(&mut self.preroll);
        self.out.push_back(Output::AiStart { burst: preroll.len() });
        for (index, frame) in preroll {
            self.out.push_back(Output::Ai(audio(index, frame.mu_law())));
        }
        for digit in std::mem::take(&mut self.preroll_digits) {
            self.out.push_back(Output::Ai(ToAi::Digit(digit)));
        }
    }

    fn set_remote(&mut self, now: Instant, remote: RemoteMedia) {
        self.receiver.set_remote(remote.rtp, remote.format);
        self.remote = Some(remote);
        if remote.early && self.early.is_none() && self.past.answered.is_none() {
            self.early = Some(Pacer::new(now));
        }
    }

    /// What the receiver has ready goes to the AI and into the recording.
    fn take_frames(&mut self, now: Instant) {
        while let Some(frame) = self.receiver.next_frame() {
            self.on_caller_frame(now, &frame);
        }
        while let Some(digit) = self.receiver.next_digit() {
            self.on_digit(now, digit, Origin::Rtp);
        }
    }

    fn on_caller_frame(&mut self, now: Instant, frame: &Frame) {
        let index = self.frames;
        self.frames += 1;
        if self.recording {
            let heard = self.past.answered.filter(|_| frame.kind == Kind::Heard);
            let heard_at = heard.map(|at| now.saturating_duration_since(at));
            self.out.push_back(Output::Tap(caller_tap(index, frame, heard_at)));
        }
        match self.phase {
            Phase::Talking => self.out.push_back(Output::Ai(audio(index, frame.mu_law()))),
            Phase::Connecting => {
                if self.preroll.len() == MAX_PREROLL {
                    self.preroll.pop_front();
                    self.preroll_dropped += 1;
                }
                self.preroll.push_back((index, frame.clone()));
            }
            Phase::Draining { .. } | Phase::Prompting { .. } | Phase::Ended => {}
        }
    }

    fn on_digit(&mut self, now: Instant, digit: char, origin: Origin) {
        if !self.gate.admits(now, digit, origin) {
            return;
        }
        if self.recording {
            self.out.push_back(Output::Tap(Tap::Digit(digit)));
        }
        match self.phase {
            Phase::Talking => self.out.push_back(Output::Ai(ToAi::Digit(digit))),
            Phase::Connecting if self.preroll_digits.len() < 32 => self.preroll_digits.push(digit),
            _ => {}
        }
    }

    fn on_ai(&mut self, message: FromAi<'_>) {
        self.past.ai_heard = true;
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
            if self.recording {
                self.out.push_back(Output::Tap(Tap::Mark(name.clone())));
            }
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
                match self.has_audio() && until > now {
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
        match (&self.prompt, self.past.answered) {
            (Some(prompt), Some(_)) => {
                if self.phase == Phase::Talking {
                    self.out.push_back(Output::Ai(ToAi::Stop));
                }
                self.playout.clear();
                while self.playout.next_mark().is_some() {}
                self.playout.push_audio(prompt);
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
                    self.past.resumed = Some(now);
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
            Signal::PbxLost => (self.past.pbx_lost, self.past.pbx_back) = (Some(now), None),
            Signal::PbxBack => self.past.pbx_back = Some(now),
            Signal::PbxConfirms => (self.past.pbx_lost, self.past.pbx_back) = (None, None),
            Signal::Ended(EndReason::CallerHangup) if self.past.answered.is_none() => {
                self.end(EndReason::Cancelled);
            }
            Signal::Ended(reason) => self.end(reason),
        }
    }

    fn on_timeout(&mut self, now: Instant, unix: Duration) {
        if self.past.answered.is_some() {
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
        let passed =
            self.past.answered.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
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
        let state = State {
            heard: self.receiver.last_heard(),
            on_hold: self.remote.is_some_and(|r| !r.wants_audio || !r.sends_audio),
            talking: self.phase == Phase::Talking,
            draining: match self.phase {
                Phase::Draining { until } => Some(until),
                _ => None,
            },
        };
        self.limits.earliest(&self.past, state)
    }

    /// Silence before time 0.
    fn play_early(&mut self, now: Instant) {
        while let Some(early) = &mut self.early {
            if self.phase == Phase::Ended || early.deadline(false) > now {
                return;
            }
            let index = early.take(now, false).index;
            self.send_frame(index, false, [SILENCE; FRAME_SAMPLES]);
        }
    }

    fn send_frame(&mut self, index: u64, marker: bool, mut samples: Samples) {
        let marker = marker || self.sender.packets() == 0;
        if let Some(remote) = self.remote.filter(|r| r.wants_audio) {
            if remote.format.law == Law::A {
                g711::mu_to_a(&mut samples);
            }
            let payload_type = remote.format.payload_type;
            let packet = self.sender.audio(payload_type, index, &samples, marker);
            self.out.push_back(Output::Rtp { to: remote.rtp, packet });
        }
    }

    /// Sends what is due to the caller.
    fn play(&mut self, now: Instant) {
        self.play_early(now);
        while let Some(pacer) = &mut self.pacer {
            let audio = !self.notice.is_empty() || self.playout.has_audio();
            if self.phase == Phase::Ended || pacer.deadline(audio) > now {
                return;
            }
            let slot = pacer.take(now, audio);
            let samples = self.next_samples();
            self.played = slot.index + 1;
            self.send_frame(slot.index, slot.marker, samples);
            if self.recording {
                // on hold the caller hears the PBX
                let heard = self.remote.is_none_or(|r| r.wants_audio);
                let samples = if heard { samples } else { [SILENCE; FRAME_SAMPLES] };
                self.out.push_back(Output::Tap(Tap::Ai { index: slot.index, samples }));
            }
            self.return_marks();
            if !self.has_audio() {
                match self.phase {
                    Phase::Draining { .. } if audio => self.end(EndReason::AiHangup),
                    Phase::Prompting { reason } if audio => self.end(reason),
                    _ => {}
                }
            }
        }
    }

    /// The announcement goes before anything of the AI's, and its `clear` does not touch it.
    fn next_samples(&mut self) -> Samples {
        let mut samples = [SILENCE; FRAME_SAMPLES];
        if self.notice.is_empty() {
            return self.playout.next_frame().unwrap_or(samples);
        }
        let part = self.notice.split_to(self.notice.len().min(FRAME_SAMPLES));
        samples[..part.len()].copy_from_slice(&part);
        samples
    }

    /// There is something to be played.
    fn has_audio(&self) -> bool {
        !self.notice.is_empty() || self.playout.has_audio()
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
            let talked = self.past.answered.is_some();
            self.out.push_back(Output::Request(Request::End { reason, talked }));
        }
        if self.phase == Phase::Talking {
            self.out.push_back(Output::Ai(ToAi::Stop));
        }
        self.phase = Phase::Ended;
        self.out.push_back(Output::Ended(reason));
    }
}

fn caller_tap(index: u64, frame: &Frame, heard_at: Option<Duration>) -> Tap {
    Tap::Caller { index, law: frame.law, samples: frame.samples, heard_at }
}

fn audio(index: u64, samples: Samples) -> ToAi {
    ToAi::Audio { samples, t_ms: index * FRAME_TIME.as_millis() as u64 }
}
