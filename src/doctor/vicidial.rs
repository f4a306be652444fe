//! The checks of a VICIdial, which `trunkless vicidial check` makes as well. Owns no I/O itself.

use crate::config::plan::Plan;
use crate::doctor::finding::Finding;
use crate::vicidial::VicidialSettings;
use crate::vicidial::check::{self, Expected, Verdict};

/// Returns what VICIdial has to match for the PBX of this name.
pub fn expected(plan: &Plan, name: &str) -> Expected {
    let phone = plan.sip.iter().find(|pbx| pbx.account.name == *name);
    let all = plan.settings.calls.max;
    let own = plan.settings.pbx.iter().find(|(pbx, _)| pbx.0 == name);
    let own = own.and_then(|(_, pbx)| pbx.calls.limits().max);
    Expected {
        max_calls: own.map_or(all, |own| own.min(all)),
        phone: phone.map(|phone| phone.account.username.clone()),
    }
}

pub async fn check(name: &str, settings: &VicidialSettings, expected: &Expected) -> Vec<Finding> {
    let step = format!("pbx.{name}.vicidial");
    let found = check::check(settings, expected).await;
    found.into_iter().map(|finding| of(&step, finding)).collect()
}

fn of(step: &str, finding: check::Finding) -> Finding {
    let check::Finding { what, verdict } = finding;
    let remedy = "run trunkless vicidial plan, and compare it with VICIdial's admin pages";
    match verdict {
        Verdict::Good => Finding::ok(step, what),
        Verdict::Warning(why) => Finding::warning(step, format!("{what}: {why}"), remedy),
        Verdict::Fault(why) => Finding::fault(step, format!("{what}: {why}"), remedy),
    }
}
