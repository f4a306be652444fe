//! The settings of calls, made from the configuration.

use std::sync::Arc;

use crate::call;
use crate::call::CallConfig;
use crate::call::departure::DeparturePolicy;
use crate::call::ladder::Overflow;
use crate::call::switchboard::CallConfigs;
use crate::config::plan::{AiPlan, Plan};
use crate::config::schema::OnAiClose;
use crate::media::frame::RATE;
use crate::media::playout::Budget;
use crate::record::recorder::Recorder;
use crate::stream::breaker::Breaker;
use crate::stream::connect::Target;
use crate::stream::dialect::sid;
use crate::vicidial::Vicidials;

pub(super) fn call_configs(
    plan: &Plan,
    recorder: Option<&Recorder>,
    vicidials: &Vicidials,
) -> CallConfigs {
    let budget = Budget::new(plan.settings.calls.playout_budget_mb << 20);
    let mut breakers = Breakers::new();
    let sip = plan.sip.iter().map(|pbx| (pbx.account.name.as_str(), &pbx.ai));
    let ari = plan.ari.iter().map(|(pbx, ai)| (pbx.name.as_str(), ai));
    sip.chain(ari)
        .map(|(name, ai)| {
            let config = call_config(
                plan,
                name,
                ai,
                budget.clone(),
                recorder.cloned(),
                &mut breakers,
                vicidials,
            );
            (name.into(), Arc::new(config))
        })
        .collect()
}

/// The breakers of all AIs. Several PBXs may use one AI.
type Breakers = Vec<(Target, Arc<Breaker>)>;

fn call_config(
    plan: &Plan,
    name: &str,
    ai: &AiPlan,
    budget: Budget,
    recorder: Option<Recorder>,
    breakers: &mut Breakers,
    vicidials: &Vicidials,
) -> CallConfig {
    let calls = &plan.settings.calls;
    let others = plan.endpoints.iter().map(|(name, ai)| (name.as_str(), ai));
    let ais = [("", ai)].into_iter().chain(others);
    // an AI of the ladder has the same account, so that it finds its calls in the control API
    let account = ai.account_sid.clone().unwrap_or_else(|| sid("AC", name));
    CallConfig {
        ais: ais.map(|(name, ai)| call_ai(name, ai, &account, breakers)).collect(),
        ladder: plan.ladders.get(name).cloned().unwrap_or_default().into(),
        reconnect: calls.on_ai_close == OnAiClose::Reconnect,
        answer: calls.answer.when(),
        answer_wait: calls.answer_wait.0,
        // a customer of VICIdial has been answered before, and would hear ring-back tone
        ringing: calls.ringing && !plan.vicidials.contains_key(name),
        drain_on_close: calls.drain_on_close.0,
        departure: DeparturePolicy { on_ai_close: calls.on_ai_close.departure() },
        owner: vicidials.owner(name),
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
    }
}

/// The treatment of the callers of one PBX for whom no call can be started.
pub(super) fn overflow(plan: &Plan, pbx: &str, can_continue: bool) -> Overflow {
    let rules = plan.transfers.get(pbx).cloned().unwrap_or_default();
    let ladder = plan.ladders.get(pbx).map(Vec::as_slice).unwrap_or_default();
    Overflow::of(ladder, &rules, can_continue)
}

fn call_ai(name: &str, ai: &AiPlan, account: &str, breakers: &mut Breakers) -> call::Ai {
    let known = breakers.iter().find(|(target, _)| target.is_same(&ai.target));
    let breaker = known.map(|(_, breaker)| breaker.clone()).unwrap_or_else(|| {
        breakers.push((ai.target.clone(), Arc::default()));
        breakers[breakers.len() - 1].1.clone()
    });
    call::Ai {
        name: name.to_owned(),
        breaker,
        target: ai.target.clone(),
        extensions: ai.extensions,
        account_sid: ai.account_sid.clone().unwrap_or_else(|| account.to_owned()),
        parameters: ai.parameters.clone(),
        silent_timeout: ai.silent_timeout,
        ping: ai.ping,
    }
}
