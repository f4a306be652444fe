//! Compares the application's calls with the PBX's lists of channels and bridges: after a lost
//! events socket, and at regular intervals.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use crate::ari::api::{CallKey, NotTaken, Output};
use crate::ari::application::{Application, Call, Link, Purpose, WITHOUT_EVENTS};
use crate::ari::bridging::words::{Cause, REASON, Tell};
use crate::ari::event::Channel;
use crate::ari::request::{NORMAL, RestRequest};
use crate::ari::sweep::Orphans;

/// The value of [`REASON`] for orphaned callers.
const ORPHANED: &str = "restart";

impl Application {
    /// Handles the PBX's start time. A restarted PBX has none of our calls; otherwise they may
    /// continue.
    pub(super) fn on_info(&mut self, now: Instant, startup: Option<String>) {
        let before = self.startup.take();
        let restarted = before.is_some() && startup.is_some() && before != startup;
        self.startup = startup.or(before);
        if restarted {
            // calls created since we connected belong to the restarted PBX
            let before = self.connected_at.unwrap_or(now);
            let old = self.calls.iter().filter(|(_, c)| c.created < before);
            let keys: Vec<CallKey> = old.map(|(key, _)| *key).collect();
            for call in keys {
                self.bridging(now, call, |bridging, names| bridging.on_restart(names));
            }
        }
        if self.link == Link::Up {
            self.sweep.now(now);
            self.on_timeout(now);
        }
    }

    /// Handles the events socket being closed for good. Without events, only readings find the
    /// callers who are still in our application.
    pub(super) fn on_close(&mut self, now: Instant) {
        let replaced = std::mem::replace(&mut self.link, Link::Closed) == Link::Replaced;
        self.early.clear();
        self.last_look = false;
        if replaced {
            self.last_look = true; // callers still there belong to the other client
            return self.sweep.stop();
        }
        self.sweep.now(now);
        self.on_timeout(now);
    }

    /// Evaluates the reading once both lists have arrived. `good` is false if a list could not be
    /// had.
    pub(super) fn on_reading(&mut self, now: Instant, good: bool) {
        if !good {
            self.last_look = true;
            self.sweep.soon(now);
            // they waited for the number of orphaned channels, which remains unknown
            for (channel, args) in std::mem::take(&mut self.early) {
                self.take(now, channel, args, Some(NotTaken::Full));
            }
            return;
        }
        let reading = &self.sweep.reading;
        if reading.channels.is_none() || reading.bridges.is_none() {
            return;
        }
        let reading = std::mem::take(&mut self.sweep.reading);
        let channels = reading.channels.as_deref().unwrap_or_default();
        let bridges = reading.bridges.as_deref().unwrap_or_default();
        let by_id: HashMap<&str, &Channel> = channels.iter().map(|c| (c.id.as_str(), c)).collect();
        let bridges: HashSet<&str> = bridges.iter().map(|b| b.id.as_str()).collect();
        // the lists cannot show calls that were created after they were requested
        let since = reading.started.unwrap_or(now);
        let older = self.calls.iter().filter(|(_, c)| c.created < since);
        let older: Vec<CallKey> = older.map(|(key, _)| *key).collect();
        for call in older {
            self.compare(now, since, call, &by_id, &bridges);
        }
        if self.link == Link::Replaced {
            // orphans belong to the other client; only our remaining calls matter
            if !self.calls.is_empty() {
                self.sweep.now(now + WITHOUT_EVENTS);
            }
            return;
        }
        let (calls, names) = (&self.calls, &self.names);
        let owned = |id: &str| {
            let caller = |c: &Call| c.bridging.channel == id && c.bridging.has_caller();
            let call = self.channels.get(id).or_else(|| self.bridges.get(id));
            call.and_then(|call| calls.get(call)).is_some_and(|c| {
                let object = c.bridging.media_id(names) == id || c.bridging.bridge_id(names) == id;
                caller(c) || object || c.bridging.owns_target(id, names)
            })
        };
        let early: HashSet<&str> = self.early.iter().map(|(c, _)| c.id.as_str()).collect();
        let owned = |id: &str| owned(id) || early.contains(id);
        let (app, prefix) = (&names.app, &names.prefix);
        let spared = self.settings.is_owned.unwrap_or(|_| false);
        let orphans = self.sweep.sort(now, &reading, (app, prefix), owned, spared);
        self.sweep.seen = true;
        // a caller released a moment ago may still be in the list: then another reading decides
        self.last_look = !orphans.is_empty() || !self.sweep.has_suspects();
        if !orphans.is_empty() {
            self.remove(orphans);
        }
        for (channel, args) in std::mem::take(&mut self.early) {
            self.on_start(now, channel, args);
        }
    }

    /// Catches up on changes whose events may have been lost with the socket.
    fn compare(
        &mut self,
        now: Instant,
        since: Instant,
        call: CallKey,
        channels: &HashMap<&str, &Channel>,
        bridges: &HashSet<&str>,
    ) {
        let live = self.calls.get(&call).filter(|c| !c.bridging.is_ending() && c.asking.is_none());
        let here = live.and_then(|c| channels.get(c.bridging.channel.as_str()));
        // a callee who has not answered is not in our application yet
        let dials = live.is_some_and(|c| {
            c.bridging.is_dialling() && (here.is_some() || !c.bridging.has_callee_since(since))
        });
        if dials || here.is_some_and(|c| c.is_in(&self.names.app)) {
            self.out.push_back(Output::Tell(call, Tell::Back));
        }
        self.bridging(now, call, |bridging, names| {
            if bridging.is_ending() {
                return vec![];
            }
            match channels.get(bridging.channel.as_str()) {
                None if bridging.has_callee_since(since) => {
                    return bridging.on_callee_gone(0, names);
                }
                Some(c) if bridging.is_dialling() && c.is_up() && c.is_in(&names.app) => {
                    return bridging.on_callee_started(now, names);
                }
                _ if bridging.is_dialling() => {}
                None => return bridging.leave(Cause::CallerHangup, names),
                Some(c) if !c.is_in(&names.app) => {
                    return bridging.leave(Cause::Transferred, names);
                }
                Some(_) => {}
            }
            let mut actions = Vec::new();
            match channels.get(bridging.target_id(names).as_str()) {
                None if bridging.has_target_since(since) => {
                    actions.extend(bridging.on_target_gone(names));
                }
                Some(c) if c.is_in(&names.app) => {
                    actions.extend(bridging.on_target_started(now, names));
                }
                _ => {}
            }
            match channels.get(bridging.media_id(names).as_str()) {
                None if bridging.has_media_since(since) => {
                    actions.extend(bridging.on_media_lost(now, names));
                    return actions;
                }
                Some(c) if c.is_in(&names.app) => actions.extend(bridging.on_media_started(names)),
                _ => {}
            }
            if bridging.has_bridge_since(since)
                && !bridges.contains(bridging.bridge_id(names).as_str())
            {
                actions.extend(bridging.on_bridge_lost(now, names));
            }
            actions
        });
    }

    /// Returns orphaned callers to the dialplan and deletes the other orphans.
    fn remove(&mut self, orphans: Orphans) {
        self.out.push_back(Output::Orphans(orphans.clone()));
        self.callers_leaving += orphans.callers.len();
        for channel in orphans.callers.clone() {
            let (name, value) = (REASON.to_owned(), ORPHANED.to_owned());
            let request = RestRequest::SetVariable { channel: channel.clone(), name, value };
            self.send(Purpose::OrphanReason(channel), request);
        }
        self.doomed = orphans;
        self.delete_doomed();
    }

    /// Deletes orphaned channels and bridges once the orphaned callers have been released: without
    /// their bridge, they would hear silence.
    pub(super) fn delete_doomed(&mut self) {
        if self.callers_leaving > 0 {
            return;
        }
        let doomed = std::mem::take(&mut self.doomed);
        for channel in doomed.media {
            self.send(Purpose::Extra, RestRequest::HangUp { channel, reason: NORMAL });
        }
        for id in doomed.bridges {
            self.send(Purpose::Extra, RestRequest::DeleteBridge { id });
        }
    }
}
