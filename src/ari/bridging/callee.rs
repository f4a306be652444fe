//! The callee of a call that we place. The callee's channel takes the place of a caller's: it is
//! created by us once the external media channel is in the bridge, and enters our application when
//! the callee answers.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::ari::bridging::words::{Action, Cause, Names, Step, Tell};
use crate::ari::bridging::{Bridging, Caller, SETUP};
use crate::ari::request::{Outcome, RestRequest};

/// The details of a call that we place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalleeWish {
    /// Such as `Local/+4930@out/n`.
    pub endpoint: String,
    pub context: String,
    pub caller_id: String,
    pub timeout_s: u64,
}

/// The state of the callee's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    /// The request is in flight.
    Requested,
    /// The channel exists, and the phone may ring.
    Called,
    /// In our application: the callee has answered.
    Answered,
}

#[derive(Debug)]
pub(super) struct Callee {
    wish: CalleeWish,
    stage: Stage,
    /// When the channel was first known to exist.
    called: Option<Instant>,
    /// The last state of the call, as the PBX reports it; `None` if it has not begun.
    dial: Option<String>,
}

impl Bridging {
    /// `id` is unique and safe in a URL.
    pub fn outgoing(id: String, wish: CalleeWish, names: &Names) -> Bridging {
        let channel = format!("{}c-{id}", names.prefix);
        let callee = Callee { stage: Stage::Idle, called: None, dial: None, wish };
        let context = callee.wish.context.clone();
        Bridging { callee: Some(callee), ..Bridging::new(channel, id, false, context) }
    }

    /// True until the callee has answered.
    pub fn is_dialling(&self) -> bool {
        self.callee.as_ref().is_some_and(|callee| callee.stage != Stage::Answered)
    }

    /// True if a list requested at `time` must contain the callee's channel.
    pub fn has_callee_since(&self, time: Instant) -> bool {
        let called = self.callee.as_ref().filter(|callee| callee.stage == Stage::Called);
        called.and_then(|callee| callee.called).is_some_and(|called| called < time)
    }

    /// Calls the callee. From now on, the limits of the call apply.
    pub(super) fn call_callee(&mut self, names: &Names) -> Option<Action> {
        let callee = self.callee.as_mut()?;
        callee.stage = Stage::Requested;
        self.caller = Caller::Answering;
        self.deadline = None;
        let wish = callee.wish.clone();
        let request = RestRequest::Originate {
            id: self.channel.clone(),
            other_id: format!("{}p-{}", names.prefix, self.id),
            app: names.app.clone(),
            endpoint: wish.endpoint,
            timeout_s: wish.timeout_s.max(1),
            originator: None,
            caller_id: Some(wish.caller_id),
            // otherwise Asterisk would transcode to signed linear and back
            format: Some(names.format),
        };
        Some(Action::Send(Step::Callee, request))
    }

    pub(super) fn on_callee_made(
        &mut self,
        now: Instant,
        outcome: &Outcome,
        names: &Names,
    ) -> Vec<Action> {
        let Some(callee) = self.callee.as_mut().filter(|c| c.stage == Stage::Requested) else {
            return self.step(names); // answered or gone meanwhile
        };
        callee.stage = Stage::Called;
        callee.called = Some(now);
        let mut actions = Vec::new();
        if outcome.is_undone() {
            return self.fail_callee(None, names);
        }
        if !outcome.is_success() {
            // it may come into being later
            actions.push(Action::Sweep);
        }
        actions.extend(self.step(names));
        actions
    }

    /// Handles the state of the call to the callee.
    pub fn on_callee_dial(&mut self, status: &str) -> Vec<Action> {
        let Some(callee) = self.callee.as_mut().filter(|c| c.stage != Stage::Answered) else {
            return Vec::new();
        };
        callee.dial = Some(status.to_owned());
        let rings = matches!(status, "RINGING" | "PROGRESS");
        rings.then_some(Action::Tell(Tell::Ringing)).into_iter().collect()
    }

    /// Handles the callee being in our application.
    pub fn on_callee_started(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        let Some(callee) = self.callee.as_mut().filter(|c| c.stage != Stage::Answered) else {
            return Vec::new();
        };
        callee.stage = Stage::Answered;
        if self.caller == Caller::Answering {
            self.caller = Caller::Answered;
            self.deadline = Some(now + SETUP);
        }
        self.step(names)
    }

    /// Handles the end of the callee's channel before the answer.
    pub fn on_callee_gone(&mut self, cause: u16, names: &Names) -> Vec<Action> {
        self.fail_callee(Some(cause), names)
    }

    fn fail_callee(&mut self, cause: Option<u16>, names: &Names) -> Vec<Action> {
        if self.caller == Caller::Left {
            return self.step(names);
        }
        self.caller = Caller::Left;
        let dial = self.callee.as_ref().and_then(|callee| callee.dial.clone());
        let mut actions = Vec::new();
        if self.after.is_none() {
            actions.push(Action::Tell(Tell::Ended(Cause::Unanswered { cause, dial })));
        }
        actions.extend(self.step(names));
        actions
    }

    /// Does not call the callee, because we are stopping. Returns `None` if this is not a call that
    /// we place.
    pub fn spare_callee(&mut self, names: &Names) -> Option<Vec<Action>> {
        let callee = self.callee.as_ref()?;
        if callee.stage != Stage::Idle || self.caller == Caller::Left {
            return Some(Vec::new());
        }
        self.caller = Caller::Left;
        let mut actions = vec![Action::Tell(Tell::Ended(Cause::NotCalled))];
        actions.extend(self.step(names));
        Some(actions)
    }

    /// Gives up a call that was not answered. Returns false if the channel has to be released like
    /// that of a caller.
    pub(super) fn give_up_callee(&mut self, actions: &mut Vec<Action>) -> bool {
        match self.callee.as_ref().map(|callee| callee.stage) {
            None | Some(Stage::Answered) => false,
            Some(Stage::Idle) => {
                self.caller = Caller::Left;
                true
            }
            // a hang-up could overtake it
            Some(Stage::Requested) => true,
            Some(Stage::Called) => {
                self.caller = Caller::Released;
                let (channel, reason) = (self.channel.clone(), self.reason());
                let request = RestRequest::HangUp { channel, reason };
                actions.push(Action::Send(Step::Release, request));
                true
            }
        }
    }
}
