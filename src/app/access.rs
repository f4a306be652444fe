//! The access to the control API, and what it can show, made of a configuration.

use std::sync::Arc;

use crate::app::secrets::secrets;
use crate::call::switchboard::CallConfigs;
use crate::config::plan::Plan;
use crate::control::recordings::Recordings;
use crate::control::tokens::Access;
use crate::record::recorder::Recorder;
use crate::stream::breaker::Breaker;

/// Returns what replaces `before`.
pub(super) fn access(
    plan: &mut Plan,
    before: &Access,
    recorder: Option<&Recorder>,
    configs: &CallConfigs,
) -> Access {
    // live calls may still use those from before
    let mut secrets = secrets(plan);
    secrets.extend_from_slice(&before.secrets);
    secrets.sort_unstable();
    secrets.dedup();
    let control = &plan.settings.control;
    Access {
        hosts: control.hosts.clone().unwrap_or_default(),
        listen_in: control.listen_in,
        tokens: std::mem::take(&mut plan.tokens),
        secrets,
        recordings: recorder.map(|recorder| Recordings::new(&recorder.settings())),
        ais: named_ais(configs),
    }
}

/// All AIs, by what the control API calls them.
fn named_ais(configs: &CallConfigs) -> Vec<(String, Arc<Breaker>)> {
    let mut named: Vec<(String, Arc<Breaker>)> = Vec::new();
    for ai in configs.iter().flat_map(|(_, config)| &*config.ais) {
        if !named.iter().any(|(_, known)| Arc::ptr_eq(known, &ai.breaker)) {
            let space = if ai.name.is_empty() { "" } else { " " };
            let name = format!("AI{space}{} ({})", ai.name, ai.target.shown());
            named.push((name, ai.breaker.clone()));
        }
    }
    named
}
