//! Many calls at once, each with numbered audio both ways: what is lost, swapped or late, and by
//! how much. Figures, not assertions of time; it fails only when audio is lost or swapped.
//!
//!     cargo bench --bench calls -- [--calls 50] [--seconds 10] \
//!         [--through 22|16|chan_sip|ari22|ari16|direct] [--record]
//!
//! `--record`: the bridge records all calls, into the system's temporary folder.
//! `direct` leaves Asterisk out: what remains is the bridge itself. Callers, AI and bridge share
//! the machine and its clock.

#![allow(dead_code, reason = "the modules are shared with the end-to-end tests")]

#[path = "../e2e/ai.rs"]
mod ai;
#[path = "../e2e/asterisk.rs"]
mod asterisk;
#[path = "../e2e/bridge.rs"]
mod bridge;
#[path = "../e2e/caller.rs"]
mod caller;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ai::{Ai, Plan, Stream};
use asterisk::Asterisk;
use bridge::{Bridge, Setup};
use caller::Caller;
use trunkless::peer::pattern;
use trunkless::record::disk::Root;
use trunkless::record::library;
use trunkless::record::sidecar::State;

struct Options {
    calls: u32,
    seconds: u32,
    through: String,
    record: bool,
}

fn options() -> Options {
    let through = "22".to_owned();
    let mut options = Options { calls: 50, seconds: 10, through, record: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--calls" => options.calls = value().parse().expect("a number of calls"),
            "--seconds" => options.seconds = value().parse().expect("a number of seconds"),
            "--through" => options.through = value(),
            "--record" => options.record = true,
            "--bench" => {}
            other => {
                panic!("what is {other}? --calls N --seconds N --through WHAT --record")
            }
        }
    }
    options
}

/// The PBX, kept running; the bridge's configuration, and its log's line when it is ready; where
/// callers dial, and what is dialled.
type Scene = (Option<Asterisk>, String, &'static str, SocketAddr, &'static str);

const REGISTERED: &str = "registered pbx";

/// With the drop-in files of ARI mode.
fn ari(options: &Options, ai: &str, version: u8) -> Scene {
    let vars = [("DROPIN", "ari")];
    let asterisk = Asterisk::start_with(version, "bench", "127.0.64.1", &vars);
    let config = format!(
        "[ai]\nurl = \"{ai}\"\n[calls]\nmax = {0}\n[pbx.main]\nmode = \"ari\"\n[pbx.main.ari]\n\
         username = \"trunkless\"\npassword = \"CHANGE-ME\"\nmax_media = {0}\n",
        options.calls + 10
    );
    let address = asterisk.sip_addr();
    (Some(asterisk), config, "ARI events are open", address, "8010")
}

fn scene(options: &Options, ai: &str) -> Scene {
    let start = |version| Asterisk::start(version, "bench", "127.0.64.1");
    let mut setup = Setup {
        registrar: "127.0.64.1:5060".to_owned(),
        username: "ai",
        password: "bridgesecret",
        ai: ai.to_owned(),
        listen: "127.0.64.2:5070".to_owned(),
        tables: format!("[calls]\nmax = {}\n", options.calls + 10),
        sip_keys: String::new(),
    };
    match options.through.as_str() {
        "22" | "16" => {
            let asterisk = start(options.through.parse().expect("a version"));
            let address = asterisk.sip_addr();
            (Some(asterisk), setup.config(), REGISTERED, address, "700")
        }
        "chan_sip" => {
            let asterisk = start(16);
            setup.registrar = asterisk.chansip_addr().to_string();
            setup.username = "cc100";
            let address = asterisk.sip_addr();
            (Some(asterisk), setup.config(), REGISTERED, address, "710")
        }
        "ari22" => ari(options, ai, 22),
        "ari16" => ari(options, ai, 16),
        "direct" => {
            setup.sip_keys = "register = false\npeers = [\"127.0.9.1\"]".to_owned();
            let address = "127.0.64.2:5070".parse().expect("an address");
            (None, setup.config(), "trunkless is up", address, "ai")
        }
        other => panic!("--through {other}: 22, 16, chan_sip, ari22, ari16 or direct"),
    }
}

fn main() {
    let options = options();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let good = runtime.expect("a runtime").block_on(run(&options));
    std::process::exit(i32::from(!good));
}

async fn run(options: &Options) -> bool {
    let frames = options.seconds * 50;
    let plan = Plan { say: frames, paced: true, call: None, ..Plan::default() };
    let ai = Ai::start(plan).await;
    let (_asterisk, config, ready, address, extension) = scene(options, &ai.url);
    let recordings = tempfile::tempdir().expect("a temporary folder");
    let record = format!("[recording]\ndirectory = {:?}\n", recordings.path());
    let bridge = Bridge::run(&if options.record { config + &record } else { config });
    bridge.wait_for(ready, Duration::from_secs(10));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut callers = Vec::new();
    for call in 1..=options.calls {
        callers.push(Caller::dial("127.0.9.1", address, extension, call, frames).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for caller in &mut callers {
        caller.answered().await;
    }
    let cpu = bridge.cpu();
    let begin = Instant::now();
    let limit = Duration::from_secs(u64::from(options.seconds) + 10);
    for (caller, call) in callers.iter_mut().zip(1..) {
        let left = limit.saturating_sub(begin.elapsed());
        let done = |c: &Caller| c.sent.len() as u32 == frames && c.heard_last(call, frames);
        caller.until(left, done).await;
    }
    let used = bridge.cpu().saturating_sub(cpu).as_secs_f64() / begin.elapsed().as_secs_f64();
    for caller in &mut callers {
        caller.hang_up().await;
    }
    let good = report(options, frames, &callers, &ai.streams(), used);
    good & (!options.record || are_complete(bridge, options, recordings.path()))
}

/// Each call has a recording, and it is whole.
fn are_complete(mut bridge: Bridge, options: &Options, directory: &Path) -> bool {
    bridge.terminate(Duration::from_secs(30));
    let root = Root::new(directory.to_owned());
    let mut complete = 0;
    let mut count = |path: &Path, _: &std::fs::Metadata| {
        let sidecar = library::read(&root, path).expect("a sidecar");
        let long = sidecar.duration_ms >= u64::from(options.seconds) * 1000;
        complete += u32::from(long && sidecar.state == State::Complete);
    };
    library::walk(&root, &mut count).expect("recordings");
    println!("  recordings complete: {complete} of {}", options.calls);
    complete == options.calls
}

/// Delays in ms, sorted.
#[derive(Default)]
struct Delays(Vec<f64>);

impl Delays {
    fn add(&mut self, from: Instant, to: Instant) {
        self.0.push(to.saturating_duration_since(from).as_secs_f64() * 1000.0);
    }

    fn print(&mut self, name: &str) {
        self.0.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let index = ((self.0.len() as f64 - 1.0) * q).round().max(0.0) as usize;
            self.0.get(index).copied().unwrap_or(f64::NAN)
        };
        let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
        println!("  {name:34} p50 {p50:7.2} ms   p99 {p99:7.2} ms   max {max:7.2} ms");
    }
}

fn report(
    options: &Options,
    frames: u32,
    callers: &[Caller],
    streams: &[Stream],
    used: f64,
) -> bool {
    let (mut to_ai, mut to_caller, mut set_up) = Default::default();
    let (mut lost, mut swapped, mut late) = (0, 0, 0);
    let delays: [&mut Delays; 3] = [&mut to_ai, &mut to_caller, &mut set_up];
    let [to_ai, to_caller, set_up] = delays;
    for (caller, call) in callers.iter().zip(1..) {
        set_up.add(caller.dialled, caller.answered.expect("answered"));
        let stream = streams.iter().find(|s| !s.numbers(call).is_empty());
        let Some(stream) = stream else {
            lost += 2 * frames;
            continue;
        };
        let heard = stream.frames.iter().zip(&stream.heard_at);
        let numbered = heard.filter_map(|(f, at)| Some((pattern::read(f)?, *at)));
        let (mut count, mut next) = (0, 0);
        for ((of, index), at) in numbered {
            swapped += u32::from(of != call || index < next);
            (count, next) = (count + 1, index + 1);
            to_ai.add(caller.sent_at[index as usize], at);
        }
        lost += frames.saturating_sub(count);
        let heard = caller.heard.iter().filter_map(|h| Some((pattern::read(&h.samples)?, h.at)));
        let (mut count, mut next) = (0, 0);
        let mut before: Option<Instant> = None;
        for ((of, index), at) in heard {
            swapped += u32::from(of != call || index < next);
            (count, next) = (count + 1, index + 1);
            to_caller.add(stream.said_at[index as usize], at);
            late += u32::from(before.is_some_and(|b| at - b > Duration::from_millis(40)));
            before = Some(at);
        }
        lost += frames.saturating_sub(count);
    }
    let Options { calls, through, .. } = options;
    let recorded = if options.record { ", recorded" } else { "" };
    println!("{calls} calls at once, {frames} frames each way, through {through}{recorded}");
    set_up.print("set-up, INVITE to 200");
    to_ai.print("caller -> AI");
    to_caller.print("AI -> caller, slot wait included");
    println!("  frames lost {lost}, swapped {swapped}, late by more than one tick {late}");
    println!("  CPU of the bridge: {:.1} % of one core", used * 100.0);
    lost == 0 && swapped == 0
}
