//! The common clock, and waiting for sockets or a moment. Owns the clock, an epoll and a timer.
//!
//! A timer of its own, because epoll's timeout counts whole milliseconds on the kernels that this
//! program still runs on. It is set again only when the moment has changed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Events taken at once: few, so that what is due meanwhile does not wait long.
const BATCH: usize = 32;
/// Moments are put off to the next multiple of this, so that what falls close together is done in
/// one go: far below what is measured, and it saves most of the waking up.
const GRAIN_NS: u64 = 100_000;
/// With more calls than this the generator looks at its sockets each [`COARSE_NS`] instead of being
/// woken by each: waking a thread is the larger part of what a packet costs its *sender*, so that a
/// bridge would be charged for it. What arrives is up to so much older than its time says.
const MANY_CALLS: usize = 200;
const COARSE_NS: u64 = 500_000;

/// The generator's grain, in microseconds, for so many calls.
pub fn grain_us(calls: usize) -> u64 {
    (if calls > MANY_CALLS { COARSE_NS } else { GRAIN_NS }) / 1000
}
const TIMER: u64 = u64::MAX;

/// Nanoseconds and microseconds since the common start.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    pub fn now_ns(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }

    pub fn now_us(self) -> u64 {
        self.now_ns() / 1000
    }

    /// For what counts in instants.
    pub fn instant_ns(self, at: Instant) -> u64 {
        at.saturating_duration_since(self.0).as_nanos() as u64
    }
}

pub struct Waiting {
    epoll: OwnedFd,
    timer: OwnedFd,
    armed_ns: Option<u64>,
    events: Vec<Event>,
    grain_ns: u64,
    /// All events there were have not been taken.
    more: bool,
}

impl Waiting {
    /// # Errors
    /// When the kernel has no more descriptors.
    pub fn new(calls: usize) -> io::Result<Waiting> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        let events = Vec::with_capacity(BATCH);
        let grain_ns = grain_us(calls) * 1000;
        Ok(Waiting { epoll, timer, armed_ns: None, events, grain_ns, more: false })
    }

    /// Watches a socket for reading, under a number of the owner's. Closing it ends that.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn watch(&self, socket: &impl AsFd, number: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(number), EventFlags::IN)?)
    }

    /// Whether it is watched for writing too.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn watch_writing(&self, socket: &impl AsFd, number: u64, on: bool) -> io::Result<()> {
        let flags = if on { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(number), flags)?)
    }

    /// Waits until a socket is ready or the moment has come, and writes down which are ready.
    ///
    /// # Errors
    /// What the kernel says, an interruption aside.
    pub fn wait(&mut self, clock: Clock, until_ns: u64, ready: &mut Vec<u64>) -> io::Result<()> {
        ready.clear();
        let coarse = self.grain_ns > GRAIN_NS;
        let until_ns = until_ns.next_multiple_of(self.grain_ns);
        if coarse && !self.more {
            let now_ns = clock.now_ns();
            thread::sleep(Duration::from_nanos(
                (now_ns + 1).next_multiple_of(self.grain_ns) - now_ns,
            ));
        } else if !coarse && self.armed_ns != Some(until_ns) {
            let left = until_ns.saturating_sub(clock.now_ns()).max(1);
            let left = Timespec {
                tv_sec: (left / 1_000_000_000) as i64,
                tv_nsec: (left % 1_000_000_000) as i64,
            };
            let once = Itimerspec { it_interval: Timespec::default(), it_value: left };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
            self.armed_ns = Some(until_ns);
        }
        self.events.clear();
        let at_once = Timespec::default();
        let timeout = coarse.then_some(&at_once);
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout) {
            Ok(count) => self.more = count == BATCH,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(why) => return Err(why.into()),
        }
        for event in &self.events {
            let data = event.data;
            match data.u64() {
                // it stays ready until it is set again
                TIMER => self.armed_ns = None,
                number => ready.push(number),
            }
        }
        Ok(())
    }
}
