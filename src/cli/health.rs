//! `trunkless health`: checks a running `trunkless run`, for a container's health check.
//! Owns a clock.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::timeout;

use crate::cli::{EXIT_CONFIG, block_on, environment};
use crate::config::{Source, load};
use crate::doctor::running::{ask, reachable};

/// Time limit for the answer.
const LIMIT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub struct HealthArguments {
    /// Configuration file of the running program; its `[http] listen` is queried.
    #[arg(long, default_value = "trunkless.toml")]
    config: PathBuf,
    /// Also fail if no calls can be taken.
    #[arg(long)]
    ready: bool,
}

pub fn main(arguments: &HealthArguments) -> ExitCode {
    let settings = Source::read(&arguments.config).and_then(|s| load(&s, &environment()));
    let listen = match settings {
        Ok(settings) => settings.http.listen,
        Err(error) => {
            errln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let Some(listen) = listen else {
        let file = arguments.config.display();
        errln!("{file}: http.listen: is missing; set it, for example to \"127.0.0.1:8071\"");
        return ExitCode::from(EXIT_CONFIG);
    };
    let path = if arguments.ready { "/readyz" } else { "/healthz" };
    block_on(async move {
        let asked = timeout(LIMIT, ask(reachable(listen), path)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => anyhow::bail!("no answer from {listen}: {error}"),
            Err(_) => anyhow::bail!("no answer from {listen} within {LIMIT:?}"),
        };
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        outln!("{}", body.trim());
        let good = answer.split(' ').nth(1) == Some("200");
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// Asks the running program for the state of one PBX: whether its calls can be taken, and in words.
/// `None` if it does not answer.
pub(super) async fn pbx_state(listen: SocketAddr, pbx: &str) -> Option<(bool, String)> {
    let answer = timeout(LIMIT, ask(reachable(listen), "/readyz")).await.ok()?.ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    let pbx = &body["pbxs"][pbx];
    Some((pbx["ready"].as_bool()?, pbx["state"].as_str()?.to_owned()))
}
