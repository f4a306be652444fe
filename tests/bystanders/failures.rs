//! The AI of one call fails beside the bystanders, in every way, before the answer and in mid-call:
//! the next step of `on_ai_failure` follows at once. Each test prints a table of the times.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_tungstenite::accept_async;
use trunkless::media::frame::SILENCE;
use trunkless::peer::phone::{Phone, PhoneCommand, PhoneEvent};

use crate::rig::{Bystanders, Rig, Site, pass, until};

/// The AI may take this long for the handshake, in these tests.
const ANSWER_WAIT: Duration = Duration::from_millis(800);
/// The AI may be silent for this long after `start`.
const SILENT: Duration = Duration::from_secs(1);
/// A connection that breaks during the handshake is tried again for this long.
const RETRIES: Duration = Duration::from_millis(600);
/// From the detection of a failure to the next step; after a reset it is shorter.
const STEP: Duration = Duration::from_secs(1);
const STEP_AFTER_RESET: Duration = Duration::from_millis(200);
const STEP_OF_BREAKER: Duration = Duration::from_millis(50);

/// A test waits at most this long for a step.
const LIMIT: Duration = Duration::from_secs(5);

/// The first step of the ladder.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Play,
    Transfer,
    Ai,
    Hangup,
}

/// A failure in mid-call, what the AI does for it, and how long it takes to be detected.
type InCall = (&'static str, fn(&mut TcpStream), Duration);

const IN_CALL: [InCall; 6] = [
    ("reset", |stream| reset(stream), Duration::ZERO),
    ("close frame 1011", |stream| write(stream, &[0x88, 2, 0x03, 0xf3]), Duration::ZERO),
    ("end without a close frame", shut, Duration::ZERO),
    ("end within a frame", |stream| (write(stream, &[0x81, 0x40, b'{']), shut(stream)).1, {
        Duration::ZERO
    }),
    ("not a WebSocket frame", |stream| write(stream, &[0xff; 40]), Duration::ZERO),
    ("silence after start", |_| {}, SILENT),
];

/// A failure of the handshake: the bytes that the AI answers, and what becomes of the connection.
const BEFORE: [(&str, &[u8], After, Duration); 5] = [
    ("status 401", b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", After::Open, {
        Duration::ZERO
    }),
    ("not HTTP", b"\x16\x03\x01 nonsense\r\n\r\n", After::Open, RETRIES),
    ("reset in the handshake", b"", After::Reset, RETRIES),
    ("end in the handshake", b"", After::Closed, RETRIES),
    ("no answer to the handshake", b"", After::Open, ANSWER_WAIT),
];

#[derive(Debug, Clone, Copy)]
enum After {
    Open,
    Closed,
    Reset,
}

fn write(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("written");
}

fn shut(stream: &mut TcpStream) {
    stream.shutdown(Shutdown::Write).expect("a connection");
}

/// Closes the connection, as the kernel of a crashed host does.
fn reset(stream: &TcpStream) {
    let now = Some(Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(stream, now).expect("a socket option");
    // with this, shutting both ways sends the RST when the stream is dropped
}

/// An AI that takes over.
struct Backup(TcpListener);

impl Backup {
    async fn start() -> Backup {
        Backup(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
    }

    fn site(&self, ladder: &str) -> Site {
        let backup = self.0.local_addr().expect("an address");
        Site::direct(&format!(
            "[calls]\non_ai_failure = [{ladder}]\nanswer_wait = \"{}ms\"\n\
             [endpoint.backup]\nurl = \"ws://{backup}\"\n\
             [pbx.main.transfer]\ntargets = {{ humans = \"1001\" }}\n\
             [pbx.fault.transfer]\ntargets = {{ humans = \"1001\" }}\n\
             [pbx.fault.ai]\nsilent_timeout = \"{}s\"\n",
            ANSWER_WAIT.as_millis(),
            SILENT.as_secs()
        ))
    }

    /// Waits until the call takes this step, and returns when it did.
    async fn taken(
        &self,
        step: Step,
        rig: &Rig,
        phone: &mut Phone,
        steps: usize,
        limit: Duration,
    ) -> Instant {
        let taken = async {
            match step {
                Step::Play => loop {
                    if let Some(PhoneEvent::Heard(heard)) = phone.events.recv().await
                        && heard.samples.iter().any(|sample| *sample != SILENCE)
                    {
                        return heard.at;
                    }
                },
                Step::Hangup => loop {
                    if let Some(PhoneEvent::Ended(_)) = phone.events.recv().await {
                        return Instant::now();
                    }
                },
                Step::Ai => {
                    let (socket, _) = self.0.accept().await.expect("a connection");
                    let at = Instant::now();
                    let _ = accept_async(socket).await;
                    at
                }
                Step::Transfer => {
                    while transfers(rig) <= steps {
                        pass(Duration::from_millis(5)).await;
                    }
                    Instant::now()
                }
            }
        };
        timeout(limit, taken).await.unwrap_or_else(|_| panic!("no {step:?}: {}", rig.log()))
    }
}

/// Number of transfers of the ladder so far.
fn transfers(rig: &Rig) -> usize {
    rig.log().matches("next step of on_ai_failure").count()
}

/// Number of calls of the PBX `fault` so far whose caller has hung up.
fn hang_ups(rig: &Rig) -> usize {
    rig.log().matches("pbx=\"fault\" reason=\"caller_hangup\"").count()
}

async fn answered(phone: &mut Phone) {
    while let Some(event) = phone.events.recv().await {
        if let PhoneEvent::Answered { .. } = event {
            return;
        }
    }
    panic!("the phone has stopped");
}

/// Prints a row and checks it. `detection`: the time that has to pass before the failure is known.
fn row(failure: &str, step: Step, took: Duration, detection: Duration, limit: Duration) {
    let ms = took.as_secs_f64() * 1000.0;
    println!("{failure:30} | {:8} | {ms:7.1} ms", format!("{step:?}").to_lowercase());
    assert!(took <= detection + limit, "{failure}, {step:?}: {took:?}");
}

async fn end(mut phone: Phone) {
    phone.command(PhoneCommand::Hangup);
    let over = async {
        while let Some(event) = phone.events.recv().await {
            if let PhoneEvent::Ended(_) = event {
                return;
            }
        }
    };
    // it may have ended before
    let _ = timeout(Duration::from_millis(300), over).await;
}

async fn fail_in_call(backup: &Backup, rig: &Rig, step: Step) {
    for (failure, act, detection) in IN_CALL {
        let steps = transfers(rig);
        let (mut phone, mut stream) = rig.fault_call().await;
        stream.set_nonblocking(false).expect("a socket option");
        answered(&mut phone).await;
        if detection.is_zero() {
            // an empty message: the AI is not silent
            write(&mut stream, &[0x81, 2, b'{', b'}']);
        }
        pass(Duration::from_millis(100)).await;
        let begin = Instant::now();
        act(&mut stream);
        let kept = (failure != "reset").then_some(stream);
        let at = backup.taken(step, rig, &mut phone, steps, LIMIT).await;
        let limit = if failure == "reset" { STEP_AFTER_RESET } else { STEP };
        row(failure, step, at.saturating_duration_since(begin), detection, limit);
        drop(kept);
        end(phone).await;
    }
}

async fn fail_before(backup: &Backup, rig: &Rig, step: Step) {
    for (failure, answer, after, detection) in BEFORE {
        let steps = transfers(rig);
        let mut phone = rig.dial().await;
        let begin = Instant::now();
        let fail = async {
            let mut kept = Vec::new();
            loop {
                let (socket, _) = rig.fault_ai.accept().await.expect("a connection");
                let mut socket = socket.into_std().expect("a socket");
                socket.set_nonblocking(false).expect("a socket option");
                let _ = socket.write_all(answer);
                match after {
                    After::Open => kept.push(socket),
                    After::Closed => shut(&mut socket),
                    After::Reset => reset(&socket),
                }
            }
        };
        let at = tokio::select! {
            at = backup.taken(step, rig, &mut phone, steps, LIMIT) => at,
            () = fail => unreachable!(),
        };
        row(failure, step, at.saturating_duration_since(begin), detection, STEP);
        end(phone).await;
        // two failures in a row at most, so that the breaker stays closed
        let (mut phone, stream) = rig.fault_call().await;
        answered(&mut phone).await;
        let over = hang_ups(rig);
        end(phone).await;
        // the call would go down the ladder if its AI were gone before its BYE has arrived
        assert!(until(LIMIT, || hang_ups(rig) > over).await, "the call does not end");
        drop(stream);
    }
}

/// After three failures, calls are not offered to the AI.
async fn open_the_breaker(backup: &Backup, rig: &Rig, step: Step) {
    for n in 0..13 {
        let steps = transfers(rig);
        let mut phone = rig.dial().await;
        let begin = Instant::now();
        let refuse = async {
            loop {
                let (socket, _) = rig.fault_ai.accept().await.expect("a connection");
                let mut socket = socket.into_std().expect("a socket");
                let _ = socket.write_all(BEFORE[0].1);
            }
        };
        let at = tokio::select! {
            at = backup.taken(step, rig, &mut phone, steps, LIMIT) => at,
            () = refuse => unreachable!(),
        };
        if n >= 3 {
            let took = at.saturating_duration_since(begin);
            row("breaker open", step, took, Duration::ZERO, STEP_OF_BREAKER);
        }
        end(phone).await;
    }
    // the probe closes it
    let probe = timeout(Duration::from_secs(8), rig.fault_ai.accept()).await.expect("a probe");
    let _ = accept_async(probe.expect("a connection").0).await;
}

async fn fails(ladder: &str, step: Step) {
    let backup = Backup::start().await;
    let fault = async |rig: &Rig| {
        fail_in_call(&backup, rig, step).await;
        fail_before(&backup, rig, step).await;
        open_the_breaker(&backup, rig, step).await;
    };
    Bystanders::new(backup.site(ladder)).during(fault).await;
}

#[tokio::test]
async fn the_next_step_is_a_prompt() {
    fails("\"play:sorry\", \"hangup:busy\"", Step::Play).await;
}

#[tokio::test]
async fn the_next_step_is_a_transfer() {
    fails("\"transfer:humans\", \"hangup:busy\"", Step::Transfer).await;
}

#[tokio::test]
async fn the_next_step_is_another_ai() {
    fails("\"ai:backup\", \"hangup:busy\"", Step::Ai).await;
}

#[tokio::test]
async fn the_next_step_is_the_end() {
    fails("\"hangup:busy\"", Step::Hangup).await;
}

/// Drops all packets to an address of this host, until dropped.
struct Blackhole(String);

impl Blackhole {
    /// Returns `None` if this process may not change routes.
    fn new(ip: std::net::IpAddr) -> Option<Blackhole> {
        let route = format!("blackhole {ip}/32 table local");
        Blackhole::run("add", &route).then(|| Blackhole(route))
    }

    fn run(verb: &str, route: &str) -> bool {
        let mut command = std::process::Command::new("ip");
        command.arg("route").arg(verb).args(route.split(' '));
        command.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Blackhole {
    fn drop(&mut self) {
        assert!(Blackhole::run("delete", &self.0), "{} stays", self.0);
    }
}

/// The AI's host is gone: nothing comes back, no packet and no error. Needs root.
#[tokio::test]
async fn the_network_to_the_ai_dies() {
    const FOUND_WITHIN: Duration = Duration::from_secs(6);
    let process = std::process::id().to_be_bytes();
    let ip = std::net::Ipv4Addr::new(127, 251, process[2], process[3].max(1));
    if Blackhole::new(ip.into()).is_none() {
        return println!("skipped: it changes the routes of this host, which root may do");
    }
    let ai = TcpListener::bind((ip, 0)).await.expect("a port");
    let url = format!("ws://{}", ai.local_addr().expect("an address"));
    let site = Site::direct(&format!(
        "[calls]\non_ai_failure = [\"play:sorry\", \"hangup\"]\n[pbx.fault.ai]\nurl = \"{url}\"\n"
    ));
    let fault = async |rig: &Rig| {
        let backup = Backup::start().await;
        let mut phone = rig.dial().await;
        let (socket, _) = ai.accept().await.expect("a connection");
        let stream = accept_async(socket).await.expect("a handshake");
        answered(&mut phone).await;
        pass(Duration::from_millis(300)).await;
        let begin = Instant::now();
        let hole = Blackhole::new(ip.into()).expect("it was allowed before");
        let at = backup.taken(Step::Play, rig, &mut phone, 0, FOUND_WITHIN * 2).await;
        let took = at.saturating_duration_since(begin);
        row("network death", Step::Play, took, FOUND_WITHIN, Duration::ZERO);
        drop(hole);
        end(phone).await;
        drop(stream);
    };
    Bystanders::new(site).during(fault).await;
}
