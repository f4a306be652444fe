//! Tears down a call on the PBX: the caller first, then the external media channel and the bridge.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::ari::bridging::words::{Action, After, Cause, Names, REASON, Step};
use crate::ari::bridging::{Bridging, Caller, Piece};
use crate::ari::request::{NORMAL, Outcome, RestRequest};

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
                self.caller = Caller::Released;
                let (channel, to) = (self.channel.clone(), self.destination());
                actions.push(Action::Send(Step::Release, RestRequest::Continue { channel, to }));
            }
            // still in our application, but it cannot continue because it was never answered
            Step::Release if status == Some(412) && self.caller == Caller::Released => {
                let channel = self.channel.clone();
                actions.push(Action::Send(
                    Step::Release,
                    RestRequest::HangUp { channel, reason: self.reason() },
                ));
            }
            Step::Release => {
                // 404, 409: the caller had already left
                if !good && !matches!(status, Some(404 | 409)) {
                    actions.push(Action::Sweep);
                }
                if self.caller != Caller::Left {
                    let failed = match status {
                        _ if self.hangup_seen => Some(Cause::CallerHangup),
                        _ if good => None,
                        Some(404) => Some(Cause::CallerHangup),
                        // the PBX moved the caller elsewhere
                        Some(409) => Some(Cause::Transferred),
                        _ => Some(Cause::Failed(format!("continue: {}", outcome.text()))),
                    };
                    self.on_sent_off(failed, actions);
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
                self.caller = Caller::Released;
                let channel = self.channel.clone();
                actions.push(Action::Send(
                    Step::Release,
                    RestRequest::HangUp { channel, reason: self.reason() },
                ));
            }
            found => {
                self.caller = Caller::Left;
                if found.is_none() && outcome.status() != Some(404) {
                    actions.push(Action::Sweep);
                }
            }
        }
    }

    /// Where in the dialplan the caller continues, if not at the next line.
    fn destination(&self) -> Option<(String, String, u32)> {
        match &self.after {
            Some(After::Transfer { context, exten, priority, .. }) => {
                Some((context.clone(), exten.clone(), *priority))
            }
            _ => None,
        }
    }

    /// ARI's word for the reason of the hang-up.
    pub(super) fn reason(&self) -> &'static str {
        match self.after {
            Some(After::HangUp(reason)) => reason,
            _ => NORMAL,
        }
    }

    /// Releases the caller first: with the bridge gone, the caller would hear silence.
    pub(super) fn tear_down(&mut self, names: &Names, actions: &mut Vec<Action>) {
        let channel = self.channel.clone();
        let unanswered = !matches!(self.caller, Caller::Left | Caller::Released);
        if unanswered && self.give_up_callee(actions) && self.caller != Caller::Left {
            return;
        }
        let hang_up = Some(After::HangUp(NORMAL)).filter(|_| self.callee.is_some());
        let after = match (&self.after, hang_up) {
            // a callee has no dialplan to return to
            (Some(After::Continue(_)), Some(hang_up)) => Some(hang_up),
            (after, _) => after.clone(),
        };
        match (&after, self.caller) {
            (_, Caller::Left) => {}
            (_, Caller::Releasing | Caller::Released) => return,
            (Some(after), _) => {
                let (step, request) = match after {
                    After::HangUp(_) => (Step::Look, RestRequest::Channel { channel }),
                    After::Continue(_) | After::Transfer { .. } => {
                        let value = match after {
                            After::Continue(why) => why.clone(),
                            _ => "transferred".to_owned(),
                        };
                        (
                            Step::Reason,
                            RestRequest::SetVariable { channel, name: REASON.to_owned(), value },
                        )
                    }
                };
                self.caller = Caller::Releasing;
                actions.push(Action::Send(step, request));
                return;
            }
            (None, _) => return,
        }
        actions.extend(self.drop_target(names));
        if self.media == Piece::Made {
            self.media = Piece::Deleting;
            let channel = self.media_id(names);
            actions.push(Action::Send(
                Step::DropMedia,
                RestRequest::HangUp { channel, reason: NORMAL },
            ));
        }
        if self.bridge == Piece::Made {
            self.bridge = Piece::Deleting;
            let id = self.bridge_id(names);
            actions.push(Action::Send(Step::DropBridge, RestRequest::DeleteBridge { id }));
        }
    }
}
