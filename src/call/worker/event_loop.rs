//! The event loop of one worker: its own epoll, for many calls. A call stays on one worker from
//! beginning to end, so a frame passes no lock, queue or wake-up. Owns I/O and the clock.
//!
//! RTP sockets are level-triggered: each system call takes one packet, and the kernel reports any
//! that are left. The stream's socket is edge-triggered: it is read until a short read shows that
//! it is empty, or further if the peer's close may follow. All deadlines of a worker share one
//! timerfd, which is precise to well below a millisecond.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
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
use crate::call::leg::{Channel, MAX_DATAGRAM};
use crate::call::run::{Cold, Record, Running};
use crate::call::worker::inbox::{CallWaker, Inbox, InboxMessage};
use crate::call::worker::token::{Socket, Token};
use crate::stream::socket::{AiSocket, Closed, FAREWELL, Scratch};

/// With many events, they are taken together once in so long: waking up for each costs more than
/// what it is about. With fewer, nothing waits.
const GATHER: Duration = Duration::from_micros(250);
/// So many in a millisecond are many: two each time, or that of 50 calls.
const MANY: usize = 8;
/// Events taken at once: so few that what is due is never far away.
const EVENTS: usize = 64;
/// Messages of one AI before the others have their turn.
const MESSAGES: usize = 32;

/// A call on its worker.
pub(in crate::call) struct Live {
    running: Running,
    cold: Cold,
    done: oneshot::Sender<Record>,
}

impl Live {
    pub fn new(running: Running, cold: Cold, done: oneshot::Sender<Record>) -> Live {
        Live { running, cold, done }
    }
}

/// A stream that goes to its end after its call, or after its AI has closed it.
struct Leaving {
    ai: AiSocket,
    until: Instant,
    /// Whom to tell, and what, when it is over.
    done: Option<(oneshot::Sender<Record>, Record)>,
}

enum What {
    Call(Box<Live>),
    Leaving(Box<Leaving>),
}

struct Place {
    turn: u32,
    what: Option<What>,
    waker: Option<Waker>,
    /// The AI's socket is in the epoll, and whether for writing too.
    ai_watched: Option<bool>,
    /// The earliest timer that is set.
    timer: Option<Instant>,
}

pub(in crate::call) struct Worker {
    inbox: Arc<Inbox>,
    epoll: OwnedFd,
    timer: OwnedFd,
    timer_at: Option<Instant>,
    places: Vec<Place>,
    free: Vec<usize>,
    timers: BinaryHeap<Reverse<(Instant, Token)>>,
    /// AIs that have said more than one turn takes.
    talkative: Vec<Token>,
    memory: Memory,
}

/// How many events there were lately.
struct Rate {
    since: Instant,
    events: usize,
    high: bool,
}

impl Rate {
    fn new(now: Instant) -> Rate {
        Rate { since: now, events: 0, high: false }
    }

    fn count(&mut self, now: Instant, events: usize) {
        self.events += events;
        let passed = now.saturating_duration_since(self.since);
        if passed >= Duration::from_millis(1) {
            self.high = self.events as u128 * 1000 >= MANY as u128 * passed.as_micros();
            (self.since, self.events) = (now, 0);
        }
    }

    fn is_high(&self) -> bool {
        self.high
    }
}

/// What calls use one after the other.
struct Memory {
    datagram: [u8; MAX_DATAGRAM],
    scratch: Scratch,
}

/// Why a call is looked at.
#[derive(Debug, Clone, Copy)]
enum Cause {
    News,
    Timer,
    Readable(Channel),
    Ai { readable: bool, writable: bool, ending: bool },
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
            places: Vec::new(),
            free: Vec::new(),
            timers: BinaryHeap::new(),
            talkative: Vec::new(),
            memory: Memory { datagram: [0; MAX_DATAGRAM], scratch: Scratch::default() },
        })
    }

    pub fn run(mut self) {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (mut woken, mut rate) = (Instant::now(), Rate::new(Instant::now()));
        loop {
            let busy = rate.is_high();
            if busy {
                thread::sleep((woken + GATHER).saturating_duration_since(Instant::now()));
            } else {
                self.set_timer();
            }
            let at_once = busy || !self.talkative.is_empty();
            let wait = epoll::wait(&self.epoll, &mut events, at_once.then_some(&none));
            let before = std::mem::replace(&mut woken, Instant::now());
            let Ok((ready, _)) = wait else { continue };
            let mut rang = 0;
            for event in ready.iter() {
                let token = Token(event.data.u64());
                if token == Token::INBOX {
                    if self.take_news() {
                        return;
                    }
                } else if token == Token::TIMER {
                    self.timer_at = None;
                    rang = 1;
                } else {
                    self.on_socket(token, event.flags);
                }
            }
            for token in std::mem::take(&mut self.talkative) {
                self.look(token, Cause::Ai { readable: true, writable: false, ending: false });
            }
            let fired = self.fire_timers();
            // the timer is not counted twice
            let done = ready.len() - rang + fired;
            rate.count(woken, done);
            if ready.len() == EVENTS {
                // there may be more already
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
        self.look(token, cause);
    }

    /// True when the worker is to end.
    fn take_news(&mut self) -> bool {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.inbox.bell, &mut count);
        let news = self.inbox.lock().as_mut().map(std::mem::take).unwrap_or_default();
        for news in news {
            match news {
                InboxMessage::Call(live) => self.begin(live),
                InboxMessage::Woken(token) => self.look(token, Cause::News),
                InboxMessage::Stop => return true,
            }
        }
        false
    }

    fn begin(&mut self, live: Box<Live>) {
        let token = self.put(What::Call(live));
        if let Some(What::Call(live)) = &self.places[token.place()].what {
            for channel in [Channel::Rtp, Channel::Rtcp] {
                let data = Token::new(token.place(), token.turn(), channel.into());
                let socket = live.running.offer.leg.socket(channel);
                let data = EventData::new_u64(data.0);
                if let Err(error) = epoll::add(&self.epoll, socket, data, EventFlags::IN) {
                    let call = &live.running.offer.id;
                    warn!(call, %error, "a socket cannot be watched");
                }
            }
        }
        self.look(token, Cause::News);
    }

    fn put(&mut self, what: What) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            let place = Place { turn: 0, what: None, waker: None, ai_watched: None, timer: None };
            self.places.push(place);
            self.places.len() - 1
        });
        let place = &mut self.places[index];
        place.turn = place.turn.wrapping_add(1);
        (place.ai_watched, place.timer) = (None, None);
        let token = Token::new(index, place.turn, Socket::None);
        place.waker = Some(Waker::from(Arc::new(CallWaker { inbox: self.inbox.clone(), token })));
        place.what = Some(what);
        token
    }

    /// Lets a call do what its cause brings about, and sees to what follows. A panic ends this call
    /// alone.
    fn look(&mut self, token: Token, cause: Cause) {
        let index = token.place();
        let Some(place) = self.places.get_mut(index).filter(|p| p.turn == token.turn()) else {
            return;
        };
        let Some(what) = &mut place.what else { return };
        let now = Instant::now();
        let (waker, memory) = (place.waker.as_ref(), &mut self.memory);
        let looked = catch_unwind(AssertUnwindSafe(|| match what {
            What::Call(live) => {
                let more = live.on(now, cause, waker, memory);
                let ended = live.running.act(now, &mut memory.scratch);
                (ended, more, live.running.closing.take(), live.running.next_timeout())
            }
            What::Leaving(leaving) => {
                let over = leaving.on(now, cause, memory).then_some(EndReason::AiHangup);
                (over, leaving.ai.is_starved(), None, Some(leaving.until))
            }
        }));
        let Ok((ended, more, closing, at)) = looked else { return self.discard(index) };
        let call = Token::new(index, token.turn(), Socket::None);
        if more && !self.talkative.contains(&call) {
            self.talkative.push(call);
        }
        match ended {
            Some(reason) => self.end(index, now, reason),
            None => self.watch(index, token, now, at),
        }
        if let Some(ai) = closing {
            self.leave(now, *ai, None);
        }
    }

    /// A call has panicked: whoever waits for its end learns of it by its being dropped.
    fn discard(&mut self, index: usize) {
        let place = &mut self.places[index];
        place.waker = None;
        self.free.push(index);
        // half a message may be in it
        self.memory.scratch = Scratch::default();
        let what = place.what.take();
        if let Some(What::Call(_)) = what {
            self.inbox.calls.fetch_sub(1, Ordering::Relaxed);
        }
        // what has panicked once may do so again
        let _ = catch_unwind(AssertUnwindSafe(|| drop(what)));
    }

    /// A call is over, or a stream that was leaving has gone.
    fn end(&mut self, index: usize, now: Instant, reason: EndReason) {
        let place = &mut self.places[index];
        place.waker = None;
        self.free.push(index);
        match place.what.take() {
            Some(What::Call(live)) => {
                self.inbox.calls.fetch_sub(1, Ordering::Relaxed);
                let Live { running, cold, done } = *live;
                drop(cold);
                let finish = AssertUnwindSafe(|| running.finish(reason));
                let Ok((record, ai)) = catch_unwind(finish) else { return };
                match ai {
                    // the farewell to an AI that does not answer holds neither ports nor admission
                    Some(ai) => self.leave(now, ai, Some((done, record))),
                    None => drop(done.send(record)),
                }
            }
            Some(What::Leaving(leaving)) => {
                if let Some((done, record)) = leaving.done {
                    let _ = done.send(record);
                }
            }
            None => {}
        }
    }

    fn leave(
        &mut self,
        now: Instant,
        ai: AiSocket,
        done: Option<(oneshot::Sender<Record>, Record)>,
    ) {
        // it has its place in the epoll under the token of its call
        let _ = epoll::delete(&self.epoll, &ai);
        let mut leaving = Leaving { ai, until: now + FAREWELL, done };
        leaving.ai.bid_farewell();
        let token = self.put(What::Leaving(Box::new(leaving)));
        self.look(token, Cause::News);
    }

    /// Asks the kernel for what the call waits for now.
    fn watch(&mut self, index: usize, token: Token, now: Instant, at: Option<Instant>) {
        let place = &mut self.places[index];
        let ai = match &place.what {
            Some(What::Call(live)) => live.running.ai.as_ref(),
            Some(What::Leaving(leaving)) => Some(&leaving.ai),
            None => return,
        };
        let wants = ai.map(AiSocket::wants_write);
        if let (Some(ai), true) = (ai, wants != place.ai_watched) {
            let data = EventData::new_u64(Token::new(index, token.turn(), Socket::Ai).0);
            let mut flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
            flags.set(EventFlags::OUT, wants == Some(true));
            let watched = match place.ai_watched {
                None => epoll::add(&self.epoll, ai, data, flags),
                Some(_) => epoll::modify(&self.epoll, ai, data, flags),
            };
            if let (Err(error), Some(What::Call(live))) = (watched, &mut place.what) {
                live.running.on_closed(now, Closed::Failed(error.to_string()));
            }
        }
        // a socket that is gone has left the epoll by being closed
        place.ai_watched = wants;
        if let Some(at) = at.filter(|at| place.timer.is_none_or(|set| *at < set)) {
            place.timer = Some(at);
            self.timers.push(Reverse((at, token)));
        }
    }

    /// How many there were.
    fn fire_timers(&mut self) -> usize {
        let now = Instant::now();
        let mut fired = 0;
        while let Some(Reverse((at, token))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            let place = self.places.get_mut(token.place()).filter(|p| p.turn == token.turn());
            // one that an earlier one has replaced
            let Some(place) = place.filter(|p| p.timer == Some(at)) else { continue };
            place.timer = None;
            self.look(token, Cause::Timer);
            fired += 1;
        }
        fired
    }

    /// The kernel's timer is set anew only for what is earlier than it, or after it has rung.
    fn set_timer(&mut self) {
        let Some(Reverse((at, _))) = self.timers.peek() else { return };
        if self.timer_at.is_some_and(|set| set <= *at) {
            return;
        }
        self.timer_at = Some(*at);
        // zero would mean never
        let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let it_value =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = Itimerspec { it_interval, it_value };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting);
    }
}

impl Live {
    /// True when the AI has said more than one turn takes.
    fn on(
        &mut self,
        now: Instant,
        cause: Cause,
        waker: Option<&Waker>,
        memory: &mut Memory,
    ) -> bool {
        let running = &mut self.running;
        match cause {
            Cause::News => {
                let mut cx = Context::from_waker(waker.unwrap_or(Waker::noop()));
                let before = running.ai.is_some();
                running.take_news(now, &mut self.cold, &mut cx);
                if running.ai.is_some() && !before {
                    // what a quick server has sent with its answer to the handshake is read already
                    running.ai.iter_mut().for_each(|ai| ai.readable(false));
                    return running.take_messages(now, MESSAGES, &mut memory.scratch);
                }
            }
            Cause::Timer => running.on_timeout(now, &mut memory.datagram),
            Cause::Readable(channel) => {
                running.on_readable(now, channel, &mut memory.datagram);
            }
            Cause::Ai { readable, writable, ending } => {
                if let Some(ai) = running.ai.as_mut().filter(|_| writable) {
                    ai.writable();
                }
                if readable {
                    running.ai.iter_mut().for_each(|ai| ai.readable(ending));
                    return running.take_messages(now, MESSAGES, &mut memory.scratch);
                }
            }
        }
        false
    }
}

impl Leaving {
    /// True when it is over.
    fn on(&mut self, now: Instant, cause: Cause, memory: &mut Memory) -> bool {
        if let Cause::Ai { ending, .. } = cause {
            self.ai.readable(ending);
            self.ai.writable();
        }
        self.ai.farewell(now, &mut memory.scratch) || now >= self.until
    }
}
