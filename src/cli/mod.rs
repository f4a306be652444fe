//! The commands, one file each.

#[macro_use]
mod output;

pub mod bench;
pub mod call;
pub mod calls;
mod capture;
pub mod demo;
pub mod doctor;
pub mod echo_agent;
pub mod health;
pub mod init;
pub mod package_files;
pub mod recordings;
pub mod reload;
pub mod route;
pub mod run;
pub mod vicidial;

use std::collections::HashMap;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Connects the calls on your own PBX to a voice-AI pipeline over a WebSocket.
#[derive(Debug, Parser)]
#[command(name = "trunkless", version = VERSION, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a first configuration, and the files for the PBX.
    Init(Box<init::InitArguments>),
    /// Take calls from the PBXs and connect them to the AI.
    Run(run::RunArguments),
    /// Run a complete call on this machine, with no PBX and no account.
    Demo(demo::DemoArguments),
    /// Run the bundled AI stand-in: it greets, can be interrupted, and echoes.
    EchoAgent(echo_agent::EchoAgentArguments),
    /// Place a test call, as a phone would.
    Call(call::CallArguments),
    /// List, show, end and transfer the calls of a running `trunkless run`.
    Calls(calls::CallsArguments),
    /// Check everything that a call needs, and name what fails with its remedy.
    Doctor(doctor::DoctorArguments),
    /// Measure many concurrent calls through this program or another bridge.
    Bench(bench::BenchArguments),
    /// Check a running `trunkless run`; exit code 0 if it is healthy.
    Health(health::HealthArguments),
    /// Have a running `trunkless run` read its configuration again.
    Reload(reload::ReloadArguments),
    /// Show which route applies to a call, and why.
    Route(route::RouteArguments),
    /// List, show and verify recordings.
    Recordings(recordings::RecordingsArguments),
    /// Print what to enter in VICIdial, and check it.
    Vicidial(vicidial::VicidialArguments),
    /// Write man pages and shell completions, for packages.
    #[command(hide = true)]
    PackageFiles(package_files::PackageFilesArguments),
}

/// The version with the commit: `0.1.0 (0123456789ab)`; `-modified` if the sources differ from it.
pub const VERSION: &str = env!("BUILD_VERSION");

/// Exit code for a wrong configuration or command line.
pub const EXIT_CONFIG: u8 = 2;

/// The environment variables that are valid UTF-8.
fn environment() -> HashMap<String, String> {
    let all = std::env::vars_os();
    all.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// The definition of the command line.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Init(arguments) => init::main(&arguments),
        Command::Run(arguments) => run::main(&arguments),
        Command::Demo(arguments) => demo::main(&arguments),
        Command::EchoAgent(arguments) => echo_agent::main(&arguments),
        Command::Call(arguments) => call::main(&arguments),
        Command::Calls(arguments) => calls::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Health(arguments) => health::main(&arguments),
        Command::Reload(arguments) => reload::main(&arguments),
        Command::Route(arguments) => route::main(&arguments),
        Command::Recordings(arguments) => recordings::main(&arguments),
        Command::Vicidial(arguments) => vicidial::main(&arguments),
        Command::PackageFiles(arguments) => package_files::main(&arguments),
    }
}

/// Receives SIGTERM, SIGQUIT and Ctrl-C.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Stop> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Stop { terminate, interrupt, quit: signal(SignalKind::quit())? })
    }

    /// Waits for the next signal. Cancel-safe.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.quit.recv() => {}
        }
    }
}

/// Runs a command to completion and prints its error, if any.
fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(command)) {
        Ok(code) => code,
        Err(error) => {
            errln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
