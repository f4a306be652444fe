//! Gives a call that is over the status that it should have, and sends the customer of a call that
//! was lost to humans. Owns I/O.

use std::time::Duration;

use crate::telemetry::counter::counters;
use crate::vicidial::agents::{Agents, FRESH};
use crate::vicidial::answer::Fault;
use crate::vicidial::api::{Api, ApiError, CallOrder};
use crate::vicidial::call_id::CallId;
use crate::vicidial::keeper::{End, Kept};

/// The statuses that VICIdial leaves for calls without a decision.
const UNDECIDED: [&str; 5] = ["DROP", "QUEUE", "XFER", "INCALL", ""];

counters! {
    total REPAIRED = "vicidial_statuses_repaired", "Calls whose status was corrected in VICIdial.";
    total RESCUED = "vicidial_calls_rescued", "Calls sent to humans after a crash of this program.";
}

/// True if VICIdial left a call with this status without a decision.
pub fn is_undecided(status: &str) -> bool {
    UNDECIDED.contains(&status)
}

/// The outcome for one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Nothing had to be done.
    AsItIs,
    /// The lead has a newer result, or another call.
    Superseded,
    /// VICIdial still had it, and has ended it with its status.
    Ended,
    /// The customer goes to humans.
    Rescued,
    /// Its status was `was`. `shows`: VICIdial shows the new one.
    Corrected { was: String, status: String, shows: bool },
}

/// One VICIdial.
#[derive(Clone)]
pub struct Repairs {
    pub api: Api,
    pub agents: Agents,
    /// The in-group of humans; `None` for the default one of the campaign.
    pub in_group: Option<String>,
    /// The status of a call that was up when this program was killed.
    pub crashed: String,
    /// Customers are sent to humans only for this long after the start. Later, the dialplan has
    /// done it.
    pub rescue_limit: Option<Duration>,
}

impl Repairs {
    /// The status that a call should have.
    pub fn status<'a>(&'a self, kept: &'a Kept) -> &'a str {
        let given = || kept.given.as_deref().unwrap_or(&self.crashed);
        kept.end.as_ref().map_or_else(given, |end| &end.status)
    }

    /// Settles a call, at this time after the start. `last`: it is not tried again.
    ///
    /// # Errors
    /// Returns the [`ApiError`] if VICIdial has refused it.
    pub async fn settle(
        &self,
        kept: &Kept,
        after: Duration,
        last: bool,
    ) -> Result<Settled, ApiError> {
        let Some(call) = CallId::parse(&kept.call) else { return Ok(Settled::AsItIs) };
        let status = self.status(kept);
        let result = match kept.end {
            // the customer of a call that was not answered may be elsewhere by now
            None if kept.answered && self.rescue_limit.is_none_or(|limit| after < limit) => {
                self.rescue(&call, status).await
            }
            Some(End { hang_up: true, .. }) => {
                let ended = self.ordered(&call, &CallOrder::HangUp, status).await;
                ended.map(|()| Settled::Ended)
            }
            _ => return self.correct(&call, status).await,
        };
        match result {
            Err(ApiError::Fault(Fault::NotLoggedIn)) if last => self.correct(&call, status).await,
            Err(ApiError::Fault(Fault::NotLoggedIn)) if kept.end.is_none() => {
                // without an agent VICIdial accepts no order, and the customer may be up still
                Err(ApiError::Fault(Fault::NotLoggedIn))
            }
            Err(ApiError::Fault(Fault::NoCall | Fault::NotLoggedIn)) => {
                self.correct(&call, status).await
            }
            result => result,
        }
    }

    /// Sends a customer to humans whose call was up when the program was killed.
    async fn rescue(&self, call: &CallId, status: &str) -> Result<Settled, ApiError> {
        let humans = CallOrder::InGroup(self.in_group.clone());
        let result = match self.ordered(call, &humans, status).await {
            Err(ApiError::Fault(Fault::NoInGroup)) => {
                self.ordered(call, &CallOrder::InGroup(None), status).await
            }
            result => result,
        };
        result.map(|()| {
            RESCUED.add(1);
            Settled::Rescued
        })
    }

    async fn ordered(
        &self,
        call: &CallId,
        order: &CallOrder,
        status: &str,
    ) -> Result<(), ApiError> {
        let order = async |at_most: Duration| {
            let user = self.agents.name_for(call, None, at_most).await?;
            let user = user.ok_or(ApiError::Fault(Fault::NotLoggedIn))?;
            self.api.order(call, &user, order, Some(status)).await.map(drop)
        };
        match order(FRESH).await {
            // the list was older than the agent's logout
            Err(ApiError::Fault(Fault::NotLoggedIn)) => order(Duration::ZERO).await,
            result => result,
        }
    }

    /// Corrects the status in the log and in the lead, if VICIdial left the call undecided and the
    /// lead has no newer result.
    async fn correct(&self, call: &CallId, status: &str) -> Result<Settled, ApiError> {
        let row = match self.api.call(call).await {
            Err(ApiError::Fault(Fault::NoCall)) => return Ok(Settled::AsItIs),
            row => row?,
        };
        let value = |name: &str| row.get(name).cloned().unwrap_or_default();
        let was = value("status");
        if !is_undecided(&was) {
            return Ok(Settled::AsItIs);
        }
        let lead = self.api.lead_field(call.lead_id(), "status").await?;
        if !lead.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) {
            return Err(ApiError::Fault(Fault::Unreadable));
        }
        // the log is corrected by lead and campaign, so that a newer call would get this status
        if !is_undecided(&lead) && lead != status || self.agents.has_newer(call).await? {
            return Ok(Settled::Superseded);
        }
        // one of them may be refused without the other
        let log = self.api.update_log(call, &value("campaign_id"), status).await;
        self.api.update_lead(call.lead_id(), &[("status", status)]).await?;
        log?;
        REPAIRED.add(1);
        let now = self.api.call(call).await;
        let shows = now.is_ok_and(|row| row.get("status").is_some_and(|now| now == status));
        Ok(Settled::Corrected { was, status: status.to_owned(), shows })
    }
}
