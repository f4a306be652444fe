//! `trunkless calls`: lists, shows and controls the calls of a running `trunkless run`, over its
//! control API. Owns sockets.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use reqwest::{Method, Response};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::cli::capture::{self, CaptureArguments};
use crate::cli::{EXIT_CONFIG, block_on, environment, output};
use crate::config::{Source, load, resolve};
use crate::control::tokens::Scope;
use crate::doctor::running::reachable;
use crate::tls;

/// Time limit of a request, beyond what it waits for a command.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct CallsArguments {
    #[command(subcommand)]
    command: Command,
    /// Configuration file of the running program; its `[control]` table has the address and a
    /// token.
    #[arg(long, global = true, default_value = "trunkless.toml")]
    config: PathBuf,
    /// Address of the control API, such as http://127.0.0.1:8072; with --token-file, in place of
    /// the configuration file.
    #[arg(long, global = true, requires = "token_file")]
    url: Option<String>,
    /// File with a token.
    #[arg(long, global = true, requires = "url")]
    token_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the live calls.
    Ls,
    /// Show one call.
    Show {
        /// Its id or its callSid.
        call: String,
    },
    /// End a call.
    Hangup {
        call: String,
        /// The cause that the PBX gets.
        #[arg(long, value_enum, default_value = "normal")]
        cause: CauseWord,
        /// Only after the caller has heard what is queued.
        #[arg(long)]
        after_audio: bool,
        /// The status of the call's disposition.
        #[arg(long)]
        status: Option<String>,
    },
    /// Transfer a call; exit code 1 if the target does not take it, or not in time.
    Transfer {
        call: String,
        /// A target of `[pbx.NAME.transfer]`.
        to: String,
        /// How many seconds the target may ring.
        #[arg(long, default_value_t = 25)]
        timeout: u64,
        /// Where the caller goes if it fails.
        #[arg(long, value_enum, default_value = "resume")]
        on_fail: FailWord,
        /// The status of the call's disposition, if it succeeds.
        #[arg(long)]
        status: Option<String>,
    },
    /// Call a number, and connect whoever answers with an AI.
    Dial {
        /// The number, which [pbx.NAME.dial] has to allow.
        to: String,
        /// The number that the callee sees.
        #[arg(long)]
        from: Option<String>,
        /// The PBX, if there are several.
        #[arg(long)]
        pbx: Option<String>,
        /// The AI's name or URL, if it is not the PBX's own.
        #[arg(long)]
        ai: Option<String>,
        /// A parameter for the AI.
        #[arg(long = "parameter", value_name = "NAME=VALUE", value_parser = parameter)]
        parameters: Vec<(String, String)>,
        /// How many seconds the phone may ring, in place of 60.
        #[arg(long)]
        timeout: Option<u64>,
        /// Record the call.
        #[arg(long)]
        record: bool,
        /// Find out whether a person or a machine answers: from how the machine begins, or once it
        /// records. `trunkless calls show` and `watch` have the result.
        #[arg(long, value_enum)]
        machine_detection: Option<DetectionWord>,
    },
    /// Save the SIP, the RTP and the AI's messages of a call as a pcapng file for Wireshark. It
    /// contains what is said.
    Capture(CaptureArguments),
    /// Print the events of all calls as they happen.
    Watch,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CauseWord {
    Normal,
    Busy,
    Rejected,
    Congestion,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DetectionWord {
    Start,
    MessageEnd,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FailWord {
    Resume,
    Ladder,
    Hangup,
}

impl Command {
    /// The permission that it needs.
    fn scope(&self) -> Scope {
        match self {
            Command::Ls | Command::Show { .. } | Command::Watch => Scope::Read,
            Command::Hangup { .. } | Command::Transfer { .. } => Scope::Control,
            Command::Dial { .. } => Scope::Dial,
            Command::Capture(_) => Scope::Capture,
        }
    }
}

/// Reads a parameter.
fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// The control API and a token for it.
pub struct Api {
    url: String,
    token: SecretString,
    client: reqwest::Client,
}

pub fn main(arguments: &CallsArguments) -> ExitCode {
    output::exit_when_closed();
    let (url, token) = match access(arguments) {
        Ok(access) => access,
        Err(error) => {
            errln!("{error:#}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    block_on(async move {
        let client = client(&url)?;
        run(&Api { url, token, client }, &arguments.command, arguments.json).await
    })
}

/// Returns the HTTP client. With https, it trusts the system's CAs.
fn client(url: &str) -> anyhow::Result<reqwest::Client> {
    // reqwest comes without a crypto provider; a second call has no effect
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().no_proxy();
    let is_https = url.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://"));
    let builder = match is_https {
        true => builder.tls_backend_preconfigured(tls::client_config(None)?),
        false => builder.tls_certs_only([]),
    };
    Ok(builder.build()?)
}

/// Returns the address of the control API and a token with the scope of the command.
fn access(arguments: &CallsArguments) -> anyhow::Result<(String, SecretString)> {
    if let (Some(url), Some(file)) = (&arguments.url, &arguments.token_file) {
        let token = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        return Ok((url.trim_end_matches('/').to_owned(), token.trim().into()));
    }
    let source = Source::read(&arguments.config)?;
    let settings = load(&source, &environment())?;
    let listen = reachable(settings.control.listen);
    let plan = resolve::resolve(&source, settings, &environment())?;
    let scope = arguments.command.scope();
    let token = plan.tokens.into_iter().find(|token| token.allows(scope));
    let file = arguments.config.display();
    let token = token.with_context(|| {
        let scope = scope.name();
        format!(
            "{file}: there is no token with the scope {scope}; add [control.tokens.NAME] with \
             scopes = [\"{scope}\"]"
        )
    })?;
    Ok((format!("http://{listen}"), token.secret))
}

async fn run(api: &Api, command: &Command, as_json: bool) -> anyhow::Result<ExitCode> {
    match command {
        Command::Ls => list(api, as_json).await,
        Command::Show { call } => {
            let shown = api.ask(Method::GET, &format!("/v1/calls/{call}"), None, LIMIT).await?;
            outln!("{}", serde_json::to_string_pretty(&shown)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Hangup { call, cause, after_audio, status } => {
            let when = if *after_audio { "after_audio" } else { "now" };
            let body = json!({
                "command": "hangup", "cause": word(*cause), "when": when, "status": status,
            });
            order(api, call, &body, 60, as_json).await
        }
        Command::Transfer { call, to, timeout, on_fail, status } => {
            let body = json!({
                "command": "transfer", "to": to, "timeout": timeout, "onFail": word(*on_fail),
                "status": status,
            });
            order(api, call, &body, timeout.saturating_add(15).min(120), as_json).await
        }
        Command::Dial { to, from, pbx, ai, parameters, timeout, record, machine_detection } => {
            let mut body = json!({ "to": to, "record": record });
            if let Some(timeout) = timeout {
                body["timeout"] = (*timeout).into();
            }
            if let Some(until) = machine_detection {
                body["machine_detection"] = word(*until).replace('-', "_").into();
            }
            for (name, value) in [("from", from), ("pbx", pbx), ("ai", ai)] {
                if let Some(value) = value {
                    body[name] = value.as_str().into();
                }
            }
            let parameters = parameters.iter().map(|(name, value)| (name.clone(), value.as_str()));
            body["parameters"] = parameters.map(|(n, v)| (n, Value::from(v))).collect();
            let call = api.ask(Method::POST, "/v1/calls", Some(&body), LIMIT).await?;
            match as_json {
                true => outln!("{call}"),
                false => outln!("{}", call["id"].as_str().unwrap_or_default()),
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Capture(arguments) => capture::run(api, arguments, as_json).await,
        Command::Watch => watch(api, as_json).await,
    }
}

async fn list(api: &Api, as_json: bool) -> anyhow::Result<ExitCode> {
    let list = api.ask(Method::GET, "/v1/calls", None, LIMIT).await?;
    let calls = list["calls"].as_array().cloned().unwrap_or_default();
    if as_json {
        calls.iter().for_each(|call| outln!("{call}"));
        return Ok(ExitCode::SUCCESS);
    }
    for call in &calls {
        let text = |name: &str| call[name].as_str().unwrap_or("-").to_owned();
        let (id, pbx, state) = (text("id"), text("pbx"), text("state"));
        let (from, to, since) = (text("from_number"), text("to_number"), text("started_at"));
        outln!("{id}  {pbx}  {state:<10}  {from} -> {to}  since {since}");
    }
    if calls.is_empty() {
        errln!("no live calls");
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives a command, waits for its outcome, and prints that. An outcome that is still open is not a
/// success.
async fn order(
    api: &Api,
    call: &str,
    body: &Value,
    wait_s: u64,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/calls/{call}/commands?wait={wait_s}");
    let limit = LIMIT + Duration::from_secs(wait_s);
    let reply = api.ask(Method::POST, &path, Some(body), limit).await?;
    let status = reply["status"].as_str().unwrap_or_default();
    match as_json {
        true => outln!("{reply}"),
        false => outln!("{status}"),
    }
    if status == "done" {
        return Ok(ExitCode::SUCCESS);
    }
    errln!("the outcome is still open; trunkless calls watch shows it");
    Ok(ExitCode::FAILURE)
}

async fn watch(api: &Api, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut response = api.send(Method::GET, "/v1/events", None, None).await?;
    let mut lines = Lines::default();
    while let Some(bytes) = response.chunk().await? {
        for line in lines.add(&bytes) {
            if let Some(data) = line.strip_prefix("data: ") {
                print_event(data, as_json);
            }
        }
    }
    bail!("the program has ended the stream of events");
}

/// Splits a stream into lines. A chunk may end within a character.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn add(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.0.split_off(end + 1);
        let whole = std::mem::replace(&mut self.0, rest);
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

fn print_event(data: &str, as_json: bool) {
    if as_json {
        return outln!("{data}");
    }
    let event: Value = serde_json::from_str(data).unwrap_or_default();
    if let Some(missed) = event["missed"].as_u64() {
        return errln!("{missed} events missed");
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (call, command) = (&event["data"]["call"], &event["data"]["command"]);
    let mut detail = String::new();
    if command.is_object() {
        let (name, status) = (text(&command["command"]), text(&command["status"]));
        detail =
            format!("  {name} by {}: {status} {}", text(&command["by"]), text(&command["reason"]));
    } else if event["type"] == "call.ended" {
        detail = format!("  {}", text(&call["end_reason"]));
    } else if event["type"] == "call.answered_by" {
        detail = format!("  {}", text(&call["answered_by"]));
    }
    outln!(
        "{}  {}  {}{}",
        text(&event["timestamp"]),
        text(&call["id"]),
        text(&event["type"]),
        detail
    );
}

impl Api {
    /// Sends a request and returns its JSON.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        let response = self.send(method, path, body, Some(limit)).await?;
        let text = response.text().await?;
        serde_json::from_str(&text).context("the answer is not JSON")
    }

    /// Sends a request. Everything but a success is an error.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Option<Duration>,
    ) -> anyhow::Result<Response> {
        let url = format!("{}{path}", self.url);
        let mut request = self.client.request(method, url).bearer_auth(self.token.expose_secret());
        if let Some(limit) = limit {
            request = request.timeout(limit);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.map_err(reqwest::Error::without_url);
        let response = answer.with_context(|| {
            format!("no answer from {}: is trunkless running, with [control] tokens?", self.url)
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        match body["error"]["message"].as_str() {
            Some(message) => bail!("{message}"),
            None if body["status"] == "failed" => {
                bail!("failed: {}", body["detail"].as_str().unwrap_or_default())
            }
            None => bail!("the control API answered {status}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_may_be_split_anywhere() {
        let text = "data: Jörg\n\ndata: 東京\r\n: rest";
        for at in 0..text.len() {
            let mut lines = Lines::default();
            let (first, second) = text.as_bytes().split_at(at);
            let all = [lines.add(first), lines.add(second)].concat();
            assert_eq!(all, ["data: Jörg", "", "data: 東京"], "{at}");
            assert_eq!(lines.0, b": rest");
        }
    }
}
