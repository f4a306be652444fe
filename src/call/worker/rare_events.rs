//! The rare events of a call besides its signals: commands, the outcome of dialling the AI, and the
//! shutdown. Owns tasks.

use std::pin::Pin;

use tokio::sync::{mpsc, watch};

use crate::call::CallRequest;
use crate::call::worker::dialling::{Connecting, Dial, Dialler};

/// An instruction for the task that connects to the AI.
pub(super) enum Redial {
    Stop,
    Dial(Box<Dial>),
}

/// The sources of a call's rare events, apart from its signals. They are polled as futures when the
/// call is woken.
pub(super) struct RareEvents {
    /// `None` once the sender is gone.
    pub commands: Option<mpsc::Receiver<CallRequest>>,
    /// Resolves when all calls have to end; `None` after that.
    pub stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// `None` once the AI has been connected, or could not be.
    pub connecting: Option<Connecting>,
    dialler: Dialler,
}

impl RareEvents {
    /// Stops dialling, and dials another AI if there is one.
    pub fn redial(&mut self, redial: Redial) {
        self.connecting = match redial {
            Redial::Stop => None,
            Redial::Dial(dial) => Some(self.dialler.dial(*dial)),
        };
    }

    pub fn new(
        commands: mpsc::Receiver<CallRequest>,
        mut stop: watch::Receiver<bool>,
        connecting: Option<Connecting>,
        dialler: Dialler,
    ) -> RareEvents {
        let stop = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let stop: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(stop);
        let (commands, stop) = (Some(commands), Some(stop));
        RareEvents { commands, stop, connecting, dialler }
    }
}
