//! Connections to an AI that are open before a call needs one: name lookup, TCP, TLS and the
//! WebSocket handshake are then behind it. Nothing is said on them; what the AI sends by itself is
//! kept for the call. Owns a task, which looks at them once a second, and I/O.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tracing::warn;

use crate::stream::breaker::Breaker;
use crate::stream::connect::{MAX_MESSAGE_BYTES, Socket, Target};
use crate::stream::frames::{Control, Frames, Next, control, write_ping};
use crate::stream::liveness::Liveness;
use crate::telemetry::counter::counters;

/// Interval between two looks at the connections.
const LOOK: Duration = Duration::from_secs(1);
/// Time limit of a connection attempt.
const LIMIT: Duration = Duration::from_secs(5);
/// An older connection is replaced: sessions of vendors end by their age.
const MAX_AGE: Duration = Duration::from_secs(300);
/// An AI that closes connections sooner than this does not want to be connected early.
const SHORT: Duration = Duration::from_secs(30);
/// Time limit for the answer to a ping, before a call takes a connection.
const PROOF: Duration = Duration::from_millis(300);
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// An AI sends less than this by itself.
const MAX_HELD: usize = 64 * 1024;

counters! {
    gauge OPEN = "ai_prewarmed", "Connections to AIs that are open for the next calls.";
    total USED = "ai_prewarmed_calls", "Calls that found a connection to their AI open.";
    total CLOSED = "ai_prewarmed_closed", "Connections kept open for calls that the AI has closed.";
}

/// A connection that no call uses yet.
struct Idle {
    socket: Box<Socket>,
    /// Whole and incomplete frames that have arrived.
    held: Vec<u8>,
    /// The bytes of `held` that have been looked at.
    seen: usize,
    frames: Frames,
    since: Instant,
    /// When something was last received.
    heard: Instant,
    liveness: Liveness,
}

impl Idle {
    fn new(socket: Socket, ping: Duration) -> Idle {
        let (mut socket, now) = (Box::new(socket), Instant::now());
        OPEN.add(1);
        Idle {
            held: socket.get_mut().begin(),
            socket,
            seen: 0,
            frames: Frames::new(MAX_MESSAGE_BYTES),
            since: now,
            heard: now,
            liveness: Liveness::new(now.into_std(), ping),
        }
    }

    /// Reads what has arrived, and answers pings.
    ///
    /// # Errors
    /// Returns an error if a call cannot use the connection any more.
    fn look(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let mut buffer = [0; 4096];
        loop {
            // the end of the stream may be behind the data
            self.socket.get_mut().readable_at_length();
            match self.socket.get_mut().receive(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.held.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            self.heard = now;
            self.liveness.on_data(now.into_std());
            if self.held.len() > MAX_HELD {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        self.take_control_frames()?;
        if self.liveness.is_dead(now.into_std()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if self.liveness.takes_ping(now.into_std()) {
            self.ping()?;
        }
        match self.socket.get_mut().flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    fn ping(&mut self) -> io::Result<()> {
        let (mut ping, mut mask) = (Vec::new(), [0; 4]);
        // if this fails, the mask is guessable, which does no harm here
        let _ = getrandom::fill(&mut mask);
        write_ping(mask, &mut ping);
        self.socket.get_mut().send(&ping).map(drop)
    }

    /// Sends a ping, and waits until something comes back: a firewall or a host may have forgotten
    /// the connection.
    ///
    /// # Errors
    /// Returns an error if a call cannot use the connection any more.
    async fn prove(&mut self) -> io::Result<()> {
        let asked = Instant::now();
        self.ping()?;
        let watched = self.socket.get_ref().as_fd().try_clone_to_owned()?;
        let watched = TcpStream::from_std(watched.into())?;
        let answer = async {
            while self.heard <= asked {
                watched.readable().await?;
                // clears the readiness before the look, so that nothing in between is missed
                let blocks = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = watched.try_io(Interest::READABLE, blocks);
                self.look()?;
            }
            Ok(())
        };
        timeout(PROOF, answer).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Has the library handle the control frames, and leaves the messages for the call.
    fn take_control_frames(&mut self) -> io::Result<()> {
        loop {
            let rest = &self.held[self.seen..];
            let taken = match self.frames.next(rest) {
                Next::Partial => return Ok(()),
                Next::Bad => return Err(io::ErrorKind::InvalidData.into()),
                Next::Whole { taken, .. } | Next::Frame { taken } => taken,
            };
            match control(rest) {
                None => self.seen += taken,
                Some(Control::Close) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Some(Control::Other) => {
                    self.socket.get_mut().give(&rest[..taken]);
                    // it answers a ping
                    let _ = self.socket.read();
                    let _ = self.socket.flush();
                    self.held.drain(self.seen..self.seen + taken);
                }
            }
        }
    }

    fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Gives the connection to a call.
    fn into_socket(mut self) -> Socket {
        self.socket.get_mut().put_back(std::mem::take(&mut self.held));
        *self.socket
    }

    /// The AI may not wait for the end of the closing handshake, and neither do we.
    fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = self.socket.close(Some(frame));
        let _ = self.socket.flush();
    }
}

/// The connections of one AI. All its calls share them.
pub struct Prewarmed {
    target: Target,
    size: usize,
    /// A quiet connection is sent a ping after this long; zero = never.
    ping: Duration,
    breaker: Arc<Breaker>,
    idle: Mutex<VecDeque<Idle>>,
    /// Wakes the task when a connection was taken, and when there are no more calls.
    taken: Arc<Notify>,
}

impl Prewarmed {
    /// Keeps `size` connections open until this is dropped. Must be called within a runtime.
    pub fn start(
        target: Target,
        size: usize,
        ping: Duration,
        breaker: Arc<Breaker>,
    ) -> Arc<Prewarmed> {
        let (idle, taken) = (Mutex::default(), Arc::new(Notify::new()));
        let all = Arc::new(Prewarmed { target, size, ping, breaker, idle, taken });
        tokio::spawn(keep(Arc::downgrade(&all), all.taken.clone()));
        all
    }

    /// A panic in another thread leaves it consistent, so poisoning is ignored.
    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a connection that works, if there is one.
    pub async fn take(&self) -> Option<Socket> {
        let (began, mut idle) = (Instant::now(), self.pop()?);
        // without pings, the kernel's probes have to do
        let proof = match self.ping.is_zero() {
            true => idle.look(),
            false => idle.prove().await,
        };
        if proof.is_ok() {
            USED.add(1);
            return Some(idle.into_socket());
        }
        // others of its age are no better
        let mut all = self.idle();
        let before = all.len();
        all.retain(|idle| idle.since > began);
        let lost = (before - all.len()) as u64;
        OPEN.replace(lost, 0);
        CLOSED.add(1 + lost);
        None
    }

    fn has_some(&self) -> bool {
        !self.idle().is_empty()
    }

    fn pop(&self) -> Option<Idle> {
        let idle = self.idle().pop_front()?;
        OPEN.replace(1, 0);
        self.taken.notify_one();
        Some(idle)
    }

    /// Drops the connections that the AI has closed, and closes old ones. Returns the age of the
    /// youngest one that the AI has closed.
    fn look(&self) -> Option<Duration> {
        let (mut lost, mut all) = (None, self.idle());
        for _ in 0..all.len() {
            let Some(mut idle) = all.pop_front() else { break };
            let fails = idle.look().is_err();
            if !fails && idle.age() < MAX_AGE {
                all.push_back(idle);
                continue;
            }
            OPEN.replace(1, 0);
            if fails {
                CLOSED.add(1);
                lost = Some(lost.unwrap_or(Duration::MAX).min(idle.age()));
            } else {
                idle.close();
            }
        }
        lost
    }

    /// Opens a connection if one is missing. Returns true if it did.
    async fn fill(&self) -> Result<bool, String> {
        if self.idle().len() >= self.size || self.breaker.is_open() {
            return Ok(false);
        }
        let socket = self.target.connect_once(LIMIT).await.map_err(|error| error.to_string())?;
        self.idle().push_back(Idle::new(socket, self.ping));
        Ok(true)
    }
}

impl Drop for Prewarmed {
    fn drop(&mut self) {
        let all = std::mem::take(self.idle.get_mut().unwrap_or_else(PoisonError::into_inner));
        OPEN.replace(all.len() as u64, 0);
        all.into_iter().for_each(Idle::close);
        self.taken.notify_one();
    }
}

/// Looks after the connections until there are no more calls that could use them.
async fn keep(all: Weak<Prewarmed>, taken: Arc<Notify>) {
    let (mut pause, mut trouble, mut warned) = (Duration::ZERO, None::<Instant>, false);
    while let Some(all) = all.upgrade() {
        let lost = all.look().filter(|age| *age < SHORT);
        let calm = trouble.is_none_or(|at| at.elapsed() >= pause);
        let filled = match lost {
            Some(age) => {
                let age = age.as_secs();
                Err(format!("the AI closes connections that no call uses after {age} s"))
            }
            None if calm => all.fill().await,
            None => Ok(false),
        };
        if let Err(why) = &filled {
            (pause, trouble) = ((2 * pause).clamp(LOOK, MAX_PAUSE), Some(Instant::now()));
            if !std::mem::replace(&mut warned, true) {
                let ai = all.target.shown();
                warn!(ai, "no connection is kept open for the next calls: {why}; calls dial it");
            }
        } else if trouble.is_some_and(|at| at.elapsed() >= pause + SHORT) && all.has_some() {
            (pause, trouble, warned) = (Duration::ZERO, None, false);
        }
        drop(all);
        if filled != Ok(true) {
            let _ = timeout(LOOK, taken.notified()).await;
        }
    }
}
