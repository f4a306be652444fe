//! Changes of the configuration while the client of a PBX runs. Owns tasks and the clock.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::ari::api::Input;
use crate::ari::client::link::{LinkError, try_credentials};
use crate::ari::client::rest::{Rest, Target};
use crate::ari::client::rtp_capacity::RtpCapacity;
use crate::ari::client::{AriHandle, AriPbx, Internal, Socket, Source};
use crate::call::Owner;
use crate::call::ladder::Overflow;
use crate::telemetry::PbxStatus;

/// Other settings of a PBX that keeps its URL, application and format. They apply to new calls.
pub struct AriChange {
    pub pbx: AriPbx,
    /// A new place for the status of a PBX that was removed and is back.
    pub status: Option<Arc<PbxStatus>>,
    pub overflow: Overflow,
    pub owner: Option<Arc<dyn Owner>>,
}

impl AriHandle {
    /// Takes other settings, and takes calls again after [`AriHandle::leave`].
    pub async fn change(&self, change: AriChange) {
        let _ = self.internal.send(Internal::Change(Box::new(change))).await;
    }

    /// Takes no more calls: new callers continue in the dialplan. Returns true once the last call
    /// has ended; false if calls are taken again.
    pub async fn leave(&self) -> bool {
        let (done, wait) = oneshot::channel();
        self.internal.send(Internal::Leave(done)).await.is_err() || wait.await.is_ok()
    }
}

impl Source {
    /// Sets the place of the PBX's status, before the start.
    pub fn show_in(&mut self, status: Arc<PbxStatus>) {
        self.config.status = status;
    }

    pub(super) fn on_change(&mut self, change: AriChange) {
        let AriChange { pbx, status, overflow, owner } = change;
        if let Some(status) = status {
            let (ready, state) = self.config.status.get();
            status.set(ready, state);
            self.config.status = status;
        }
        (self.config.overflow, self.config.owner) = (overflow, owner);
        let own = &mut self.config.pbx;
        own.advertised = pbx.advertised;
        own.variables.clone_from(&pbx.variables);
        if (own.max_media, &own.rtp_conf) != (pbx.max_media, &pbx.rtp_conf) {
            (own.max_media, own.rtp_conf) = (pbx.max_media, pbx.rtp_conf.clone());
            let conf = own.rtp_conf.as_deref();
            (self.rtp_capacity, self.max_media) = RtpCapacity::new(&self.name, conf, own.max_media);
        }
        // with https, the CAs may be others
        match own.target.is_same(&pbx.target) && pbx.target.tls.is_none() {
            true => self.wanted = None,
            false => self.try_target(pbx.target),
        }
        self.leaving = None;
        self.feed(Input::Change { max_media: self.max_media, variables: pbx.variables });
        self.feed(Input::Resume);
    }

    /// Tries new credentials while those that are known to work stay in use: the calls that are up
    /// need some.
    fn try_target(&mut self, target: Target) {
        self.wanted = Some(target.clone());
        let (rest, internal) = (self.rest.clone(), self.internal_tx.clone());
        tokio::spawn(async move {
            let result = try_credentials(&rest, &target).await;
            let _ = internal.send(Internal::Tried(Box::new(target), result)).await;
        });
    }

    pub(super) fn on_tried(&mut self, target: Target, result: Result<Rest, LinkError>) {
        if !self.wanted.as_ref().is_some_and(|wanted| wanted.is_same(&target)) {
            return; // they have changed again
        }
        match result {
            Ok(rest) => {
                if !self.config.pbx.target.is_same(&target) {
                    let user = &target.username;
                    info!(pbx = &*self.name, user, "ARI accepts the new credentials");
                }
                self.wanted = None;
                self.rest = rest;
                self.config.pbx.target = target;
                if matches!(self.socket, Socket::Waiting(_)) {
                    self.socket = Socket::Waiting(Instant::now());
                }
            }
            Err(error) => warn!(
                pbx = &*self.name,
                "ARI does not accept the new credentials: {error}; those from before stay in use \
                 until the PBX refuses them, or the next reload"
            ),
        }
    }

    /// Uses new credentials in place of some that were refused.
    pub(super) fn take_target(&mut self, target: Target) {
        match self.rest.with(target.clone()) {
            Ok(rest) => (self.rest, self.config.pbx.target) = (rest, target),
            Err(why) => warn!(pbx = &*self.name, "ARI: new credentials cannot be used: {why}"),
        }
        self.wait();
    }
}
