//! ARI as a source of calls. One task per PBX owns the events socket, the REST client and our
//! [`Application`]. It turns the application's outputs into [`Offer`]s, signals and REST requests,
//! and feeds the calls' requests to it. It never waits for a REST response, so that events are read
//! at once: Asterisk disconnects a slow reader. Owns I/O.

mod app_lock;
mod capture;
mod changes;
pub mod counters;
mod inbox;
pub mod link;
mod offers;
mod outgoing;
mod outputs;
mod recovery;
pub mod rest;
pub mod rtp_capacity;
pub mod rtp_conf;
mod signals;

pub use changes::AriChange;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{info, warn};

use crate::ari::api::{CallKey, Ids, Input, RequestId, Settings};
use crate::ari::application::{Application, prefix};
use crate::ari::bridging::words::After;
use crate::ari::client::app_lock::AppLock;
use crate::ari::client::link::{Link, LinkError, Opening, open};
use crate::ari::client::rest::{Rest, Target};
use crate::ari::client::rtp_capacity::RtpCapacity;
use crate::ari::event::{self, Event};
use crate::ari::request::Outcome;
use crate::call::Owner;
use crate::call::admission::Admission;
use crate::call::fault_point::fault_point_of_message;
use crate::call::ladder::Overflow;
use crate::call::placing::NewCall;
use crate::call::{RemoteMedia, Signal, SourceRequest};
use crate::capture::tap::Tap;
use crate::media::g711::Law;
use crate::telemetry::{PbxStatus, Throttle};

/// Outcomes queued for the task; when the queue is full, their senders wait.
const OUTCOMES: usize = 256;
/// Queues have room for this many calls at least.
const USUAL_CALLS: usize = 2000;
/// Minimum time between log lines about events that can come in floods.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// One PBX in ARI mode.
#[derive(Clone)]
pub struct AriPbx {
    pub name: String,
    pub target: Target,
    pub app: String,
    pub law: Law,
    pub max_media: Option<usize>,
    /// Default: Asterisk's usual path.
    pub rtp_conf: Option<PathBuf>,
    /// Our address as the PBX sees it. Default: our local address on the route to the PBX.
    pub advertised: Option<IpAddr>,
    pub variables: Vec<String>,
}

pub struct AriConfig {
    pub pbx: AriPbx,
    pub max_calls: usize,
    pub admission: Admission,
    pub status: Arc<PbxStatus>,
    /// For callers whom no call can be started for.
    pub overflow: Overflow,
    /// Decides over them first.
    pub owner: Option<Arc<dyn Owner>>,
}

/// A message to the task, from a call, an [`AriHandle`] or the closing of the socket.
enum Internal {
    Place(Box<NewCall>),
    /// The owner has not taken away the caller of a call that could not be started.
    Left(CallKey, After),
    Request(CallKey, SourceRequest),
    /// Take no more calls.
    Stop,
    /// Take no more calls, and report when the last one has ended.
    Leave(oneshot::Sender<()>),
    /// Use other settings for new calls.
    Change(Box<AriChange>),
    /// The PBX's response to a request with these credentials.
    Tried(Box<Target>, Result<Rest, LinkError>),
    /// Close the events socket, and report when none of our objects are left on the PBX.
    Close(oneshot::Sender<()>),
    /// The events socket is closed.
    Closed,
}

/// Stops a running source.
#[derive(Clone)]
pub struct AriHandle {
    internal: mpsc::Sender<Internal>,
    ended: watch::Receiver<bool>,
}

impl AriHandle {
    /// Takes no more calls: new callers continue in the dialplan.
    pub async fn stop(&self) {
        let _ = self.internal.send(Internal::Stop).await;
    }

    /// Closes the events socket, so that the dialplan no longer finds our application. Returns when
    /// none of our calls' objects are left on the PBX.
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.internal.send(Internal::Close(done)).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// Returns when another client took over the application and our last call is over.
    pub async fn replaced(mut self) {
        if self.ended.wait_for(|ended| *ended).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The task's view of one call.
struct CallLink {
    signals: mpsc::Sender<Signal>,
    /// `None` until the external media channel exists.
    remote: Option<RemoteMedia>,
    /// True while the caller's channel is on hold.
    held: bool,
    /// The call's id, for the log.
    id: String,
    /// The id of the caller's channel.
    channel: String,
    /// Copies what is exchanged about the call, while there is a capture.
    tap: Option<Tap>,
}

/// The state of the events socket.
enum Socket {
    /// Pausing until the next attempt to open it.
    Waiting(Instant),
    Opening(BoxFuture<'static, Result<Box<Link>, LinkError>>),
    Open(Box<Link>),
    /// Closed for good: by us, or because another client took over the application.
    Closed,
}

/// The next step of the events socket.
enum Wake {
    /// An event's text, or the reason why the socket was lost.
    Text(Result<String, String>),
    Opened(Result<Box<Link>, LinkError>),
    /// The pause before an attempt is over.
    Due,
}

/// The task of one PBX.
pub struct Source {
    config: AriConfig,
    /// The PBX's name in the configuration.
    name: Arc<str>,
    admission: Admission,
    application: Application,
    rest: Rest,
    /// Generates the ids of probe bridges.
    ids: Ids,
    rtp_capacity: RtpCapacity,
    /// The cap on external media channels.
    max_media: usize,
    socket: Socket,
    /// `None` until we hold the lock. Kept while the socket is lost, so that no other process takes
    /// the application from our calls.
    app_lock: Option<Arc<AppLock>>,
    /// True if the last probe succeeded and no command was refused since.
    probed: bool,
    /// Number of probes; makes the ids of probe bridges unique.
    probes: u64,
    /// Failed attempts to open the events socket in a row.
    tries: u32,
    /// The last failure to open it; `None` once it is open.
    last_error: Option<LinkError>,
    /// The PBX's address on the last connection.
    pbx_ip: IpAddr,
    /// Calls that were offered.
    calls: HashMap<CallKey, CallLink>,
    /// The calls among them that are captured.
    captured: Vec<CallKey>,
    internal: mpsc::Receiver<Internal>,
    /// Cloned for the calls and for the closing of the socket.
    internal_tx: mpsc::Sender<Internal>,
    /// Outcomes of REST requests.
    outcomes: mpsc::Receiver<(RequestId, Outcome)>,
    /// Cloned for each REST request.
    outcomes_tx: mpsc::Sender<(RequestId, Outcome)>,
    /// New credentials that the PBX has not accepted.
    wanted: Option<Target>,
    /// Completes [`AriHandle::leave`].
    leaving: Option<oneshot::Sender<()>>,
    /// Completes [`AriHandle::close`].
    closing: Option<oneshot::Sender<()>>,
    /// Set to true to complete [`AriHandle::replaced`].
    ended: watch::Sender<bool>,
    /// Limits the log line about unreadable events.
    unreadable_log: Throttle,
    /// When it last panicked, and how often in a row.
    panics: (Instant, u32),
}

impl Source {
    /// Creates the source; [`Source::run`] serves it.
    ///
    /// # Errors
    /// Returns an error if random bytes are unavailable or the HTTP client cannot be set up.
    pub fn new(config: AriConfig) -> anyhow::Result<(Source, AriHandle)> {
        let pbx = &config.pbx;
        let name: Arc<str> = pbx.name.as_str().into();
        let mut seed = [0u8; 8];
        getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("cannot get random bytes: {e}"))?;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ids = Ids { seconds: unix.as_secs(), seed: u64::from_be_bytes(seed) };
        let (rtp_capacity, max_media) =
            RtpCapacity::new(&name, pbx.rtp_conf.as_deref(), pbx.max_media);
        let settings = Settings {
            app: pbx.app.clone(),
            format: if pbx.law == Law::A { "alaw" } else { "ulaw" },
            max_media,
            variables: pbx.variables.clone(),
            ids,
            is_owned: config.owner.as_ref().map(|owner| owner.owns()),
        };
        let rest = Rest::new(pbx.target.clone())?;
        // a reload may raise the limit on calls
        let (internal_tx, internal) = mpsc::channel(4 * config.max_calls.max(USUAL_CALLS) + 64);
        let (outcomes_tx, outcomes) = mpsc::channel(OUTCOMES);
        let (ended, ended_rx) = watch::channel(false);
        let handle = AriHandle { internal: internal_tx.clone(), ended: ended_rx };
        let source = Source {
            name,
            admission: config.admission.clone(),
            application: Application::new(settings),
            rest,
            ids,
            rtp_capacity,
            max_media,
            socket: Socket::Waiting(Instant::now()),
            app_lock: None,
            probed: false,
            probes: 0,
            tries: 0,
            last_error: None,
            pbx_ip: IpAddr::from([127, 0, 0, 1]),
            calls: HashMap::new(),
            captured: Vec::new(),
            internal,
            internal_tx,
            outcomes,
            outcomes_tx,
            wanted: None,
            leaving: None,
            closing: None,
            ended,
            unreadable_log: Throttle::new(LOG_INTERVAL),
            panics: (Instant::now(), 0),
            config,
        };
        Ok((source, handle))
    }

    /// Serves forever; dropping the future closes the connections.
    pub async fn run(mut self) {
        loop {
            self.guarded_turn().await;
        }
    }

    /// Waits for the next event and handles it.
    async fn turn(&mut self) {
        let mut due = self.application.next_timeout();
        if let Socket::Open(link) = &self.socket {
            due = due.into_iter().chain([link.next_timeout()]).min();
        }
        let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            wake = self.socket.wake() => self.on_wake(wake),
            Some((id, outcome)) = self.outcomes.recv() => {
                self.feed(Input::Outcome(id, outcome));
            }
            Some(internal) = self.internal.recv() => self.on_internal(internal),
            () = sleep_until(due.into()) => self.on_timeout(),
        }
    }

    fn on_wake(&mut self, wake: Wake) {
        match wake {
            Wake::Text(Ok(text)) => self.on_text(&text),
            Wake::Text(Err(why)) => self.on_closed(&why),
            Wake::Opened(Ok(link)) => self.on_open(link),
            Wake::Opened(Err(error)) => self.on_refused(error),
            Wake::Due => {
                // after a refused command, check that commands work before taking callers again
                let probe = (!self.probed).then(|| {
                    self.probes += 1;
                    format!("{}b-{}", prefix(&self.config.pbx.app), self.ids.id(self.probes << 32))
                });
                let pbx = &self.config.pbx;
                self.socket = Socket::Opening(open(Opening {
                    target: pbx.target.clone(),
                    rest: self.rest.clone(),
                    app: pbx.app.clone(),
                    probe,
                    lock: self.app_lock.clone(),
                }));
            }
        }
    }

    fn on_open(&mut self, link: Box<Link>) {
        self.pbx_ip = link.pbx;
        self.rest = link.rest.clone();
        // the credentials may have changed since the attempt began
        if !self.rest.is_with(&self.config.pbx.target)
            && let Ok(rest) = self.rest.with(self.config.pbx.target.clone())
        {
            self.rest = rest;
        }
        self.app_lock = Some(link.lock.clone());
        info!(
            pbx = &*self.name,
            app = self.config.pbx.app,
            max_media = self.max_media,
            "ARI events are open: calls are taken"
        );
        self.config.status.set(true, "events open");
        self.socket = Socket::Open(link);
        (self.probed, self.last_error) = (true, None);
        self.feed(Input::Connected(self.pbx_ip));
    }

    fn on_refused(&mut self, error: LinkError) {
        if matches!(error, LinkError::Password(_))
            && let Some(wanted) = self.wanted.take()
        {
            // the old ones are no longer valid
            return self.take_target(wanted);
        }
        // the same error is logged once, however often the attempt fails
        if self.last_error.as_ref() != Some(&error) {
            let retry = LinkError::pause(Some(&error), 9, 0).as_secs();
            let pbx = &*self.name;
            match retry {
                0 => warn!(pbx, "ARI unavailable: {error}; retrying until it succeeds"),
                _ => warn!(pbx, retry_s = retry, "ARI unavailable: {error}"),
            }
            self.config.status.set(false, error.word());
        }
        self.tries = self.tries.saturating_add(1);
        self.last_error = Some(error);
        self.wait();
    }

    fn on_closed(&mut self, why: &str) {
        let Socket::Open(link) = &self.socket else { return };
        self.tries = if link.has_lived() { 0 } else { self.tries.saturating_add(1) };
        counters::EVENTS_LOST.add(1);
        warn!(pbx = &*self.name, "ARI events lost: {why}; reopening the socket");
        self.config.status.set(false, "events lost");
        self.feed(Input::Disconnected);
        self.wait();
    }

    /// Pauses before the next attempt to open the events socket.
    fn wait(&mut self) {
        let mut random = [0u8; 1];
        let _ = getrandom::fill(&mut random); // on failure, the pauses are merely not spread
        let pause = LinkError::pause(self.last_error.as_ref(), self.tries, random[0]);
        self.socket = Socket::Waiting(Instant::now() + pause);
    }

    fn on_text(&mut self, text: &str) {
        fault_point_of_message("event", text.as_bytes());
        self.capture_event(text);
        match event::parse(text, &self.config.pbx.app) {
            Ok(Event::Other) => {}
            Ok(event) => self.feed(Input::Event(event)),
            Err(why) => {
                if self.unreadable_log.admits(Instant::now()) {
                    warn!(pbx = &*self.name, "cannot parse an ARI event: {why}");
                }
            }
        }
    }

    fn on_timeout(&mut self) {
        if let Socket::Open(link) = &mut self.socket
            && let Err(why) = link.on_timeout(Instant::now())
        {
            self.on_closed(&why);
        }
        self.feed(Input::Timeout);
    }

    fn feed(&mut self, input: Input) {
        self.application.handle(Instant::now(), input);
        while let Some(output) = self.application.poll() {
            self.on_output(output);
        }
        if self.application.call_count() == 0
            && let Some(done) = self.leaving.take()
        {
            let _ = done.send(());
        }
        if self.application.is_closed()
            && let Some(done) = self.closing.take()
        {
            let _ = done.send(());
        }
        if self.application.call_count() == 0 && self.application.is_replaced() {
            self.ended.send_if_modified(|ended| !std::mem::replace(ended, true));
        }
    }
}

impl Socket {
    /// Waits for the next step. Cancel-safe.
    async fn wake(&mut self) -> Wake {
        match self {
            Socket::Waiting(until) => {
                sleep_until((*until).into()).await;
                Wake::Due
            }
            Socket::Opening(opening) => Wake::Opened(Pin::new(opening).await),
            Socket::Open(link) => Wake::Text(link.next().await),
            Socket::Closed => std::future::pending().await,
        }
    }
}
