//! The common clock, and waiting for sockets or a point in time. Owns the clock, an epoll and a
//! timer.
//!
//! A separate timer is used because on the older kernels that this program supports, epoll's
//! timeout has a resolution of one millisecond. The timer is set only when the time has changed.

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

/// Events taken at a time. Few, so that frames due in the meantime do not wait long.
const BATCH: usize = 32;
/// Wake-up times are rounded up to a multiple of this, so that events close together are handled in
/// one go. It is far below the times that are measured, and saves most of the wake-ups.
const GRAIN_NS: u64 = 100_000;
/// With more calls than this, the generator polls its sockets every [`COARSE_NS`] instead of being
/// woken by each packet. Waking a thread is the larger part of what a packet costs its *sender*, so
/// the bridge would be charged for it.
const MANY_CALLS: usize = 200;
/// Polling interval with many calls. Arrival times are late by up to this much.
const COARSE_NS: u64 = 500_000;

/// Longest wait: each thread then checks the phase of the measurement again.
pub const IDLE_NS: u64 = 5_000_000;
/// A thread that has not seen all events for longer than this was held up.
const PAUSE_NS: u64 = IDLE_NS + 2_000_000;
/// A frame sent later than this is marked as late by the generator's own fault.
pub const SENT_LATE_NS: u64 = 2_000_000;

/// Returns the time resolution of the generator with this many calls.
pub fn grain_ns(calls: usize) -> u64 {
    if calls > MANY_CALLS { COARSE_NS } else { GRAIN_NS }
}
/// The timer's number in epoll.
const TIMER: u64 = u64::MAX;

/// Time since the common start.
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

    /// Converts an `Instant` to nanoseconds of this clock.
    pub fn instant_ns(self, at: Instant) -> u64 {
        at.saturating_duration_since(self.0).as_nanos() as u64
    }
}

/// Waits for sockets or a point in time.
pub struct Waiting {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// Time the timer is set to; `None` if it is not set or has fired.
    armed_ns: Option<u64>,
    /// Buffer for the events of one call to epoll.
    events: Vec<Event>,
    /// Time resolution: [`GRAIN_NS`], or [`COARSE_NS`] with many calls.
    grain_ns: u64,
    /// True if the last batch was full, so that more events may be pending.
    more: bool,
    /// Time at which no more events were pending.
    all_seen_ns: u64,
    /// True if this thread has just been held up, or cannot keep up with what arrives: the times at
    /// which it reads prove nothing.
    pub was_held_up: bool,
}

impl Waiting {
    /// # Errors
    /// Returns an error if the kernel cannot create the descriptors.
    pub fn new(calls: usize) -> io::Result<Waiting> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        let events = Vec::with_capacity(BATCH);
        let grain_ns = grain_ns(calls);
        Ok(Waiting {
            epoll,
            timer,
            armed_ns: None,
            events,
            grain_ns,
            more: false,
            all_seen_ns: u64::MAX,
            was_held_up: false,
        })
    }

    /// Watches a socket for reading, under the caller's `number`, until the socket is closed.
    ///
    /// # Errors
    /// Returns any error of epoll_ctl(2).
    pub fn watch(&self, socket: &impl AsFd, number: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(number), EventFlags::IN)?)
    }

    /// Changes what a socket is watched for.
    ///
    /// # Errors
    /// Returns any error of epoll_ctl(2).
    pub fn watch_for(
        &self,
        socket: &impl AsFd,
        number: u64,
        reading: bool,
        writing: bool,
    ) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, reading);
        flags.set(EventFlags::OUT, writing);
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(number), flags)?)
    }

    /// Waits until a socket is ready or `until_ns` is reached, and fills `ready` with the numbers
    /// of the ready sockets. With many calls, it returns at the next polling interval in any case.
    ///
    /// # Errors
    /// Returns any I/O error from the kernel except EINTR.
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
        let now_ns = clock.now_ns();
        self.was_held_up = now_ns.saturating_sub(self.all_seen_ns) > PAUSE_NS;
        if !self.more {
            self.all_seen_ns = now_ns;
        }
        for event in &self.events {
            let data = event.data;
            match data.u64() {
                // the timer stays readable until it is set again
                TIMER => self.armed_ns = None,
                number => ready.push(number),
            }
        }
        Ok(())
    }
}
