//! PBXs that are added, changed and removed while the endpoint runs.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use tokio::sync::oneshot;

use crate::sip::agent::{AccountId, Command};
use crate::sip::endpoint::peers::PeerState;
use crate::sip::endpoint::{Endpoint, EndpointHandle, Internal, Peer};

/// A change of the configuration. The senders are notified when it takes effect.
pub(super) enum Change {
    Add(Box<Peer>, oneshot::Sender<AccountId>),
    /// The PBX keeps its registrar, user, transport and own address.
    Settings(AccountId, Box<Peer>),
    /// Completes when the PBX is unregistered.
    Remove(AccountId, oneshot::Sender<()>),
    Limits {
        max_calls: usize,
        max_unacknowledged: usize,
    },
}

impl EndpointHandle {
    /// Adds a PBX. Returns `None` if the endpoint has stopped.
    pub async fn add(&self, peer: Peer) -> Option<AccountId> {
        let (done, wait) = oneshot::channel();
        self.change_to(Change::Add(Box::new(peer), done)).await;
        wait.await.ok()
    }

    /// Takes other settings of a PBX that keeps its registrar, user, transport and own address. The
    /// status in `peer` is not used.
    pub async fn change(&self, account: AccountId, peer: Peer) {
        self.change_to(Change::Settings(account, Box::new(peer))).await;
    }

    /// Takes no more calls from a PBX, and returns once it is unregistered. Its calls continue.
    pub async fn remove(&self, account: AccountId) {
        let (done, wait) = oneshot::channel();
        self.change_to(Change::Remove(account, done)).await;
        let _ = wait.await;
    }

    /// Takes other limits for all PBXs together; see [`super::EndpointConfig`].
    pub async fn set_limits(&self, max_calls: usize, max_unacknowledged: usize) {
        self.change_to(Change::Limits { max_calls, max_unacknowledged }).await;
    }

    async fn change_to(&self, change: Change) {
        let _ = self.internal.send(Internal::Change(change)).await;
    }
}

impl Endpoint {
    pub(super) fn on_change(&mut self, change: Change) {
        match change {
            Change::Add(peer, done) => {
                let account = self.agent.account_count();
                self.peers.push(PeerState::new(&peer));
                self.command(Command::Add(Box::new(peer.account)));
                let _ = done.send(account);
            }
            Change::Settings(account, peer) => {
                let Some(state) = self.peers.get_mut(account) else { return };
                state.change(&peer);
                self.command(Command::Change { account, config: Box::new(peer.account) });
            }
            Change::Remove(account, done) => {
                let Some(state) = self.peers.get_mut(account) else { return };
                state.retire();
                self.leaving.push((account, done));
                self.command(Command::Retire { account });
            }
            Change::Limits { max_calls, max_unacknowledged } => {
                let max_calls = super::agent_calls(max_calls);
                self.command(Command::Limits { max_calls, max_unacknowledged });
            }
        }
    }

    /// Notifies those who wait until a PBX that was removed is unregistered.
    pub(super) fn report_removed(&mut self) {
        let over = |(account, done): &(AccountId, oneshot::Sender<()>)| {
            self.agent.is_unregistered(*account) || done.is_closed()
        };
        for (_, done) in self.leaving.extract_if(.., |entry| over(entry)) {
            let _ = done.send(());
        }
    }
}
