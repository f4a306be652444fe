//! The accounts' registrations: REGISTER, its responses and the OPTIONS to the registrar.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use crate::sip::agent::{
    AccountId, Agent, AiDown, Event, Output, PRODUCT, Purpose, TimerKey, client_key,
};
use crate::sip::flow::Flow;
use crate::sip::message::Message;
use crate::sip::random::Random;
use crate::sip::registration::{Action, Registration, Status};
use crate::sip::uri::escape_user;

/// Maximum number of outstanding REGISTERs per account, while the registrar is silent. One is sent
/// each second, and a slow registrar may answer within 64·T1.
const MAX_OPEN_REGISTERS: usize = 32;

impl Agent {
    pub(super) fn shutdown(&mut self, now: Instant) {
        self.stopping = true;
        for id in 0..self.accounts.len() {
            if let Some(monitor) = &mut self.accounts[id].monitor {
                monitor.stop();
                self.drop_keepalives(id);
            }
            self.with_registration(now, id, |registration, random| registration.stop(now, random));
        }
        self.check_unregistered();
    }

    /// Shows the PBX, in the way that is configured, that no AI can be reached, or one can again.
    pub(super) fn on_ai_down(&mut self, now: Instant, id: AccountId, down: bool) {
        self.accounts[id].ai_down = down;
        if self.accounts[id].retired {
            return;
        }
        if self.accounts[id].config.ai_down != AiDown::Unregister || self.stopping {
            return;
        }
        self.with_registration(now, id, |registration, random| match down {
            true => registration.stop(now, random),
            false => registration.resume(),
        });
    }

    pub(super) fn on_register_response(
        &mut self,
        now: Instant,
        id: AccountId,
        flow: Flow,
        branch: &str,
        response: &Message,
    ) {
        let account = &mut self.accounts[id];
        if response.code().is_some_and(|c| c >= 200) {
            // one response is enough: challenges to the other REGISTERs, sent while the registrar
            // was silent, would look like rejected credentials
            let open = std::mem::take(&mut account.register_branches);
            for other in open.iter().filter(|b| *b != branch) {
                self.clients.remove(&client_key(other, "REGISTER"));
            }
        }
        // a slow address may answer after REGISTER was sent to the next one
        let account = &mut self.accounts[id];
        let slow = account.registrar.iter().position(|r| r.remote.ip() == flow.remote.ip());
        let same = account.registrar.get(account.target).map(|r| r.remote.ip());
        if let Some(slow) = slow.filter(|_| same != Some(flow.remote.ip())) {
            account.target = slow;
            self.report_registrar(id);
        }
        let Some(contact) = self.register_contact(id) else { return };
        self.with_registration(now, id, |registration, random| {
            registration.on_response(now, response, &contact, random);
        });
    }

    pub(super) fn on_register_timeout(&mut self, now: Instant, id: AccountId) {
        self.with_registration(now, id, |registration, _| registration.on_register_timeout());
    }

    pub(super) fn on_keepalive_response(
        &mut self,
        now: Instant,
        id: AccountId,
        response: &Message,
    ) {
        self.with_registration(now, id, |registration, _| {
            registration.on_options_answered(response);
        });
    }

    /// Selects the next address of the name, after one that does not answer.
    pub(super) fn next_target(&mut self, id: AccountId) {
        let account = &mut self.accounts[id];
        let keeps = |r: &Registration| r.is_registered() || r.is_stopped();
        let keeps = account.registration.as_ref().is_none_or(keeps);
        if account.registrar.len() > 1 && !keeps {
            account.target = (account.target + 1) % account.registrar.len();
            self.report_registrar(id);
        }
    }

    pub(super) fn report_registrar(&mut self, id: AccountId) {
        if let Some(flow) = self.register_flow(id) {
            self.event(Event::Registrar { account: id, remote: flow.remote });
        }
    }

    /// Reports an address that does not answer REGISTER, once until we are registered again.
    fn report_silent(&mut self, id: AccountId) {
        let Some(remote) = self.register_flow(id).map(|f| f.remote) else { return };
        let account = &mut self.accounts[id];
        if !account.silent.contains(&remote) {
            account.silent.push(remote);
            let (remote, status) = (Some(remote), Status::Silent);
            self.event(Event::Registration { account: id, remote, status });
        }
    }

    pub(super) fn register_flow(&self, id: AccountId) -> Option<Flow> {
        let account = &self.accounts[id];
        let registration = account.registration.as_ref()?;
        if account.retired && registration.is_stopped() {
            return None;
        }
        let route = account.registrar.get(account.target)?;
        Some(Flow { transport: account.config.transport, remote: route.remote })
    }

    fn register_contact(&self, id: AccountId) -> Option<String> {
        let remote = self.register_flow(id)?.remote.ip();
        Some(self.contact_uri(id, self.local_ip(id, remote)?))
    }

    /// Calls `feed` with the account's registration and performs the resulting actions.
    pub(super) fn with_registration(
        &mut self,
        now: Instant,
        id: AccountId,
        feed: impl FnOnce(&mut Registration, &mut Random),
    ) {
        let Some(registration) = self.accounts[id].registration.as_mut() else { return };
        feed(registration, &mut self.random);
        loop {
            let Some(registration) = self.accounts[id].registration.as_mut() else { return };
            let Some(action) = registration.poll() else { break };
            match action {
                Action::Register { expires_s, authorization } => {
                    self.send_register(now, id, expires_s, authorization);
                }
                Action::Options => self.send_keepalive(now, id),
                Action::Resolve => self.out.push_back(Output::Resolve { account: id }),
                Action::NextAddress => self.next_target(id),
                Action::Silent => {
                    self.drop_keepalives(id);
                    self.report_silent(id);
                    self.next_target(id);
                }
                Action::AddressDiffers { ours, seen } => {
                    self.event(Event::AddressDiffers { account: id, ours, seen });
                }
                Action::Changed(status) => {
                    if matches!(status, Status::Registered { .. } | Status::Conflict { .. }) {
                        self.accounts[id].silent.clear();
                    } else {
                        self.drop_keepalives(id);
                    }
                    let remote = self.register_flow(id).map(|f| f.remote);
                    self.event(Event::Registration { account: id, remote, status });
                }
            }
        }
        self.arm(TimerKey::Account(id));
        self.check_unregistered();
    }

    fn check_unregistered(&mut self) {
        let mut all = self.accounts.iter().filter_map(|a| a.registration.as_ref());
        if self.stopping && !self.told_unregistered && all.all(Registration::is_stopped) {
            self.told_unregistered = true;
            self.event(Event::Unregistered);
        }
    }

    fn send_register(
        &mut self,
        now: Instant,
        id: AccountId,
        expires_s: Option<u32>,
        authorization: Vec<(&'static str, String)>,
    ) {
        let Some(flow) = self.register_flow(id) else { return };
        let Some(local_ip) = self.local_ip(id, flow.remote.ip()) else { return };
        let contact = self.contact_uri(id, local_ip);
        let (via, branch) = self.via(local_ip, flow.transport);
        let account = &mut self.accounts[id];
        account.register_cseq += 1;
        let Some(uri) = account.registration.as_ref().map(|r| r.registrar_uri().to_owned()) else {
            return;
        };
        let host = uri.trim_start_matches("sip:").split(';').next().unwrap_or("");
        let aor = format!("<sip:{}@{host}>", escape_user(&account.config.username));
        let mut request = Message::request("REGISTER", &uri)
            .with("Via", via)
            .with("Max-Forwards", "70")
            .with("From", format!("{aor};tag={}", account.register_tag))
            .with("To", aor)
            .with("Call-ID", account.register_call_id.clone())
            .with("CSeq", format!("{} REGISTER", account.register_cseq))
            .with("User-Agent", PRODUCT);
        if let Some(expires_s) = expires_s {
            request.push("Contact", format!("<{contact}>"));
            request.push("Expires", expires_s.to_string());
        }
        authorization.into_iter().for_each(|(name, value)| request.push(name, value));
        for open in &account.register_branches {
            if let Some(entry) = self.clients.get_mut(&client_key(open, "REGISTER")) {
                entry.tx.stop_resending();
            }
        }
        account.register_branches.push_back(branch.clone());
        if account.register_branches.len() > MAX_OPEN_REGISTERS
            && let Some(oldest) = account.register_branches.pop_front()
        {
            self.clients.remove(&client_key(&oldest, "REGISTER"));
        }
        self.send_request(now, flow, branch, &request, Purpose::Register(id));
    }

    fn send_keepalive(&mut self, now: Instant, id: AccountId) {
        let Some(flow) = self.register_flow(id) else { return };
        let Some(registration) = &self.accounts[id].registration else { return };
        let uri = registration.registrar_uri().to_owned();
        let host = uri.trim_start_matches("sip:").split(';').next();
        self.send_options(now, id, flow, &uri, host);
    }

    /// Drops outstanding OPTIONS, which have no use once we are no longer registered.
    pub(super) fn drop_keepalives(&mut self, id: AccountId) {
        self.clients.retain(|_, entry| entry.purpose != Purpose::Keepalive(id));
    }
}
