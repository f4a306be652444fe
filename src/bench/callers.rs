//! The callers' thread: a PBX and all its phones. Owns the sockets and the clock.
//!
//! Each call has an RTP socket of its own and a slot in the ring that says when it sends.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::bench::figures::Times;
use crate::bench::ledger::{FloodEnd, Ledger, Tally};
use crate::bench::pacing::{Envelope, played};
use crate::bench::schedule::{Due, Ring};
use crate::bench::shared::{Phase, Shared, Window};
use crate::bench::signalling::{Audio, Signalling, Told};
use crate::bench::stamp::{Kind, Read, Stamp};
use crate::bench::waiting::Waiting;
use crate::media::rtp::Packet;
use crate::media::sender::Sender;

/// The thread's name: its CPU time is found by it.
pub const THREAD: &str = "bench-callers";
/// Longest wait without a look at what is asked of the thread.
const IDLE_NS: u64 = 5_000_000;
/// Calls hung up a second, at the end.
const HANG_UPS_A_SECOND: u64 = 400;
const SIGNALLING: u64 = 0;

/// What the callers have seen.
#[derive(Debug, Default)]
pub struct Heard {
    pub asked: u32,
    pub answered: u32,
    /// Calls that were not answered, by their SIP status; 0 = none was received.
    pub failed: BTreeMap<u16, u32>,
    /// Calls that the other side ended.
    pub dropped: u32,
    /// Judged frames sent to the AI.
    pub sent: u64,
    /// RTP packets in the measured time, both ways, silence included.
    pub packets_out: u64,
    pub packets_in: u64,
    /// Packets that the kernel did not take, or the bridge's ports refused.
    pub refused: u64,
    pub tally: Tally,
    /// The AI's message to RTP, of paced frames.
    pub whole_way: Times,
    /// The wait of paced frames for their slots.
    pub slot_wait: Times,
    /// The AI's message to RTP, of the first frame of a talkspurt.
    pub talkspurt: Times,
    pub lateness: Times,
    /// Paced frames with silence before them that the AI did not send.
    pub underruns: u64,
    pub invite_to_answer: Times,
    pub invite_to_packet: Times,
    pub invite_to_speech: Times,
    pub flood_ends: Vec<FloodEnd>,
    /// Of our own frames, against the schedule.
    pub own_lateness: Times,
    /// First INVITE and last answer.
    pub first_dial_us: Option<u64>,
    pub last_answer_us: u64,
}

struct Call {
    number: u32,
    rtp: UdpSocket,
    sender: Sender,
    payload_type: u8,
    dialled_us: u64,
    answered_us: Option<u64>,
    hanging_up: bool,
    frame: u32,
    ledger: Ledger,
    envelope: Envelope,
    last_packet_us: Option<u64>,
    speech_before: bool,
    spoken_to: bool,
}

pub struct Callers {
    pub shared: Arc<Shared>,
    pub signalling: Box<dyn Signalling>,
    pub local: IpAddr,
    /// Calls at once.
    pub calls: usize,
    /// Calls set up a second.
    pub rate: f64,
    /// How long a call lasts; `None`: until all are hung up, and none follows it.
    pub hold_us: Option<u64>,
}

impl Callers {
    /// Runs until [`Phase::Stop`].
    ///
    /// # Errors
    /// When epoll or sockets fail.
    pub fn run(self) -> io::Result<Heard> {
        let mut waiting = Waiting::new(self.calls)?;
        waiting.watch(&self.signalling.fd(), SIGNALLING)?;
        let mut line = Lines {
            ring: Ring::new(self.calls, self.shared.clock.now_ns()),
            slots: (0..self.calls).map(|_| None).collect(),
            slot_of: HashMap::new(),
            free: (0..self.calls).rev().collect(),
            next_dial_us: 0,
            next_hang_up_us: 0,
            heard: Heard::default(),
            plan: self,
        };
        let (mut ready, mut buffer) = (Vec::new(), [0; 2048]);
        while line.plan.shared.phase() != Phase::Stop {
            let until = line.round(&waiting)?;
            waiting.wait(line.plan.shared.clock, until, &mut ready)?;
            let window = line.plan.shared.window();
            for number in &ready {
                match number {
                    &SIGNALLING => line.plan.signalling.on_readable(Instant::now()),
                    number => line.on_rtp((number - 1) as usize, window, &mut buffer),
                }
            }
        }
        for slot in 0..line.slots.len() {
            line.close(slot);
        }
        Ok(line.heard)
    }
}

impl Call {
    fn connect(&mut self, audio: Audio) -> io::Result<()> {
        self.payload_type = audio.payload_type;
        self.rtp.connect(audio.rtp)
    }
}

struct Lines {
    plan: Callers,
    ring: Ring,
    slots: Vec<Option<Call>>,
    /// By the calls' numbers.
    slot_of: HashMap<u32, usize>,
    free: Vec<usize>,
    next_dial_us: u64,
    next_hang_up_us: u64,
    heard: Heard,
}

impl Lines {
    /// Does all that is due; until when to wait for the next.
    fn round(&mut self, waiting: &Waiting) -> io::Result<u64> {
        let clock = self.plan.shared.clock;
        let window = self.plan.shared.window();
        while let Some(due) = self.ring.take(clock.now_ns()) {
            self.play(due, window);
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
        self.on_told(clock.now_us())?;
        let idle = clock.now_ns() + IDLE_NS;
        let slots = &self.slots;
        let busy = |slot: usize| slots[slot].as_ref().is_some_and(|c| c.answered_us.is_some());
        let timeout = self.plan.signalling.next_timeout().map(|at| clock.instant_ns(at));
        let dial = (self.next_dial_us > 0).then_some(self.next_dial_us * 1000);
        let nexts = [self.ring.next_ns(busy), timeout, dial.filter(|_| !self.free.is_empty())];
        Ok(nexts.into_iter().flatten().chain([idle]).min().unwrap_or(idle))
    }

    fn dial(&mut self, now: Instant, now_us: u64, waiting: &Waiting) -> io::Result<()> {
        let churn = self.plan.hold_us.is_some();
        let enough = match churn {
            true => now_us >= self.plan.shared.window().close_us,
            false => self.heard.asked as usize >= self.plan.calls,
        };
        if churn {
            self.hang_up_old(now, now_us);
        }
        if enough || now_us < self.next_dial_us {
            self.next_dial_us = if enough { 0 } else { self.next_dial_us };
            return Ok(());
        }
        let step_us = (1_000_000.0 / self.plan.rate) as u64;
        // one that is late is not made up for by a burst
        let base = if self.next_dial_us + step_us < now_us { now_us } else { self.next_dial_us };
        self.next_dial_us = base + step_us;
        let Some(slot) = self.free.pop() else { return Ok(()) };
        let rtp = rtp_socket(self.plan.local)?;
        waiting.watch(&rtp, slot as u64 + 1)?;
        self.heard.asked += 1;
        let number = self.heard.asked;
        let address = rtp.local_addr()?;
        self.heard.first_dial_us.get_or_insert(now_us);
        if !self.plan.signalling.dial(now, number, slot, address) {
            return Err(io::Error::other("nobody to call"));
        }
        self.slot_of.insert(number, slot);
        self.slots[slot] = Some(Call {
            number,
            rtp,
            sender: Sender::new(number.wrapping_mul(0x9e37_79b9), number as u16, number),
            payload_type: 0,
            dialled_us: now_us,
            answered_us: None,
            hanging_up: false,
            frame: 0,
            ledger: Ledger::default(),
            envelope: Envelope::default(),
            last_packet_us: None,
            speech_before: false,
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
        // each round takes what has come due since the last: rounds are at most 5 ms apart
        let passed = now_us.saturating_sub(self.next_hang_up_us).min(20_000);
        let many = (passed * HANG_UPS_A_SECOND / 1_000_000).max(1) as usize;
        for call in self.slots.iter_mut().flatten().filter(|c| !c.hanging_up).take(many) {
            call.hanging_up = true;
            self.plan.signalling.hang_up(now, call.number);
        }
        self.next_hang_up_us = now_us + 1_000_000 / HANG_UPS_A_SECOND;
    }

    fn on_told(&mut self, now_us: u64) -> io::Result<()> {
        while let Some(told) = self.plan.signalling.told() {
            match told {
                Told::Answered { number, line, audio } => {
                    if let Some(call) = self.on_line(number, line) {
                        call.connect(audio)?;
                        call.answered_us = Some(now_us);
                        let taken_us = now_us - call.dialled_us;
                        self.heard.answered += 1;
                        self.heard.last_answer_us = now_us;
                        self.heard.invite_to_answer.add_us(taken_us);
                        self.plan.shared.answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Told::Moved { number, audio } => {
                    if let Some(call) = self.on_line(number, None) {
                        call.connect(audio)?;
                    }
                }
                Told::Ended { number, line, code } => self.ended(number, line, code),
            }
        }
        Ok(())
    }

    /// A call, with the RTP socket that it turns out to have: another call has the other one then.
    fn on_line(&mut self, number: u32, line: Option<usize>) -> Option<&mut Call> {
        let slot = *self.slot_of.get(&number)?;
        let line = line.unwrap_or(slot);
        if line != slot
            && let Ok([Some(one), Some(other)]) = self.slots.get_disjoint_mut([slot, line])
        {
            std::mem::swap(&mut one.number, &mut other.number);
            std::mem::swap(&mut one.dialled_us, &mut other.dialled_us);
            std::mem::swap(&mut one.hanging_up, &mut other.hanging_up);
            std::mem::swap(&mut one.sender, &mut other.sender);
            self.slot_of.insert(one.number, slot);
            self.slot_of.insert(other.number, line);
        }
        self.slots[line].as_mut()
    }

    fn ended(&mut self, number: u32, line: Option<usize>, code: u16) {
        let Some(call) = self.on_line(number, line) else { return };
        let (answered, hanging_up) = (call.answered_us.is_some(), call.hanging_up);
        if !answered {
            *self.heard.failed.entry(code).or_default() += 1;
            self.plan.shared.failed.fetch_add(1, Ordering::Relaxed);
        } else if !hanging_up {
            self.heard.dropped += 1;
        }
        let Some(slot) = self.slot_of.remove(&number) else { return };
        self.close(slot);
        // none follows a call that is to last
        if self.plan.hold_us.is_some() {
            self.free.insert(0, slot);
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(mut call) = self.slots[slot].take() else { return };
        self.heard.flood_ends.extend(call.ledger.end_flood(&mut self.heard.tally));
        self.plan.shared.open_calls.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sends the frame of a slot.
    fn play(&mut self, due: Due, window: Window) {
        let Some(call) = self.slots[due.sender].as_mut().filter(|c| !c.hanging_up) else { return };
        let Some(up_us) = call.answered_us else { return };
        let now_ns = self.plan.shared.clock.now_ns();
        let now_us = now_ns / 1000;
        let judged = window.judges(now_us, up_us, self.plan.hold_us.map(|hold| up_us + hold));
        let stamp = Stamp {
            sender: call.number,
            number: call.frame,
            sent_us: now_us,
            judged,
            kind: Kind::Paced,
        };
        let mut samples = [0; 160];
        stamp.write(&mut samples);
        let index = u64::from(call.frame);
        let packet = call.sender.audio(call.payload_type, index, &samples, index == 0);
        call.frame += 1;
        if call.rtp.send(&packet).is_err() {
            self.heard.refused += 1;
        }
        self.heard.sent += u64::from(judged);
        if window.holds(now_us) {
            self.heard.packets_out += 1;
            self.heard.own_lateness.add_us((now_ns - due.at_ns) / 1000);
        }
    }

    /// Takes one packet: a second, if there is one, shows in the next round.
    fn on_rtp(&mut self, slot: usize, window: Window, buffer: &mut [u8]) {
        let Some(call) = &mut self.slots[slot] else { return };
        let Ok(n) = call.rtp.recv(buffer) else { return };
        let now_us = self.plan.shared.clock.now_us();
        let Some(packet) = Packet::parse(&buffer[..n]) else { return };
        if packet.payload_type != call.payload_type {
            return;
        }
        hear(call, &mut self.heard, &packet, now_us, window.holds(now_us));
    }
}

/// A packet to a caller; `counting`: within the measured time.
fn hear(call: &mut Call, heard: &mut Heard, packet: &Packet<'_>, now_us: u64, counting: bool) {
    let before_us = call.last_packet_us.replace(now_us);
    if before_us.is_none() {
        heard.invite_to_packet.add_us(now_us.saturating_sub(call.dialled_us));
    }
    let read = Stamp::read(packet.payload);
    let speech = read != Read::Silence;
    let restart = packet.marker || (call.speech_before && !speech);
    let late_us = call.envelope.take(packet.timestamp, now_us, restart);
    if counting {
        heard.packets_in += 1;
        if !restart {
            heard.lateness.add_us(late_us);
        }
    }
    let speech_before = std::mem::replace(&mut call.speech_before, speech);
    let Some(stamp) = call.ledger.take(&mut heard.tally, read, now_us, counting) else { return };
    if !std::mem::replace(&mut call.spoken_to, true) {
        heard.invite_to_speech.add_us(now_us.saturating_sub(call.dialled_us));
    }
    if matches!(stamp.kind, Kind::Flood(_)) {
        return;
    }
    heard.flood_ends.extend(call.ledger.end_flood(&mut heard.tally));
    if !stamp.judged {
        return;
    }
    let way_us = now_us.saturating_sub(stamp.sent_us);
    match (stamp.kind, before_us) {
        (Kind::Paced, Some(before_us)) => {
            let played = played(before_us, stamp.sent_us, now_us);
            heard.tally.time(played.added_us);
            heard.slot_wait.add_us(played.wait_us);
            heard.whole_way.add_us(way_us);
            heard.underruns += u64::from(!speech_before);
        }
        _ => heard.talkspurt.add_us(way_us),
    }
}

/// An even port, as RTP wants it (RFC 3550 §11).
fn rtp_socket(local: IpAddr) -> io::Result<UdpSocket> {
    loop {
        let socket = UdpSocket::bind((local, 0))?;
        if socket.local_addr()?.port().is_multiple_of(2) {
            socket.set_nonblocking(true)?;
            return Ok(socket);
        }
    }
}
