//! `trunkless route explain`: which route of the configuration applies to a call, and why. Owns the
//! clock.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::call::hours::{Zone, moment};
use crate::call::parameters::common_name;
use crate::call::routing::Facts;
use crate::cli::{EXIT_CONFIG, environment, output};
use crate::config::plan::Plan;
use crate::config::resolve::resolve;
use crate::config::routes::RoutePlan;
use crate::config::{Source, load};
use crate::record::When;

#[derive(Debug, Args)]
pub struct RouteArguments {
    #[command(subcommand)]
    command: RouteCommand,
    /// Configuration file.
    #[arg(long, default_value = "trunkless.toml", global = true)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum RouteCommand {
    /// Name the route that applies to a call, and why each one before it does not.
    Explain(ExplainArguments),
}

#[derive(Debug, Args)]
struct ExplainArguments {
    /// The called user.
    #[arg(long)]
    to: String,
    /// The caller's number.
    #[arg(long, default_value = "")]
    from: String,
    /// The call's PBX; needed if there are several.
    #[arg(long)]
    pbx: Option<String>,
    /// A header field of the INVITE.
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// A channel variable, or another parameter of the stream.
    #[arg(long, value_name = "NAME=VALUE")]
    variable: Vec<String>,
    /// The dialler's campaign.
    #[arg(long)]
    campaign: Option<String>,
    /// Date and time, such as 2026-11-30T09:00, in the zone of the first route that has one;
    /// by default now.
    #[arg(long)]
    time: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn main(arguments: &RouteArguments) -> ExitCode {
    output::exit_when_closed();
    let RouteCommand::Explain(explain) = &arguments.command;
    let environment = environment();
    let plan = Source::read(&arguments.config).and_then(|source| {
        let settings = load(&source, &environment)?;
        resolve(&source, settings, &environment)
    });
    let explained = match plan {
        Ok(plan) => explained(&plan, explain),
        Err(error) => Err(error.to_string()),
    };
    match explained {
        Ok(answer) if explain.json => {
            outln!("{:#}", answer.json());
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            answer.print();
            ExitCode::SUCCESS
        }
        Err(why) => {
            errln!("{why}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// The route of a call.
struct Explained {
    /// The call's PBX.
    pbx: String,
    /// `None` if no route applies.
    route: Option<Applied>,
    /// The routes before it, and why each does not apply.
    skipped: Vec<(String, String)>,
}

/// The route that applies.
struct Applied {
    name: String,
    /// The names of the AIs, and their weights.
    ais: Vec<(String, u32)>,
    parameters: Vec<(String, String)>,
    record: &'static str,
}

fn explained(plan: &Plan, arguments: &ExplainArguments) -> Result<Explained, String> {
    let names: Vec<&str> = plan.settings.pbx.keys().map(|name| name.0.as_str()).collect();
    let pbx = match (&arguments.pbx, &names[..]) {
        (Some(name), _) if names.contains(&name.as_str()) => name.clone(),
        (Some(name), _) => {
            return Err(format!("there is no PBX {name}; name one of: {}", names.join(", ")));
        }
        (None, [only]) => (*only).to_owned(),
        (None, _) => return Err(format!("name the PBX with --pbx: {}", names.join(", "))),
    };
    let pairs = |all: &[String], option: &str| -> Result<Vec<(String, String)>, String> {
        let pair = |text: &String| {
            let pair = text.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
            let pair = pair.map(|(name, value)| (name.to_owned(), value.to_owned()));
            pair.ok_or_else(|| format!("--{option} {text}: write NAME=VALUE"))
        };
        all.iter().map(pair).collect()
    };
    let headers = pairs(&arguments.header, "header")?;
    let mut parameters = pairs(&arguments.variable, "variable")?;
    parameters.iter_mut().for_each(|(name, _)| *name = common_name(name));
    let campaign = arguments.campaign.iter().map(|name| ("campaign".to_owned(), name.clone()));
    parameters.extend(campaign);
    let facts = Facts {
        pbx: &pbx,
        to: &arguments.to,
        from: &arguments.from,
        headers: &headers,
        parameters: &parameters,
        now: now(plan, arguments.time.as_deref())?,
    };
    let mut skipped = Vec::new();
    let mut route = None;
    for candidate in &plan.routes {
        match candidate.conditions.check(&facts) {
            Some(mismatch) => skipped.push((candidate.name.to_string(), mismatch.to_string())),
            None => {
                route = Some(applied(plan, candidate, &pbx));
                break;
            }
        }
    }
    Ok(Explained { route, skipped, pbx })
}

fn now(plan: &Plan, text: Option<&str>) -> Result<Duration, String> {
    let zone: Option<&Zone> = plan.routes.iter().find_map(|route| route.conditions.zone.as_ref());
    match text {
        Some(text) => moment(text, zone).map_err(|why| format!("--time {why}")),
        None => Ok(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
    }
}

fn applied(plan: &Plan, route: &RoutePlan, pbx: &str) -> Applied {
    let order = if route.ais.is_empty() { &[(0, 1)] } else { &route.ais[..] };
    let name = |place: usize| match place.checked_sub(1).and_then(|at| plan.endpoints.get(at)) {
        Some((name, _)) => name.clone(),
        None => "default".to_owned(),
    };
    let record = route.pbxs.get(pbx).and_then(|own| own.record.as_ref());
    Applied {
        name: route.name.to_string(),
        ais: order.iter().map(|(place, weight)| (name(*place), *weight)).collect(),
        parameters: route.parameters.clone(),
        record: match record.map(|record| record.when) {
            Some(When::Always) => "always",
            Some(When::OnCommand) => "on_command",
            None => "never",
        },
    }
}

impl Explained {
    fn json(&self) -> Value {
        let route = self.route.as_ref();
        let ai = |(name, weight): &(String, u32)| json!({ "name": name, "weight": weight });
        let skipped = self.skipped.iter().map(|(name, why)| json!({ "route": name, "why": why }));
        let parameters = route.into_iter().flat_map(|route| route.parameters.clone());
        json!({
            "pbx": self.pbx,
            "route": route.map(|route| &route.name),
            "ai": route.map(|route| route.ais.iter().map(ai).collect::<Vec<_>>()),
            "parameters": route.map(|_| Value::Object(
                parameters.map(|(name, value)| (name, value.into())).collect(),
            )),
            "record": route.map(|route| route.record),
            "skipped": skipped.collect::<Vec<_>>(),
        })
    }

    fn print(&self) {
        match &self.route {
            None => outln!("no route applies: the call goes to the AI of [ai]"),
            Some(route) => {
                outln!("route \"{}\" applies", route.name);
                let ais =
                    route.ais.iter().map(|(name, weight)| format!("{name} (weight {weight})"));
                outln!("  AIs:        {}", ais.collect::<Vec<_>>().join(", "));
                for (name, value) in &route.parameters {
                    outln!("  parameter:  {name} = {value}");
                }
                outln!("  recording:  {}", route.record);
            }
        }
        for (name, why) in &self.skipped {
            outln!("route \"{name}\" does not apply: {why}");
        }
    }
}
