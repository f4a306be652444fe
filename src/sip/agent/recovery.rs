//! The agent's state after a panic in [`Agent::handle`]: the input is lost, and everything that it
//! left unfinished is removed.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::sip::agent::{Agent, CallEnd, CallKey, CallState, TimerKey};

/// Pause before the timeout of an account is handled again.
const ACCOUNT_PAUSE: Duration = Duration::from_secs(1);

impl Agent {
    /// Continues after a panic. Ends the call whose timeout was being handled, and a call that was
    /// being answered. All other calls and registrations continue.
    pub fn recover(&mut self, now: Instant) {
        self.servers.remove_unanswered();
        let running = self.running.take();
        match &running {
            Some(TimerKey::Server(key)) => self.servers.remove(key),
            Some(TimerKey::Client(key)) => drop(self.clients.remove(key)),
            Some(TimerKey::Call(key)) => self.end_call(*key, CallEnd::Lost),
            Some(TimerKey::Account(_)) | None => {}
        }
        let lost = self.calls.iter().filter(|(_, call)| {
            // its INVITE can neither be answered nor refused
            call.state == CallState::Offered && call.invite.is_none()
        });
        let lost: Vec<CallKey> = lost.map(|(key, _)| *key).collect();
        lost.into_iter().for_each(|key| self.end_call(key, CallEnd::Lost));
        self.dialogs.retain(|_, key| self.calls.contains_key(key));
        self.arm_all();
        if let Some(TimerKey::Account(id)) = running {
            // it cannot be removed, and at once it would only panic again
            self.timers.retain(|(_, key)| *key != TimerKey::Account(id));
            self.timers.insert((now + ACCOUNT_PAUSE, TimerKey::Account(id)));
        }
    }

    /// Queues all timeouts again: that of the lost input's owner is missing.
    fn arm_all(&mut self) {
        let accounts = (0..self.accounts.len()).map(TimerKey::Account);
        let servers = self.servers.keys().cloned().map(TimerKey::Server);
        let clients = self.clients.keys().cloned().map(TimerKey::Client);
        let calls = self.calls.keys().copied().map(TimerKey::Call);
        let all: Vec<TimerKey> = accounts.chain(servers).chain(clients).chain(calls).collect();
        all.into_iter().for_each(|key| self.arm(key));
    }

    /// Returns the calls that have not ended.
    pub fn call_keys(&self) -> Vec<CallKey> {
        self.calls.keys().copied().collect()
    }
}
