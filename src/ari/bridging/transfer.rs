//! A transfer on the PBX. A plain one sends the caller to the target's extension at once. Any other
//! calls the target into our application first, and once it has answered, the dialplan's snippet
//! joins the caller's channel with the target's. Both have then left our application.
//!
//! ```text
//! target called, music on hold ──answered──> (attended: caller out, target in bridge) ──> joining
//!        └───────────── busy, no answer, hung up, cancelled: caller back in the bridge <──┘
//! joining: target out ──> music off ──> TRUNKLESS_PEER set ──> caller sent to the snippet: final
//! ```
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::ari::bridging::words::{Action, After, Cause, Names, Step, Tell, TransferStep};
use crate::ari::bridging::{Bridging, Join, Piece};
use crate::ari::request::{NORMAL, Outcome, RestRequest};
use crate::command::{ANSWERED, Destination, Failure, RINGING, TransferKind};

/// The snippet's extension, in the context that the caller came from.
pub const SNIPPET: &str = "trunkless-join";
/// The channel variable with the channel that the snippet joins the caller with.
pub const PEER: &str = "TRUNKLESS_PEER";
/// How much longer than the PBX we wait for an answer.
const SPARE: Duration = Duration::from_secs(3);

/// The details of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferWish {
    pub destination: Destination,
    pub kind: TransferKind,
    pub timeout: Duration,
    /// Send the caller off at once.
    pub plain: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Asking whether the dialplan has what is needed.
    Probing,
    /// The target is being called.
    Calling,
    /// The AI talks to the target.
    Consulting,
    /// The caller is on the way to the target.
    Joining,
}

/// A transfer that is not complete.
#[derive(Debug)]
pub(super) struct Transfer {
    order: u32,
    wish: TransferWish,
    pub(super) state: State,
    /// True once the AI talks to the target. The caller stays out of the bridge from then on.
    pub(super) consulting: bool,
    pub(super) target_joined: Join,
    /// The last state of the call to the target, as the PBX reports it; `None` if it has not begun.
    dial: Option<String>,
}

impl Bridging {
    pub fn target_id(&self, names: &Names) -> String {
        self.target_of(self.transfers, names)
    }

    fn target_of(&self, number: u32, names: &Names) -> String {
        format!("{}t-{}-{number}", names.prefix, self.id)
    }

    pub fn transfer(
        &mut self,
        now: Instant,
        order: u32,
        wish: TransferWish,
        names: &Names,
    ) -> Vec<Action> {
        if self.is_ending() || !self.connected || self.transfer.is_some() {
            return vec![Action::Tell(Tell::Replied(order, Err(Failure::WrongState)))];
        }
        self.transfers += 1;
        // the channel of an earlier target, with another id, may still be on its way out
        (self.target, self.target_made) = (Piece::Absent, None);
        let (context, exten, priority) = match wish.plain {
            true => {
                let Destination { exten, priority, .. } = wish.destination.clone();
                (self.context(&wish.destination), exten, priority)
            }
            false => (self.caller_context.clone(), SNIPPET.to_owned(), 1),
        };
        self.deadline = Some(now + wish.timeout + SPARE);
        self.transfer = Some(Transfer {
            order,
            wish,
            state: State::Probing,
            consulting: false,
            target_joined: Join::Out,
            dial: None,
        });
        let name = format!("DIALPLAN_EXISTS({context},{exten},{priority})");
        let channel = self.channel.clone();
        let mut actions =
            vec![self.send(TransferStep::Probe, RestRequest::Variable { channel, name })];
        actions.extend(self.step(names));
        actions
    }

    pub(super) fn send(&self, step: TransferStep, request: RestRequest) -> Action {
        Action::Send(Step::Transfer(self.transfers, step), request)
    }

    /// The context in which a destination is dialled: by default the caller's.
    fn context(&self, destination: &Destination) -> String {
        destination.context.clone().unwrap_or_else(|| self.caller_context.clone())
    }

    pub(super) fn on_transfer_step(
        &mut self,
        now: Instant,
        number: u32,
        step: TransferStep,
        outcome: &Outcome,
        names: &Names,
    ) -> Vec<Action> {
        let current = number == self.transfers;
        match step {
            TransferStep::DropTarget => self.on_target_dropped(number, outcome, names),
            TransferStep::Target if current => self.on_target_made(now, outcome, names),
            // of a transfer that was given up meanwhile
            TransferStep::Target if !outcome.is_undone() => vec![self.drop_of(number, names)],
            _ if !current || self.is_ending() => Vec::new(),
            TransferStep::Target => Vec::new(),
            TransferStep::Probe => self.on_probed(outcome, names),
            TransferStep::JoinTarget => self.on_target_joined(outcome, names),
            TransferStep::PartTarget => self.on_target_parted(names),
            TransferStep::MusicOff => self.set_peer(names),
            TransferStep::Peer => self.on_peer_set(outcome, names),
        }
    }

    fn on_probed(&mut self, outcome: &Outcome, names: &Names) -> Vec<Action> {
        let Some(transfer) = self.transfer.as_mut().filter(|t| t.state == State::Probing) else {
            return Vec::new();
        };
        let found = outcome.value();
        let Destination { exten, priority, .. } = transfer.wish.destination.clone();
        let (wish, order) = (transfer.wish.clone(), transfer.order);
        let context = self.context(&wish.destination);
        if wish.plain {
            // without func_dialplan, the PBX cannot tell
            if found.as_deref().is_some_and(|found| found != "1") {
                return self.fail_transfer(Failure::NoSuchTarget, names);
            }
            self.deadline = None;
            self.set_state(State::Joining);
            self.after = Some(After::Transfer { order, context, exten, priority });
            return self.step(names);
        }
        if found.as_deref() != Some("1") {
            return self.fail_transfer(Failure::NoSnippet, names);
        }
        self.set_state(State::Calling);
        self.target = Piece::Making;
        let music = RestRequest::Music { channel: self.channel.clone(), on: true };
        let originate = RestRequest::Originate {
            id: self.target_id(names),
            // not one of the ids that are ours: it may enter our application as a caller
            other_id: format!("{}o-{}-{}", names.prefix, self.id, self.transfers),
            app: names.app.clone(),
            endpoint: format!("Local/{exten}@{context}"),
            timeout_s: wish.timeout.as_secs().max(1),
            originator: Some(self.channel.clone()),
            caller_id: None,
            format: None,
        };
        vec![Action::Send(Step::Extra, music), self.send(TransferStep::Target, originate)]
    }

    fn set_state(&mut self, state: State) {
        self.transfer.iter_mut().for_each(|transfer| transfer.state = state);
    }

    fn on_target_made(&mut self, now: Instant, outcome: &Outcome, names: &Names) -> Vec<Action> {
        if self.target != Piece::Making {
            return Vec::new(); // it has answered or ended meanwhile
        }
        let (good, undone) = (outcome.is_success(), outcome.is_undone());
        self.target = if undone { Piece::Absent } else { Piece::Made };
        self.target_made = Some(now);
        let mut actions = Vec::new();
        if !good && !undone {
            // it may come into being later
            actions.push(Action::Sweep);
        }
        let exists = good || self.transfer.as_ref().is_some_and(|t| t.dial.is_some());
        actions.extend(match &self.transfer {
            _ if self.is_ending() => self.step(names),
            // cancelled meanwhile
            None => self.drop_target(names),
            Some(_) if exists => Vec::new(),
            Some(_) => self.fail_transfer(Failure::NoSuchTarget, names),
        });
        actions
    }

    /// Handles the state of the call to the target.
    pub fn on_dial(&mut self, status: &str) -> Vec<Action> {
        let Some(transfer) = self.transfer.as_mut().filter(|t| t.state == State::Calling) else {
            return Vec::new();
        };
        let rings = status == "RINGING" && transfer.dial.as_deref() != Some(status);
        transfer.dial = Some(status.to_owned());
        let order = transfer.order;
        let tell = Action::Tell(Tell::Progress(order, RINGING));
        rings.then_some(tell).into_iter().collect()
    }

    /// Handles the target being in our application: it has answered.
    pub fn on_target_started(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        if self.target == Piece::Deleting {
            return Vec::new();
        }
        // its creation may not have been answered yet
        self.target = Piece::Made;
        self.target_made.get_or_insert(now);
        if self.is_ending() {
            return self.step(names);
        }
        let Some(transfer) = self.transfer.as_mut() else {
            return self.drop_target(names);
        };
        if transfer.state != State::Calling {
            return Vec::new();
        }
        let mut actions = vec![Action::Tell(Tell::Progress(transfer.order, ANSWERED))];
        match transfer.wish.kind {
            TransferKind::Blind => actions.extend(self.join(names)),
            TransferKind::Attended => {
                // the AI decides when it is over
                self.deadline = None;
                (transfer.state, transfer.consulting) = (State::Consulting, true);
                actions.extend(self.step(names));
            }
        }
        actions
    }

    /// Sends the caller to the snippet, which joins the caller with the target. Before that, the
    /// target must be out of our bridge, and the music off.
    fn join(&mut self, names: &Names) -> Vec<Action> {
        self.set_state(State::Joining);
        self.deadline = None;
        let mut actions = self.part(names);
        actions.extend(self.step(names));
        actions
    }

    fn set_peer(&mut self, names: &Names) -> Vec<Action> {
        if self.transfer.is_none() {
            return Vec::new();
        }
        let (channel, name, value) = (self.channel.clone(), PEER.to_owned(), self.target_id(names));
        vec![self.send(TransferStep::Peer, RestRequest::SetVariable { channel, name, value })]
    }

    fn on_peer_set(&mut self, outcome: &Outcome, names: &Names) -> Vec<Action> {
        let Some(order) = self.transfer.as_ref().map(|transfer| transfer.order) else {
            return Vec::new();
        };
        if !outcome.is_success() {
            return self.fail_transfer(Failure::Refused, names);
        }
        let (context, exten) = (self.caller_context.clone(), SNIPPET.to_owned());
        self.after = Some(After::Transfer { order, context, exten, priority: 1 });
        self.step(names)
    }

    /// Joins the caller with the target of a consultation.
    pub fn complete_transfer(&mut self, names: &Names) -> Vec<Action> {
        match self.transfer.as_ref().map(|transfer| transfer.state) {
            Some(State::Consulting) => self.join(names),
            _ => Vec::new(),
        }
    }

    pub fn cancel_transfer(&mut self, names: &Names) -> Vec<Action> {
        self.fail_transfer(Failure::Cancelled, names)
    }

    /// Handles the end of the target's channel in our application.
    pub fn on_target_gone(&mut self, names: &Names) -> Vec<Action> {
        let Some(transfer) = &self.transfer else {
            self.target = Piece::Absent;
            return self.step(names);
        };
        let failure = match (transfer.state, transfer.dial.as_deref()) {
            // on its way to the caller; if it hung up, the snippet notices
            _ if self.is_ending() => return Vec::new(),
            (State::Consulting | State::Joining, _) => Failure::TargetHungUp,
            (_, Some("BUSY")) => Failure::Busy,
            // no call to the target was begun
            (_, None) => Failure::NoSuchTarget,
            (_, Some("CONGESTION" | "CHANUNAVAIL")) => Failure::Refused,
            _ => Failure::NoAnswer,
        };
        self.target = Piece::Absent;
        self.fail_transfer(failure, names)
    }

    pub(super) fn fail_late_transfer(&mut self, names: &Names) -> Vec<Action> {
        self.fail_transfer(Failure::NoAnswer, names)
    }

    /// Gives up the transfer: the caller is back in the bridge. It is too late for that once the
    /// caller is on the way to the target; the outcome follows.
    pub(super) fn fail_transfer(&mut self, failure: Failure, names: &Names) -> Vec<Action> {
        if self.is_ending() {
            return self.step(names);
        }
        let Some(transfer) = self.transfer.take() else { return self.step(names) };
        self.deadline = None;
        let mut actions = Vec::new();
        if transfer.state != State::Probing && !transfer.wish.plain {
            let music = RestRequest::Music { channel: self.channel.clone(), on: false };
            actions.push(Action::Send(Step::Extra, music));
        }
        actions.extend(self.drop_target(names));
        actions.push(Action::Tell(Tell::Replied(transfer.order, Err(failure))));
        actions.extend(self.step(names));
        actions
    }

    /// Deletes the target's channel, if it exists.
    pub(super) fn drop_target(&mut self, names: &Names) -> Vec<Action> {
        if self.target != Piece::Made {
            return Vec::new();
        }
        self.target = Piece::Deleting;
        vec![self.drop_of(self.transfers, names)]
    }

    /// Deletes the channel of the target with this number.
    fn drop_of(&self, number: u32, names: &Names) -> Action {
        let channel = self.target_of(number, names);
        let step = Step::Transfer(number, TransferStep::DropTarget);
        Action::Send(step, RestRequest::HangUp { channel, reason: NORMAL })
    }

    fn on_target_dropped(&mut self, number: u32, outcome: &Outcome, names: &Names) -> Vec<Action> {
        if number == self.transfers && self.target == Piece::Deleting {
            self.target = Piece::Absent;
        }
        let mut actions = self.step(names);
        if !outcome.is_success() && outcome.status() != Some(404) {
            actions.push(Action::Sweep);
        }
        actions
    }

    /// Handles the caller leaving our application for a transfer. `failed`: why the call ended
    /// instead, if the caller does not get to the target.
    pub(super) fn on_sent_off(&mut self, failed: Option<Cause>, actions: &mut Vec<Action>) {
        let Some(After::Transfer { order, .. }) = &self.after else { return };
        let tell = match failed {
            Some(cause) => Tell::Ended(cause),
            None => {
                // the pair is the dialplan's now
                self.target = Piece::Absent;
                Tell::Replied(*order, Ok(()))
            }
        };
        self.transfer = None;
        actions.push(Action::Tell(tell));
    }
}
