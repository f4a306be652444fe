//! The commands, one file each.

pub mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Connects the calls on your own PBX to a voice-AI pipeline over a WebSocket.
#[derive(Debug, Parser)]
#[command(name = "trunkless", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: register on the PBXs and answer calls with the AI.
    Run(run::RunArguments),
}

/// Exit code for a wrong configuration or command line.
pub const EXIT_CONFIG: u8 = 2;

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(arguments) => run::main(&arguments),
    }
}
