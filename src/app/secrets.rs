//! The secrets of the configuration, which no packet capture may contain.

use secrecy::ExposeSecret;

use crate::config::plan::{AiPlan, Plan};

/// Shorter values are left alone: they would match ordinary text.
const SHORTEST: usize = 8;

/// Returns the passwords and tokens of PBXs, AIs and the control API.
pub(super) fn secrets(plan: &Plan) -> Vec<String> {
    let tokens = plan.tokens.iter().map(|token| token.secret.expose_secret().to_owned());
    let registrations = plan.sip.iter().filter_map(|pbx| pbx.account.registration.as_ref());
    let sip = registrations.map(|settings| settings.password.expose_secret().to_owned());
    let ari = plan.ari.iter().map(|(pbx, _)| pbx.target.password.expose_secret().to_owned());
    let ais = plan.sip.iter().map(|pbx| &pbx.ai).chain(plan.ari.iter().map(|(_, ai)| ai));
    let ais = ais.chain(plan.endpoints.iter().map(|(_, ai)| ai));
    let created = |ai: &AiPlan| ai.create.iter().flat_map(|create| create.secrets()).collect();
    let secrets = |ai: &AiPlan| -> Vec<String> { [ai.target.secrets(), created(ai)].concat() };
    let ais = ais.flat_map(secrets);
    let mut all: Vec<String> = tokens.chain(sip).chain(ari).chain(ais).collect();
    all.retain(|secret| secret.chars().count() >= SHORTEST);
    all.sort_unstable();
    all.dedup();
    all
}
