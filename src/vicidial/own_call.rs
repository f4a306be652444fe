//! One call of VICIdial: has VICIdial end it or take the customer elsewhere, where another call
//! would ask its source. Owns tasks and the clock.
//!
//! After VICIdial has accepted an order, it ends our leg: at once, or 13 s later when it is busy. A
//! BYE from us before that would end the customer's call, so there is none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::call::departure::Departure;
use crate::call::end::EndReason;
use crate::call::{RequestSender, Signal, SourceRequest};
use crate::command::{Destination, Failure, LeadChange, TransferKind};
use crate::vicidial::agents::FRESH;
use crate::vicidial::answer::Fault;
use crate::vicidial::api::{ApiError, CallOrder, Turn};
use crate::vicidial::keeper::{End, Keeper};
use crate::vicidial::lead::{ChangeError, status_after};
use crate::vicidial::lookup::Lookup;
use crate::vicidial::repair::is_undecided;

/// VICIdial takes the customer of an unanswered call away within 0.3 to 13 s.
pub const TAKEN_AWAY: Duration = Duration::from_secs(15);
/// An accepted hang-up that VICIdial has not carried out by then is carried out by our own BYE.
const HUNG_UP: Duration = Duration::from_secs(60);
/// The same for an accepted transfer.
const TRANSFERRED: Duration = Duration::from_secs(300);
/// After this long a log line says that VICIdial is slow.
const SLOW: Duration = Duration::from_secs(30);
/// An order counts as one of those that VICIdial carries out for at most this long.
pub const TURN: Duration = Duration::from_secs(3);
/// The pause before an order is given again after an error that may pass.
const AGAIN: Duration = Duration::from_millis(500);
/// After this long, an order is not given again.
const SECOND_TRY: Duration = Duration::from_secs(3);
/// An order that VICIdial may have carried out without an answer is waited for this long.
const UNSURE: Duration = Duration::from_secs(5);
/// The end of a call waits this long for a change of the lead.
const LEAD_LIMIT: Duration = Duration::from_secs(2);
/// At most this many changes of the lead in one call.
const MAX_CHANGES: u32 = 30;
/// Time limit for the question of who ended the call.
const WHO_LIMIT: Duration = Duration::from_secs(1);
/// The status of a transfer that another program orders without one.
const DEFAULT_TRANSFER: &str = "RAXFER";

/// One call.
pub struct OwnCall {
    /// Our id of the call, for the log.
    pub id: String,
    /// The customer's number.
    pub number: String,
    pub lookup: Lookup,
    pub keeper: Option<Keeper>,
    pub source: RequestSender,
    /// True if the source can return the customer to the dialplan.
    pub can_continue: bool,
    /// Gone once the source has ended the call, or the call has ended.
    pub signals: mpsc::WeakSender<Signal>,
    /// Calls run on threads without one.
    pub runtime: Handle,
    pub state: Mutex<State>,
    /// Notified when a change of the lead is complete.
    pub changed: Notify,
}

#[derive(Debug, Default)]
pub struct State {
    answered: bool,
    /// The customer has said something, or pressed a key.
    spoken: bool,
    /// The answering machine detection of the campaign found a machine.
    machine: bool,
    /// The status that the AI has given.
    status: Option<String>,
    /// The user who has the call, once that is known.
    user: Option<String>,
    /// An order for the call was given, whatever its result.
    ordering: bool,
    /// VICIdial has accepted an order for the call.
    ordered: bool,
    /// Our leg was hung up by ourselves, which ends the customer's call.
    hung_up: bool,
    /// Changes of the lead so far, and those that are under way.
    changes: u32,
    changing: u32,
    /// How far the end of the call is.
    end: Ending,
}

impl State {
    /// `machine`: the answering machine detection has found a machine.
    pub fn new(machine: bool) -> State {
        State { machine, ..State::default() }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Ending {
    #[default]
    No,
    /// VICIdial was asked.
    Asked,
    /// VICIdial has not taken the customer of an unanswered call. It is asked once more.
    NotTaken,
}

impl OwnCall {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request of the call in place of its source.
    pub fn request(self: Arc<Self>, request: SourceRequest) {
        match request {
            SourceRequest::Disposition(status) => self.give(status),
            SourceRequest::Spoken => self.state().spoken = true,
            SourceRequest::End { reason, departure } => {
                let task = self.clone().finish(reason, departure, request);
                self.runtime.spawn(task);
            }
            SourceRequest::HangUp { reason, .. } => {
                let task = self.clone().finish(reason, Departure::HangUp, request);
                self.runtime.spawn(task);
            }
            SourceRequest::Transfer { order, destination, kind, status, .. } => {
                let task = self.clone().transfer(order, destination, kind, status);
                self.runtime.spawn(task);
            }
            SourceRequest::Answer => {
                self.state().answered = true;
                self.keeper.iter().for_each(|keeper| keeper.answered(&self.lookup.call));
                (self.source)(request);
            }
            SourceRequest::Lead { order, change } => {
                let task = self.clone().change_lead(order, change);
                self.runtime.spawn(task);
            }
            // an accepted order cannot be taken back
            SourceRequest::CompleteTransfer | SourceRequest::CancelTransfer => {}
            SourceRequest::Ringing
            | SourceRequest::Hold { .. }
            | SourceRequest::Digits { .. }
            | SourceRequest::SetVariables { .. }
            | SourceRequest::Capture(_) => (self.source)(request),
        }
    }

    /// Keeps the status that the AI has given.
    fn give(&self, status: String) {
        let before = self.state().status.replace(status.clone());
        if let Some(keeper) = self.keeper.as_ref().filter(|_| before.as_ref() != Some(&status)) {
            keeper.given(&self.lookup.call, &status);
        }
    }

    /// The end of the call for the keeper.
    pub fn end(&self, reason: EndReason) -> End {
        let state = self.state();
        // in all other cases the customer may be with a human now
        let hung_up = reason == EndReason::CallerHangup || state.hung_up;
        let hang_up = state.answered && hung_up && !state.ordered;
        End { status: self.status_of(reason, &state), hang_up }
    }

    fn status_of(&self, reason: EndReason, state: &State) -> String {
        let silent = state.answered && !state.spoken;
        let facts = (state.machine, silent);
        self.lookup.settings.statuses.of(reason, state.status.as_deref(), facts)
    }

    /// Passes a signal of the source on. If the source reports the end of a call that we have not
    /// ended, VICIdial knows by whom.
    pub async fn signalled(&self, signal: Signal) -> Signal {
        let Signal::Ended(EndReason::CallerHangup) = signal else { return signal };
        let asks = {
            let state = self.state();
            state.answered && !state.ordering && state.end == Ending::No
        };
        if !asks {
            return signal;
        }
        let row = timeout(WHO_LIMIT, self.lookup.api.call(&self.lookup.call)).await;
        let Ok(Ok(row)) = row else { return signal };
        let status = row.get("status").map(String::as_str).unwrap_or_default();
        if is_undecided(status) {
            return signal;
        }
        // another program ended it through VICIdial, which has its status
        self.state().ordered = true;
        Signal::Ended(match status {
            DEFAULT_TRANSFER => EndReason::Transferred,
            _ => EndReason::ApiHangup,
        })
    }

    /// Has VICIdial end the call, or take the customer to a human. `plain` is what the source is
    /// asked if VICIdial does not do it.
    async fn finish(
        self: Arc<Self>,
        reason: EndReason,
        departure: Departure,
        plain: SourceRequest,
    ) {
        self.lead_changed().await;
        let (answered, status, before) = {
            let mut state = self.state();
            let before = std::mem::replace(&mut state.end, Ending::Asked);
            (state.answered, self.status_of(reason, &state), before)
        };
        if before == Ending::Asked {
            // the call has waited for long enough
            return self.ask_source(plain);
        }
        let (order, limit) = match departure {
            Departure::HangUp if answered => (CallOrder::HangUp, HUNG_UP),
            _ if answered => (self.to_humans(), TRANSFERRED),
            _ => (self.to_humans(), TAKEN_AWAY),
        };
        let done = match self.order(&order, &status).await {
            Ok(turn) => self.is_over(turn, limit).await,
            Err(why) => {
                let (call, vici_call_id) = (&self.id, self.lookup.call.as_str());
                warn!(call, vici_call_id, %why, "VICIdial has not ended the call");
                // another program may have ordered it, or only the response was lost
                let grace = match &why {
                    ApiError::Fault(Fault::NoCall) if before == Ending::No => TAKEN_AWAY,
                    ApiError::Fault(Fault::NoCall) => UNSURE,
                    why if why.is_ambiguous() => UNSURE,
                    _ => Duration::ZERO,
                };
                answered && timeout(grace, self.leg_ended()).await.is_ok()
            }
        };
        if done {
            return;
        }
        self.not_done(answered, plain).await;
    }

    /// VICIdial has not done it. A customer who was not answered is answered now, hears a prompt,
    /// and VICIdial is asked once more.
    async fn not_done(&self, answered: bool, plain: SourceRequest) {
        if let Some(signals) = self.signals.upgrade().filter(|_| !answered) {
            self.state().end = Ending::NotTaken;
            if signals.send(Signal::NotTaken).await.is_ok() {
                return;
            }
        }
        self.ask_source(plain);
    }

    fn ask_source(&self, request: SourceRequest) {
        let continues =
            matches!(&request, SourceRequest::End { departure: Departure::Continue, .. });
        self.state().hung_up |= !(continues && self.can_continue);
        (self.source)(request);
    }

    fn to_humans(&self) -> CallOrder {
        CallOrder::InGroup(self.lookup.settings.in_group.clone())
    }

    async fn transfer(
        self: Arc<Self>,
        order: u32,
        to: Destination,
        kind: TransferKind,
        status: Option<String>,
    ) {
        let wish = match (to.in_group, kind) {
            (_, TransferKind::Attended) => None,
            (true, _) if to.exten.is_empty() => Some(CallOrder::InGroup(None)),
            (true, _) => Some(CallOrder::InGroup(Some(to.exten))),
            (false, _) => Some(CallOrder::Extension(to.exten)),
        };
        let (answered, given) = {
            let state = self.state();
            (state.answered, state.status.clone())
        };
        let status =
            status.or(given).unwrap_or_else(|| self.lookup.settings.statuses.transfer.clone());
        let ordered = match wish {
            None => Err(Failure::Unsupported),
            Some(wish) => self.order(&wish, &status).await.map_err(|error| failure(&error)),
        };
        let (result, turn) = match ordered {
            Ok(turn) => (Ok(()), Some(turn)),
            Err(failure) => (Err(failure), None),
        };
        if turn.is_some() {
            self.state().end = Ending::Asked;
        }
        self.reply(order, result).await;
        let limit = if answered { TRANSFERRED } else { TAKEN_AWAY };
        if let Some(turn) = turn
            && !self.is_over(turn, limit).await
        {
            let (reason, departure) = (EndReason::Transferred, Departure::HangUp);
            self.not_done(answered, SourceRequest::End { reason, departure }).await;
        }
    }

    async fn reply(&self, order: u32, result: Result<(), Failure>) {
        if let Some(signals) = self.signals.upgrade() {
            let _ = signals.send(Signal::Replied { order, result }).await;
        }
    }

    async fn change_lead(self: Arc<Self>, order: u32, change: LeadChange) {
        let changes = {
            let mut state = self.state();
            state.changes += 1;
            state.changing += 1;
            state.changes
        };
        let result = self.change(changes, &change).await;
        self.state().changing -= 1;
        self.changed.notify_waiters();
        self.reply(order, result).await;
    }

    /// Waits for the changes of the lead that are under way: they may decide the status.
    async fn lead_changed(&self) {
        let done = async {
            loop {
                let notified = self.changed.notified();
                if self.state().changing == 0 {
                    return;
                }
                notified.await;
            }
        };
        let _ = timeout(LEAD_LIMIT, done).await;
    }

    async fn change(&self, changes: u32, change: &LeadChange) -> Result<(), Failure> {
        if changes > MAX_CHANGES {
            return Err(Failure::QueueFull);
        }
        let result = self.lookup.change_lead(&self.number, change).await;
        let given = self.state().status.is_some();
        if let Some(status) = status_after(change).filter(|_| result.is_ok() && !given) {
            self.give(status.to_owned());
        }
        if let Err(ChangeError::Api(why)) = &result {
            let (call, vici_call_id) = (&self.id, self.lookup.call.as_str());
            warn!(call, vici_call_id, %why, "VICIdial has not changed the lead");
        }
        result.map_err(|error| match error {
            ChangeError::NotAllowed => Failure::NotAllowed,
            ChangeError::Api(error) => failure(&error),
        })
    }

    /// Gives an order, twice if the first error may pass.
    async fn order(&self, order: &CallOrder, status: &str) -> Result<Turn, ApiError> {
        self.state().ordering = true;
        let begin = Instant::now();
        let mut result = self.order_once(order, status, FRESH).await;
        if let Err(first) = &result
            && (first.may_pass() || *first == ApiError::Fault(Fault::NotLoggedIn))
            && begin.elapsed() < SECOND_TRY
        {
            sleep(AGAIN).await;
            result = match self.order_once(order, status, Duration::ZERO).await {
                // the first one was carried out, and only its response was lost
                Err(ApiError::Fault(Fault::NoCall)) if first.is_ambiguous() => Ok(Turn::none()),
                second => second,
            };
        }
        if result.is_ok() {
            self.state().ordered = true;
            let (call, vici_call_id) = (&self.id, self.lookup.call.as_str());
            info!(call, vici_call_id, ?order, status, "VICIdial has accepted the order");
        }
        result
    }

    /// `at_most`: the age up to which the list of agents is good enough.
    async fn order_once(
        &self,
        order: &CallOrder,
        status: &str,
        at_most: Duration,
    ) -> Result<Turn, ApiError> {
        let earlier = self.state().user.clone();
        self.lookup.order(order, status, earlier.as_deref(), at_most).await
    }

    /// The user who has the call.
    pub fn has_user(&self, user: &str) {
        self.state().user = Some(user.to_owned());
    }

    /// Waits until our leg has ended; false if it has not within `limit`.
    async fn is_over(&self, turn: Turn, limit: Duration) -> bool {
        if timeout(TURN, self.leg_ended()).await.is_ok() {
            return true;
        }
        drop(turn);
        let slow = SLOW.min(limit) - TURN;
        if timeout(slow, self.leg_ended()).await.is_ok() {
            return true;
        }
        if limit > SLOW {
            let (call, vici_call_id) = (&self.id, self.lookup.call.as_str());
            warn!(
                call,
                vici_call_id,
                "VICIdial has accepted an order and not carried it out for {SLOW:?}: check that \
                 AST_manager_send.pl and AST_manager_listen.pl run on the dialler"
            );
        }
        timeout(limit.saturating_sub(SLOW), self.leg_ended()).await.is_ok()
    }

    async fn leg_ended(&self) {
        // the receiver is the call's; the other sender is the source's
        if let Some(signals) = self.signals.upgrade() {
            signals.closed().await;
        }
    }
}

fn failure(error: &ApiError) -> Failure {
    match error {
        ApiError::Fault(Fault::NoInGroup | Fault::NoNumber) => Failure::NoSuchTarget,
        ApiError::Fault(Fault::NoCall) => Failure::WrongState,
        ApiError::Fault(Fault::Permission) => Failure::NotAllowed,
        _ => Failure::Refused,
    }
}
