//! The commands, one file each.

pub mod bench;
pub mod call;
pub mod demo;
pub mod echo_agent;
pub mod health;
pub mod recordings;
pub mod run;

use std::collections::HashMap;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Connects the calls on your own PBX to a voice-AI pipeline over a WebSocket.
#[derive(Debug, Parser)]
#[command(name = "trunkless", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: take calls from the PBXs and answer them with the AI.
    Run(run::RunArguments),
    /// See it work: a whole call on this machine, with no PBX and no account.
    Demo(demo::DemoArguments),
    /// The bundled AI stand-in: greets, can be interrupted, echoes.
    EchoAgent(echo_agent::EchoAgentArguments),
    /// Place a test call, as a phone would.
    Call(call::CallArguments),
    /// Measure: many calls at once through this program, or another bridge.
    Bench(bench::BenchArguments),
    /// Ask a running `run` how it is: exit code 0 when it works.
    Health(health::HealthArguments),
    /// List, show and verify recordings.
    Recordings(recordings::RecordingsArguments),
}

/// Exit code for a wrong configuration or command line.
pub const EXIT_CONFIG: u8 = 2;
/// Exit code when the only PBX's Stasis application has been taken by another program.
pub const EXIT_REPLACED: u8 = 3;

/// The variables that are text.
fn environment() -> HashMap<String, String> {
    let all = std::env::vars_os();
    all.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// The definition of the command line.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Demo(arguments) => demo::main(&arguments),
        Command::EchoAgent(arguments) => echo_agent::main(&arguments),
        Command::Call(arguments) => call::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments),
        Command::Health(arguments) => health::main(&arguments),
        Command::Recordings(arguments) => recordings::main(&arguments),
    }
}

/// SIGTERM and Ctrl-C.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Stop> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Stop { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of either. Cancel-safe.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs a command to its end; an error is printed once.
fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
