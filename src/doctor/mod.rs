//! `trunkless doctor`: checks everything that a call needs, in the order in which the parts depend
//! on each other, and names the step that fails with its remedy.
//!
//! Each file checks one part: it asks (I/O), and judges the answers by functions without I/O.
//! Nothing that runs is disturbed: ports are doctor's own, a registration is asked for and not
//! changed, and what is created over ARI is removed. Owns the clock that limits the whole run.

pub mod ai;
mod ari;
mod ari_media;
mod asking;
mod configuration;
mod delivery;
mod dialplan;
mod echo;
pub mod finding;
mod host;
mod judge_sip;
pub mod running;
mod sip;
mod sockets;
mod tone;
pub mod vicidial;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use crate::config::plan::{AiPlan, Plan};
use crate::config::{self, Source};
use crate::doctor::finding::{Finding, Report};
use crate::doctor::running::Running;

/// Time limit of the whole run. The limits of the checks add up to less.
const LIMIT: Duration = Duration::from_secs(15);
/// Longest wait for the AI's WebSocket.
const AI_WAIT: Duration = Duration::from_secs(5);

/// Options of [`run`].
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Place a test call to this extension, which echoes.
    pub echo: Option<String>,
    /// Open no test stream to the AIs.
    pub no_ai_call: bool,
}

type Checks<'a> = Pin<Box<dyn Future<Output = Vec<Finding>> + Send + 'a>>;

/// Runs all checks. The second value is false if the configuration cannot be used; the report has
/// only its mistakes then.
pub async fn run(
    source: &Source,
    environment: &std::collections::HashMap<String, String>,
    options: &Options,
) -> (Report, bool) {
    let end = Instant::now() + LIMIT;
    crate::dns::start();
    let (plan, report) = config::inspect(source, environment);
    let mut findings = configuration::judge(source, &report.findings);
    let Some(plan) = plan else { return (Report { findings }, false) };
    let settings = &plan.settings;
    let names: Vec<&str> = settings.pbx.keys().map(|name| name.0.as_str()).collect();
    let running = Running::find(settings.http.listen, &names).await;
    findings.push(match running.version() {
        Some(version) => {
            Finding::ok("running", format!("trunkless {version} runs with these PBXs"))
        }
        None => Finding::skipped("running", "no trunkless answers at [http] listen"),
    });
    findings.push(host::clock());
    findings.push(host::secrets(Path::new(&source.name), &source.text));
    findings.push(host::descriptors(settings.calls.max));
    findings.extend(host::ports(settings, !plan.sip.is_empty(), &running));
    let parts = parts(&plan, &running, options, end);
    let parts = parts.into_iter().map(|(name, checks)| limited(end, name, checks));
    findings.extend(join_all(parts).await.into_iter().flatten());
    (Report { findings }, true)
}

/// Returns the findings of a part, or that it did not end in time.
async fn limited(end: Instant, name: String, checks: Checks<'_>) -> Vec<Finding> {
    timeout_at(end, checks).await.unwrap_or_else(|_| {
        let what = format!("the checks did not end within {} s", LIMIT.as_secs());
        vec![Finding::fault(name, what, "run doctor again; if it stays so, report it")]
    })
}

/// The checks of the PBXs, AIs and other systems, which run side by side.
fn parts<'a>(
    plan: &'a Plan,
    running: &'a Running,
    options: &'a Options,
    end: Instant,
) -> Vec<(String, Checks<'a>)> {
    let settings = &plan.settings;
    let ports = (settings.media.ports.first, settings.media.ports.last);
    let mut parts: Vec<(String, Checks<'a>)> = Vec::new();
    for pbx in &plan.sip {
        let shared = sip::Shared {
            listen: settings.sip.listen,
            media: ports,
            echo: options.echo.clone(),
            end,
        };
        let name = &pbx.account.name;
        let state = running.pbx(name);
        let checks = async move { sip::check(pbx, &shared, state).await };
        parts.push((format!("pbx.{name}"), Box::pin(checks)));
    }
    for (pbx, _) in &plan.ari {
        let shared = ari::Shared {
            bound: settings.sip.listen.ip(),
            media: ports,
            max_calls: settings.calls.max,
            end,
        };
        let state = running.pbx(&pbx.name);
        let checks = async move { ari::check(pbx, &shared, state).await };
        parts.push((format!("pbx.{}", pbx.name), Box::pin(checks)));
    }
    for (name, vicidial) in &plan.vicidials {
        let expected = vicidial::expected(plan, name);
        let checks = async move { vicidial::check(name, vicidial, &expected).await };
        parts.push((format!("pbx.{name}.vicidial"), Box::pin(checks)));
    }
    for (label, ai) in ais(plan) {
        let wait = settings.calls.answer_wait.0.min(AI_WAIT);
        let ai = ai::Ai { label: label.clone(), plan: ai, wait, talk: !options.no_ai_call };
        parts.push((label, Box::pin(async move { ai::check(&ai).await })));
    }
    parts.push(("delivery".to_owned(), Box::pin(delivery::check(plan))));
    parts
}

/// The AIs, each once: that of most PBXs is `ai`.
fn ais(plan: &Plan) -> Vec<(String, &AiPlan)> {
    let of_sip = plan.sip.iter().map(|pbx| (&pbx.account.name, &pbx.ai));
    let of_ari = plan.ari.iter().map(|(pbx, ai)| (&pbx.name, ai));
    let mut all: Vec<(String, &AiPlan)> = Vec::new();
    let own = |name: &str| {
        let keys = plan.settings.pbx.iter().find(|(pbx, _)| pbx.0 == name);
        keys.is_some_and(|(_, pbx)| pbx.ai.url.is_some())
    };
    let of_pbxs = of_sip.chain(of_ari).map(|(name, ai)| match own(name) {
        true => (format!("pbx.{name}.ai"), ai),
        false => ("ai".to_owned(), ai),
    });
    let endpoints = plan.endpoints.iter().map(|(name, ai)| (format!("endpoint.{name}"), ai));
    for (label, ai) in of_pbxs.chain(endpoints) {
        if all.iter().all(|(_, known)| !known.target.is_same(&ai.target)) {
            all.push((label, ai));
        }
    }
    all
}
