//! The rare events of a call besides its signals: commands, the outcome of dialling the AI, and the
//! shutdown. Owns tasks.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::call::ladder::Rung;
use crate::call::words::DialAgain;
use crate::call::{Ai, CallConfig, CallRequest};
use crate::stream::StreamInfo;
use crate::stream::connect::Socket;
use crate::stream::create::Created;
use crate::stream::unreachable::ConnectError;

/// The task that connects to the AI, and when it began. Dropping this cancels it.
pub(super) struct Connecting(pub JoinHandle<Result<Reached, ConnectError>>, pub Instant);

/// The outcome of dialling an AI.
pub(super) enum Reached {
    /// Its socket, and further parameters of the call.
    Open(Box<Socket>, Vec<(String, String)>),
    /// The request before the socket was answered with this instead.
    Instead(Rung),
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How an AI is dialled.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    /// The AI's place in the configuration.
    pub ai: usize,
    /// Set if it is the same one, which has closed its stream.
    pub again: Option<DialAgain>,
    /// A refusal is not tried again, because another AI follows.
    pub once: bool,
    /// The call, for the request before the socket.
    pub info: StreamInfo,
}

/// Dials the AIs of a call.
pub(super) struct Dialler {
    pub config: Arc<CallConfig>,
    pub runtime: Handle,
}

impl Dialler {
    pub fn dial(&self, dial: Dial) -> Connecting {
        let config = self.config.clone();
        let began = Instant::now() + dial.again.map_or(Duration::ZERO, |again| again.pause);
        let task = self.runtime.spawn(async move {
            match (config.ais.get(dial.ai), dial.again) {
                (Some(ai), None) => {
                    let attempt = reach(&config, ai, &dial, config.answer_wait);
                    ai.breaker.attempt(&ai.target, attempt).await
                }
                (Some(ai), Some(DialAgain { limit, pause })) => {
                    sleep(pause).await;
                    reach(&config, ai, &dial, limit.saturating_sub(pause)).await
                }
                (None, _) => Err(ConnectError::Internal("no such AI".to_owned())),
            }
        });
        Connecting(task, began)
    }
}

/// Makes the request before the socket, if there is one, and connects.
async fn reach(
    config: &CallConfig,
    ai: &Ai,
    dial: &Dial,
    limit: Duration,
) -> Result<Reached, ConnectError> {
    let begin = Instant::now();
    let (url, parameters) = match &ai.create {
        None => (None, Vec::new()),
        Some(create) => match create.request(&dial.info, limit).await? {
            Created::Connect { url, parameters } => (url, parameters),
            Created::Reject(cause) => return Ok(Reached::Instead(Rung::Hangup(Some(cause)))),
            Created::Transfer(to) if config.transfers.find(&to).is_none() => {
                let why = "the answer wants a transfer that [pbx.NAME.transfer] does not allow";
                return Err(ConnectError::Create(why.to_owned()));
            }
            Created::Transfer(to) => return Ok(Reached::Instead(Rung::Transfer(to))),
        },
    };
    let created = match (url, &ai.create) {
        (Some(url), _) => Some(
            ai.target
                .with_url(&url)
                .map_err(|_| ConnectError::Create("the answer's URL cannot be used".to_owned()))?,
        ),
        (None, Some(create)) if !create.has_default_url() => {
            let why = "the answer has no url, and [ai] has none either";
            return Err(ConnectError::Create(why.to_owned()));
        }
        (None, _) => None,
    };
    let target = created.as_ref().unwrap_or(&ai.target);
    let left = limit.saturating_sub(begin.elapsed());
    let socket = match (dial.again, dial.once) {
        (Some(_), _) => target.reconnect(left).await,
        (None, true) => target.connect_once(left).await,
        (None, false) => target.connect(left).await,
    };
    socket.map(|socket| Reached::Open(Box::new(socket), parameters))
}

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
