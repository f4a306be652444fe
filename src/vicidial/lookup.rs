//! Asks VICIdial what it knows of a call, while the call is being answered. Owns I/O and the clock.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::vicidial::agents::Agents;
use crate::vicidial::answer::{Fault, Row};
use crate::vicidial::api::{Api, ApiError};
use crate::vicidial::call_id::{CallId, CallKind};
use crate::vicidial::desk::DeskSettings;

/// VICIdial names the agent some milliseconds after it has dialled us, and sometimes later.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(30), Duration::from_millis(200), Duration::from_secs(2)];
/// The AI's stream waits for the agent for this long, if it waits for the lead.
const AGENT_WAIT: Duration = Duration::from_millis(100);
/// Maximum length of a value, in characters: that of other parameters.
const MAX_VALUE: usize = 499;
/// After this time no agent is expected any more.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// The questions about one call.
#[derive(Clone)]
pub struct Lookup {
    pub api: Api,
    pub agents: Agents,
    pub settings: Arc<DeskSettings>,
    pub call: CallId,
}

/// Parameters for the AI: names and values.
type Known = Vec<(String, String)>;

impl Lookup {
    /// Reports what VICIdial knows, part by part as it answers. An empty report means that nothing
    /// else is worth waiting for.
    pub async fn run(self, known: mpsc::Sender<Known>) {
        let (agent_known, agent) = oneshot::channel();
        let lead = async {
            tokio::join!(self.in_group(&known), self.lead(&known));
            let _ = timeout(AGENT_WAIT, agent).await;
            report(&known, Known::new()).await;
        };
        let agent = async {
            self.agent(&known).await;
            // the other part may have stopped waiting
            let _ = agent_known.send(());
        };
        tokio::join!(agent, lead);
    }

    /// The user, and the campaign of a call that was dialled.
    async fn agent(&self, known: &mpsc::Sender<Known>) {
        let begin = Instant::now();
        let (mut at_most, mut pauses) = (Duration::ZERO, PAUSES.into_iter());
        let names: &[(&str, &str)] = match self.call.kind() {
            CallKind::Inbound => &[("user", "user")],
            _ => &[("user", "user"), ("campaign_id", "campaign")],
        };
        while begin.elapsed() < AGENT_LIMIT {
            match self.agents.of(&self.call, at_most).await {
                Ok(Some(row)) => return report(known, named(&row, names)).await,
                Ok(None) => {}
                Err(why) => return self.failed("agent", &why),
            }
            let pause = pauses.next().unwrap_or(PAUSES[2]);
            tokio::select! {
                () = sleep(pause) => {}
                () = known.closed() => return,
            }
            at_most = pause;
        }
    }

    /// The campaign of an inbound call is its in-group, which the agent's row does not have.
    async fn in_group(&self, known: &mpsc::Sender<Known>) {
        if self.call.kind() != CallKind::Inbound {
            return;
        }
        match self.api.call(&self.call).await {
            Ok(row) => report(known, named(&row, &[("campaign_id", "campaign")])).await,
            Err(why) => self.failed("campaign", &why),
        }
    }

    async fn lead(&self, known: &mpsc::Sender<Known>) {
        let fields = &self.settings.fields;
        if fields.is_empty() {
            return;
        }
        let wanted: Vec<&str> = fields.iter().map(|(field, _)| &**field).collect();
        let names: Vec<(&str, &str)> =
            fields.iter().map(|(field, name)| (&**field, &**name)).collect();
        match self.api.lead(self.call.lead_id(), &wanted).await {
            Ok(row) => report(known, named(&row, &names)).await,
            Err(why) => self.failed("lead", &why),
        }
    }

    fn failed(&self, what: &'static str, why: &ApiError) {
        let expected = [Fault::NoCall, Fault::NoLogEntry, Fault::NoLead];
        match why {
            ApiError::Stopped => {}
            ApiError::Fault(fault) if expected.contains(fault) => {}
            why => warn!(
                vici_call_id = self.call.as_str(),
                %why,
                "VICIdial did not answer: the AI does not get the {what}"
            ),
        }
    }
}

async fn report(known: &mpsc::Sender<Known>, found: Known) {
    // the call may be over
    let _ = known.send(found).await;
}

/// The fields that have a value, under other names.
fn named(row: &Row, names: &[(&str, &str)]) -> Known {
    let value = |(field, name): &(&str, &str)| {
        let value = row.get(*field).filter(|value| !value.is_empty())?;
        Some(((*name).to_owned(), value.chars().take(MAX_VALUE).collect()))
    };
    names.iter().filter_map(value).collect()
}
