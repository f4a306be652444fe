//! Bystanders: calls with numbered audio both ways beside a fault. The bridge is the real program,
//! in a process of its own; callers and AI run on threads of their own.
//!
//! ```ignore
//! Bystanders::new(Site::direct("")).during(async |rig| { /* the fault */ }).await;
//! ```
//!
//! After the fault, the rig asserts for every bystander, in each direction:
//!
//! - Every frame arrived once, in order and unchanged.
//! - No two frames are separated by more than one frame of silence or of standstill.
//! - 99 % of the frames were delayed by at most 5 ms more than usual (15 ms in a build without
//!   optimisation). The usual delay of a call is the median of the second before the fault, so that
//!   the phase of its slots does not matter.
//!
//! Time that the host takes away is measured (`canary`): the rig's threads run too late, or threads
//! of bridge or PBX wait for a CPU. It is subtracted from gaps and delays, but a lost frame is
//! always a failure, unless [`Bystanders::recovering_within`] excuses it. A fault that needs much
//! CPU time belongs in [`Rig::attack`], which lowers its priority.
//!
//! Then the bridge must hold what it held before:
//!
//! - Descriptors, ports and threads are compared without calls: before them, but after a first
//!   round of calls, because some things are made on first use; and after the last hang-up.
//! - Memory is compared while the bystanders talk, before and after the fault: it may grow by 2 %
//!   of the RSS. Pages of files do not count, because a fault may run code for the first time.
//! - Channels and bridges of a PBX are compared without calls.

mod ai;
mod callers;
mod calls;
pub mod canary;
pub mod judge;
#[path = "../../fixtures/overlay.rs"]
mod overlay;
mod program;
#[allow(dead_code, reason = "not every test of the rig reloads")]
mod reloading;
mod site;
mod wait;

use std::fmt;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio_tungstenite::accept_async;
use trunkless::peer::phone::{Phone, PhoneCommand, PhoneConfig};

use ai::Ai;
use callers::Callers;
use calls::{AI, Call};
use canary::{Canary, Stall, overlap};
use judge::{Figures, Rule, judge};
use program::{Holdings, Memory, Program};

#[allow(unused_imports, reason = "for tests through a PBX")]
pub use callers::Dial;
pub use site::Site;
#[allow(unused_imports, reason = "for tests through a PBX")]
pub use site::fault_pbx;
pub use wait::{pass, until};

/// Audio before the fault, from which the usual delay is taken.
const QUIET: Duration = Duration::from_secs(1);
/// A fault is observed for at least this long.
const FAULT: Duration = Duration::from_millis(1500);
/// Audio after the fault, which is judged like that during it.
const AFTER: Duration = Duration::from_millis(500);
/// Frames that were sent this long before a fault may not have arrived when it begins.
const EARLIER: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(5);
/// The program keeps idle threads for 10 s.
const IDLE_THREADS: Duration = Duration::from_secs(12);
/// Bound of the added delay. An unoptimised program takes several times as long for the same work,
/// above all for a flood.
const ADDED: Duration = Duration::from_millis(if cfg!(debug_assertions) { 15 } else { 5 });
/// Repetitions of a fault after which its memory must no longer grow. There are at most 8 call
/// threads, and few of them get much of it.
const REPEATED: u32 = 8;

/// Growth that is allowed from one repetition to the next: the allocator keeps memory that was
/// freed, in pieces of some hundred kilobytes per thread.
const FREED_KB: u64 = 1024;
/// Growth that is allowed if the calls are harmed: their queues have held some seconds of audio.
const QUEUES_KB: u64 = 8 * 1024;

/// The tests of one process measure one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub struct Bystanders {
    site: Site,
    count: u32,
    /// The fault is done at most this many times.
    times: u32,
    /// How long after the fault the calls may still be harmed; `None` if they may not be at all.
    recovery: Option<Duration>,
}

/// The running bridge and its bystanders, for the fault.
pub struct Rig {
    site: Site,
    program: Program,
    callers: Callers,
    calls: ai::Calls,
    canary: Arc<Canary>,
    _ai: Ai,
    /// Where the bridge dials for calls from the PBX `fault`.
    pub fault_ai: TcpListener,
}

/// The measurements of a run that satisfied every bound, the worst of all calls.
#[derive(Debug)]
pub struct Report {
    to_ai: Figures,
    to_caller: Figures,
    /// Time that the host took away during fault and aftermath.
    stalled: Duration,
    memory: [Memory; 2],
    /// The bridge's log.
    pub log: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { to_ai, to_caller, stalled, memory, .. } = self;
        write!(f, "to the AI {to_ai:?}, to the caller {to_caller:?}, ")?;
        write!(f, "stalled by the host {stalled:?}, memory {memory:?}")
    }
}

impl Bystanders {
    pub fn new(site: Site) -> Bystanders {
        Bystanders { site, count: 20, times: 1, recovery: None }
    }

    /// Repeats the fault until memory has not grown from one time to the next. This is for faults
    /// that make the bridge use megabytes for a while: the allocator of each call thread keeps some
    /// of them for later, but a leak grows every time.
    pub fn repeated(mut self) -> Bystanders {
        self.times = REPEATED;
        self
    }

    /// Allows the fault to harm the calls, and for this long afterwards. The bounds hold from then
    /// on.
    pub fn recovering_within(mut self, time: Duration) -> Bystanders {
        self.recovery = Some(time);
        self
    }

    /// Sets the number of calls, 20 otherwise.
    pub fn calls(mut self, count: u32) -> Bystanders {
        self.count = count;
        self
    }

    /// Runs a fault beside the bystanders and panics if any of them noticed it, or if the bridge
    /// holds more afterwards than before.
    pub async fn during(self, fault: impl AsyncFnMut(&Rig)) {
        match self.verdict(fault).await {
            Ok(report) => println!("{report}"),
            Err(faults) => panic!("{faults}"),
        }
    }

    /// Like [`Bystanders::during`], but returns what is wrong.
    ///
    /// # Errors
    ///
    /// Returns one line per bound that was violated, and the end of the bridge's log.
    pub async fn verdict(self, mut fault: impl AsyncFnMut(&Rig)) -> Result<Report, String> {
        let _turn = ONE_AT_A_TIME.lock().await;
        let count = self.count;
        let mut rig = Rig::start(self.site).await;
        rig.connect(count).await;
        let (before, objects) = rig.first_release().await;
        rig.connect(count).await;
        pass(QUIET / 4).await;
        let quiet = Instant::now();
        pass(QUIET).await;
        let quiet_until = Instant::now();
        let mut begin = quiet_until;
        let mut memory = rig.program.memory();
        let mut now = memory;
        let allowed_kb = match self.recovery {
            Some(_) => QUEUES_KB,
            None if self.times > 1 => FREED_KB,
            None => 0,
        };
        for _ in 0..self.times {
            memory = now;
            let fault_begin = Instant::now();
            fault(&rig).await;
            if let Some(time) = self.recovery {
                pass(time).await;
                begin = Instant::now();
            }
            pass(FAULT.saturating_sub(fault_begin.elapsed()) + AFTER).await;
            // audio that waited for a slow peer is freed soon after
            until(LIMIT / 5, || !rig.program.memory().has_grown(&memory, allowed_kb)).await;
            now = rig.program.memory();
            if !now.has_grown(&memory, allowed_kb) {
                break;
            }
        }
        let end = Instant::now();
        let mut faults = Vec::new();
        if now.has_grown(&memory, allowed_kb) {
            faults.push(format!("memory grew: {now:?} instead of {memory:?}"));
        }
        rig.fall_silent().await;
        if !rig.program.runs() {
            faults.push("the bridge is no longer running".to_owned());
            return Err(rig.complaint(faults));
        }
        faults.extend(rig.release().await);
        faults.extend(rig.leftovers(&before, &objects).await);
        let [to_ai, to_caller] = rig.judge(&[quiet, quiet_until, begin, end], &mut faults);
        let stalled = rig.stalled(begin, end);
        let (memory, log) = ([memory, now], rig.log());
        let report = Report { to_ai, to_caller, stalled, memory, log };
        match faults.is_empty() {
            true => Ok(report),
            false => Err(rig.complaint([faults, vec![report.to_string()]].concat())),
        }
    }
}

impl Rig {
    async fn start(site: Site) -> Rig {
        let listen = || std::net::TcpListener::bind((site.ai, 0)).expect("a port for the AI");
        let (own, fault) = (listen(), listen());
        fault.set_nonblocking(true).expect("a socket option");
        let fault_ai = TcpListener::from_std(fault).expect("a listener");
        let (calls, canary) = (ai::Calls::default(), Arc::new(Canary::start()));
        let ai = Ai::start(own, calls.clone(), canary.clone());
        let url = |at: SocketAddr| format!("ws://{at}/media");
        let fault_url = url(fault_ai.local_addr().expect("an address"));
        let config = (site.config)(&url(ai.address), &fault_url);
        let program = Program::start(&config, site.ready, site.log_limit).await;
        canary.watch_bridge(program.id());
        site.pbx.into_iter().for_each(|id| canary.watch_pbx(id));
        let callers = Callers::start(site.dial.clone(), canary.clone());
        Rig { site, program, callers, calls, canary, _ai: ai, fault_ai }
    }

    fn calls(&self) -> Vec<Arc<Call>> {
        self.calls.lock().expect("no panic elsewhere").clone()
    }

    fn everyone(&self, good: impl Fn(&Call) -> bool) -> bool {
        self.calls().iter().all(|call| good(call))
    }

    /// Sets up the calls and lets both sides of each talk.
    async fn connect(&self, count: u32) {
        *self.calls.lock().expect("no panic elsewhere") = (1..=count).map(Call::new).collect();
        for call in self.calls() {
            self.callers.dial(call);
            // spreads the slots of the calls
            pass(Duration::from_millis(3)).await;
        }
        let up = until(2 * LIMIT, || self.everyone(|c| c.state().packets > 10)).await;
        assert!(up, "not every bystander is connected:\n{}", self.program.log_tail());
        self.calls().iter().for_each(|call| call.talk(true));
        let heard = |c: &Call| {
            let state = c.state();
            !state.to_ai.heard.is_empty() && !state.to_caller.heard.is_empty()
        };
        let up = until(LIMIT, || self.everyone(heard)).await;
        assert!(up, "not every bystander is heard:\n{}", self.program.log_tail());
    }

    /// Ends the first calls. Returns what bridge and PBX hold without calls.
    async fn first_release(&self) -> (Holdings, Vec<String>) {
        self.fall_silent().await;
        let left = self.release().await;
        assert!(left.is_empty(), "{left:?}");
        let mut held = self.holdings();
        let settled = until(LIMIT, || {
            let before = std::mem::replace(&mut held, self.holdings());
            // streams that are ending still have a socket
            before == held && self.everyone(|c| c.state().ended.is_some())
        });
        settled.await;
        pass(LIMIT / 10).await;
        (self.holdings(), self.objects())
    }

    /// Both sides of each call stop talking, and what they sent last arrives.
    async fn fall_silent(&self) {
        self.calls().iter().for_each(|call| call.talk(false));
        let arrived = |way: &judge::Way| way.heard.iter().filter(|a| is_frame(a)).count();
        let all = |c: &Call| {
            let state = c.state();
            [&state.to_ai, &state.to_caller].iter().all(|way| arrived(way) >= way.sent.len())
        };
        pass(LIMIT / 50).await;
        until(LIMIT / 5, || self.everyone(all)).await;
    }

    /// Hangs up. Returns the calls that did not end, or ended before.
    async fn release(&self) -> Vec<String> {
        let early = self.calls().into_iter().filter_map(|call| {
            let ended = call.state().ended.clone()?;
            Some(format!("call {} ended: {ended}", call.number))
        });
        let mut faults: Vec<String> = early.collect();
        self.callers.hang_up();
        until(LIMIT, || self.everyone(|c| c.state().ended.is_some())).await;
        for call in self.calls() {
            if call.state().ended.is_none() {
                faults.push(format!("call {} does not end", call.number));
            }
        }
        faults
    }

    /// `times`: beginning and end of the quiet time, and of the time for which the bounds hold.
    fn judge(&self, times: &[Instant; 4], faults: &mut Vec<String>) -> [Figures; 2] {
        let [quiet, quiet_until, begin, end] = *times;
        // the frames under way at the beginning of the fault belong to it
        let excused = (begin > quiet_until).then(|| quiet_until - EARLIER..begin);
        let stalls: Vec<Stall> = self.canary.stalls();
        let mut worst = [Figures::default(); 2];
        for call in self.calls() {
            let state = call.state();
            let ways = [("caller to AI", &state.to_ai), ("AI to caller", &state.to_caller)];
            for (n, (name, way)) in ways.into_iter().enumerate() {
                let number = if n == 0 { call.number } else { AI + call.number };
                let (quiet, fault) = (quiet..quiet_until, begin..end);
                let (usual, excused) = (self.site.usual, excused.clone());
                let (added, slots) = (ADDED, n == 1);
                let rule = Rule { call: number, quiet, fault, usual, added, slots, excused };
                let (figures, found) = judge(way, &rule, &stalls);
                worst[n] = worst[n].worse(&figures);
                let who = format!("call {}, {name}", call.number);
                faults.extend(found.into_iter().map(|fault| format!("{who}: {fault}")));
            }
        }
        worst
    }

    /// Differences between the holdings now and before, once everything had time to be released.
    async fn leftovers(&self, before: &Holdings, objects: &[String]) -> Vec<String> {
        let changes = || self.holdings().changes_since(before);
        until(LIMIT / 2, || changes().is_empty()).await;
        if changes().iter().all(|change| change.starts_with("thread ")) {
            until(IDLE_THREADS, || changes().is_empty()).await;
        }
        let mut faults = changes();
        until(LIMIT / 2, || self.objects() == objects).await;
        let now = self.objects();
        if now != objects {
            faults.push(format!("the PBX holds {now:?} instead of {objects:?}"));
        }
        faults
    }

    fn holdings(&self) -> Holdings {
        self.program.holdings(self.site.pool)
    }

    fn objects(&self) -> Vec<String> {
        self.site.objects.as_ref().map_or_else(Vec::new, |objects| objects())
    }

    fn stalled(&self, from: Instant, to: Instant) -> Duration {
        overlap(&self.canary.stalls(), from, to)
    }

    fn complaint(&self, faults: Vec<String>) -> String {
        let more = faults.len().saturating_sub(30);
        let shown = faults[..faults.len() - more].join("\n");
        let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
        format!("bystanders noticed:\n{shown}{more}\nlog:\n{}", self.program.log_tail())
    }
}

/// For faults.
#[allow(dead_code, reason = "each test target uses some of it")]
impl Rig {
    /// The bridge's SIP address.
    pub fn bridge(&self) -> SocketAddr {
        self.site.bridge
    }

    /// The address of the PBX `fault`.
    pub fn offender(&self) -> std::net::IpAddr {
        self.site.offender.into()
    }

    pub fn log(&self) -> String {
        self.program.log()
    }

    /// The process id of the bridge.
    pub fn id(&self) -> u32 {
        self.program.id()
    }

    /// A folder for files of the fault.
    pub fn folder(&self) -> &std::path::Path {
        self.program.folder()
    }

    /// Stops or continues reading the bridge's log.
    pub fn read_log(&self, on: bool) {
        self.program.read_log(on);
    }

    pub fn signal(&self, signal: Signal) {
        self.program.signal(signal);
    }

    /// The bridge's address of each bystander's RTP.
    pub fn rtp(&self) -> Vec<SocketAddr> {
        let calls = self.calls();
        calls.iter().filter_map(|c| c.state().last_packet.map(|(_, from)| from)).collect()
    }

    /// The UDP ports of the bridge.
    pub fn udp_ports(&self) -> Vec<u16> {
        self.program.udp_ports()
    }

    /// Withholds one frame of the first bystander, as a lossy network does.
    pub fn lose_a_frame(&self) {
        self.calls()[0].swallow();
    }

    /// Runs `work` on a thread of the lowest priority, so that it does not take CPU time from the
    /// bridge.
    pub async fn attack<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            // on Linux this concerns only the calling thread
            rustix::process::nice(19).expect("a lower priority is always allowed");
            let _ = done.send(work());
        });
        result.await.expect("the attack does not panic")
    }

    /// A command that runs `program` with the lowest priority.
    pub fn niced(&self, program: &str) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", "19", program]);
        command
    }

    /// Places a call from the PBX `fault`. The bridge then dials [`Rig::fault_ai`].
    pub async fn dial(&self) -> Phone {
        self.dial_with(Vec::new()).await
    }

    /// Like [`Rig::dial`], with additional headers in the INVITE.
    pub async fn dial_with(&self, headers: Vec<(String, String)>) -> Phone {
        self.dial_from("offender", headers).await
    }

    /// Like [`Rig::dial_with`], from this number.
    pub async fn dial_from(&self, number: &str, headers: Vec<(String, String)>) -> Phone {
        let mut config = PhoneConfig::new(self.site.offender.into(), number);
        config.headers = headers;
        let phone = Phone::start(config).await.expect("a phone starts");
        let target = self.site.bridge;
        phone.command(PhoneCommand::Dial { uri: format!("sip:ai@{target}"), target });
        phone
    }

    /// A call from the PBX `fault`, and the AI's side of its stream after the handshake. The stream
    /// does not block and belongs to no runtime, so that it can be used in [`Rig::attack`].
    pub async fn fault_call(&self) -> (Phone, std::net::TcpStream) {
        let phone = self.dial().await;
        let accepted = tokio::time::timeout(LIMIT, self.fault_ai.accept()).await;
        let (socket, _) = accepted.expect("the bridge dials the AI").expect("a connection");
        socket.set_nodelay(true).expect("a socket option");
        let socket = accept_async(socket).await.expect("a handshake");
        (phone, socket.into_inner().into_std().expect("a socket"))
    }
}

fn is_frame(arrival: &judge::Arrival) -> bool {
    matches!(arrival.content, judge::Content::Frame { .. })
}
