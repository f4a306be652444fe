//! The rare events of a call besides its signals: commands, the outcome of dialling the AI, and the
//! shutdown. Owns tasks.

use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::call::words::DialAgain;
use crate::call::{CallConfig, CallRequest};
use crate::stream::connect::Socket;
use crate::stream::unreachable::ConnectError;

/// The task that connects to the AI. Dropping this cancels it.
pub(super) struct Connecting(pub JoinHandle<Result<Socket, ConnectError>>);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Dials the AIs of a call.
pub(super) struct Dialler {
    pub config: Arc<CallConfig>,
    pub runtime: Handle,
}

impl Dialler {
    pub fn dial(&self, ai: usize, again: Option<DialAgain>) -> Connecting {
        let config = self.config.clone();
        Connecting(self.runtime.spawn(async move {
            match (config.ais.get(ai), again) {
                (Some(ai), None) => ai.breaker.connect(&ai.target, config.answer_wait).await,
                (Some(ai), Some(DialAgain { limit, pause })) => {
                    sleep(pause).await;
                    ai.target.reconnect(limit.saturating_sub(pause)).await
                }
                (None, _) => Err(ConnectError::Internal("no such AI".to_owned())),
            }
        }))
    }
}

/// An instruction for the task that connects to the AI.
pub(super) enum Redial {
    Stop,
    /// The AI's place in the configuration, and how it is dialled if it is the same one.
    Dial(usize, Option<DialAgain>),
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
            Redial::Dial(ai, again) => Some(self.dialler.dial(ai, again)),
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
