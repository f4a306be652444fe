//! The inputs and outputs of [`Bridging`](crate::ari::bridging::Bridging).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, SocketAddr};

use crate::ari::request::RestRequest;
use crate::command::Failure;

/// The channel variable that gives the dialplan the reason why a caller returns.
pub const REASON: &str = "TRUNKLESS_REASON";

/// How the caller leaves our application at the end of the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// Hang up, with this reason of ARI's.
    HangUp(&'static str),
    /// Continue in the dialplan at an extension, to carry out an order.
    Transfer { order: u32, context: String, exten: String, priority: u32 },
    /// Continue in the dialplan; the text is the value of [`REASON`].
    Continue(String),
}

/// A notification to the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tell {
    /// The PBX now accepts RTP at this address.
    Media(SocketAddr),
    /// The callee's phone rings.
    Ringing,
    /// The caller and the external media channel are in the bridge.
    Connected,
    Digit(char),
    Hold(bool),
    /// The Q.850 cause of the hangup that follows.
    HangupCause(u16),
    /// The outcome of an order.
    Replied(u32, Result<(), Failure>),
    /// The state of a transfer.
    Progress(u32, &'static str),
    Ended(Cause),
    /// The events socket was lost.
    Lost,
    /// The PBX is reachable again and still has the caller in our application.
    Back,
}

/// The reason why the PBX's side of a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    CallerHangup,
    /// The callee has not answered. `cause`: the Q.850 cause, if the channel existed; `dial`: the
    /// last state of the call, if it began.
    Unanswered {
        cause: Option<u16>,
        dial: Option<String>,
    },
    /// The callee was not called, because we are stopping.
    NotCalled,
    /// The PBX moved the caller out of our application.
    Transferred,
    /// Set-up timed out, a request failed, or an object was lost twice.
    Failed(String),
    /// The PBX restarted.
    Restarted,
}

impl Step {
    /// True for steps that build the call. After a loss, their outcomes from an earlier generation
    /// are ignored.
    pub fn builds(self) -> bool {
        matches!(
            self,
            Step::Media | Step::Bridge | Step::JoinMedia | Step::JoinCaller | Step::LeaveCaller
        )
    }
}

/// The request that an outcome belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Media,
    Bridge,
    JoinMedia,
    Answer,
    /// Calls the callee.
    Callee,
    JoinCaller,
    /// Removes the caller from the bridge for a consultation.
    LeaveCaller,
    /// Checks that the caller is still in our application, before a hangup.
    Look,
    /// Sets [`REASON`].
    Reason,
    /// Hangs up the caller or continues in the dialplan.
    Release,
    DropMedia,
    DropBridge,
    /// A request of the transfer with this number.
    Transfer(u32, TransferStep),
    /// A request whose outcome does not matter.
    Extra,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferStep {
    /// Asks whether the dialplan has what the transfer needs.
    Probe,
    /// Calls the target.
    Target,
    /// Adds the target to the bridge, for a consultation.
    JoinTarget,
    /// Removes the target from the bridge again.
    PartTarget,
    /// Stops the caller's music.
    MusicOff,
    /// Sets the variable that names the target.
    Peer,
    DropTarget,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Send(Step, RestRequest),
    Tell(Tell),
    /// An object that we could not remove may be left on the PBX: sweep soon.
    Sweep,
    /// The same for an external media channel, which holds RTP ports of the PBX.
    MediaLeft,
}

/// Values that are the same for all calls.
#[derive(Debug, Clone)]
pub struct Names {
    pub app: String,
    /// Prefix of the ids of our channels and bridges.
    pub prefix: String,
    pub format: &'static str,
    /// The PBX's address.
    pub pbx: IpAddr,
}
