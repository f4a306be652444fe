//! One measurement: starts the bridge, sets up calls, lets the measured time pass, shuts everything
//! down. Owns the threads, the socket addresses and the clock.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::bench::ai::{self, Ai, AiOptions, AiResults};
use crate::bench::ari::Ari;
use crate::bench::bridge::{Bridge, Folder};
use crate::bench::callers::{self, Callers, CallersResults};
use crate::bench::floor;
use crate::bench::launch::{self, PASSWORD, USERNAME};
use crate::bench::network::Network;
use crate::bench::outcome::{self, Outcome, Sample};
use crate::bench::process;
use crate::bench::report::Report;
use crate::bench::shared::{Phase, Shared};
use crate::bench::signalling::Signalling;
use crate::bench::telephony::{Callee, Telephony};
use crate::bench::trace::{Traced, count_system_calls};
use crate::bench::waiting::Clock;
use crate::bench::wire;
use crate::media::g711::Law;
use crate::peer::registrar::Registrar;
use crate::sip::sdp::Codec;
use crate::stream::dialect::Dialect;

/// Address of the callers and the AI. All of 127/8 is this machine.
const OWN: [u8; 4] = [127, 0, 9, 1];
/// Address that the bridge is configured to listen on.
const BRIDGE: [u8; 4] = [127, 0, 64, 2];
/// How long the bridge may take to become ready.
const READY: Duration = Duration::from_secs(15);
/// Pause between the last answer and the measured time.
const SETTLE: Duration = Duration::from_secs(1);
/// Pause after the measured time, for the last frames to arrive.
const TAIL: Duration = Duration::from_millis(1500);
/// Interval at which conditions are checked.
const POLL: Duration = Duration::from_millis(5);

/// The program under measurement.
#[derive(Debug, Clone)]
pub enum Program {
    /// `trunkless run` with this configuration; with `None`, a generated one.
    Trunkless { binary: PathBuf, config: Option<PathBuf> },
    /// Another program, started with `sh -c`. If it does not register, calls start after `settle`.
    Other { command: String, settle: Duration },
}

/// The protocol between the bridge and the PBX.
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
    /// Text in the bridge's log that means it is ready for calls.
    pub ready: &'static str,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// The dialect of the AI.
    pub dialect: Dialect,
    /// Concurrent calls.
    pub calls: u32,
    /// Length of the measured time.
    pub seconds: f64,
    /// Calls set up per second.
    pub rate: f64,
    /// Churn: each call lasts this long, and another call follows it.
    pub hold: Option<Duration>,
    pub record: bool,
    pub source: Source,
    pub program: Program,
    pub pbx: Option<Pbx>,
    /// The network between the callers and the bridge.
    pub network: Network,
    /// The law of the callers' audio.
    pub law: Law,
    /// True if the AI speaks wss.
    pub tls: bool,
    /// Longest delay of messages from the AI.
    pub ai_jitter_ms: u32,
    /// True if some of the AIs stop reading from time to time.
    pub slow_reader: bool,
    /// True if variables of the environment may override the bridge's settings.
    pub environment: bool,
}

impl Options {
    /// Returns the conditions that differ from a plain run.
    pub fn conditions(&self) -> Vec<String> {
        let Network { loss_percent, jitter_ms, burst, ptime_ms } = self.network;
        [
            (self.record, "recorded".to_owned()),
            (loss_percent > 0.0, format!("loss {loss_percent} %")),
            (jitter_ms > 0, format!("jitter {jitter_ms} ms")),
            (burst > 1, format!("bursts of {burst} packets")),
            (ptime_ms != 20, format!("ptime {ptime_ms} ms")),
            (self.law == Law::A, "A-law".to_owned()),
            (self.tls, "TLS".to_owned()),
            (self.ai_jitter_ms > 0, format!("AI jitter {} ms", self.ai_jitter_ms)),
            (self.slow_reader, "slow readers".to_owned()),
        ]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect()
    }
}

/// Runs one measurement.
///
/// # Errors
/// Returns an error if the bridge does not start, if `cancelled` is set, or if the generator
/// itself fails.
pub fn run(options: &Options, cancelled: &AtomicBool) -> io::Result<Report> {
    raise_file_limit(u64::from(options.calls));
    let folder = Folder::make()?;
    let mut running = Running::start(options, cancelled, &folder)?;
    let start_ms = running.wait_ready()?;
    let processes = process::tree(running.bridge.id());
    let before = process::usage(&processes);
    running.shared.enter(Phase::Dial);
    let (at_open, at_close, traced) = match options.hold {
        None => running.steady()?,
        Some(hold) => running.churn(hold)?,
    };
    running.hang_up()?;
    running.shared.enter(Phase::Stop);
    let (callers, ai) = running.join_threads()?;
    let exit_code = running.bridge.terminate(Duration::from_secs(20));
    let own = matches!(options.program, Program::Trunkless { .. });
    if own && exit_code.is_none() {
        return Err(io::Error::other("the bridge did not exit within 20 s of SIGTERM"));
    }
    let window = at_open.at..at_close.at;
    // with churn, a recording is as long as its call
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
        floor: floor::measure(options.calls as usize).ok(),
        recordings_complete: recordings.transpose()?,
    };
    Ok(outcome::report(options, outcome, callers, ai))
}

/// A measurement in progress.
struct Running<'a> {
    options: &'a Options,
    cancelled: &'a AtomicBool,
    shared: Arc<Shared>,
    bridge: Bridge,
    /// The callers' thread; `None` once joined.
    callers: Option<JoinHandle<io::Result<CallersResults>>>,
    /// The AI's thread; `None` once joined.
    ai: Option<JoinHandle<io::Result<AiResults>>>,
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
        let (scheme, tls) = match options.tls {
            true => {
                let (config, pem) = wire::self_signed(&own.to_string())?;
                std::fs::write(launch::ca_file(folder), pem)?;
                ("wss", Some(config))
            }
            false => ("ws", None),
        };
        let url = format!("{scheme}://{}", listener.local_addr()?);
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
            network: options.network,
            law: options.law,
            ai_jitter_us: u64::from(options.ai_jitter_ms) * 1000,
        };
        let ai_options = AiOptions {
            dialect: options.dialect,
            jitter_ms: options.ai_jitter_ms,
            slow_reader: options.slow_reader,
            network: options.network,
            names_caller: options.pbx.is_none(),
        };
        let ai = Ai { shared: shared.clone(), listener, calls, hold_us, options: ai_options, tls };
        let mut command = launch::command(options, [pbx, listen], &url, folder)?;
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let callers = named(callers::THREAD).spawn(move || callers.run())?;
        let ai = named(ai::THREAD).spawn(move || ai.run())?;
        let bridge = Bridge::start(&mut command, folder.path().join("log"))?;
        let (callers, ai) = (Some(callers), Some(ai));
        Ok(Running { options, cancelled, shared, bridge, callers, ai })
    }

    /// Waits until `condition`, which `what` names, is true. Fails if `limit` passes, if the bridge
    /// or a generator thread ends, or if the measurement is cancelled.
    fn wait_until(
        &mut self,
        limit: Duration,
        what: &str,
        condition: impl Fn(&Self) -> bool,
    ) -> io::Result<()> {
        let begin = Instant::now();
        while !condition(self) {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
            }
            let threads = [
                self.callers.as_ref().is_some_and(JoinHandle::is_finished),
                self.ai.as_ref().is_some_and(JoinHandle::is_finished),
            ];
            if threads.contains(&true) {
                self.shared.enter(Phase::Stop);
                self.join_threads()?;
                return Err(io::Error::other("a generator thread ended unexpectedly"));
            }
            if let Some(status) = self.bridge.has_ended() {
                let log = self.bridge.log_tail();
                return Err(io::Error::other(format!(
                    "the bridge exited ({status}); its log ends with:\n{log}"
                )));
            }
            if begin.elapsed() > limit {
                let log = self.bridge.log_tail();
                return Err(io::Error::other(format!(
                    "timed out after {} s waiting for: {what}; the bridge's log ends with:\n{log}",
                    limit.as_secs_f64()
                )));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Lets `time` pass, with the checks of [`Running::wait_until`].
    fn pass(&mut self, time: Duration) -> io::Result<()> {
        let begin = Instant::now();
        self.wait_until(time + READY, "the end of a pause", |_| begin.elapsed() >= time)
    }

    /// Waits until the bridge is ready for calls. Returns the milliseconds from its start until
    /// then, or `None` if the moment was not seen.
    fn wait_ready(&mut self) -> io::Result<Option<f64>> {
        let since = |running: &Self, at_ns: u64| {
            let from = running.shared.clock.instant_ns(running.bridge.started);
            at_ns.saturating_sub(from) as f64 / 1e6
        };
        let registered = |r: &Self| r.shared.registered_us.load(Ordering::Relaxed);
        let start_ms = match (&self.options.pbx, &self.options.program) {
            (Some(pbx), Program::Trunkless { .. }) => {
                let ready = pbx.ready;
                self.wait_until(READY, ready, |r| r.bridge.log_holds(ready))?;
                Some(since(self, self.shared.clock.now_ns()))
            }
            (_, Program::Other { settle, .. }) => {
                let begin = Instant::now();
                let settle = *settle;
                self.wait_until(settle + READY, "the settle time to pass", |r| {
                    begin.elapsed() > settle || registered(r) > 0 && r.options.pbx.is_none()
                })?;
                let at_us = registered(self);
                (at_us > 0).then(|| since(self, at_us * 1000))
            }
            (None, Program::Trunkless { .. }) => {
                self.wait_until(READY, "a registration", |r| registered(r) > 0)?;
                Some(since(self, registered(self) * 1000))
            }
        };
        self.pass(Duration::from_millis(300))?;
        Ok(start_ms)
    }

    fn sample(&self) -> Sample {
        let processes = process::tree(self.bridge.id());
        Sample {
            at: Instant::now(),
            usage: process::usage(&processes),
            callers: process::own_thread(callers::THREAD),
            ai: process::own_thread(ai::THREAD),
            own: process::usage(&[std::process::id()]).cpu(),
            machine: process::machine_time(),
            calls: self.shared.open_calls.load(Ordering::Relaxed),
        }
    }

    /// Starts the measured time now and waits for its end.
    fn measure(&mut self) -> io::Result<(Sample, Sample)> {
        let length = Duration::from_secs_f64(self.options.seconds);
        let at_open = self.sample();
        let open_us = self.shared.clock.now_us();
        self.shared.close_us.store(open_us + length.as_micros() as u64, Ordering::Relaxed);
        self.shared.open_us.store(open_us, Ordering::Relaxed);
        self.pass(length)?;
        Ok((at_open, self.sample()))
    }

    /// Sets up all calls, then measures.
    fn steady(&mut self) -> io::Result<(Sample, Sample, Traced)> {
        let calls = self.options.calls;
        let limit = Duration::from_secs_f64(f64::from(calls) / self.options.rate + 45.0);
        self.wait_until(limit, "all calls to be answered or refused", |r| {
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

    /// Measures while calls come and go, from the first one on.
    fn churn(&mut self, hold: Duration) -> io::Result<(Sample, Sample, Traced)> {
        let (at_open, at_close) = self.measure()?;
        self.wait_until(hold + READY, "the last calls to end", |r| {
            r.shared.open_calls.load(Ordering::Relaxed) == 0
        })?;
        Ok((at_open, at_close, Traced::NOT_STEADY))
    }

    fn hang_up(&mut self) -> io::Result<()> {
        self.shared.enter(Phase::HangUp);
        let limit = Duration::from_secs_f64(f64::from(self.options.calls) / 100.0) + READY;
        self.wait_until(limit, "all calls to be hung up", |r| {
            r.shared.open_calls.load(Ordering::Relaxed) == 0
        })?;
        // the streams end after the calls
        self.pass(Duration::from_millis(200))
    }

    /// Joins both generator threads and returns their results.
    fn join_threads(&mut self) -> io::Result<(CallersResults, AiResults)> {
        let panicked = || io::Error::other("a generator thread panicked");
        let callers = self.callers.take().ok_or_else(panicked)?;
        let ai = self.ai.take().ok_or_else(panicked)?;
        let (callers, ai) = (callers.join(), ai.join());
        Ok((callers.map_err(|_| panicked())??, ai.map_err(|_| panicked())??))
    }
}

/// Returns the simulated PBX, or the user agent that dials the real one, and the address of the
/// simulated PBX for the bridge's configuration.
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
        // called here unless it registers
        (None, Program::Other { .. }) => {
            Some(Callee { uri: format!("sip:{USERNAME}@{listen}"), address: listen })
        }
        (None, Program::Trunkless { .. }) => None,
    };
    let sip = UdpSocket::bind((own, 0))?;
    let address = sip.local_addr()?;
    let registrar = Registrar::new(USERNAME, PASSWORD, format!("{:x}", std::process::id()));
    let codec = if options.law == Law::A { Codec::Pcma } else { Codec::Pcmu };
    let telephony = Telephony::new(sip, registrar, callee, codec, options.calls as usize)?;
    Ok((Box::new(telephony), address))
}

/// Returns a free SIP port for the bridge. The kernel chooses it, so that two measurements can run
/// at once, although their figures are of little use.
fn free_port() -> io::Result<SocketAddr> {
    UdpSocket::bind((IpAddr::from(BRIDGE), 0))?.local_addr()
}

/// Raises the limit on open files: a call needs a socket on each side, and four when the floor is
/// measured.
fn raise_file_limit(calls: u64) {
    let wanted = calls * 4 + 200;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        // if the limit stays too low, opening a socket fails later
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
