//! Applies the routes to an offered call: which settings it gets, and whether there is room for it.
//! Owns the clock and randomness.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::time::timeout_at;
use tracing::{info, warn};

use crate::call::admission::Limit;
use crate::call::end::EndReason;
use crate::call::routing::{CAMPAIGN, Conditions, Facts, pick};
use crate::call::{CallConfig, Offer, counters};

/// A call waits for its campaign for this long, if a route depends on it and only the call's owner
/// knows it.
const CAMPAIGN_WAIT: Duration = Duration::from_millis(500);

/// A route, for the calls of one PBX.
#[derive(Clone)]
pub struct RouteCalls {
    pub name: Arc<str>,
    pub conditions: Arc<Conditions>,
    /// Shared by all PBXs.
    pub limit: Arc<Limit>,
    /// One for each AI that the call may be offered to first.
    pub choices: Vec<Choice>,
}

/// The settings of a call that goes to one of the route's AIs first.
#[derive(Clone)]
pub struct Choice {
    pub weight: u32,
    pub config: Arc<CallConfig>,
}

impl Choice {
    /// True while calls are offered to the AI.
    fn is_usable(&self) -> bool {
        let first = self.config.ais.get(self.config.first);
        first.is_some_and(|ai| !ai.breaker.is_open())
    }
}

fn facts(offer: &Offer) -> Facts<'_> {
    Facts {
        pbx: &offer.pbx,
        to: &offer.to_number,
        from: &offer.from_number,
        headers: &offer.headers,
        parameters: offer.added.entries(),
        now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
    }
}

/// True if the route depends on the campaign, and the call's owner may still report it.
pub(super) fn awaits_campaign(offer: &Offer, config: &CallConfig) -> bool {
    if offer.owned.is_none() || offer.refused.is_some() {
        return false;
    }
    let facts = facts(offer);
    let decided = |route: &&RouteCalls| {
        route.conditions.awaits_campaign(&facts) || route.conditions.check(&facts).is_none()
    };
    let first = config.routes.iter().find(decided);
    first.is_some_and(|route| route.conditions.awaits_campaign(&facts))
}

/// Waits until the call's owner has reported the campaign, but not for long.
pub(super) async fn learn_campaign(offer: &mut Offer) {
    let (call, pbx) = (&offer.id, &*offer.pbx);
    let Some(owned) = &mut offer.owned else { return };
    let deadline = tokio::time::Instant::now() + CAMPAIGN_WAIT;
    loop {
        let Ok(known) = timeout_at(deadline, owned.known.recv()).await else { break };
        // nothing else is worth waiting for, which is not reported twice
        if known.as_ref().is_none_or(Vec::is_empty) {
            owned.wait = Duration::ZERO;
        }
        let Some(known) = known else { break };
        known.iter().for_each(|(name, value)| offer.added.known(name, value));
        if known.iter().any(|(name, _)| name == CAMPAIGN) {
            return;
        }
    }
    info!(call, pbx, "campaign not known in time: routes with a campaign do not apply");
}

/// Returns the settings of a call: those of the first route that applies, or else those of its PBX;
/// and why the call may not go to an AI, if the route has no room for it.
pub(super) fn place(
    offer: &mut Offer,
    config: Arc<CallConfig>,
) -> (Arc<CallConfig>, Option<EndReason>) {
    // the request for a call that we place names its AI
    if offer.outgoing.is_some() {
        return (config, offer.refused);
    }
    let facts = facts(offer);
    let applies = |route: &&RouteCalls| route.conditions.check(&facts).is_none();
    let route = config.routes.iter().find(applies);
    let weights = |route: &RouteCalls| route.choices.iter().map(|c| c.weight).collect::<Vec<_>>();
    let choice = route.and_then(|route| {
        let usable = |at: usize| route.choices.get(at).is_some_and(Choice::is_usable);
        Some((route, route.choices.get(pick(&weights(route), usable, random()))?))
    });
    offer.headers = Vec::new();
    let Some((route, choice)) = choice else { return (config, offer.refused) };
    counters::routed(&route.name);
    let config = choice.config.clone();
    if offer.refused.is_some() {
        return (config, offer.refused);
    }
    match route.limit.admit(Instant::now()) {
        Ok(counted) => offer.permit.add(counted),
        Err(why) => {
            let (call, pbx) = (&offer.id, &*offer.pbx);
            warn!(call, pbx, "call not offered to the AI: {why}");
            return (config, Some(EndReason::Overload));
        }
    }
    (config, None)
}

fn random() -> u64 {
    // if this fails, all calls go to the same AI
    getrandom::u64().unwrap_or_default()
}
