//! The settings of calls, made from the configuration.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use crate::app::tools;
use crate::call;
use crate::call::admission::Limit;
use crate::call::departure::DeparturePolicy;
use crate::call::dispatch::{Choice, RouteCalls};
use crate::call::ladder::{Overflow, Rung};
use crate::call::switchboard::CallConfigs;
use crate::call::{CallConfig, Owner};
use crate::config::plan::{AiPlan, Plan};
use crate::config::schema::OnAiClose;
use crate::media::frame::RATE;
use crate::media::playout::Budget;
use crate::record::recorder::Recorder;
use crate::stream::breaker::Breaker;
use crate::stream::dialect::sid;
use crate::stream::prewarm::Prewarmed;
use crate::vicidial::Vicidials;

/// The parts that the calls before and after a reload share.
pub(super) struct Common {
    budget: Budget,
    /// The part that the calls of each AI share. Several PBXs may use one AI.
    ais: SharedByAi,
    /// The limits of routes, by name, with the calls that count towards them.
    limits: BTreeMap<Arc<str>, Arc<Limit>>,
}

impl Default for Common {
    fn default() -> Common {
        let limits = BTreeMap::new();
        Common { budget: Budget::new(0), ais: SharedByAi::default(), limits }
    }
}

impl Common {
    /// Sets the limits of the routes. The calls that are up count as before.
    fn set_limits(&mut self, plan: &Plan) {
        let new = plan.routes.iter().map(|route| {
            let known = self.limits.get(&route.name).cloned();
            let table = || Arc::new(Limit::new(format!("route {}: limits", route.name)));
            let limit = known.unwrap_or_else(table);
            limit.set(&route.limits);
            (route.name.clone(), limit)
        });
        self.limits = new.collect();
    }

    /// Offers calls to every AI again, whatever happened before.
    pub(super) fn forget_breakers(&mut self) {
        self.ais = SharedByAi::default();
    }
}

/// Makes the settings of new calls. An AI that stays the same keeps its breaker.
pub(super) fn call_configs(
    plan: &Plan,
    common: &mut Common,
    recorder: Option<&Recorder>,
    vicidials: &Vicidials,
) -> CallConfigs {
    common.budget.set_limit(plan.settings.calls.playout_budget_mb << 20);
    common.set_limits(plan);
    let mut ais = SharedByAi { known: std::mem::take(&mut common.ais.used), used: vec![] };
    let sip = plan.sip.iter().map(|pbx| (pbx.account.name.as_str(), &pbx.ai));
    let ari = plan.ari.iter().map(|(pbx, ai)| (pbx.name.as_str(), ai));
    let configs = sip
        .chain(ari)
        .map(|(name, ai)| {
            let mut config = call_config(
                plan,
                name,
                ai,
                common.budget.clone(),
                recorder.cloned(),
                &mut ais,
                vicidials,
            );
            config.routes = routes(plan, name, &config, &common.limits);
            (name.into(), Arc::new(config))
        })
        .collect();
    ais.known.clear();
    common.ais = ais;
    configs
}

/// The part that all calls of an AI share.
struct Shared {
    ai: AiPlan,
    breaker: Arc<Breaker>,
    prewarmed: Option<Arc<Prewarmed>>,
}

/// The same of all AIs.
#[derive(Default)]
struct SharedByAi {
    /// From before the reload.
    known: Vec<Shared>,
    used: Vec<Shared>,
}

impl SharedByAi {
    fn of(&mut self, ai: &AiPlan) -> (Arc<Breaker>, Weak<Prewarmed>) {
        let all = || self.used.iter().chain(&self.known).filter(|shared| shared.ai.is_same(ai));
        let breaker = all().next().map(|shared| shared.breaker.clone()).unwrap_or_default();
        let keeps = |of: &AiPlan| (of.prewarm, of.ping);
        let is_same = |shared: &&Shared| keeps(&shared.ai) == keeps(ai);
        let prewarmed = match all().find(is_same) {
            Some(shared) => shared.prewarmed.clone(),
            None => (ai.prewarm > 0)
                .then(|| Prewarmed::start(ai.target.clone(), ai.prewarm, ai.ping, breaker.clone())),
        };
        let weak = prewarmed.as_ref().map(Arc::downgrade).unwrap_or_default();
        let mut used = self.used.iter().filter(|shared| shared.ai.is_same(ai));
        if !used.any(|shared| is_same(&shared)) {
            self.used.push(Shared { ai: ai.clone(), breaker: breaker.clone(), prewarmed });
        }
        (breaker, weak)
    }
}

/// Returns the owner of the calls of a PBX. A VICIdial that is no longer configured keeps the calls
/// that it has, and gets no new ones.
pub(super) fn owner(plan: &Plan, pbx: &str, vicidials: &Vicidials) -> Option<Arc<dyn Owner>> {
    vicidials.owner(pbx).filter(|_| plan.vicidials.contains_key(pbx))
}

fn call_config(
    plan: &Plan,
    name: &str,
    ai: &AiPlan,
    budget: Budget,
    recorder: Option<Recorder>,
    shared: &mut SharedByAi,
    vicidials: &Vicidials,
) -> CallConfig {
    let calls = &plan.settings.calls;
    let others = plan.endpoints.iter().map(|(name, ai)| (name.as_str(), ai));
    let ais = [("", ai)].into_iter().chain(others);
    // an AI of the ladder has the same account, so that it finds its calls in the control API
    let account = ai.account_sid.clone().unwrap_or_else(|| sid("AC", name));
    CallConfig {
        ais: ais.map(|(name, ai)| call_ai(name, ai, &account, shared)).collect(),
        first: 0,
        route: None,
        routes: Vec::new(),
        ladder: plan.ladders.get(name).cloned().unwrap_or_default().into(),
        reconnect: calls.on_ai_close == OnAiClose::Reconnect,
        answer: calls.answer.when(),
        answer_wait: calls.answer_wait.0,
        // a customer of VICIdial has been answered before, and would hear ring-back tone
        ringing: calls.ringing && !plan.vicidials.contains_key(name),
        drain_on_close: calls.drain_on_close.0,
        departure: DeparturePolicy { on_ai_close: calls.on_ai_close.departure() },
        owner: owner(plan, name, vicidials),
        transfers: plan.transfers.get(name).cloned().unwrap_or_default(),
        variables: plan.variables.get(name).cloned().unwrap_or_default(),
        prompts: plan.prompts.clone(),
        max_duration: calls.max_duration.0,
        media_timeout: calls.media_timeout.0,
        media: plan.settings.media.settings(),
        playout_bytes: calls.playout_minutes as usize * 60 * RATE as usize,
        playout_budget: budget,
        record: plan.record.get(name).cloned(),
        recorder,
        turn_latency: plan.settings.telemetry.turn_latency,
        speech: plan.settings.speech.settings(),
    }
}

/// Returns the routes of the calls of one PBX. `base`: the settings of its calls without a route.
fn routes(
    plan: &Plan,
    pbx: &str,
    base: &CallConfig,
    limits: &BTreeMap<Arc<str>, Arc<Limit>>,
) -> Vec<RouteCalls> {
    let used = plan.routes.iter().filter_map(|route| Some((route, route.pbxs.get(pbx)?)));
    let routes = used.filter_map(|(route, own)| {
        let ais: Arc<[call::Ai]> = match route.parameters.is_empty() {
            true => base.ais.clone(),
            false => base.ais.iter().map(|ai| with_parameters(ai, &route.parameters)).collect(),
        };
        let order = if route.ais.is_empty() { &[(0, 1)] } else { &route.ais[..] };
        let choices = order.iter().map(|(first, weight)| {
            let others = order.iter().filter(|(place, _)| place != first);
            let others = others.map(|(place, _)| Rung::Next(*place));
            let config = CallConfig {
                ais: ais.clone(),
                first: *first,
                route: Some(route.name.clone()),
                ladder: others.chain(own.ladder.iter().cloned()).collect(),
                record: own.record.clone(),
                ..base.clone()
            };
            Choice { weight: *weight, config: Arc::new(config) }
        });
        Some(RouteCalls {
            name: route.name.clone(),
            conditions: Arc::new(route.conditions.clone()),
            limit: limits.get(&route.name)?.clone(),
            choices: choices.collect(),
        })
    });
    routes.collect()
}

/// Returns the AI with the parameters of a route, which replace its own ones.
fn with_parameters(ai: &call::Ai, parameters: &[(String, String)]) -> call::Ai {
    let is_new = |(name, _): &&(String, String)| !parameters.iter().any(|(new, _)| new == name);
    let kept = ai.parameters.iter().filter(is_new).chain(parameters);
    call::Ai { parameters: kept.cloned().collect(), ..ai.clone() }
}

/// The treatment of the callers of one PBX for whom no call can be started.
pub(super) fn overflow(plan: &Plan, pbx: &str, can_continue: bool) -> Overflow {
    let rules = plan.transfers.get(pbx).cloned().unwrap_or_default();
    let ladder = plan.ladders.get(pbx).map(Vec::as_slice).unwrap_or_default();
    Overflow::of(ladder, &rules, can_continue)
}

fn call_ai(name: &str, ai: &AiPlan, account: &str, shared: &mut SharedByAi) -> call::Ai {
    let (breaker, prewarmed) = shared.of(ai);
    call::Ai {
        name: name.to_owned(),
        breaker,
        prewarmed,
        target: ai.target.clone(),
        create: ai.create.clone(),
        extensions: ai.extensions,
        account_sid: ai.account_sid.clone().unwrap_or_else(|| account.to_owned()),
        parameters: ai.parameters.clone(),
        silent_timeout: ai.silent_timeout,
        ping: ai.ping,
        tools: ai.tool_webhook.clone().map(tools::server),
    }
}
