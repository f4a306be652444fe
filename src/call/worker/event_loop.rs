//! The event loop of one worker, with its own epoll for many calls. A call stays on one worker from
//! beginning to end, so its frames need no lock, queue or wake-up. Owns I/O and the clock.
//!
//! RTP sockets are level-triggered: each system call takes one packet, and the kernel reports the
//! socket again if there are more. The AI's socket is edge-triggered: it is read until a short read
//! shows that it is empty, and further if the peer's close may follow. All deadlines of a worker
//! share one timerfd, which is precise to well below a millisecond.

mod occupants;
mod recovery;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::sync::oneshot;
use tracing::warn;

use crate::call::end::EndReason;
use crate::call::ended::Record;
use crate::call::fault_point::fault_point;
use crate::call::leg::{Channel, MAX_DATAGRAM};
use crate::call::worker::delays::{Delays, Direction};
use crate::call::worker::inbox::{CallWaker, Counted, Inbox, InboxMessage};
use crate::call::worker::rare_events::RareEvents;
use crate::call::worker::rate::Rate;
use crate::call::worker::task::Running;
use crate::call::worker::token::{Socket, Token};
use crate::stream::closed::Closed;
use crate::stream::scratch::Scratch;
use crate::stream::socket::{AiSocket, FAREWELL};

/// Under load, events are batched at this interval, because waking for each one costs more than
/// handling it. Otherwise, events are handled at once.
const BATCH_INTERVAL: Duration = Duration::from_micros(250);
/// At most this many events are taken from the kernel at once, so that due timers are not late.
const MAX_EVENTS: usize = 64;
/// When a deadline that is still in the past after it was handled is handled again.
const UNMOVED: Duration = Duration::from_millis(1);
/// A deadline missed by more than this means that the process stood still: its host stopped it.
const STANDSTILL: Duration = Duration::from_millis(200);
/// Messages read from one AI before the other calls get their turn.
pub(super) const MAX_MESSAGES: usize = 32;

/// A call on its worker.
pub(in crate::call) struct Live {
    running: Running,
    rare_events: RareEvents,
    /// Receives the record when the call is over.
    done: oneshot::Sender<Record>,
    /// `None` until a worker has been chosen.
    pub(super) counted: Option<Counted>,
}

impl Live {
    pub(super) fn new(
        running: Running,
        rare_events: RareEvents,
        done: oneshot::Sender<Record>,
    ) -> Live {
        Live { running, rare_events, done, counted: None }
    }
}

/// An AI's stream that is being closed, after its call ended or the AI closed it.
struct Leaving {
    ai: AiSocket,
    /// When to give up and drop the stream.
    until: Instant,
    /// The record to send once the stream is closed; `None` if the call sends it itself.
    done: Option<(oneshot::Sender<Record>, Record)>,
}

/// The occupant of a slot.
enum Occupant {
    Call(Box<Live>),
    Leaving(Box<Leaving>),
}

/// An entry in the worker's table of calls and closing streams.
struct CallSlot {
    /// Changes with every occupant, so that events of an earlier one are recognized.
    generation: u32,
    /// `None` while the slot is free.
    occupant: Option<Occupant>,
    /// Wakes the occupant.
    waker: Option<Waker>,
    /// `None` if the AI's socket is not in the epoll; true if it is watched for writing too.
    ai_watched: Option<bool>,
    /// The earliest entry for the occupant in `timers`. Its other entries are outdated.
    timer: Option<Instant>,
    /// When the occupant is due. Most events move this later, and the entry is not replaced.
    due: Option<Instant>,
}

/// The event loop and its calls.
pub(in crate::call) struct Worker {
    inbox: Arc<Inbox>,
    epoll: OwnedFd,
    /// A timerfd in the epoll.
    timer: OwnedFd,
    /// The time that `timer` is set to.
    timer_at: Option<Instant>,
    slots: Vec<CallSlot>,
    /// Indexes of the free slots.
    free: Vec<usize>,
    /// The deadlines of all slots, earliest first.
    timers: BinaryHeap<Reverse<(Instant, Token)>>,
    /// Slots whose AI has sent, or is to be sent, more than one turn allows.
    starved: Vec<Token>,
    /// Messages taken from the inbox and not handled yet.
    messages: VecDeque<InboxMessage>,
    /// The slot that is being handled. After a panic, its occupant is the one to end.
    handled: Option<usize>,
    buffers: Buffers,
    delays: Delays,
}

/// Buffers that all calls of the worker use in turn.
pub(super) struct Buffers {
    pub datagram: [u8; MAX_DATAGRAM],
    pub scratch: Scratch,
}

/// The event for which a slot is handled.
#[derive(Debug, Clone, Copy)]
enum Cause {
    /// The occupant is new, or has been woken.
    Woken,
    /// The deadline has passed.
    Timer,
    Readable(Channel),
    /// `ending`: the AI's host sends nothing more, or the connection failed.
    Ai {
        readable: bool,
        writable: bool,
        ending: bool,
    },
}

impl Cause {
    /// The direction of the audio that such an event usually moves.
    fn direction(self) -> Option<Direction> {
        match self {
            Cause::Readable(Channel::Rtp) => Some(Direction::ToAi),
            Cause::Timer => Some(Direction::ToCaller),
            _ => None,
        }
    }
}

impl Worker {
    pub fn new(inbox: Arc<Inbox>) -> io::Result<Worker> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &inbox.bell, EventData::new_u64(Token::INBOX.0), EventFlags::IN)?;
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &timer, EventData::new_u64(Token::TIMER.0), edge)?;
        Ok(Worker {
            inbox,
            epoll,
            timer,
            timer_at: None,
            slots: Vec::new(),
            free: Vec::new(),
            timers: BinaryHeap::new(),
            starved: Vec::new(),
            messages: VecDeque::new(),
            handled: None,
            delays: Delays::default(),
            buffers: Buffers { datagram: [0; MAX_DATAGRAM], scratch: Scratch::default() },
        })
    }

    /// Runs until the worker has to end. After a panic, call [`Worker::recover`] before this.
    pub fn run(&mut self) {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); MAX_EVENTS];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (mut woken, mut rate) = (Instant::now(), Rate::new(Instant::now()));
        loop {
            let busy = rate.is_high();
            if busy {
                thread::sleep((woken + BATCH_INTERVAL).saturating_duration_since(Instant::now()));
            } else {
                self.set_timer();
            }
            let at_once = busy || !self.starved.is_empty();
            let wait = epoll::wait(&self.epoll, &mut events, at_once.then_some(&no_wait));
            let before = std::mem::replace(&mut woken, Instant::now());
            let Ok((ready, _)) = wait else { continue };
            let mut timer_events = 0;
            for event in ready.iter() {
                let token = Token(event.data.u64());
                if token == Token::INBOX {
                    if self.take_inbox() {
                        return;
                    }
                } else if token == Token::TIMER {
                    self.timer_at = None;
                    timer_events = 1;
                } else {
                    self.on_socket(token, event.flags);
                }
            }
            for token in std::mem::take(&mut self.starved) {
                self.handle(token, Cause::Ai { readable: true, writable: false, ending: false });
            }
            let fired = self.fire_timers();
            // instead of the timerfd's own event, the timers that fired are counted
            let handled = ready.len() - timer_events + fired;
            rate.count(woken, handled);
            if ready.len() == MAX_EVENTS {
                // more events may be ready, so the interval to the next batch is not restarted
                woken = before;
            }
        }
    }

    fn on_socket(&mut self, token: Token, flags: EventFlags) {
        let cause = match token.socket() {
            Socket::Rtp => Cause::Readable(Channel::Rtp),
            Socket::Rtcp => Cause::Readable(Channel::Rtcp),
            _ => Cause::Ai {
                readable: flags != EventFlags::OUT,
                ending: flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
                writable: flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP),
            },
        };
        self.handle(token, cause);
    }

    /// Handles the messages in the inbox. Returns true if the worker has to end.
    fn take_inbox(&mut self) -> bool {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.inbox.bell, &mut count);
        self.messages.extend(std::mem::take(&mut *self.inbox.lock()));
        while let Some(message) = self.messages.pop_front() {
            match message {
                InboxMessage::Call(live) => self.begin(live),
                InboxMessage::Woken(token) => self.handle(token, Cause::Woken),
                InboxMessage::Stop => return true,
            }
        }
        false
    }

    /// Puts a new call into a slot and starts it.
    fn begin(&mut self, live: Box<Live>) {
        fault_point("begin", live.running.offer.added.entries());
        let token = self.put(Occupant::Call(live));
        self.handled = Some(token.slot());
        if let Some(Occupant::Call(live)) = &self.slots[token.slot()].occupant {
            for channel in [Channel::Rtp, Channel::Rtcp] {
                let data = Token::new(token.slot(), token.generation(), channel.into());
                let socket = live.running.offer.leg.socket(channel);
                let data = EventData::new_u64(data.0);
                if let Err(error) = epoll::add(&self.epoll, socket, data, EventFlags::IN) {
                    let call = &live.running.offer.id;
                    warn!(call, %error, "media socket cannot be watched");
                }
            }
        }
        self.handle(token, Cause::Woken);
    }

    /// Puts an occupant into a free slot and returns its token.
    fn put(&mut self, occupant: Occupant) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            let slot = CallSlot {
                generation: 0,
                occupant: None,
                waker: None,
                ai_watched: None,
                timer: None,
                due: None,
            };
            self.slots.push(slot);
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        (slot.ai_watched, slot.timer, slot.due) = (None, None, None);
        let token = Token::new(index, slot.generation, Socket::None);
        slot.waker = Some(Waker::from(Arc::new(CallWaker { inbox: self.inbox.clone(), token })));
        slot.occupant = Some(occupant);
        token
    }

    /// Handles one event of a slot, and then what follows from it: new deadlines, sockets to watch,
    /// the end of the call.
    fn handle(&mut self, token: Token, cause: Cause) {
        let index = token.slot();
        let Some(slot) = self.slots.get_mut(index).filter(|s| s.generation == token.generation())
        else {
            return;
        };
        let Some(occupant) = &mut slot.occupant else { return };
        self.handled = Some(index);
        let now = Instant::now();
        let (waker, buffers) = (slot.waker.as_ref(), &mut self.buffers);
        let (ended, more, closing, at, is_new) = match occupant {
            Occupant::Call(live) => {
                fault_point("handle", live.running.offer.added.entries());
                let late =
                    slot.due.map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
                if late > STANDSTILL {
                    self.delays.stood_still(now, late);
                    live.running.stood_still(now, late, buffers);
                }
                let direction = cause.direction().filter(|_| self.delays.samples());
                let more = live.on(now, cause, waker, buffers);
                let mut ended = live.running.act(now, &mut buffers.scratch);
                direction.iter().for_each(|way| Delays::handled(*way, now, late));
                while ended.is_none() && live.dials_again(now, waker) {
                    ended = live.running.act(now, &mut buffers.scratch);
                }
                let running = &mut live.running;
                let is_new = std::mem::take(&mut running.ai_is_new);
                // what has arrived with the connection is read, too
                let more = more || is_new || running.ai.as_ref().is_some_and(AiSocket::has_backlog);
                (ended, more, running.closing.take(), running.next_timeout(), is_new)
            }
            Occupant::Leaving(leaving) => {
                let over = leaving.on(now, cause, buffers).then_some(EndReason::AiHangup);
                let more = leaving.ai.is_starved() || leaving.ai.has_backlog();
                (over, more, None, Some(leaving.until), false)
            }
        };
        if is_new {
            // another socket may have been watched before
            slot.ai_watched = None;
        }
        let call = Token::new(index, token.generation(), Socket::None);
        if more && !self.starved.contains(&call) {
            self.starved.push(call);
        }
        match ended {
            Some(reason) => self.end(index, now, reason),
            None => self.watch(index, token, now, at),
        }
        if let Some(ai) = closing {
            self.leave(now, *ai, None);
        }
        self.handled = None;
    }

    /// Frees the slot of a call that is over, or of a stream that is closed.
    fn end(&mut self, index: usize, now: Instant, reason: EndReason) {
        let slot = &mut self.slots[index];
        slot.waker = None;
        self.free.push(index);
        match slot.occupant.take() {
            Some(Occupant::Call(live)) => {
                let Live { running, rare_events, done, counted } = *live;
                drop((rare_events, counted));
                fault_point("finish", running.offer.added.entries());
                let (record, ai) = running.finish(reason);
                match ai {
                    // closing the stream of an unresponsive AI holds neither ports nor permit
                    Some(ai) => self.leave(now, ai, Some((done, record))),
                    None => drop(done.send(record)),
                }
            }
            Some(Occupant::Leaving(leaving)) => {
                if let Some((done, record)) = leaving.done {
                    let _ = done.send(record);
                }
            }
            None => {}
        }
    }

    /// Starts closing an AI's stream, in a separate slot.
    fn leave(
        &mut self,
        now: Instant,
        ai: AiSocket,
        done: Option<(oneshot::Sender<Record>, Record)>,
    ) {
        // the epoll still has it under its call's token
        let _ = epoll::delete(&self.epoll, &ai);
        let mut leaving = Leaving { ai, until: now + FAREWELL, done };
        leaving.ai.bid_farewell();
        let token = self.put(Occupant::Leaving(Box::new(leaving)));
        self.handle(token, Cause::Woken);
    }

    /// Has the kernel report what the occupant is waiting for: its AI's socket and its deadline.
    fn watch(&mut self, index: usize, token: Token, now: Instant, at: Option<Instant>) {
        let slot = &mut self.slots[index];
        if let Some(Occupant::Call(live)) = &slot.occupant {
            fault_point("watch", live.running.offer.added.entries());
        }
        let ai = match &slot.occupant {
            Some(Occupant::Call(live)) => live.running.ai.as_ref(),
            Some(Occupant::Leaving(leaving)) => Some(&leaving.ai),
            None => return,
        };
        let wants = ai.map(AiSocket::wants_write);
        if let (Some(ai), true) = (ai, wants != slot.ai_watched) {
            let data = EventData::new_u64(Token::new(index, token.generation(), Socket::Ai).0);
            let mut flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
            flags.set(EventFlags::OUT, wants == Some(true));
            let watched = match slot.ai_watched {
                None => epoll::add(&self.epoll, ai, data, flags),
                Some(_) => epoll::modify(&self.epoll, ai, data, flags),
            };
            if let (Err(error), Some(Occupant::Call(live))) = (watched, &mut slot.occupant) {
                live.running.on_closed(now, Closed::Failed(error.to_string()));
            }
        }
        // if the socket is gone, closing it has removed it from the epoll
        slot.ai_watched = wants;
        // a deadline that handling has not moved must not block the other calls
        let at = at.map(|at| if at > now { at } else { now + UNMOVED });
        slot.due = at;
        if let Some(at) = at.filter(|at| slot.timer.is_none_or(|set| *at < set)) {
            slot.timer = Some(at);
            self.timers.push(Reverse((at, token)));
        }
    }

    /// Handles all timers that are due; returns their number.
    fn fire_timers(&mut self) -> usize {
        let now = Instant::now();
        let mut fired = 0;
        while let Some(Reverse((at, token))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            let slot =
                self.slots.get_mut(token.slot()).filter(|s| s.generation == token.generation());
            // an outdated entry: an earlier deadline replaced it
            let Some(slot) = slot.filter(|s| s.timer == Some(at)) else { continue };
            slot.timer = slot.due.filter(|due| *due > now);
            if let Some(due) = slot.timer {
                self.timers.push(Reverse((due, token)));
                continue;
            }
            self.handle(token, Cause::Timer);
            fired += 1;
        }
        fired
    }

    /// Sets the timerfd to the earliest deadline, unless it already fires by then.
    fn set_timer(&mut self) {
        let Some(Reverse((at, _))) = self.timers.peek() else { return };
        if self.timer_at.is_some_and(|set| set <= *at) {
            return;
        }
        self.timer_at = Some(*at);
        // zero would disarm it
        let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let it_value =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = Itimerspec { it_interval, it_value };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting);
    }
}
