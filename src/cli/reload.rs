//! `trunkless reload`: has the running `trunkless run` read its configuration again. Owns a socket.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::app::reload::Outcome;
use crate::cli::{EXIT_CONFIG, block_on, output};
use crate::control::local;

/// Time limit for the outcome.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct ReloadArguments {
    /// Configuration file of the running program.
    #[arg(long, default_value = "trunkless.toml")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn main(arguments: &ReloadArguments) -> ExitCode {
    output::exit_when_closed();
    block_on(async {
        let file = arguments.config.display();
        let text = local::ask(&arguments.config, LIMIT).await.with_context(|| {
            format!(
                "{file}: no answer from a trunkless that runs with this file, on this host and in \
                 this container; start it, name its file with --config, or send it SIGHUP"
            )
        })?;
        if text.is_empty() {
            bail!("{file}: only root and the user of the running trunkless may reload it");
        }
        let outcome: Outcome = serde_json::from_str(&text).context("the response")?;
        match arguments.json {
            true => outln!("{}", serde_json::to_string_pretty(&outcome)?),
            false => print(&file.to_string(), &outcome),
        }
        Ok(if outcome.ok { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CONFIG) })
    })
}

/// A line of the other program, without control characters for the terminal.
fn shown(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

fn print(file: &str, outcome: &Outcome) {
    let Outcome { ok, changed, added, removed, needs_restart, warnings, errors } = outcome;
    for error in errors {
        errln!("error: {}", shown(error));
    }
    if !ok {
        errln!("{file}: not reloaded; the configuration from before stays");
        return;
    }
    for (word, all) in [
        ("warning", warnings),
        ("changed", changed),
        ("PBX added", added),
        ("PBX removed", removed),
        ("needs a restart", needs_restart),
    ] {
        all.iter().for_each(|line| outln!("{word}: {}", shown(line)));
    }
    let is_same = changed.is_empty() && added.is_empty() && removed.is_empty();
    outln!("{file}: {}", if is_same { "nothing has changed" } else { "reloaded, for new calls" });
}
