//! The rare events of a call besides its signals: commands, the outcome of dialling the AI, and the
//! shutdown. Owns tasks.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::call::words::DialAgain;
use crate::call::{CallConfig, CallRequest};
use crate::stream::connect::Socket;
use crate::stream::unreachable::ConnectError;

/// The task that connects to the AI, and when it began. Dropping this cancels it.
pub(super) struct Connecting(pub JoinHandle<Result<Socket, ConnectError>>, pub Instant);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How an AI is dialled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dial {
    /// The AI's place in the configuration.
    pub ai: usize,
    /// Set if it is the same one, which has closed its stream.
    pub again: Option<DialAgain>,
    /// A refusal is not tried again, because another AI follows.
    pub once: bool,
}

/// Dials the AIs of a call.
pub(super) struct Dialler {
    pub config: Arc<CallConfig>,
    pub runtime: Handle,
}

impl Dialler {
    pub fn dial(&self, Dial { ai, again, once }: Dial) -> Connecting {
        let config = self.config.clone();
        let began = Instant::now() + again.map_or(Duration::ZERO, |again| again.pause);
        let task = self.runtime.spawn(async move {
            match (config.ais.get(ai), again) {
                (Some(ai), None) => ai.breaker.connect(&ai.target, config.answer_wait, once).await,
                (Some(ai), Some(DialAgain { limit, pause })) => {
                    sleep(pause).await;
                    ai.target.reconnect(limit.saturating_sub(pause)).await
                }
                (None, _) => Err(ConnectError::Internal("no such AI".to_owned())),
            }
        });
        Connecting(task, began)
    }
}

/// An instruction for the task that connects to the AI.
pub(super) enum Redial {
    Stop,
    Dial(Dial),
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
            Redial::Dial(dial) => Some(self.dialler.dial(dial)),
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
