//! Tears down a call on the PBX: the caller first, then the external media channel and the bridge.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::ari::bridging::words::{Action, After, Names, REASON, Step};
use crate::ari::bridging::{Bridging, Caller, Piece};
use crate::ari::request::{Outcome, RestRequest};

impl Bridging {
    pub(super) fn on_release(
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
                actions.push(Action::Send(Step::Release, RestRequest::Continue { channel }));
            }
            // still in our application, but it cannot continue because it was never answered
            Step::Release if status == Some(412) && self.caller == Caller::Releasing => {
                let channel = self.channel.clone();
                actions.push(Action::Send(Step::Release, RestRequest::HangUp { channel }));
            }
            Step::Release => {
                // 404, 409: the caller had already left
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

    /// Hangs up the caller only if still in our application. A transferred caller is left alone,
    /// even if the event has not arrived yet.
    pub(super) fn on_look(&mut self, outcome: &Outcome, names: &Names, actions: &mut Vec<Action>) {
        if self.caller != Caller::Releasing {
            return;
        }
        match outcome.channel() {
            Some(channel) if channel.is_in(&names.app) => {
                let channel = self.channel.clone();
                actions.push(Action::Send(Step::Release, RestRequest::HangUp { channel }));
            }
            found => {
                self.caller = Caller::Left;
                if found.is_none() && outcome.status() != Some(404) {
                    actions.push(Action::Sweep);
                }
            }
        }
    }

    /// Releases the caller first: with the bridge gone, the caller would hear silence.
    pub(super) fn tear_down(&mut self, names: &Names, actions: &mut Vec<Action>) {
        let channel = self.channel.clone();
        match (&self.after, self.caller) {
            (_, Caller::Left) => {}
            (_, Caller::Releasing) => return,
            (Some(after), _) => {
                let (step, request) = match after {
                    After::HangUp => (Step::Look, RestRequest::Channel { channel }),
                    After::Continue(why) => {
                        let value = why.clone();
                        (Step::Reason, RestRequest::SetVariable { channel, name: REASON, value })
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
            actions.push(Action::Send(Step::DropMedia, RestRequest::HangUp { channel }));
        }
        if self.bridge == Piece::Made {
            self.bridge = Piece::Deleting;
            let id = self.bridge_id(names);
            actions.push(Action::Send(Step::DropBridge, RestRequest::DeleteBridge { id }));
        }
    }
}
