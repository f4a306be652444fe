//! `trunkless run`: the daemon. Owns the runtime and the tasks that receive signals.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::app::App;
use crate::cli::{EXIT_CONFIG, Stop, environment};
use crate::config::check::Findings;
use crate::config::plan::Plan;
use crate::config::recording::try_paths;
use crate::config::{ConfigError, Report, Source, inspect};
use crate::telemetry;

/// How long to wait for the log to be written at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct RunArguments {
    /// Configuration file.
    #[arg(long, default_value = "trunkless.toml")]
    config: PathBuf,
    /// Check the configuration, print all errors and warnings, and exit: 0 if it is valid, else 2.
    /// Opens no sockets and creates no files.
    #[arg(long)]
    check: bool,
}

pub fn main(arguments: &RunArguments) -> ExitCode {
    let environment = environment();
    let (plan, report) = match Source::read(&arguments.config) {
        Ok(source) => inspect(&source, &environment),
        Err(error) => {
            errln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if arguments.check {
        return check(arguments, plan.as_ref(), report);
    }
    let Some(plan) = plan else {
        report.findings.errors.iter().for_each(|error| errln!("{error}"));
        return ExitCode::from(EXIT_CONFIG);
    };
    let log = &plan.settings.log;
    if let Err(error) = telemetry::init(&log.level, log.json) {
        errln!("{}: {error}", arguments.config.display());
        return ExitCode::from(EXIT_CONFIG);
    }
    log_report(report);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            errln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let served = runtime.block_on(serve(plan, &arguments.config, environment));
    // do not wait for threads that block
    runtime.shutdown_background();
    let is_read = telemetry::flush(FLUSH_LIMIT);
    match served {
        Ok(code) => code,
        Err(error) => {
            if is_read {
                errln!("cannot start: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Prints everything that is wrong with the configuration. Opens no socket and creates no file.
fn check(arguments: &RunArguments, plan: Option<&Plan>, report: Report) -> ExitCode {
    let Findings { mut errors, mut warnings } = report.findings;
    let file = arguments.config.display().to_string();
    if let Some(recording) = plan.and_then(|plan| plan.recording.as_ref()) {
        let finding =
            |key: &str, message| ConfigError { place: file.clone(), key: key.to_owned(), message };
        let (directory, upload) = try_paths(recording);
        errors.extend(directory.map(|why| finding("recording.directory", why)));
        warnings.extend(upload.map(|why| finding("recording.upload.url", why)));
    }
    for line in report.overrides {
        outln!("note: {line}");
    }
    for warning in &warnings {
        outln!("warning: {warning}");
    }
    for error in &errors {
        errln!("error: {error}");
    }
    if errors.is_empty() {
        outln!("{file}: valid");
        return ExitCode::SUCCESS;
    }
    let (errors, warnings) = (errors.len(), warnings.len());
    errln!("{file}: invalid: {errors} errors, {warnings} warnings");
    ExitCode::from(EXIT_CONFIG)
}

/// Logs what the configuration's author should know.
fn log_report(report: Report) {
    for line in report.overrides {
        info!("{line}");
    }
    for ConfigError { place, key, message } in report.findings.warnings {
        warn!(place, key, "configuration: {message}");
    }
}

/// Serves until SIGTERM, SIGQUIT or Ctrl-C; a second signal ends the remaining calls at once.
async fn serve(
    plan: Plan,
    file: &Path,
    environment: HashMap<String, String>,
) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new()?;
    let mut hangup = signal(SignalKind::hangup())?;
    ignore_other_signals()?;
    let app = App::start(plan, None).await?;
    let reloads = app.follow(file.to_owned(), environment);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reloads.ask();
        }
    });
    let code = tokio::select! {
        () = stop.asked() => ExitCode::SUCCESS,
        () = stay_replaced(&app) => ExitCode::SUCCESS,
        () = app.source_failed() => ExitCode::FAILURE,
    };
    info!("stopping: no new calls");
    app.shutdown(stop.asked()).await;
    Ok(code)
}

/// The real-time signals that the C library does not use itself.
const FIRST_REALTIME: i32 = 34;
const LAST_REALTIME: i32 = 64;

/// Keeps signals that end a program by default from cutting off the calls. SIGXFSZ comes when the
/// log or a recording reaches a limit on the size of files.
fn ignore_other_signals() -> std::io::Result<()> {
    use rustix::process::Signal;
    let raw = |signal: Signal| SignalKind::from_raw(signal.as_raw());
    let others = [
        (SignalKind::user_defined1(), "SIGUSR1"),
        (SignalKind::user_defined2(), "SIGUSR2"),
        (SignalKind::alarm(), "SIGALRM"),
        (SignalKind::io(), "SIGIO"),
        (raw(Signal::VTALARM), "SIGVTALRM"),
        (raw(Signal::PROF), "SIGPROF"),
        (raw(Signal::POWER), "SIGPWR"),
        (raw(Signal::XCPU), "SIGXCPU"),
        (raw(Signal::XFSZ), "SIGXFSZ"),
        (raw(Signal::STKFLT), "SIGSTKFLT"),
        (raw(Signal::TRAP), "SIGTRAP"),
    ];
    let realtime = (FIRST_REALTIME..=LAST_REALTIME).map(SignalKind::from_raw);
    let others = others.into_iter().chain(realtime.map(|kind| (kind, "real-time signal")));
    for (kind, name) in others {
        let mut received = signal(kind)?;
        tokio::spawn(async move {
            while received.recv().await.is_some() {
                info!("{name} ignored; SIGHUP reloads the configuration");
            }
        });
    }
    Ok(())
}

/// Logs when no PBX can send calls any more, and never returns: an exit would make a supervisor
/// start trunkless again, which would take the applications back and end the calls of the program
/// that has them now.
async fn stay_replaced(app: &App) {
    app.all_replaced().await;
    warn!(
        "no PBX can send calls any more: other programs took over all Stasis applications; staying \
         up, not ready, until a restart"
    );
    std::future::pending().await
}
