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
//! Both objects are made at once and named by us, because their events may come before the
//! answers. [`Flow::step`] looks at what is there and asks for what is missing; what ends a call
//! follows from what was made. At most two requests are under way.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::ari::request::{Outcome, Request};

/// How long making the objects may take, and then connecting the caller.
const SETUP: Duration = Duration::from_secs(5);
/// The variable that tells the dialplan why a caller comes back.
pub const REASON: &str = "TRUNKLESS_REASON";

/// What becomes of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    HangUp,
    /// On in the dialplan; the word is for [`REASON`].
    Continue(String),
}

/// What the call is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tell {
    /// The PBX takes RTP here from now on.
    Media(SocketAddr),
    /// Caller and media are in the bridge.
    Connected,
    Digit(char),
    Hold(bool),
    Ended(Cause),
    /// The PBX is out of reach; it is back.
    Lost,
    Back,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    CallerHangup,
    /// The PBX has taken the caller elsewhere.
    Transferred,
    /// A command was refused or came to nothing.
    Failed(String),
    /// The PBX has started anew.
    Restarted,
}

impl Step {
    /// Makes something; after a loss the answers of the first generation mean nothing.
    pub fn builds(self) -> bool {
        matches!(self, Step::Media | Step::Bridge | Step::JoinMedia | Step::JoinCaller)
    }
}

/// Which request an outcome belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Media,
    Bridge,
    JoinMedia,
    Answer,
    JoinCaller,
    /// Is the caller still with us?
    Look,
    Reason,
    Release,
    DropMedia,
    DropBridge,
    /// Whatever comes of it.
    Extra,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Send(Step, Request),
    Tell(Tell),
    /// Something may be left on the PBX that we could not remove: look soon.
    Sweep,
    /// The same, and it holds RTP ports of the PBX.
    MediaLeft,
}

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

/// What does not change from call to call.
#[derive(Debug, Clone)]
pub struct Names {
    pub app: String,
    /// What our objects' ids begin with.
    pub prefix: String,
    pub format: &'static str,
    /// The PBX's address.
    pub pbx: IpAddr,
}

#[derive(Debug)]
pub struct Flow {
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
    /// Ours, where the PBX sends RTP; none before [`Flow::begin`].
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

impl Flow {
    /// `id`: unique, fit for a URL. `up`: the caller is answered already.
    pub fn new(channel: String, id: String, up: bool) -> Flow {
        Flow {
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

    /// Makes the objects. `host`: where our RTP socket is.
    pub fn begin(&mut self, now: Instant, host: SocketAddr, names: &Names) -> Vec<Action> {
        self.host = Some(host);
        self.deadline = Some(now + SETUP);
        self.step(names)
    }

    /// The call wants its caller answered and connected.
    pub fn answer(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        if self.caller == Caller::Waiting {
            self.caller = Caller::AnswerWanted;
            self.deadline = Some(now + SETUP);
        }
        self.step(names)
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

    pub fn on_media_started(&mut self, names: &Names) -> Vec<Action> {
        self.media_started = true;
        self.step(names)
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
        vec![Action::Send(Step::DropMedia, Request::HangUp { channel })]
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
        vec![Action::Send(Step::DropBridge, Request::DeleteBridge { id })]
    }

    fn fail(&mut self, why: String, names: &Names) -> Vec<Action> {
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

    fn on_release(
        &mut self,
        step: Step,
        outcome: &Outcome,
        names: &Names,
        actions: &mut Vec<Action>,
    ) {
        let (good, status) = (outcome.is_success(), outcome.status());
        match step {
            Step::Look => self.on_look(outcome, names, actions),
            Step::Reason if self.caller == Caller::Releasing => {
                let channel = self.channel.clone();
                actions.push(Action::Send(Step::Release, Request::Continue { channel }));
            }
            // still ours, but in no state to go on: never answered
            Step::Release if status == Some(412) && self.caller == Caller::Releasing => {
                let channel = self.channel.clone();
                actions.push(Action::Send(Step::Release, Request::HangUp { channel }));
            }
            Step::Release => {
                // 404, 409: it had left before
                if !good && !matches!(status, Some(404 | 409)) {
                    actions.push(Action::Sweep);
                }
                self.caller = Caller::Left;
            }
            Step::DropMedia => {
                if !good && status != Some(404) {
                    actions.push(Action::MediaLeft);
                }
                self.media = Piece::Absent;
                self.media_again |= !self.is_ending();
            }
            Step::DropBridge => {
                if !good && status != Some(404) {
                    actions.push(Action::Sweep);
                }
                self.bridge = Piece::Absent;
                self.bridge_again |= !self.is_ending();
            }
            _ => {}
        }
    }

    /// A caller who has been taken elsewhere is not hung up, even if we have not heard of it yet.
    fn on_look(&mut self, outcome: &Outcome, names: &Names, actions: &mut Vec<Action>) {
        if self.caller != Caller::Releasing {
            return;
        }
        match outcome.channel() {
            Some(channel) if channel.is_in(&names.app) => {
                let channel = self.channel.clone();
                actions.push(Action::Send(Step::Release, Request::HangUp { channel }));
            }
            found => {
                self.caller = Caller::Left;
                if found.is_none() && outcome.status() != Some(404) {
                    actions.push(Action::Sweep);
                }
            }
        }
    }

    fn on_caller_joined(&mut self, actions: &mut Vec<Action>) {
        if self.caller_joined == Join::Joining {
            self.caller_joined = Join::In;
            self.deadline = None;
            if !self.is_ending() {
                actions.push(Action::Tell(Tell::Connected));
            }
        }
    }

    fn refused(&mut self, step: Step, outcome: &Outcome, names: &Names) -> Vec<Action> {
        if self.is_ending() {
            return self.step(names);
        }
        let gone = match (step, outcome.status()) {
            // no such channel: it has been hung up, and the event is on its way
            (Step::JoinCaller, Some(400)) | (Step::Answer, Some(404)) => {
                self.hangup_seen = true;
                true
            }
            // not in our application: the event tells why
            (Step::JoinCaller, Some(422)) | (Step::Answer, Some(409)) => return Vec::new(),
            _ => false,
        };
        if gone {
            // should we be mistaken, the caller is found by the next look
            let mut actions = vec![Action::Sweep];
            actions.extend(self.on_caller_left(names));
            return actions;
        }
        let what = match step {
            Step::Media => "externalMedia",
            Step::Bridge => "the bridge",
            Step::Answer => "answer",
            _ => "addChannel",
        };
        self.fail(format!("{what}: {}", outcome.text()), names)
    }

    /// Asks for what is missing.
    fn step(&mut self, names: &Names) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.is_ending() {
            true => self.tear_down(names, &mut actions),
            false => self.build(names, &mut actions),
        }
        actions
    }

    fn build(&mut self, names: &Names, actions: &mut Vec<Action>) {
        let Some(host) = self.host else { return };
        let (media_id, bridge_id) = (self.media_id(names), self.bridge_id(names));
        let mut send = |step: Step, request: Request| actions.push(Action::Send(step, request));
        if self.media == Piece::Absent {
            self.media = Piece::Making;
            let (id, app) = (media_id.clone(), names.app.clone());
            send(Step::Media, Request::ExternalMedia { id, app, host, format: names.format });
        }
        if self.bridge == Piece::Absent {
            self.bridge = Piece::Making;
            send(Step::Bridge, Request::CreateBridge { id: bridge_id.clone() });
        }
        let made = self.media == Piece::Made && self.bridge == Piece::Made;
        if made && self.media_started && self.media_joined == Join::Out {
            self.media_joined = Join::Joining;
            let request = Request::AddChannel { bridge: bridge_id.clone(), channel: media_id };
            send(Step::JoinMedia, request);
        }
        // two requests at a time: the caller's turn comes when the objects are made
        if self.caller == Caller::AnswerWanted && self.up {
            self.caller = Caller::Answered;
        }
        if self.caller == Caller::AnswerWanted && made {
            self.caller = Caller::Answering;
            send(Step::Answer, Request::Answer { channel: self.channel.clone() });
        }
        let ready = self.caller == Caller::Answered && self.media_joined == Join::In;
        if ready && self.caller_joined == Join::Out {
            self.caller_joined = Join::Joining;
            let channel = self.channel.clone();
            send(Step::JoinCaller, Request::AddChannel { bridge: bridge_id, channel });
        }
    }

    /// The caller first: without its bridge it would be up in silence.
    fn tear_down(&mut self, names: &Names, actions: &mut Vec<Action>) {
        let channel = self.channel.clone();
        match (&self.after, self.caller) {
            (_, Caller::Left) => {}
            (_, Caller::Releasing) => return,
            (Some(after), _) => {
                let (step, request) = match after {
                    After::HangUp => (Step::Look, Request::Channel { channel }),
                    After::Continue(why) => {
                        let value = why.clone();
                        (Step::Reason, Request::SetVariable { channel, name: REASON, value })
                    }
                };
                self.caller = Caller::Releasing;
                actions.push(Action::Send(step, request));
                return;
            }
            (None, _) => return,
        }
        if self.media == Piece::Made {
            self.media = Piece::Deleting;
            let channel = self.media_id(names);
            actions.push(Action::Send(Step::DropMedia, Request::HangUp { channel }));
        }
        if self.bridge == Piece::Made {
            self.bridge = Piece::Deleting;
            let id = self.bridge_id(names);
            actions.push(Action::Send(Step::DropBridge, Request::DeleteBridge { id }));
        }
    }
}
