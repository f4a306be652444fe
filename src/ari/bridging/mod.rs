//! One call's objects on the PBX: an external media channel for its RTP, and a mixing bridge that
//! joins it with the caller's channel.
//!
//! ```text
//! begin ──> externalMedia ──its StasisStart──┐
//!      └──> bridge ──────────────────────────┴─> media joins ──┐
//! answer ──> caller answered ──────────────────────────────────┴─> caller joins: connected
//! end, or caller left ──> caller continues or is hung up ──> media and bridge deleted: finished
//! ```
//!
//! Both objects are created at the same time, with ids that we choose, because their events may
//! arrive before the responses. [`Bridging::step`] compares what exists with what is wanted and
//! requests the difference, during teardown too. At most two requests are in flight.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod callee;
mod consultation;
mod setup;
mod teardown;
pub mod transfer;
pub mod words;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ari::bridging::callee::Callee;
use crate::ari::bridging::transfer::Transfer;
use crate::ari::bridging::words::{Action, After, Cause, Names, Step, Tell};
use crate::ari::request::{NORMAL, Outcome, RestRequest};

/// Time limit for creating the objects, and again for connecting the caller.
const SETUP: Duration = Duration::from_secs(5);

/// State of the external media channel or of the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Absent,
    Making,
    Made,
    Deleting,
}

/// A channel's membership in the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    Out,
    Joining,
    In,
    /// Being removed, because the AI talks to the target of a transfer.
    Leaving,
}

/// The caller's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Not to be connected yet.
    Waiting,
    /// To be answered once the objects exist.
    AnswerWanted,
    /// The answer request is in flight.
    Answering,
    Answered,
    /// About to be hung up or returned to the dialplan.
    Releasing,
    /// The request that does so is in flight.
    Released,
    /// No longer in our application: no more requests for it.
    Left,
}

/// The state of one call's objects.
#[derive(Debug)]
pub struct Bridging {
    /// The caller's channel id.
    pub channel: String,
    /// Unique part of the ids of our channel and bridge.
    id: String,
    /// Number of times an object was lost and replaced. Outcomes of requests that built for an
    /// older generation are ignored.
    generation: u8,
    /// True once a lost external media channel has been deleted; its replacement has another id.
    media_again: bool,
    /// True once a lost bridge has been deleted; its replacement has another id.
    bridge_again: bool,
    /// Set if we place the call.
    callee: Option<Callee>,
    /// True if the caller was already answered on entering the application.
    up: bool,
    caller: Caller,
    /// True once the PBX has reported a hangup: a caller who then leaves was not transferred.
    hangup_seen: bool,
    caller_joined: Join,
    /// True once the caller has been in the bridge.
    connected: bool,
    /// Our address, to which the PBX sends RTP; `None` before [`Bridging::begin`].
    host: Option<SocketAddr>,
    media: Piece,
    /// When the response to the external media channel's creation arrived.
    media_made: Option<Instant>,
    /// True once the external media channel's StasisStart has arrived; only then can it join.
    media_started: bool,
    media_joined: Join,
    bridge: Piece,
    /// When the response to the bridge's creation arrived.
    bridge_made: Option<Instant>,
    /// The context that the caller came from.
    caller_context: String,
    transfer: Option<Transfer>,
    /// The channel of a transfer's target.
    target: Piece,
    /// When the target was first known to exist.
    target_made: Option<Instant>,
    /// Number of transfers so far. It is part of the target's id.
    transfers: u32,
    /// How the caller is released; set when the call ends.
    after: Option<After>,
    /// When set-up times out; `None` while no limit applies.
    deadline: Option<Instant>,
}

impl Bridging {
    /// `id` is unique and safe in a URL. `up`: the caller has already been answered.
    /// `context`: the one that the caller came from.
    pub fn new(channel: String, id: String, up: bool, context: String) -> Bridging {
        Bridging {
            channel,
            id,
            generation: 0,
            media_again: false,
            bridge_again: false,
            callee: None,
            up,
            caller: Caller::Waiting,
            hangup_seen: false,
            caller_joined: Join::Out,
            connected: false,
            host: None,
            media: Piece::Absent,
            media_made: None,
            media_started: false,
            media_joined: Join::Out,
            bridge: Piece::Absent,
            bridge_made: None,
            caller_context: context,
            transfer: None,
            target: Piece::Absent,
            target_made: None,
            transfers: 0,
            after: None,
            deadline: None,
        }
    }

    fn object(&self, names: &Names, kind: &str, again: bool) -> String {
        let again = if again { "-again" } else { "" };
        format!("{}{kind}-{}{again}", names.prefix, self.id)
    }

    pub fn media_id(&self, names: &Names) -> String {
        self.object(names, "m", self.media_again)
    }

    pub fn bridge_id(&self, names: &Names) -> String {
        self.object(names, "b", self.bridge_again)
    }

    pub fn generation(&self) -> u8 {
        self.generation
    }

    /// True if a list requested at `time` must contain the external media channel.
    pub fn has_media_since(&self, time: Instant) -> bool {
        self.media == Piece::Made && self.media_made.is_some_and(|made| made < time)
    }

    /// True if a list requested at `time` must contain the bridge.
    pub fn has_bridge_since(&self, time: Instant) -> bool {
        self.bridge == Piece::Made && self.bridge_made.is_some_and(|made| made < time)
    }

    /// True if a list requested at `time` must contain the target of the transfer.
    pub fn has_target_since(&self, time: Instant) -> bool {
        self.target == Piece::Made && self.target_made.is_some_and(|made| made < time)
    }

    /// True if this is the id of a target that exists or may exist.
    pub fn owns_target(&self, id: &str, names: &Names) -> bool {
        self.target != Piece::Absent && self.target_id(names) == id
    }

    /// True if ringing may still be indicated to the caller.
    pub fn is_waiting(&self) -> bool {
        self.caller == Caller::Waiting && !self.up
    }

    pub fn is_ending(&self) -> bool {
        self.after.is_some() || self.caller == Caller::Left
    }

    pub fn has_caller(&self) -> bool {
        self.caller != Caller::Left
    }

    /// True if the external media channel exists, may exist, or may still be created.
    pub fn holds_media(&self) -> bool {
        self.media != Piece::Absent || !self.is_ending()
    }

    pub fn is_finished(&self) -> bool {
        let pieces = [self.media, self.bridge, self.target];
        self.caller == Caller::Left && pieces.iter().all(|piece| *piece == Piece::Absent)
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.is_ending())
    }

    pub fn end(&mut self, after: After, names: &Names) -> Vec<Action> {
        self.after.get_or_insert(after);
        self.transfer = None;
        self.step(names)
    }

    pub fn on_timeout(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        match self.next_timeout().is_some_and(|at| at <= now) {
            true if self.transfer.is_some() => self.fail_late_transfer(names),
            true if !self.is_ending() => {
                self.fail("call set-up on the PBX timed out".to_owned(), names)
            }
            _ => Vec::new(),
        }
    }

    pub fn on_hangup_request(&mut self) {
        self.hangup_seen = true;
    }

    /// Handles the caller's channel leaving our application.
    pub fn on_caller_left(&mut self, names: &Names) -> Vec<Action> {
        let cause = if self.hangup_seen { Cause::CallerHangup } else { Cause::Transferred };
        self.leave(cause, names)
    }

    /// Handles the caller's departure for a given cause, for example one found in the PBX's lists.
    pub fn leave(&mut self, cause: Cause, names: &Names) -> Vec<Action> {
        if self.caller == Caller::Left {
            return Vec::new();
        }
        let sent = self.caller == Caller::Released;
        self.caller = Caller::Left;
        let mut actions = Vec::new();
        match &self.after {
            None => actions.push(Action::Tell(Tell::Ended(cause))),
            // the response to the request may be late
            Some(After::Transfer { .. }) => {
                let failed = Some(cause).filter(|cause| *cause != Cause::Transferred || !sent);
                self.on_sent_off(failed, &mut actions);
            }
            Some(_) => {}
        }
        self.transfer = None;
        actions.extend(self.step(names));
        actions
    }

    /// Handles a restart of the PBX: none of the call's objects exist any more.
    pub fn on_restart(&mut self, names: &Names) -> Vec<Action> {
        for piece in [&mut self.media, &mut self.bridge, &mut self.target] {
            if *piece == Piece::Made {
                *piece = Piece::Absent;
            }
        }
        self.leave(Cause::Restarted, names)
    }

    /// Replaces an external media channel that was removed. This is done once per call.
    pub fn on_media_lost(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        if self.media != Piece::Made || self.is_ending() {
            return Vec::new(); // deleted by us, or not created yet
        }
        if self.media_again {
            return self.fail("external media channel lost twice".to_owned(), names);
        }
        self.generation += 1;
        self.deadline = Some(now + SETUP);
        (self.media_started, self.media_joined) = (false, Join::Out);
        // delete it first, in case it still exists: two would hold twice the PBX's RTP ports
        self.media = Piece::Deleting;
        let channel = self.media_id(names);
        vec![Action::Send(Step::DropMedia, RestRequest::HangUp { channel, reason: NORMAL })]
    }

    /// Replaces a bridge that was removed. This is done once per call.
    pub fn on_bridge_lost(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        if self.bridge != Piece::Made || self.is_ending() {
            return Vec::new();
        }
        if self.bridge_again {
            return self.fail("bridge lost twice".to_owned(), names);
        }
        self.generation += 1;
        self.deadline = Some(now + SETUP);
        (self.media_joined, self.caller_joined) = (Join::Out, Join::Out);
        self.bridge = Piece::Deleting;
        let id = self.bridge_id(names);
        let mut actions = vec![Action::Send(Step::DropBridge, RestRequest::DeleteBridge { id })];
        actions.extend(self.on_target_bridge_lost(names));
        actions
    }

    /// Ends the call with an error; the caller returns to the dialplan.
    pub(super) fn fail(&mut self, why: String, names: &Names) -> Vec<Action> {
        self.after = Some(After::Continue("pbx_error".to_owned()));
        self.transfer = None;
        let mut actions = vec![Action::Tell(Tell::Ended(Cause::Failed(why)))];
        actions.extend(self.step(names));
        actions
    }

    pub fn on_outcome(
        &mut self,
        now: Instant,
        step: Step,
        outcome: &Outcome,
        names: &Names,
    ) -> Vec<Action> {
        let good = outcome.is_success();
        let mut actions = Vec::new();
        match step {
            Step::Media => {
                // if it may exist, treat it as created, so that it gets deleted
                self.media = if outcome.is_undone() { Piece::Absent } else { Piece::Made };
                self.media_made = Some(now);
                match outcome.media_address(names.pbx) {
                    Some(to) if !self.is_ending() => actions.push(Action::Tell(Tell::Media(to))),
                    Some(_) => {}
                    None => return self.refused(step, outcome, names),
                }
            }
            Step::Bridge => {
                self.bridge = if outcome.is_undone() { Piece::Absent } else { Piece::Made };
                self.bridge_made = Some(now);
            }
            Step::JoinMedia if good => {
                self.media_joined = Join::In;
                // until the call asks for an answer, the call's own time limits apply
                let complete = self.caller_joined == Join::In || self.is_consulting();
                let rings = self.callee.is_some() && self.caller == Caller::Answering;
                if self.caller == Caller::Waiting || complete || rings {
                    self.deadline = None;
                }
            }
            Step::JoinCaller if good => self.on_caller_joined(&mut actions),
            Step::Answer if good && self.caller == Caller::Answering => {
                self.caller = Caller::Answered;
            }
            Step::JoinMedia | Step::JoinCaller | Step::Answer => {}
            Step::Callee => return self.on_callee_made(now, outcome, names),
            Step::LeaveCaller => return self.on_caller_removed(outcome, names),
            Step::Transfer(number, step) => {
                return self.on_transfer_step(now, number, step, outcome, names);
            }
            _ => self.on_release(step, outcome, names, &mut actions),
        }
        let needed =
            matches!(step, Step::Bridge | Step::JoinMedia | Step::JoinCaller | Step::Answer);
        if needed && !good {
            actions.extend(self.refused(step, outcome, names));
        } else {
            actions.extend(self.step(names));
        }
        actions
    }

    /// Requests the next steps of set-up or teardown.
    pub(super) fn step(&mut self, names: &Names) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.is_ending() {
            true => self.tear_down(names, &mut actions),
            false => self.build(names, &mut actions),
        }
        actions
    }
}
