//! One measurement: the bridge is started, calls come, the measured time passes, all ends in order.
//! Owns the threads, the sockets' addresses and the clock.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::bench::ai::{self, Ai, Said};
use crate::bench::ari::Ari;
use crate::bench::bridge::{Bridge, Folder};
use crate::bench::callers::{self, Callers, Heard};
use crate::bench::launch::{self, PASSWORD, USERNAME};
use crate::bench::outcome::{self, Outcome, Sample};
use crate::bench::process;
use crate::bench::report::Report;
use crate::bench::shared::{Phase, Shared};
use crate::bench::signalling::Signalling;
use crate::bench::telephony::{Callee, Telephony};
use crate::bench::trace::{Traced, count_system_calls};
use crate::bench::waiting::Clock;
use crate::peer::registrar::Registrar;

/// Where callers and AI are, and where the bridge is told to be: all of 127/8 is this machine.
const OWN: [u8; 4] = [127, 0, 9, 1];
const BRIDGE: [u8; 4] = [127, 0, 64, 2];
const READY: Duration = Duration::from_secs(15);
/// From the last answer to the measured time.
const SETTLE: Duration = Duration::from_secs(1);
/// Until the last frames must have arrived.
const TAIL: Duration = Duration::from_millis(1500);
const LOOK: Duration = Duration::from_millis(5);

/// What is measured.
#[derive(Debug, Clone)]
pub enum Program {
    /// This program's `run`, with this configuration; `None`: one of our own.
    Trunkless { binary: PathBuf, config: Option<PathBuf> },
    /// Another, by `sh -c`. Unless it registers, it is called after `settle`.
    Other { command: String, settle: Duration },
}

/// What the bridge speaks with the PBX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    Sip,
    Ari,
}

/// A real PBX between callers and bridge.
#[derive(Debug, Clone)]
pub struct Pbx {
    pub address: SocketAddr,
    pub extension: String,
    /// What the bridge's log says when it is ready for calls.
    pub ready: &'static str,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// At once.
    pub calls: u32,
    /// Of the measured time.
    pub seconds: f64,
    /// Calls set up a second.
    pub rate: f64,
    /// Calls last so long and are followed by others.
    pub hold: Option<Duration>,
    pub record: bool,
    pub source: Source,
    pub program: Program,
    pub pbx: Option<Pbx>,
}

/// Measures once.
///
/// # Errors
/// When the bridge does not come up, or `cancelled`, or something of ours fails.
pub fn run(options: &Options, cancelled: &AtomicBool) -> io::Result<Report> {
    raise_file_limit(u64::from(options.calls));
    let folder = Folder::make()?;
    let mut running = Running::start(options, cancelled, &folder)?;
    let start_ms = running.ready()?;
    let processes = process::tree(running.bridge.id());
    let before = process::usage(&processes);
    running.shared.enter(Phase::Dial);
    let (at_open, at_close, traced) = match options.hold {
        None => running.steady()?,
        Some(hold) => running.churn(hold)?,
    };
    running.hang_up()?;
    running.shared.enter(Phase::Stop);
    let (heard, said) = running.threads()?;
    let exit_code = running.bridge.terminate(Duration::from_secs(20));
    let own = matches!(options.program, Program::Trunkless { .. });
    if own && exit_code.is_none() {
        return Err(io::Error::other("the bridge did not end within 20 s of SIGTERM"));
    }
    let window = at_open.at..at_close.at;
    // in churn each is as long as its call
    let seconds = options.hold.map_or(options.seconds, |hold| hold.as_secs_f64());
    let recordings = options
        .record
        .then(|| outcome::complete_recordings(&folder.path().join("recordings"), seconds));
    let binary = match &options.program {
        Program::Trunkless { binary, .. } => std::fs::metadata(binary).ok().map(|m| m.len()),
        Program::Other { .. } => None,
    };
    let outcome = Outcome {
        seconds: (window.end - window.start).as_secs_f64(),
        start_ms,
        binary_bytes: binary,
        before,
        at_open,
        at_close,
        traced,
        exit_code: exit_code.filter(|_| own),
        recordings_complete: recordings.transpose()?,
    };
    Ok(outcome::report(options, outcome, heard, said))
}

struct Running<'a> {
    options: &'a Options,
    cancelled: &'a AtomicBool,
    shared: Arc<Shared>,
    bridge: Bridge,
    callers: Option<JoinHandle<io::Result<Heard>>>,
    ai: Option<JoinHandle<io::Result<Said>>>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.enter(Phase::Stop);
        let _ = self.callers.take().map(JoinHandle::join);
        let _ = self.ai.take().map(JoinHandle::join);
    }
}

impl<'a> Running<'a> {
    fn start(
        options: &'a Options,
        cancelled: &'a AtomicBool,
        folder: &Folder,
    ) -> io::Result<Running<'a>> {
        let own = IpAddr::from(OWN);
        let shared = Arc::new(Shared::new(Clock::start()));
        let listener = TcpListener::bind((own, 0))?;
        let url = format!("ws://{}", listener.local_addr()?);
        let listen = free_port()?;
        let (signalling, pbx) = signalling(options, own, listen)?;
        let calls = options.calls as usize;
        let hold_us = options.hold.map(|hold| hold.as_micros() as u64);
        let callers = Callers {
            shared: shared.clone(),
            signalling,
            local: own,
            calls,
            rate: options.rate,
            hold_us,
        };
        let ai = Ai { shared: shared.clone(), listener, calls, hold_us };
        let mut command = launch::command(options, [pbx, listen], &url, folder)?;
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let callers = named(callers::THREAD).spawn(move || callers.run())?;
        let ai = named(ai::THREAD).spawn(move || ai.run())?;
        let bridge = Bridge::start(&mut command, folder.path().join("log"))?;
        let (callers, ai) = (Some(callers), Some(ai));
        Ok(Running { options, cancelled, shared, bridge, callers, ai })
    }

    /// Waits until it is so, as long as all goes well.
    fn until(
        &mut self,
        limit: Duration,
        what: &str,
        is_so: impl Fn(&Self) -> bool,
    ) -> io::Result<()> {
        let begin = Instant::now();
        while !is_so(self) {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
            }
            let threads = [
                self.callers.as_ref().is_some_and(JoinHandle::is_finished),
                self.ai.as_ref().is_some_and(JoinHandle::is_finished),
            ];
            if threads.contains(&true) {
                self.shared.enter(Phase::Stop);
                self.threads()?;
                return Err(io::Error::other("a thread of the generator has ended"));
            }
            if let Some(status) = self.bridge.has_ended() {
                let words = self.bridge.last_words();
                return Err(io::Error::other(format!("the bridge has ended, {status}:\n{words}")));
            }
            if begin.elapsed() > limit {
                let words = self.bridge.last_words();
                return Err(io::Error::other(format!(
                    "{what}: not within {} s; the bridge's log ends with:\n{words}",
                    limit.as_secs_f64()
                )));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn pass(&mut self, time: Duration) -> io::Result<()> {
        let begin = Instant::now();
        self.until(time + READY, "waiting", |_| begin.elapsed() >= time)
    }

    /// Until calls can come; how long after its start that was, in milliseconds.
    fn ready(&mut self) -> io::Result<Option<f64>> {
        let since = |running: &Self, at_ns: u64| {
            let from = running.shared.clock.instant_ns(running.bridge.started);
            at_ns.saturating_sub(from) as f64 / 1e6
        };
        let registered = |r: &Self| r.shared.registered_us.load(Ordering::Relaxed);
        let start_ms = match (&self.options.pbx, &self.options.program) {
            (Some(pbx), Program::Trunkless { .. }) => {
                let ready = pbx.ready;
                self.until(READY, ready, |r| r.bridge.log_holds(ready))?;
                Some(since(self, self.shared.clock.now_ns()))
            }
            (_, Program::Other { settle, .. }) => {
                let begin = Instant::now();
                let settle = *settle;
                self.until(settle + READY, "settling", |r| {
                    begin.elapsed() > settle || registered(r) > 0 && r.options.pbx.is_none()
                })?;
                let at_us = registered(self);
                (at_us > 0).then(|| since(self, at_us * 1000))
            }
            (None, Program::Trunkless { .. }) => {
                self.until(READY, "registration", |r| registered(r) > 0)?;
                Some(since(self, registered(self) * 1000))
            }
        };
        self.pass(Duration::from_millis(300))?;
        Ok(start_ms)
    }

    fn sample(&self) -> Sample {
        let processes = process::tree(self.bridge.id());
        let [idle, stolen] = process::machine_idle_and_stolen();
        Sample {
            at: Instant::now(),
            usage: process::usage(&processes),
            callers: process::own_thread(callers::THREAD),
            ai: process::own_thread(ai::THREAD),
            idle,
            stolen,
            calls: self.shared.open_calls.load(Ordering::Relaxed),
        }
    }

    /// Opens the measured time now, and waits for its end.
    fn measure(&mut self) -> io::Result<(Sample, Sample)> {
        let length = Duration::from_secs_f64(self.options.seconds);
        let at_open = self.sample();
        let open_us = self.shared.clock.now_us();
        self.shared.close_us.store(open_us + length.as_micros() as u64, Ordering::Relaxed);
        self.shared.open_us.store(open_us, Ordering::Relaxed);
        self.pass(length)?;
        Ok((at_open, self.sample()))
    }

    /// All calls come up, and then the measured time begins.
    fn steady(&mut self) -> io::Result<(Sample, Sample, Traced)> {
        let calls = self.options.calls;
        let limit = Duration::from_secs_f64(f64::from(calls) / self.options.rate + 45.0);
        self.until(limit, "all calls answered or refused", |r| {
            let [answered, failed] = [&r.shared.answered, &r.shared.failed];
            answered.load(Ordering::Relaxed) + failed.load(Ordering::Relaxed) >= calls
        })?;
        self.pass(SETTLE)?;
        let (at_open, at_close) = self.measure()?;
        self.pass(TAIL)?;
        let processes = process::tree(self.bridge.id());
        let traced = count_system_calls(&processes);
        Ok((at_open, at_close, traced))
    }

    /// Calls come and go, and the measured time is all of it.
    fn churn(&mut self, hold: Duration) -> io::Result<(Sample, Sample, Traced)> {
        let (at_open, at_close) = self.measure()?;
        self.until(hold + READY, "the last calls' ends", |r| {
            r.shared.open_calls.load(Ordering::Relaxed) == 0
        })?;
        Ok((at_open, at_close, Traced::NOT_STEADY))
    }

    fn hang_up(&mut self) -> io::Result<()> {
        self.shared.enter(Phase::HangUp);
        let limit = Duration::from_secs_f64(f64::from(self.options.calls) / 100.0) + READY;
        self.until(limit, "all calls hung up", |r| {
            r.shared.open_calls.load(Ordering::Relaxed) == 0
        })?;
        // the streams' ends come after the calls'
        self.pass(Duration::from_millis(200))
    }

    fn threads(&mut self) -> io::Result<(Heard, Said)> {
        let panicked = || io::Error::other("a thread of the generator has panicked");
        let callers = self.callers.take().ok_or_else(panicked)?;
        let ai = self.ai.take().ok_or_else(panicked)?;
        let (heard, said) = (callers.join(), ai.join());
        Ok((heard.map_err(|_| panicked())??, said.map_err(|_| panicked())??))
    }
}

/// The PBX, or who dials a real one; and where the bridge finds ours.
fn signalling(
    options: &Options,
    own: IpAddr,
    listen: SocketAddr,
) -> io::Result<(Box<dyn Signalling>, SocketAddr)> {
    if options.source == Source::Ari && options.pbx.is_none() {
        let listener = TcpListener::bind((own, 0))?;
        let address = listener.local_addr()?;
        return Ok((Box::new(Ari::start(listener, USERNAME, PASSWORD)?), address));
    }
    let callee = match (&options.pbx, &options.program) {
        (Some(Pbx { address, extension, .. }), _) => {
            Some(Callee { uri: format!("sip:{extension}@{address}"), address: *address })
        }
        // until it registers
        (None, Program::Other { .. }) => {
            Some(Callee { uri: format!("sip:{USERNAME}@{listen}"), address: listen })
        }
        (None, Program::Trunkless { .. }) => None,
    };
    let sip = UdpSocket::bind((own, 0))?;
    let address = sip.local_addr()?;
    let registrar = Registrar::new(USERNAME, PASSWORD, format!("{:x}", std::process::id()));
    let telephony = Telephony::new(sip, registrar, callee, options.calls as usize)?;
    Ok((Box::new(telephony), address))
}

/// A port for the bridge's SIP. Two measurements at once are of little use, but no error.
fn free_port() -> io::Result<SocketAddr> {
    UdpSocket::bind((IpAddr::from(BRIDGE), 0))?.local_addr()
}

/// A call has a socket to each side.
fn raise_file_limit(calls: u64) {
    let wanted = calls * 3 + 200;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        // what is missing shows when a socket cannot be opened
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
