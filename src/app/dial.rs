//! The PBXs through which calls may be placed, made from the configuration.

use std::collections::BTreeMap;

use crate::app::sources::Sources;
use crate::call::placing::Line;
use crate::call::switchboard::CallConfigs;
use crate::config::plan::Plan;

/// Returns the PBXs by name. One that allows no number is left out.
pub(super) fn lines(
    plan: &Plan,
    configs: &CallConfigs,
    sources: &Sources,
) -> BTreeMap<String, Line> {
    let line = |(pbx, rules): (&String, _)| {
        let (_, config) = configs.iter().find(|(name, _)| **name == **pbx)?;
        let ais = config.ais.iter().map(|ai| (ai.name.clone(), ai.target.url().to_owned()));
        let line = Line {
            account_sid: config.ais.first()?.account_sid.clone(),
            rules: Clone::clone(rules),
            ais: ais.collect(),
            records: config.record.is_some() && config.recorder.is_some(),
            submit: sources.submit(pbx)?,
        };
        Some((pbx.clone(), line))
    };
    plan.dials.iter().filter_map(line).collect()
}
