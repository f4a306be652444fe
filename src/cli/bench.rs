//! `trunkless bench`: makes many concurrent calls and measures what they cost. Owns the wait for
//! Ctrl-C.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::bench::dialect::{Dialect, why_not};
use crate::bench::network::Network;
use crate::bench::ramp::{self, ramp};
use crate::bench::run::{Options, Pbx, Program, Source, run};
use crate::cli::{Stop, block_on};
use crate::media::g711::Law;

/// Longest delay that the options may ask for.
const MAX_JITTER_MS: u32 = 300;

#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Number of concurrent calls; with --ramp, the maximum.
    #[arg(long, value_name = "N", default_value_t = 50)]
    calls: u32,
    /// Duration of the measurement, which starts when all calls are up.
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    seconds: f64,
    /// Calls set up per second.
    #[arg(long, value_name = "CPS", default_value_t = 50.0)]
    rate: f64,
    /// End each call after this long and make another in its place; at least 4.
    #[arg(long, value_name = "SECONDS", conflicts_with = "ramp")]
    hold: Option<f64>,
    /// Have the bridge record all calls, and check the recordings.
    #[arg(long)]
    record: bool,
    /// Repeat with more and more calls until a limit is reached.
    #[arg(long)]
    ramp: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Protocol between bridge and PBX: sip or ari.
    #[arg(long, default_value = "sip")]
    source: Source,
    /// Dialect of the AI, as in the configuration: twilio, l16, jambonz, telnyx, plivo, exotel,
    /// openai-realtime, deepgram-agent, elevenlabs or ultravox. All have audio at 8 kHz.
    #[arg(long, value_name = "NAME", default_value = "twilio")]
    dialect: Dialect,
    /// Share of the callers' RTP packets that are lost on their way to the bridge, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    loss: f64,
    /// Longest random delay of the callers' packets; they stay in order.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    jitter: u32,
    /// The callers' packets arrive in groups of this size.
    #[arg(long, value_name = "N", default_value_t = 1)]
    burst: u32,
    /// Length of the callers' packets: 10, 20, 30, 40, 50 or 60.
    #[arg(long, value_name = "MS", default_value_t = 20)]
    ptime: u32,
    /// Callers and PBX use A-law instead of mu-law.
    #[arg(long)]
    alaw: bool,
    /// The AI speaks wss, with a certificate made for the run.
    #[arg(long)]
    tls: bool,
    /// Longest random delay of messages from the AI; they stay in order.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    ai_jitter: u32,
    /// Every tenth AI stops reading for one second out of four.
    #[arg(long)]
    slow_reader: bool,
    /// A real PBX for the callers to dial.
    #[arg(long, value_name = "HOST:PORT", requires = "extension")]
    pbx: Option<SocketAddr>,
    /// Extension to dial on that PBX.
    #[arg(long, value_name = "EXTENSION", requires = "pbx")]
    extension: Option<String>,
    /// Configuration file of the bridge; environment variables override the URL and the dialect of
    /// its AI.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Let TRUNKLESS_ variables override the settings that the bench makes for the bridge.
    #[arg(long)]
    environment: bool,
    /// Another program to measure instead of trunkless, run by `sh -c`. It receives its settings in
    /// BENCH_AI_URL, BENCH_AI_DIALECT, BENCH_REGISTRAR (BENCH_ARI_URL with --source ari),
    /// BENCH_USERNAME, BENCH_PASSWORD, BENCH_SIP_LISTEN and BENCH_CALLS; with --tls, BENCH_AI_CA is
    /// the PEM file with the certificate of the AI.
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["config", "record"])]
    bridge: Option<String>,
    /// If the bridge has not registered after this long, call it at BENCH_SIP_LISTEN.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, requires = "bridge")]
    settle: f64,
}

pub fn main(arguments: &BenchArguments) -> ExitCode {
    block_on(bench(arguments))
}

fn options(arguments: &BenchArguments) -> Result<Options> {
    let BenchArguments { calls, seconds, rate, hold, record, settle, .. } = *arguments;
    // `contains` is false for NaN
    let known = (1.0..1e6).contains(&seconds) && (0.1..1e4).contains(&rate);
    if calls == 0 || !known || hold.is_some_and(|h| !(4.0..1e6).contains(&h)) {
        bail!("out of range: --calls and --seconds must be at least 1, --rate 0.1, --hold 4");
    }
    if arguments.pbx.is_some() && arguments.config.is_none() && arguments.bridge.is_none() {
        bail!("--pbx needs the bridge's configuration: add --config or --bridge");
    }
    let dialect = arguments.dialect;
    if let Some(why) = why_not(dialect) {
        bail!("--dialect {} cannot be measured: {why}", dialect.name());
    }
    let network = network(arguments)?;
    let program = match &arguments.bridge {
        Some(command) => {
            let settle = Duration::from_secs_f64(settle.clamp(0.0, 1e6));
            Program::Other { command: command.clone(), settle }
        }
        None => {
            let binary = std::env::current_exe().context("cannot find the path of this program")?;
            Program::Trunkless { binary, config: arguments.config.clone() }
        }
    };
    let ready = match arguments.source {
        Source::Sip => "registered pbx",
        Source::Ari => "ARI events are open",
    };
    let pbx = arguments.pbx.zip(arguments.extension.clone());
    let pbx = pbx.map(|(address, extension)| Pbx { address, extension, ready });
    let hold = hold.map(Duration::from_secs_f64);
    Ok(Options {
        dialect,
        calls,
        seconds,
        rate,
        hold,
        record,
        source: arguments.source,
        program,
        pbx,
        network,
        law: if arguments.alaw { Law::A } else { Law::Mu },
        tls: arguments.tls,
        ai_jitter_ms: arguments.ai_jitter,
        slow_reader: arguments.slow_reader,
        environment: arguments.environment,
    })
}

/// Checks the simulated network. Delays are bounded so that the last frames arrive before the end.
fn network(arguments: &BenchArguments) -> Result<Network> {
    let BenchArguments { loss, jitter, burst, ptime, ai_jitter, .. } = *arguments;
    if !(0.0..=50.0).contains(&loss) {
        bail!("--loss {loss} is out of range: it must be 0 to 50 percent");
    }
    if ![10, 20, 30, 40, 50, 60].contains(&ptime) {
        bail!("--ptime {ptime} is not supported: it must be 10, 20, 30, 40, 50 or 60 ms");
    }
    if burst == 0 || burst > 25 {
        bail!("--burst {burst} is out of range: it must be 1 to 25 packets");
    }
    for (name, delay) in [("--jitter", jitter), ("--ai-jitter", ai_jitter)] {
        if delay > MAX_JITTER_MS {
            bail!("{name} {delay} is out of range: it must be at most {MAX_JITTER_MS} ms");
        }
    }
    if burst * ptime > MAX_JITTER_MS {
        let ms = burst * ptime;
        bail!("--burst {burst} with --ptime {ptime} takes {ms} ms: at most {MAX_JITTER_MS} ms");
    }
    Ok(Network { loss_percent: loss, jitter_ms: jitter, burst, ptime_ms: ptime })
}

async fn bench(arguments: &BenchArguments) -> Result<ExitCode> {
    let options = options(arguments)?;
    let mut stop = Stop::new()?;
    let cancelled = Arc::new(AtomicBool::new(false));
    let (climb, json, seen) = (arguments.ramp, arguments.json, cancelled.clone());
    let mut work = tokio::task::spawn_blocking(move || match climb {
        true => climb_and_print(&options, json, &seen),
        false => {
            let report = run(&options, &seen)?;
            match json {
                true => outln!("{}", report.json()),
                false => out!("{report}"),
            }
            Ok(report.faults.is_empty())
        }
    });
    let good = tokio::select! {
        done = &mut work => done?,
        () = stop.asked() => {
            cancelled.store(true, Ordering::Relaxed);
            work.await?
        }
    };
    Ok(if good? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn climb_and_print(options: &Options, json: bool, cancelled: &AtomicBool) -> std::io::Result<bool> {
    let ramp = ramp(options, cancelled, &mut |report, gave| {
        let line = ramp::line(report, gave);
        if json { errln!("{line}") } else { outln!("{line}") }
    })?;
    if json {
        outln!("{}", serde_json::to_string(&ramp)?);
    } else {
        let knee = ramp.knee.as_deref().unwrap_or("not reached; raise --calls");
        outln!("carried {} calls; knee: {knee}", ramp.calls_carried);
    }
    // a ramp normally ends with a step that fails
    Ok(ramp.calls_carried > 0)
}
