//! The inputs and outputs of [`Bridging`](crate::ari::bridging::Bridging).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};

use crate::ari::request::RestRequest;

/// The variable that tells the dialplan why a caller comes back.
pub const REASON: &str = "TRUNKLESS_REASON";

/// What becomes of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    HangUp,
    /// On in the dialplan; the word is for [`REASON`].
    Continue(String),
}

/// What the call is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tell {
    /// The PBX takes RTP here from now on.
    Media(SocketAddr),
    /// Caller and media are in the bridge.
    Connected,
    Digit(char),
    Hold(bool),
    Ended(Cause),
    /// The PBX is out of reach; it is back.
    Lost,
    Back,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    CallerHangup,
    /// The PBX has taken the caller elsewhere.
    Transferred,
    /// A command was refused or came to nothing.
    Failed(String),
    /// The PBX has started anew.
    Restarted,
}

impl Step {
    /// Makes something; after a loss the answers of the first generation mean nothing.
    pub fn builds(self) -> bool {
        matches!(self, Step::Media | Step::Bridge | Step::JoinMedia | Step::JoinCaller)
    }
}

/// Which request an outcome belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Media,
    Bridge,
    JoinMedia,
    Answer,
    JoinCaller,
    /// Is the caller still with us?
    Look,
    Reason,
    Release,
    DropMedia,
    DropBridge,
    /// Whatever comes of it.
    Extra,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Send(Step, RestRequest),
    Tell(Tell),
    /// Something may be left on the PBX that we could not remove: look soon.
    Sweep,
    /// The same, and it holds RTP ports of the PBX.
    MediaLeft,
}

/// What does not change from call to call.
#[derive(Debug, Clone)]
pub struct Names {
    pub app: String,
    /// What our objects' ids begin with.
    pub prefix: String,
    pub format: &'static str,
    /// The PBX's address.
    pub pbx: IpAddr,
}
