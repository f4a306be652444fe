//! The AI talks to the target of an attended transfer: the caller leaves the bridge, the target
//! enters it. Before the two are joined, the target leaves it too: our bridge is deleted once the
//! caller is out of our application, and with the target in it, `Bridge()` would fail.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::ari::bridging::transfer::State;
use crate::ari::bridging::words::{Action, Names, TransferStep};
use crate::ari::bridging::{Bridging, Join};
use crate::ari::request::{Outcome, RestRequest};
use crate::command::Failure;

impl Bridging {
    /// True while the caller waits outside the bridge.
    pub(super) fn is_consulting(&self) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| transfer.consulting)
    }

    /// Handles the outcome of removing the caller from the bridge.
    pub(super) fn on_caller_removed(&mut self, outcome: &Outcome, names: &Names) -> Vec<Action> {
        if self.caller_joined == Join::Leaving {
            self.caller_joined = Join::Out;
        }
        match outcome.is_success() || outcome.is_undone() {
            true => self.step(names),
            // the caller may still be in the bridge, and would hear the consultation
            false => self.fail_transfer(Failure::Refused, names),
        }
    }

    /// Adds the target to the bridge.
    pub(super) fn join_target(&mut self, names: &Names) -> Option<Action> {
        let transfer = self.transfer.as_mut().filter(|t| t.state == State::Consulting)?;
        if transfer.target_joined != Join::Out {
            return None;
        }
        transfer.target_joined = Join::Joining;
        let (bridge, channel) = (self.bridge_id(names), self.target_id(names));
        Some(self.send(TransferStep::JoinTarget, RestRequest::AddChannel { bridge, channel }))
    }

    pub(super) fn on_target_joined(&mut self, outcome: &Outcome, names: &Names) -> Vec<Action> {
        let transfer = self.transfer.as_mut().filter(|t| t.target_joined == Join::Joining);
        let Some(transfer) = transfer else { return Vec::new() };
        // without the bridge (404), its event follows
        if !outcome.is_success() && outcome.status() != Some(404) {
            return self.fail_transfer(Failure::TargetHungUp, names);
        }
        transfer.target_joined = Join::In;
        match transfer.state == State::Joining {
            true => self.part(names),
            false => Vec::new(),
        }
    }

    /// Takes the target out of the bridge, then stops the caller's music.
    pub(super) fn part(&mut self, names: &Names) -> Vec<Action> {
        let (bridge, channel) = (self.bridge_id(names), self.target_id(names));
        let Some(transfer) = &mut self.transfer else { return Vec::new() };
        match transfer.target_joined {
            Join::Out => {
                let music = RestRequest::Music { channel: self.channel.clone(), on: false };
                vec![self.send(TransferStep::MusicOff, music)]
            }
            Join::In => {
                transfer.target_joined = Join::Leaving;
                let remove = RestRequest::RemoveChannel { bridge, channel };
                vec![self.send(TransferStep::PartTarget, remove)]
            }
            Join::Joining | Join::Leaving => Vec::new(),
        }
    }

    pub(super) fn on_target_parted(&mut self, names: &Names) -> Vec<Action> {
        let transfer = self.transfer.as_mut().filter(|t| t.target_joined == Join::Leaving);
        let Some(transfer) = transfer else { return Vec::new() };
        transfer.target_joined = Join::Out;
        self.part(names)
    }

    /// Handles the loss of the bridge: the target is no longer in it.
    pub(super) fn on_target_bridge_lost(&mut self, names: &Names) -> Vec<Action> {
        let Some(transfer) = &mut self.transfer else { return Vec::new() };
        let before = std::mem::replace(&mut transfer.target_joined, Join::Out);
        match before != Join::Out && transfer.state == State::Joining {
            true => self.part(names),
            false => Vec::new(),
        }
    }
}
