//! Dials the AIs of a call, with the request before the socket where there is one. Owns tasks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::call::ladder::Rung;
use crate::call::words::{DialAgain, Input};
use crate::call::worker::task::Running;
use crate::call::{Ai, CallConfig, parameters};
use crate::stream::StreamInfo;
use crate::stream::connect::Socket;
use crate::stream::create::Created;
use crate::stream::socket::AiSocket;
use crate::stream::unreachable::ConnectError;

/// An AI that is dialled again has this long until it is ready, because the caller waits.
const READY: Duration = Duration::from_secs(5);
/// But at least this long once it is connected, after a standstill of this process.
const LEAST: Duration = Duration::from_secs(1);

/// The task that connects to the AI. Dropping this cancels it.
pub(super) struct Connecting {
    pub task: JoinHandle<Result<Reached, ConnectError>>,
    pub began: Instant,
    /// When the AI has to be ready, if it is dialled again.
    pub until: Option<Instant>,
}

/// The outcome of dialling an AI.
pub(super) enum Reached {
    /// Its socket, and further parameters of the call.
    Open(Box<Socket>, Vec<(String, String)>),
    /// The request before the socket was answered with this instead.
    Instead(Rung),
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.task.abort();
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
        let now = Instant::now();
        let began = now + dial.again.map_or(Duration::ZERO, |again| again.pause);
        let until = dial.again.map(|_| now + READY);
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
        Connecting { task, began, until }
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
    let open = ai.prewarmed.upgrade().filter(|_| created.is_none() && dial.again.is_none());
    if let Some(open) = open
        && let Some(socket) = open.take().await
    {
        return Ok(Reached::Open(Box::new(socket), parameters));
    }
    let target = created.as_ref().unwrap_or(&ai.target);
    let left = limit.saturating_sub(begin.elapsed());
    let socket = match (dial.again, dial.once) {
        (Some(_), _) => target.reconnect(left).await,
        (None, true) => target.connect_once(left).await,
        (None, false) => target.connect(left).await,
    };
    socket.map(|socket| Reached::Open(Box::new(socket), parameters))
}

impl Running {
    /// How an AI is dialled now.
    pub(super) fn dial(&self, ai: usize, again: Option<DialAgain>) -> Dial {
        let asks = self.config.ais.get(ai).is_some_and(|ai| ai.create.is_some());
        let info = if asks { self.info.clone() } else { StreamInfo::default() };
        Dial { ai, again, once: self.call.has_next_ai(), info }
    }

    pub(super) fn on_connected(
        &mut self,
        now: Instant,
        (began, until): (Instant, Option<Instant>),
        connected: Result<Reached, ConnectError>,
    ) {
        let connected = match connected {
            Ok(Reached::Open(socket, more)) => Ok((socket, more)),
            Ok(Reached::Instead(rung)) => {
                self.ai_end = Some(self.lines.instead(&rung).to_owned());
                return self.call.handle(now, Input::Instead(rung));
            }
            Err(error) => Err(error),
        };
        let failure = connected.as_ref().err().map(ConnectError::kind);
        self.note_dialled(now, began, failure);
        match connected {
            Ok((socket, more)) => {
                parameters::add(&mut self.info.parameters, more);
                let Some(ai) = self.config.ais.get(self.current) else { return };
                let codec = ai.target.codec(self.info.clone(), ai.extensions);
                let mut socket = AiSocket::new(now, *socket, codec, ai.ping);
                until.iter().for_each(|until| socket.be_ready_by((*until).max(now + LEAST)));
                self.tap.iter().for_each(|tap| socket.capture(tap.clone()));
                (self.ai, self.ai_is_new) = (Some(socket), true);
                self.ai_prepares = true;
                self.prepared(now);
            }
            Err(error) => {
                self.lines.ai_unreachable(&error.advice());
                self.ai_end = Some(error.to_string());
                self.call.handle(now, Input::AiFailed);
            }
        }
    }
}
