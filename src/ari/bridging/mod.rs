//! One call's objects on the PBX: an external media channel (its RTP), a mixing bridge, and the
//! caller in it.
//!
//! ```text
//! begin ──> externalMedia ──its StasisStart──┐
//!      └──> bridge ──────────────────────────┴─> media joins ──┐
//! wanted ──> caller answered ──────────────────────────────────┴─> caller joins: connected
//! end, or the caller has left ──> caller sent on or hung up ──> media and bridge deleted: finished
//! ```
//!
//! Both objects are created at once, with ids that we choose, because their events may arrive
//! before the responses. [`Bridging::step`] compares what is there with what is wanted and requests
//! the difference, at the end of a call too. At most two requests are in flight.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod setup;
mod teardown;
pub mod words;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ari::bridging::words::{Action, After, Cause, Names, Step, Tell};
use crate::ari::request::{Outcome, RestRequest};

/// How long making the objects may take, and then connecting the caller.
const SETUP: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Absent,
    Making,
    Made,
    Deleting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    Out,
    Joining,
    In,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Waiting,
    AnswerWanted,
    Answering,
    Answered,
    Releasing,
    /// Not in our application any more: never touched again.
    Left,
}

#[derive(Debug)]
pub struct Bridging {
    /// The caller's channel.
    pub channel: String,
    /// Part of our objects' ids.
    id: String,
    /// How often something was lost and made anew.
    generation: u8,
    media_again: bool,
    bridge_again: bool,
    up: bool,
    caller: Caller,
    hangup_seen: bool,
    caller_joined: Join,
    /// Ours, where the PBX sends RTP; none before [`Bridging::begin`].
    host: Option<SocketAddr>,
    media: Piece,
    media_made: Option<Instant>,
    media_started: bool,
    media_joined: Join,
    bridge: Piece,
    bridge_made: Option<Instant>,
    after: Option<After>,
    deadline: Option<Instant>,
}

impl Bridging {
    /// `id`: unique, fit for a URL. `up`: the caller is answered already.
    pub fn new(channel: String, id: String, up: bool) -> Bridging {
        Bridging {
            channel,
            id,
            generation: 0,
            media_again: false,
            bridge_again: false,
            up,
            caller: Caller::Waiting,
            hangup_seen: false,
            caller_joined: Join::Out,
            host: None,
            media: Piece::Absent,
            media_made: None,
            media_started: false,
            media_joined: Join::Out,
            bridge: Piece::Absent,
            bridge_made: None,
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

    /// Whether a list that was asked for at `time` must have it.
    pub fn has_media_since(&self, time: Instant) -> bool {
        self.media == Piece::Made && self.media_made.is_some_and(|made| made < time)
    }

    pub fn has_bridge_since(&self, time: Instant) -> bool {
        self.bridge == Piece::Made && self.bridge_made.is_some_and(|made| made < time)
    }

    /// Ringing may be told.
    pub fn is_waiting(&self) -> bool {
        self.caller == Caller::Waiting && !self.up
    }

    pub fn is_ending(&self) -> bool {
        self.after.is_some() || self.caller == Caller::Left
    }

    pub fn has_caller(&self) -> bool {
        self.caller != Caller::Left
    }

    /// Whether an external media channel is there or may be.
    pub fn holds_media(&self) -> bool {
        self.media != Piece::Absent || !self.is_ending()
    }

    pub fn is_finished(&self) -> bool {
        self.caller == Caller::Left && self.media == Piece::Absent && self.bridge == Piece::Absent
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.is_ending())
    }

    pub fn end(&mut self, after: After, names: &Names) -> Vec<Action> {
        self.after.get_or_insert(after);
        self.step(names)
    }

    pub fn on_timeout(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        match self.next_timeout().is_some_and(|at| at <= now) {
            true if !self.is_ending() => {
                self.fail("the set-up has taken too long".to_owned(), names)
            }
            _ => Vec::new(),
        }
    }

    pub fn on_hangup_request(&mut self) {
        self.hangup_seen = true;
    }

    /// The caller's channel has left our application.
    pub fn on_caller_left(&mut self, names: &Names) -> Vec<Action> {
        let cause = if self.hangup_seen { Cause::CallerHangup } else { Cause::Transferred };
        self.leave(cause, names)
    }

    /// The same, found out otherwise.
    pub fn leave(&mut self, cause: Cause, names: &Names) -> Vec<Action> {
        if self.caller == Caller::Left {
            return Vec::new();
        }
        self.caller = Caller::Left;
        let mut actions = Vec::new();
        if self.after.is_none() {
            actions.push(Action::Tell(Tell::Ended(cause)));
        }
        actions.extend(self.step(names));
        actions
    }

    /// The PBX has started anew: nothing of the call is there any more.
    pub fn on_restart(&mut self, names: &Names) -> Vec<Action> {
        for piece in [&mut self.media, &mut self.bridge] {
            if *piece == Piece::Made {
                *piece = Piece::Absent;
            }
        }
        self.leave(Cause::Restarted, names)
    }

    /// Somebody has removed the external media channel: it is made anew, once.
    pub fn on_media_lost(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        if self.media != Piece::Made || self.is_ending() {
            return Vec::new(); // our own DELETE, or one that is not made yet
        }
        if self.media_again {
            return self.fail("the external media channel is gone".to_owned(), names);
        }
        self.generation += 1;
        self.deadline = Some(now + SETUP);
        (self.media_started, self.media_joined) = (false, Join::Out);
        // what is left of it goes first: two would take twice the PBX's ports
        self.media = Piece::Deleting;
        let channel = self.media_id(names);
        vec![Action::Send(Step::DropMedia, RestRequest::HangUp { channel })]
    }

    pub fn on_bridge_lost(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        if self.bridge != Piece::Made || self.is_ending() {
            return Vec::new();
        }
        if self.bridge_again {
            return self.fail("the bridge is gone".to_owned(), names);
        }
        self.generation += 1;
        self.deadline = Some(now + SETUP);
        (self.media_joined, self.caller_joined) = (Join::Out, Join::Out);
        self.bridge = Piece::Deleting;
        let id = self.bridge_id(names);
        vec![Action::Send(Step::DropBridge, RestRequest::DeleteBridge { id })]
    }

    pub(super) fn fail(&mut self, why: String, names: &Names) -> Vec<Action> {
        self.after = Some(After::Continue("pbx_error".to_owned()));
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
                // one that may have been made is deleted like one that was
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
                // while the AI is awaited, the time is the call's affair
                if self.caller == Caller::Waiting || self.caller_joined == Join::In {
                    self.deadline = None;
                }
            }
            Step::JoinCaller if good => self.on_caller_joined(&mut actions),
            Step::Answer if good && self.caller == Caller::Answering => {
                self.caller = Caller::Answered;
            }
            Step::JoinMedia | Step::JoinCaller | Step::Answer => {}
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

    /// Asks for what is missing.
    pub(super) fn step(&mut self, names: &Names) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.is_ending() {
            true => self.tear_down(names, &mut actions),
            false => self.build(names, &mut actions),
        }
        actions
    }
}
