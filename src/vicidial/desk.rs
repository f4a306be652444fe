//! VICIdial as the owner of its calls. Owns tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::call::end::EndReason;
use crate::call::live::{EventKind, LiveCall};
use crate::call::{Offer, Owned, Owner, Signal};
use crate::vicidial::agents::{Agents, FRESH};
use crate::vicidial::answer::Fault;
use crate::vicidial::api::{Api, ApiError, CallOrder, MAX_STATUS, Turn};
use crate::vicidial::call_id::CallId;
use crate::vicidial::keeper::{End, Keeper};
use crate::vicidial::lookup::Lookup;
use crate::vicidial::own_call::{OwnCall, State, TAKEN_AWAY, TURN};
use crate::vicidial::statuses::Statuses;

/// Signals that may wait for a call.
const SIGNALS: usize = 64;
/// The bridge is over capacity for this long after it had no room for a customer.
const OVERFLOW: Duration = Duration::from_secs(15);
/// The pause before VICIdial is asked again to take away a customer for whom there is no room.
const AGAIN: Duration = Duration::from_secs(1);

/// The settings of one VICIdial, besides those of its API.
#[derive(Clone)]
pub struct DeskSettings {
    /// The stream waits for the lead's data for this long.
    pub wait_for_lead: Duration,
    /// Fields of the lead, and the names of the parameters that they become.
    pub fields: Vec<(String, String)>,
    /// Fields of its own in a list, which the AI may change besides the usual ones.
    pub custom_fields: Vec<String>,
    /// The in-group of humans; `None` for the default one of the campaign.
    pub in_group: Option<String>,
    pub statuses: Statuses,
}

/// The owner of the calls of one PBX.
pub struct Desk {
    api: Api,
    agents: Agents,
    settings: Mutex<Arc<DeskSettings>>,
    keeper: Option<Keeper>,
    live: Arc<Mutex<Live>>,
    /// When there was last no room for a customer.
    overflowed: Mutex<Option<Instant>>,
}

/// The live calls of one PBX.
#[derive(Default)]
struct Live {
    /// By our id.
    calls: HashMap<String, Arc<OwnCall>>,
    /// The list of agents is being kept fresh for them.
    polling: bool,
}

fn lock(live: &Mutex<Live>) -> MutexGuard<'_, Live> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// `keeper` keeps the calls on disk.
    pub fn new(api: Api, agents: Agents, settings: DeskSettings, keeper: Option<Keeper>) -> Desk {
        Desk {
            agents,
            api,
            settings: Mutex::new(Arc::new(settings)),
            keeper,
            live: Arc::default(),
            overflowed: Mutex::default(),
        }
    }

    /// Takes the event of any call. The end of one that is ours is kept until VICIdial has its
    /// status.
    pub fn on_event(&self, call: &LiveCall, event: &EventKind<'_>) {
        let EventKind::Ended(record) = event else { return };
        let own = lock(&self.live).calls.remove(&call.id);
        if let (Some(own), Some(keeper)) = (own, &self.keeper) {
            keeper.ended(&own.lookup.call, own.end(record.reason));
        }
    }

    fn lookup(&self, call: CallId) -> Lookup {
        let (api, agents, settings) = (self.api.clone(), self.agents.clone(), self.settings());
        Lookup { api, agents, settings, call }
    }

    /// Takes other settings for new calls.
    pub fn change(&self, settings: DeskSettings) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    fn settings(&self) -> Arc<DeskSettings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_overflow(&self) {
        let now = Some(Instant::now());
        *self.overflowed.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// True if customers were turned away a moment ago, because there was no room.
    pub fn overflows(&self) -> bool {
        let last = *self.overflowed.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| at.elapsed() < OVERFLOW)
    }

    /// Adds a call, and keeps the list of agents fresh while there are calls.
    fn add(&self, id: String, own: Arc<OwnCall>) {
        let mut live = lock(&self.live);
        live.calls.insert(id, own);
        if !std::mem::replace(&mut live.polling, true) {
            let (agents, live) = (self.agents.clone(), self.live.clone());
            tokio::spawn(async move {
                let done = || {
                    let mut live = lock(&live);
                    live.polling = !live.calls.is_empty();
                    !live.polling
                };
                agents.poll(done).await;
            });
        }
    }
}

impl Owner for Desk {
    fn adopt(&self, mut offer: Offer) -> Offer {
        let given = |wanted: &str| {
            let entry = offer.added.entries().iter().find(|(name, _)| name == wanted);
            entry.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let call = CallId::parse(&given("vici_call_id"));
        let Some(call) = call.or_else(|| CallId::parse(&offer.from_name)) else { return offer };
        if offer.refused == Some(EndReason::Overload) {
            self.note_overflow();
        }
        let machine = given("amd_status").starts_with("MACHINE");
        offer.added.replace("vici_call_id", call.as_str());
        offer.added.replace("lead_id", call.lead_id());
        offer.added.replace("call_type", call.kind().word());
        offer.added.replace("phone", &offer.from_number);
        let lookup = self.lookup(call);
        let (known, reports) = mpsc::channel(4);
        let (to_call, signals) = mpsc::channel(SIGNALS);
        let own = Arc::new(OwnCall {
            id: offer.id.clone(),
            number: offer.from_number.clone(),
            lookup: lookup.clone(),
            keeper: self.keeper.clone(),
            source: std::mem::replace(&mut offer.requests, Box::new(|_| {})),
            can_continue: std::mem::replace(&mut offer.can_continue, true),
            signals: to_call.downgrade(),
            runtime: Handle::current(),
            state: Mutex::new(State::new(machine)),
            changed: Notify::new(),
        });
        self.keeper.iter().for_each(|keeper| keeper.begun(&lookup.call));
        tokio::spawn(lookup.run(known));
        let from_source = std::mem::replace(&mut offer.signals, signals);
        tokio::spawn(pass_signals(own.clone(), from_source, to_call));
        let (to_call, received) = mpsc::channel(4);
        tokio::spawn(pass_reports(own.clone(), reports, to_call));
        let wait = self.settings().wait_for_lead;
        offer.owned = Some(Owned { known: received, wait, max_status: MAX_STATUS });
        self.add(offer.id.clone(), own.clone());
        offer.requests = Box::new(move |request| own.clone().request(request));
        offer
    }

    fn owns(&self) -> fn(&str) -> bool {
        |name| CallId::parse(name).is_some()
    }

    fn take_away(&self, name: &str, left: Box<dyn FnOnce() + Send>) -> bool {
        let Some(call) = CallId::parse(name) else { return false };
        self.note_overflow();
        let (lookup, keeper) = (self.lookup(call), self.keeper.clone());
        tokio::spawn(async move {
            keeper.iter().for_each(|keeper| keeper.begun(&lookup.call));
            lookup.take_away().await;
            left();
            let status = &lookup.settings.statuses.overload;
            keeper.iter().for_each(|keeper| {
                keeper.ended(&lookup.call, End { status: status.clone(), hang_up: false });
            });
        });
        true
    }
}

async fn pass_signals(
    own: Arc<OwnCall>,
    mut from_source: mpsc::Receiver<Signal>,
    to_call: mpsc::Sender<Signal>,
) {
    while let Some(signal) = from_source.recv().await {
        if to_call.send(own.signalled(signal).await).await.is_err() {
            return;
        }
    }
}

/// Passes on what VICIdial knows of a call, and keeps the user for the call's orders.
async fn pass_reports(
    own: Arc<OwnCall>,
    mut reports: mpsc::Receiver<Vec<(String, String)>>,
    to_call: mpsc::Sender<Vec<(String, String)>>,
) {
    loop {
        let known = tokio::select! {
            known = reports.recv() => known,
            () = to_call.closed() => None,
        };
        let Some(known) = known else { return };
        if let Some((_, user)) = known.iter().find(|(name, _)| name == "user") {
            own.has_user(user);
        }
        if to_call.send(known).await.is_err() {
            return;
        }
    }
}

impl Lookup {
    /// Has VICIdial take away a customer whose call cannot be started. Returns once the customer
    /// should be gone, or VICIdial has not done it for too long.
    async fn take_away(&self) {
        let begin = Instant::now();
        let (order, status) =
            (CallOrder::InGroup(self.settings.in_group.clone()), &self.settings.statuses.overload);
        let vici_call_id = self.call.as_str();
        loop {
            match self.order(&order, status, None, FRESH).await {
                Ok(turn) => {
                    info!(vici_call_id, ?order, status, "VICIdial has accepted the order");
                    sleep(TURN).await;
                    drop(turn);
                    return sleep(TAKEN_AWAY - TURN).await;
                }
                Err(why) => {
                    let passes = why.may_pass() || why == ApiError::Fault(Fault::NotLoggedIn);
                    if !passes || begin.elapsed() + AGAIN >= TAKEN_AWAY {
                        warn!(vici_call_id, %why, "VICIdial has not taken the customer away");
                        return;
                    }
                }
            }
            sleep(AGAIN).await;
        }
    }

    /// Gives an order under the name of an agent. `earlier`: the one who had the call. `at_most`:
    /// the age up to which the list of agents is good enough.
    pub(super) async fn order(
        &self,
        order: &CallOrder,
        status: &str,
        earlier: Option<&str>,
        at_most: Duration,
    ) -> Result<Turn, ApiError> {
        // a call that has its agent needs no other list
        let user = match earlier.filter(|_| !at_most.is_zero()) {
            Some(user) => Some(user.to_owned()),
            None => self.agents.name_for(&self.call, earlier, at_most).await?,
        };
        let user = user.ok_or(ApiError::Fault(Fault::NotLoggedIn))?;
        self.api.order(&self.call, &user, order, Some(status)).await
    }
}
