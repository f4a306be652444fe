//! `trunkless doctor`: prints what `crate::doctor` finds.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::cli::{EXIT_CONFIG, Stop, block_on, environment};
use crate::config::Source;
use crate::doctor::finding::{Finding, Report, State, json, text};
use crate::doctor::{self, Options};

/// The exit codes, for `--help`.
const EXIT_CODES: &str = "Exit codes:
  0  no fault; there may be warnings
  1  at least one fault
  2  the configuration cannot be used, or a mistake on the command line";

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct DoctorArguments {
    /// Configuration file.
    #[arg(long, default_value = "trunkless.toml")]
    config: PathBuf,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
    /// In SIP mode, also call this extension of the PBX, which has to run Echo(), to test RTP.
    #[arg(long, value_name = "EXTENSION")]
    echo: Option<String>,
    /// Open no test stream to the AI: only its WebSocket is checked.
    #[arg(long)]
    no_ai_call: bool,
}

pub fn main(arguments: &DoctorArguments) -> ExitCode {
    let name = arguments.config.display().to_string();
    let source = match Source::read(&arguments.config) {
        Ok(source) => source,
        Err(error) => {
            let finding = Finding::fault("configuration", error.to_string(), "see --config");
            print(arguments, &name, &Report { findings: vec![finding] });
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let options = Options { echo: arguments.echo.clone(), no_ai_call: arguments.no_ai_call };
    let environment = environment();
    block_on(async {
        let mut stop = Stop::new()?;
        let run = doctor::run(&source, &environment, &options);
        tokio::pin!(run);
        // ending at once would leave the objects of the tests on the PBX
        let (report, is_usable) = loop {
            tokio::select! {
                done = &mut run => break done,
                () = stop.asked() => errln!("ending within 15 s: removing what the tests created"),
            }
        };
        print(arguments, &name, &report);
        Ok(match (is_usable, report.result()) {
            (false, _) => ExitCode::from(EXIT_CONFIG),
            (true, State::Fault) => ExitCode::FAILURE,
            (true, _) => ExitCode::SUCCESS,
        })
    })
}

fn print(arguments: &DoctorArguments, config: &str, report: &Report) {
    match arguments.json {
        true => outln!("{}", json(report, config)),
        false => out!("{}", text(report)),
    }
}
