//! Sets up a call on the PBX: the external media channel, the bridge, and the caller in it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::Instant;

use crate::ari::bridging::words::{Action, Names, Step, Tell};
use crate::ari::bridging::{Bridging, Caller, Join, Piece, SETUP};
use crate::ari::request::{Outcome, RestRequest};

impl Bridging {
    /// Creates the objects. `host` is the address of our RTP socket.
    pub fn begin(&mut self, now: Instant, host: SocketAddr, names: &Names) -> Vec<Action> {
        self.host = Some(host);
        self.deadline = Some(now + SETUP);
        self.step(names)
    }

    /// Answers and connects the caller.
    pub fn answer(&mut self, now: Instant, names: &Names) -> Vec<Action> {
        if self.caller == Caller::Waiting {
            self.caller = Caller::AnswerWanted;
            self.deadline = Some(now + SETUP);
        }
        self.step(names)
    }

    pub fn on_media_started(&mut self, names: &Names) -> Vec<Action> {
        self.media_started = true;
        self.step(names)
    }

    pub(super) fn on_caller_joined(&mut self, actions: &mut Vec<Action>) {
        if self.caller_joined == Join::Joining {
            self.caller_joined = Join::In;
            self.connected = true;
            if self.transfer.is_none() {
                self.deadline = None;
            }
            if !self.is_ending() {
                actions.push(Action::Tell(Tell::Connected));
            }
        }
    }

    /// Handles the failure of a step that the call needs.
    pub(super) fn refused(&mut self, step: Step, outcome: &Outcome, names: &Names) -> Vec<Action> {
        if self.is_ending() {
            return self.step(names);
        }
        let gone = match (step, outcome.status()) {
            // no such channel: the caller hung up, and the event is on its way
            (Step::JoinCaller, Some(400)) | (Step::Answer, Some(404)) => {
                self.hangup_seen = true;
                true
            }
            // not in our application: the event will give the cause
            (Step::JoinCaller, Some(422)) | (Step::Answer, Some(409)) => return Vec::new(),
            _ => false,
        };
        if gone {
            // if the channel exists after all, the sweep finds it
            let mut actions = vec![Action::Sweep];
            actions.extend(self.on_caller_left(names));
            return actions;
        }
        let what = match step {
            Step::Media => "externalMedia",
            Step::Bridge => "create bridge",
            Step::Answer => "answer",
            _ => "addChannel",
        };
        self.fail(format!("{what}: {}", outcome.text()), names)
    }

    pub(super) fn build(&mut self, names: &Names, actions: &mut Vec<Action>) {
        let Some(host) = self.host else { return };
        let (media_id, bridge_id) = (self.media_id(names), self.bridge_id(names));
        let mut send = |step: Step, request: RestRequest| actions.push(Action::Send(step, request));
        if self.media == Piece::Absent {
            self.media = Piece::Making;
            let (id, app) = (media_id.clone(), names.app.clone());
            send(Step::Media, RestRequest::ExternalMedia { id, app, host, format: names.format });
        }
        if self.bridge == Piece::Absent {
            self.bridge = Piece::Making;
            send(Step::Bridge, RestRequest::CreateBridge { id: bridge_id.clone() });
        }
        let made = self.media == Piece::Made && self.bridge == Piece::Made;
        if made && self.media_started && self.media_joined == Join::Out {
            self.media_joined = Join::Joining;
            let request = RestRequest::AddChannel { bridge: bridge_id.clone(), channel: media_id };
            send(Step::JoinMedia, request);
        }
        // at most two requests in flight: answer when the objects exist
        if self.caller == Caller::AnswerWanted && self.up {
            self.caller = Caller::Answered;
        }
        if self.caller == Caller::AnswerWanted && self.callee.is_some() {
            // the AI is heard as soon as the callee answers
            if self.media_joined == Join::In
                && let Some(Action::Send(step, request)) = self.call_callee(names)
            {
                send(step, request);
            }
        } else if self.caller == Caller::AnswerWanted && made {
            self.caller = Caller::Answering;
            send(Step::Answer, RestRequest::Answer { channel: self.channel.clone() });
        }
        let ready = self.caller == Caller::Answered && self.media_joined == Join::In;
        let (bridge, channel) = (bridge_id, self.channel.clone());
        match (self.caller_joined, self.is_consulting()) {
            (Join::Out, false) if ready => {
                self.caller_joined = Join::Joining;
                send(Step::JoinCaller, RestRequest::AddChannel { bridge, channel });
            }
            (Join::In, true) => {
                self.caller_joined = Join::Leaving;
                send(Step::LeaveCaller, RestRequest::RemoveChannel { bridge, channel });
            }
            // not before the caller is out, who must not hear the consultation
            (Join::Out, true) if ready => actions.extend(self.join_target(names)),
            _ => {}
        }
    }
}
