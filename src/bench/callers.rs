//! The callers' thread: a PBX and all its phones. Owns the sockets and the clock.
//!
//! Each call has its own RTP socket and a slot in the ring that determines when it sends.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::bench::delays::Delays;
use crate::bench::figures::Times;
use crate::bench::ledger::{Arrival, Sent, Tally};
use crate::bench::listener::{Heard, Listener};
use crate::bench::network::Network;
use crate::bench::outgoing::Outgoing;
use crate::bench::schedule::{Due, Ring};
use crate::bench::shared::{Phase, Shared, Window};
use crate::bench::signalling::{Audio, Change, Signalling};
use crate::bench::stamp::{Kind, Scope, Stamp};
use crate::bench::waiting::{IDLE_NS, SENT_LATE_NS, Waiting, grain_ns};
use crate::media::g711::Law;
use crate::media::rtp::Packet;

/// The thread's name, by which its CPU time is looked up.
pub const THREAD: &str = "bench-callers";
/// Calls hung up per second at the end.
const HANG_UPS_PER_SECOND: u64 = 400;
/// A caller's frame that the generator sends later than this is not judged: a bridge may give up
/// waiting for it.
const LEFT_OUT_NS: u64 = 40_000_000;
/// The signalling's number in epoll; a call has its slot plus one.
const SIGNALLING: u64 = 0;

/// Results of the callers' thread.
#[derive(Debug, Default)]
pub struct CallersResults {
    /// Calls attempted.
    pub asked: u32,
    pub answered: u32,
    /// Unanswered calls by SIP status; 0 if no status was received.
    pub failed: BTreeMap<u16, u32>,
    /// Answered calls that the other side ended.
    pub dropped: u32,
    /// Frames sent to the AI.
    pub sent: Sent,
    /// Frames sent in the measured time, whatever the length of the packets.
    pub frames_out: u64,
    /// Frames among them of which the simulated network lost a part.
    pub frames_dropped: u64,
    /// RTP packets received in the measured time, including silence.
    pub packets_in: u64,
    /// Packets among them that this thread read after it had been held up.
    pub read_after_pause: u64,
    /// Packets not sent because the kernel returned an error, such as a port refused by the bridge.
    pub refused: u64,
    pub heard: Heard,
    pub invite_to_answer: Times,
    pub invite_to_packet: Times,
    pub invite_to_speech: Times,
    /// Lateness of the callers' own frames against the schedule.
    pub own_lateness: Times,
    /// Time of the first INVITE.
    pub first_dial_us: Option<u64>,
    /// Time of the last answer.
    pub last_answer_us: u64,
}

/// One call, from the INVITE on.
struct Call {
    /// The call's number in signalling and stamps.
    number: u32,
    rtp: UdpSocket,
    outgoing: Outgoing,
    /// Due time of the first frame.
    audio_from_ns: Option<u64>,
    payload_type: u8,
    dialled_us: u64,
    answered_us: Option<u64>,
    /// True once this side has asked to hang up.
    hanging_up: bool,
    /// Number of the next frame to send.
    frame: u32,
    listener: Listener,
    /// True once an RTP packet has arrived.
    reached: bool,
    /// True once a frame of the AI has arrived.
    spoken_to: bool,
}

pub struct Callers {
    pub shared: Arc<Shared>,
    pub signalling: Box<dyn Signalling>,
    pub local: IpAddr,
    /// Concurrent calls.
    pub calls: usize,
    /// Calls set up per second.
    pub rate: f64,
    /// How long a call lasts before another follows it; `None` if all last until the end.
    pub hold_us: Option<u64>,
    /// The network between the callers and the bridge.
    pub network: Network,
    /// The law of the callers' audio.
    pub law: Law,
    /// Longest delay of messages from the AI, which does not count as the bridge's.
    pub ai_jitter_us: u64,
}

impl Callers {
    /// Runs until [`Phase::Stop`].
    ///
    /// # Errors
    /// Returns any I/O error from epoll or the sockets, or an error if a call cannot be dialled.
    pub fn run(self) -> io::Result<CallersResults> {
        let mut waiting = Waiting::new(self.calls)?;
        waiting.watch(&self.signalling.fd(), SIGNALLING)?;
        let heard = Heard { tally: Tally::with_allowance(self.ai_jitter_us), ..Heard::default() };
        let mut lines = Lines {
            ring: Ring::new(self.calls, self.shared.clock.now_ns(), grain_ns(self.calls)),
            slots: (0..self.calls).map(|_| None).collect(),
            slot_of: HashMap::new(),
            free: (0..self.calls).rev().collect(),
            next_dial_us: 0,
            next_hang_up_us: 0,
            after_pause: false,
            delayed: Delays::default(),
            results: CallersResults { heard, ..CallersResults::default() },
            plan: self,
        };
        let (mut ready, mut buffer) = (Vec::new(), [0; 2048]);
        let clock = lines.plan.shared.clock;
        while lines.plan.shared.phase() != Phase::Stop {
            let until = lines.round(&waiting)?;
            waiting.wait(clock, until, &mut ready)?;
            lines.after_pause = waiting.was_held_up;
            let window = lines.plan.shared.window();
            for number in &ready {
                match number {
                    &SIGNALLING => lines.plan.signalling.on_readable(Instant::now()),
                    number => lines.on_rtp((number - 1) as usize, window, &mut buffer),
                }
            }
        }
        for slot in 0..lines.slots.len() {
            lines.close(slot);
        }
        Ok(lines.results)
    }
}

impl Call {
    fn connect(&mut self, audio: Audio) -> io::Result<()> {
        self.payload_type = audio.payload_type;
        self.outgoing.law = law_of(audio.payload_type);
        self.rtp.connect(audio.rtp)
    }
}

/// State of the running thread.
struct Lines {
    plan: Callers,
    ring: Ring,
    /// Calls by their place in the ring.
    slots: Vec<Option<Call>>,
    /// The slot of each call, by the call's number.
    slot_of: HashMap<u32, usize>,
    /// Free slots; the last one is used next.
    free: Vec<usize>,
    /// Time of the next dial; 0 before the first and after the last.
    next_dial_us: u64,
    /// Time of the next hang-up at the end.
    next_hang_up_us: u64,
    /// True if this thread has just been held up.
    after_pause: bool,
    /// Packets on their way through the simulated network.
    delayed: Delays<Delayed>,
    results: CallersResults,
}

/// A packet on its way to the bridge.
struct Delayed {
    slot: usize,
    call: u32,
    data: Vec<u8>,
}

impl Lines {
    /// Does everything that is due. Returns when the next thing is due, in nanoseconds.
    fn round(&mut self, waiting: &Waiting) -> io::Result<u64> {
        let clock = self.plan.shared.clock;
        let window = self.plan.shared.window();
        while let Some(due) = self.ring.take(clock.now_ns()) {
            self.play(due, window);
        }
        while let Some((at_ns, packet)) = self.delayed.take(clock.now_ns()) {
            self.deliver(at_ns, &packet, window);
        }
        let now = Instant::now();
        if self.plan.signalling.next_timeout().is_some_and(|at| at <= now) {
            self.plan.signalling.on_timeout(now);
        }
        match self.plan.shared.phase() {
            Phase::Wait if self.plan.signalling.is_ready() => {
                let registered = &self.plan.shared.registered_us;
                if registered.load(Ordering::Relaxed) == 0 {
                    registered.store(clock.now_us().max(1), Ordering::Relaxed);
                }
            }
            Phase::Dial => self.dial(now, clock.now_us(), waiting)?,
            Phase::HangUp => self.hang_up_all(now, clock.now_us()),
            Phase::Wait | Phase::Stop => {}
        }
        self.poll_signalling(clock.now_us())?;
        let idle = clock.now_ns() + IDLE_NS;
        let slots = &self.slots;
        let busy = |slot: usize| slots[slot].as_ref().is_some_and(|c| c.answered_us.is_some());
        let timeout = self.plan.signalling.next_timeout().map(|at| clock.instant_ns(at));
        let dial = (self.next_dial_us > 0).then_some(self.next_dial_us * 1000);
        let dial = dial.filter(|_| !self.free.is_empty());
        let nexts = [self.ring.next_ns(busy), self.delayed.next_ns(), timeout, dial];
        Ok(nexts.into_iter().flatten().chain([idle]).min().unwrap_or(idle))
    }

    fn dial(&mut self, now: Instant, now_us: u64, waiting: &Waiting) -> io::Result<()> {
        let churn = self.plan.hold_us.is_some();
        let enough = match churn {
            true => now_us >= self.plan.shared.window().close_us,
            false => self.results.asked as usize >= self.plan.calls,
        };
        if churn {
            self.hang_up_old(now, now_us);
        }
        if enough || now_us < self.next_dial_us {
            self.next_dial_us = if enough { 0 } else { self.next_dial_us };
            return Ok(());
        }
        let step_us = (1_000_000.0 / self.plan.rate) as u64;
        // a late dial is not followed by a burst to catch up
        let base = if self.next_dial_us + step_us < now_us { now_us } else { self.next_dial_us };
        self.next_dial_us = base + step_us;
        let Some(slot) = self.free.pop() else { return Ok(()) };
        let rtp = rtp_socket(self.plan.local)?;
        waiting.watch(&rtp, slot as u64 + 1)?;
        self.results.asked += 1;
        let number = self.results.asked;
        let address = rtp.local_addr()?;
        self.results.first_dial_us.get_or_insert(now_us);
        if !self.plan.signalling.dial(now, number, slot, address) {
            return Err(io::Error::other(
                "cannot dial: the bridge is not registered (SIP) or has no events open (ARI)",
            ));
        }
        self.slot_of.insert(number, slot);
        self.slots[slot] = Some(Call {
            number,
            rtp,
            outgoing: Outgoing::new(number, self.plan.network, self.plan.law),
            audio_from_ns: None,
            payload_type: payload_type(self.plan.law),
            dialled_us: now_us,
            answered_us: None,
            hanging_up: false,
            frame: 0,
            listener: Listener::default(),
            reached: false,
            spoken_to: false,
        });
        self.plan.shared.open_calls.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn hang_up_old(&mut self, now: Instant, now_us: u64) {
        let hold_us = self.plan.hold_us.unwrap_or(u64::MAX);
        for call in self.slots.iter_mut().flatten().filter(|c| !c.hanging_up) {
            if call.answered_us.is_some_and(|at| now_us >= at + hold_us) {
                call.hanging_up = true;
                self.plan.signalling.hang_up(now, call.number);
            }
        }
    }

    fn hang_up_all(&mut self, now: Instant, now_us: u64) {
        self.next_dial_us = 0;
        if now_us < self.next_hang_up_us {
            return;
        }
        // hangs up the calls that became due since the last round; rounds are at most 5 ms apart
        let passed = now_us.saturating_sub(self.next_hang_up_us).min(20_000);
        let many = (passed * HANG_UPS_PER_SECOND / 1_000_000).max(1) as usize;
        for call in self.slots.iter_mut().flatten().filter(|c| !c.hanging_up).take(many) {
            call.hanging_up = true;
            self.plan.signalling.hang_up(now, call.number);
        }
        self.next_hang_up_us = now_us + 1_000_000 / HANG_UPS_PER_SECOND;
    }

    fn poll_signalling(&mut self, now_us: u64) -> io::Result<()> {
        while let Some(change) = self.plan.signalling.next_change() {
            match change {
                Change::Answered { number, line, audio } => {
                    if let Some(call) = self.on_line(number, line) {
                        call.connect(audio)?;
                        call.answered_us = Some(now_us);
                        let taken_us = now_us - call.dialled_us;
                        self.results.answered += 1;
                        self.results.last_answer_us = now_us;
                        self.results.invite_to_answer.add_us(taken_us);
                        self.plan.shared.answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Change::Moved { number, audio } => {
                    if let Some(call) = self.on_line(number, None) {
                        call.connect(audio)?;
                    }
                }
                Change::Ended { number, line, code } => self.ended(number, line, code),
            }
        }
        Ok(())
    }

    /// Returns a call, on the RTP socket that it turns out to use. If that is not the one it was
    /// dialled with, the two calls involved swap sockets.
    fn on_line(&mut self, number: u32, line: Option<usize>) -> Option<&mut Call> {
        let slot = *self.slot_of.get(&number)?;
        let line = line.unwrap_or(slot);
        if line != slot
            && let Ok([Some(one), Some(other)]) = self.slots.get_disjoint_mut([slot, line])
        {
            std::mem::swap(&mut one.number, &mut other.number);
            std::mem::swap(&mut one.dialled_us, &mut other.dialled_us);
            std::mem::swap(&mut one.hanging_up, &mut other.hanging_up);
            std::mem::swap(&mut one.outgoing, &mut other.outgoing);
            self.slot_of.insert(one.number, slot);
            self.slot_of.insert(other.number, line);
        }
        self.slots[line].as_mut()
    }

    fn ended(&mut self, number: u32, line: Option<usize>, code: u16) {
        let Some(call) = self.on_line(number, line) else { return };
        let (answered, hanging_up) = (call.answered_us.is_some(), call.hanging_up);
        if !answered {
            *self.results.failed.entry(code).or_default() += 1;
            self.plan.shared.failed.fetch_add(1, Ordering::Relaxed);
        } else if !hanging_up {
            self.results.dropped += 1;
        }
        let Some(slot) = self.slot_of.remove(&number) else { return };
        self.close(slot);
        // without a hold time, no call follows
        if self.plan.hold_us.is_some() {
            self.free.insert(0, slot);
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(mut call) = self.slots[slot].take() else { return };
        call.listener.finish(&mut self.results.heard);
        self.plan.shared.open_calls.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sends a slot's next frame, or hands it to the simulated network.
    fn play(&mut self, due: Due, window: Window) {
        let Some(call) = self.slots[due.sender].as_mut().filter(|c| !c.hanging_up) else { return };
        let Some(up_us) = call.answered_us else { return };
        let now_ns = self.plan.shared.clock.now_ns();
        let (network, late_ns) = (&self.plan.network, now_ns.saturating_sub(due.at_ns));
        let from_ns = *call.audio_from_ns.get_or_insert(due.at_ns);
        let frame = u64::from(call.frame);
        let due_us = match network.is_plain() {
            true => due.at_ns / 1000,
            false => from_ns / 1000 + network.frame_due_us(call.number, frame),
        };
        let scope = match late_ns > LEFT_OUT_NS {
            true => Scope::Ignored,
            false => window.scope(due_us, up_us, self.plan.hold_us.map(|hold| up_us + hold)),
        };
        let stamp = Stamp {
            sender: call.number,
            hears: call.listener.hears(),
            number: call.frame,
            due_us,
            scope,
            sent_late: late_ns > SENT_LATE_NS,
            kind: Kind::Paced,
        };
        let mut samples = [0; 160];
        stamp.write(&mut samples);
        call.frame += 1;
        call.outgoing.add(&samples);
        while let Some(packet) = call.outgoing.next(call.payload_type) {
            if network.is_plain() {
                self.results.refused += u64::from(call.rtp.send(&packet.data).is_err());
                continue;
            }
            let delayed = Delayed { slot: due.sender, call: call.number, data: packet.data };
            self.delayed.push(from_ns + packet.due_us * 1000, delayed);
        }
        let dropped = network.drops_frame(call.number, frame);
        if !dropped {
            self.results.sent.add(scope);
        }
        if window.holds(due_us) {
            self.results.frames_out += 1;
            self.results.frames_dropped += u64::from(dropped);
            self.results.own_lateness.add_us(late_ns / 1000);
        }
    }

    /// Sends a packet that has passed the simulated network.
    fn deliver(&mut self, at_ns: u64, packet: &Delayed, window: Window) {
        let call = self.slots[packet.slot].as_ref();
        let Some(call) = call.filter(|c| c.number == packet.call && !c.hanging_up) else { return };
        self.results.refused += u64::from(call.rtp.send(&packet.data).is_err());
        if window.holds(at_ns / 1000) {
            let now_ns = self.plan.shared.clock.now_ns();
            self.results.own_lateness.add_us((now_ns - at_ns) / 1000);
        }
    }

    /// Reads one packet. epoll reports any further packet in the next round.
    fn on_rtp(&mut self, slot: usize, window: Window, buffer: &mut [u8]) {
        let Some(call) = &mut self.slots[slot] else { return };
        let Ok(n) = call.rtp.recv(buffer) else { return };
        let now_us = self.plan.shared.clock.now_us();
        let Some(packet) = Packet::parse(&buffer[..n]) else { return };
        if packet.payload_type != call.payload_type {
            return;
        }
        let mut payload = [0; 160];
        let length = packet.payload.len().min(payload.len());
        payload[..length].copy_from_slice(&packet.payload[..length]);
        call.outgoing.law.convert(Law::Mu, &mut payload[..length]);
        let packet = Packet { payload: &payload[..length], ..packet };
        let results = &mut self.results;
        results.packets_in += u64::from(window.holds(now_us));
        results.read_after_pause += u64::from(self.after_pause && window.holds(now_us));
        if !std::mem::replace(&mut call.reached, true) {
            results.invite_to_packet.add_us(now_us.saturating_sub(call.dialled_us));
        }
        let up_us = call.answered_us.unwrap_or(now_us);
        let arrival = Arrival {
            now_us,
            own: call.number,
            counts_damage: !call.hanging_up && window.counts_damage(now_us, up_us),
            after_pause: self.after_pause,
        };
        let spoken = call.listener.take(&mut results.heard, &packet, &arrival);
        if spoken && !std::mem::replace(&mut call.spoken_to, true) {
            results.invite_to_speech.add_us(now_us.saturating_sub(call.dialled_us));
        }
    }
}

/// Returns the static payload type of a law (RFC 3551 §6).
fn payload_type(law: Law) -> u8 {
    if law == Law::A { 8 } else { 0 }
}

fn law_of(payload_type: u8) -> Law {
    if payload_type == 8 { Law::A } else { Law::Mu }
}

/// Returns a socket on an even port, as RFC 3550 §11 asks for RTP.
fn rtp_socket(local: IpAddr) -> io::Result<UdpSocket> {
    loop {
        let socket = UdpSocket::bind((local, 0))?;
        if socket.local_addr()?.port().is_multiple_of(2) {
            socket.set_nonblocking(true)?;
            return Ok(socket);
        }
    }
}
