//! PBXs that are added, changed and removed while others have calls. An account keeps its number
//! for good, because calls refer to it: that of a removed PBX stays behind, retired.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::IpAddr;
use std::time::Instant;

use crate::sip::agent::monitor::Monitor;
use crate::sip::agent::{AccountConfig, AccountId, Agent, AiDown, Output, client_key};
use crate::sip::registration::Registration;

impl Agent {
    /// The number of accounts, with those that are retired.
    pub fn account_count(&self) -> usize {
        self.accounts.len()
    }

    /// True if nothing is registered there any more, or never was.
    pub fn is_unregistered(&self, id: AccountId) -> bool {
        let registration = self.accounts.get(id).and_then(|a| a.registration.as_ref());
        registration.is_none_or(Registration::is_stopped)
    }

    pub(super) fn change_account(
        &mut self,
        now: Instant,
        id: AccountId,
        mut config: AccountConfig,
    ) {
        let Some(account) = self.accounts.get_mut(id).filter(|account| !account.retired) else {
            return;
        };
        let wanted = config.registration.take();
        if account.registration.is_none() && account.config.keepalive != config.keepalive {
            account.monitor = Monitor::new(config.keepalive);
        }
        let was_hidden = account.ai_down && account.config.ai_down == AiDown::Unregister;
        let is_hidden = account.ai_down && config.ai_down == AiDown::Unregister;
        account.config = config;
        self.keep_addresses_of_calls(id);
        let account = &mut self.accounts[id];
        // after a refusal, the fault may have been on the PBX
        let is_due = |registration: &Registration, wanted: &_| {
            !registration.settings().is_same(wanted) || registration.is_refused()
        };
        let current = account.registration.as_ref();
        let changed = wanted.filter(|wanted| current.is_some_and(|now| is_due(now, wanted)));
        if let Some(settings) = changed {
            // a response to these would be taken for one to the new credentials
            for branch in std::mem::take(&mut account.register_branches) {
                self.clients.remove(&client_key(&branch, "REGISTER"));
            }
            self.drop_keepalives(id);
            self.with_registration(now, id, |r, random| r.renew(now, settings, random));
        }
        match (was_hidden, is_hidden) {
            (false, true) => self.with_registration(now, id, |r, random| r.stop(now, random)),
            (true, false) => self.with_registration(now, id, |r, _| r.resume()),
            _ => {}
        }
        self.out.push_back(Output::Resolve { account: id });
    }

    pub(super) fn retire_account(&mut self, now: Instant, id: AccountId) {
        let Some(account) = self.accounts.get_mut(id).filter(|account| !account.retired) else {
            return;
        };
        account.retired = true;
        if let Some(monitor) = &mut account.monitor {
            monitor.stop();
        }
        // from these, the calls that are up are still served, and the removal of the registration
        let routes: Vec<IpAddr> = account.routes().map(|route| route.remote.ip()).collect();
        account.former.extend(routes);
        self.keep_addresses_of_calls(id);
        self.drop_keepalives(id);
        self.with_registration(now, id, |registration, random| registration.stop(now, random));
    }

    /// Remembers where the calls that are up come from, which may be outside of the new addresses.
    fn keep_addresses_of_calls(&mut self, id: AccountId) {
        let calls = self.calls.values().filter(|call| call.account == Some(id));
        let calls: Vec<IpAddr> = calls.map(|call| call.flow.remote.ip()).collect();
        let former = &mut self.accounts[id].former;
        former.extend(calls);
        former.sort();
        former.dedup();
    }
}
