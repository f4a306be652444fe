//! Passes the events of the PBX to the calls that they are about.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::ari::api::Output;
use crate::ari::application::{Application, Link, WITHOUT_EVENTS};
use crate::ari::bridging::Bridging;
use crate::ari::bridging::words::{Action, Names, Tell};
use crate::ari::event::Event;

impl Application {
    pub(super) fn on_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::StasisStart { channel, args } => self.on_start(now, *channel, args),
            Event::StasisEnd { channel } => self.on_end(now, &channel, 0),
            Event::Destroyed { channel, cause } => self.on_end(now, &channel, cause),
            Event::HangupRequest { channel, cause } => {
                if cause != 0 {
                    self.tell_caller(&channel, Tell::HangupCause(cause));
                }
                self.with_caller(now, &channel, |bridging, _| {
                    bridging.on_hangup_request();
                    vec![]
                });
            }
            Event::Digit { channel, digit } => self.tell_caller(&channel, Tell::Digit(digit)),
            Event::Hold { channel, on } => self.tell_caller(&channel, Tell::Hold(on)),
            Event::Dial { channel, status } => {
                if let Some(call) = self.channels.get(&channel).copied() {
                    self.bridging(now, call, |bridging, names| {
                        if bridging.channel == channel {
                            bridging.on_callee_dial(&status)
                        } else if bridging.target_id(names) == channel {
                            bridging.on_dial(&status)
                        } else {
                            vec![]
                        }
                    });
                }
            }
            Event::BridgeDestroyed { bridge } => {
                if let Some(call) = self.bridges.get(&bridge).copied() {
                    self.bridging(now, call, |bridging, names| {
                        match bridging.bridge_id(names) == bridge {
                            true => bridging.on_bridge_lost(now, names),
                            false => vec![],
                        }
                    });
                }
            }
            Event::Replaced => {
                self.link = Link::Replaced;
                self.out.push_back(Output::Replaced);
                self.sweep.stop();
                self.sweep.now(now + WITHOUT_EVENTS);
            }
            Event::Other => {}
        }
    }

    fn on_end(&mut self, now: Instant, channel: &str, cause: u16) {
        self.early.retain(|(c, _)| c.id != channel);
        let Some(call) = self.channels.get(channel).copied() else { return };
        self.bridging(now, call, |bridging, names| {
            if bridging.channel == channel && bridging.is_dialling() {
                bridging.on_callee_gone(cause, names)
            } else if bridging.channel == channel {
                bridging.on_caller_left(names)
            } else if bridging.media_id(names) == channel {
                bridging.on_media_lost(now, names)
            } else if bridging.target_id(names) == channel {
                bridging.on_target_gone(names)
            } else {
                vec![]
            }
        });
    }

    /// Runs `act` on the call whose caller has this channel.
    fn with_caller(
        &mut self,
        now: Instant,
        channel: &str,
        act: impl FnOnce(&mut Bridging, &Names) -> Vec<Action>,
    ) {
        let Some(call) = self.channels.get(channel).copied() else { return };
        if self.calls.get(&call).is_some_and(|c| c.bridging.channel == channel) {
            self.bridging(now, call, act);
        }
    }

    fn tell_caller(&mut self, channel: &str, tell: Tell) {
        let Some(call) = self.channels.get(channel).copied() else { return };
        let caller = self.calls.get(&call).filter(|c| c.bridging.channel == channel);
        if caller.is_some_and(|c| !c.bridging.is_ending()) {
            self.out.push_back(Output::Tell(call, tell));
        }
    }
}
