//! `trunkless bench`: many calls at once, and what they cost. Owns the waiting for Ctrl-C.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::bench::ramp::{self, ramp};
use crate::bench::run::{Options, Pbx, Program, Source, run};
use crate::cli::{Stop, block_on};

#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Calls at once; with --ramp the most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    calls: u32,
    /// The measured time; it begins when all calls are up.
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    seconds: f64,
    /// Calls set up a second.
    #[arg(long, value_name = "CPS", default_value_t = 50.0)]
    rate: f64,
    /// Each call lasts so many seconds and is followed by another: at least 4.
    #[arg(long, value_name = "SECONDS", conflicts_with = "ramp")]
    hold: Option<f64>,
    /// The bridge records all calls; the recordings are checked.
    #[arg(long)]
    record: bool,
    /// More and more calls, until something gives.
    #[arg(long)]
    ramp: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// What the bridge speaks with the PBX: sip or ari.
    #[arg(long, default_value = "sip")]
    source: Source,
    /// A real PBX, which the callers dial.
    #[arg(long, value_name = "HOST:PORT", requires = "extension")]
    pbx: Option<SocketAddr>,
    /// What they dial there.
    #[arg(long, value_name = "EXTENSION", requires = "pbx")]
    extension: Option<String>,
    /// Configuration of the bridge; the AI's URL is put in by a variable.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Another program in trunkless's place, for `sh -c`. It is told by BENCH_AI_URL,
    /// BENCH_REGISTRAR (BENCH_ARI_URL with --source ari), BENCH_USERNAME, BENCH_PASSWORD,
    /// BENCH_SIP_LISTEN and BENCH_CALLS.
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["config", "record"])]
    bridge: Option<String>,
    /// A bridge that does not register is called at BENCH_SIP_LISTEN after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, requires = "bridge")]
    settle: f64,
}

pub fn main(arguments: &BenchArguments) -> ExitCode {
    block_on(bench(arguments))
}

fn options(arguments: &BenchArguments) -> Result<Options> {
    let BenchArguments { calls, seconds, rate, hold, record, settle, .. } = *arguments;
    // also what is no number is out of the range
    let known = (1.0..1e6).contains(&seconds) && (0.1..1e4).contains(&rate);
    if calls == 0 || !known || hold.is_some_and(|h| !(4.0..1e6).contains(&h)) {
        bail!("--calls from 1, --seconds from 1, --rate from 0.1, --hold from 4");
    }
    if arguments.pbx.is_some() && arguments.config.is_none() && arguments.bridge.is_none() {
        bail!("--pbx needs the bridge's configuration: give --config or --bridge");
    }
    let program = match &arguments.bridge {
        Some(command) => {
            let settle = Duration::from_secs_f64(settle.clamp(0.0, 1e6));
            Program::Other { command: command.clone(), settle }
        }
        None => {
            let binary = std::env::current_exe().context("where is this program?")?;
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
    Ok(Options { calls, seconds, rate, hold, record, source: arguments.source, program, pbx })
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
                true => println!("{}", report.json()),
                false => print!("{report}"),
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
        if json { eprintln!("{line}") } else { println!("{line}") }
    })?;
    if json {
        println!("{}", serde_json::to_string(&ramp)?);
    } else {
        let knee = ramp.knee.as_deref().unwrap_or("not reached: give more --calls");
        println!("carried {} calls; knee: {knee}", ramp.calls_carried);
    }
    // a ramp is meant to find where it breaks
    Ok(ramp.calls_carried > 0)
}
