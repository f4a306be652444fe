//! The HTTP servers: [`health`] for monitoring, and the control API for programs that watch and
//! control calls. Owns I/O.
//!
//! Each request to the control API passes [`guard`]. [`calls`] has the calls and their commands,
//! [`twilio`] the same in the shape of Twilio's API, [`dial`] the calls out of both, [`events`] the
//! stream of events.
//! [`capture`] has the packet captures. [`feed`] has the live calls once a second, [`ended`] the
//! last calls, [`listen`] and [`recordings`] their audio, [`status`] the state of the bridge, and
//! [`doctor`] its findings: all that the [`page`] for people shows. [`masks`] hides phone numbers,
//! and [`connections`] bounds what clients may use.

mod calls;
mod capture;
mod connections;
mod dial;
pub mod doctor;
mod ended;
pub mod events;
mod feed;
mod guard;
pub mod health;
mod listen;
pub mod local;
mod masks;
pub mod metrics;
mod page;
mod problem;
pub mod recordings;
pub mod status;
pub mod tokens;
mod twilio;
mod twilio_dial;
mod twiml;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::call::placing::Placer;
use crate::call::switchboard::Switchboard;
use crate::control::capture::Captures;
use crate::control::connections::{Bounded, Lasting};
use crate::control::events::Events;
use crate::control::feed::Snapshots;
use crate::control::status::Status;
use crate::control::tokens::Access;
use crate::signed_requests::SignedRequests;
use crate::telemetry::Throttle;

/// Time limit for asking a program for its TwiML.
const REQUEST: Duration = Duration::from_secs(5);
/// Minimum time between log lines about refused requests.
const REFUSAL_LOG: Duration = Duration::from_secs(1);

/// The control API's state.
#[derive(Clone)]
pub struct Control {
    pub switchboard: Switchboard,
    pub placer: Placer,
    pub events: Events,
    /// Follows the configuration.
    pub access: watch::Receiver<Access>,
    pub status: Status,
    /// Asks programs for their TwiML, or why that is not possible.
    requests: Result<SignedRequests, String>,
    captures: Captures,
    snapshots: Snapshots,
    refusal_log: Arc<Mutex<Throttle>>,
}

impl Control {
    pub fn new(
        switchboard: Switchboard,
        placer: Placer,
        events: Events,
        access: watch::Receiver<Access>,
        status: Status,
    ) -> Control {
        let refusal_log = Arc::new(Mutex::new(Throttle::new(REFUSAL_LOG)));
        Control {
            switchboard,
            placer,
            events,
            access,
            status,
            requests: SignedRequests::new(REQUEST).map_err(|why| why.to_string()),
            captures: Captures::default(),
            snapshots: Snapshots::default(),
            refusal_log,
        }
    }

    /// A panic in another thread leaves it consistent, so poisoning is ignored.
    fn refusal_log(&self) -> MutexGuard<'_, Throttle> {
        self.refusal_log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn routes(self) -> Router {
        let api = Router::new()
            .route("/v1/calls", get(calls::list).post(dial::place))
            .route("/v1/calls/{id}", get(calls::show))
            .route("/v1/calls/{id}/commands", post(calls::command))
            .route("/v1/calls/{id}/capture", get(capture::capture))
            .route("/v1/calls/next/capture", get(capture::capture_next))
            .route("/v1/calls/{id}/listen", get(listen::listen))
            .route("/v1/events", get(events::events))
            .route("/v1/live", get(feed::live))
            .route("/v1/ended", get(ended::list))
            .route("/v1/recordings/{id}", get(recordings::show))
            .route("/v1/recordings/{id}/audio", get(recordings::audio))
            .route("/v1/session", get(status::session))
            .route("/v1/status", get(status::status))
            .route("/v1/doctor", post(doctor::doctor))
            .route(
                "/2010-04-01/Accounts/{account}/Calls.json",
                get(twilio::list).post(twilio_dial::create),
            )
            .route(
                "/2010-04-01/Accounts/{account}/Calls/{call}",
                get(twilio::show).post(twilio::update),
            )
            .route(
                "/2010-04-01/Accounts/{account}/Calls/{call}/Recordings.json",
                post(twilio::start_recording),
            )
            .route(
                "/2010-04-01/Accounts/{account}/Calls/{call}/Recordings/{recording}",
                post(twilio::update_recording),
            )
            .layer(from_fn_with_state(self.clone(), guard::guard));
        let page = page::routes().route_layer(from_fn_with_state(self.clone(), guard::guard_page));
        // the API's answer to other paths remains, because it is merged last
        page.merge(api).with_state(self)
    }
}

/// Opens the port and returns a future that serves `routes` until it is dropped. `key` is the
/// address's key in the configuration.
///
/// # Errors
/// Returns an error if the address cannot be bound.
pub async fn bind(
    listen: SocketAddr,
    key: &str,
    routes: Router,
) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|e| anyhow::anyhow!("cannot listen on {listen}: {e}; set {key}"))?;
    let router = routes.layer(map_response(close)).layer(from_fn(note_place));
    let listener = Bounded::new(listener);
    Ok(async move {
        let service = router.into_make_service_with_connect_info::<Lasting>();
        if let Err(error) = axum::serve(listener, service).await {
            tracing::error!("HTTP server stopped: {error}");
        }
    })
}

/// Gives the handlers the place of their connection.
async fn note_place(
    ConnectInfo(lasting): ConnectInfo<Lasting>,
    mut request: Request,
    next: Next,
) -> Response {
    request.extensions_mut().insert(lasting);
    next.run(request).await
}

/// Ends the connection after its response, so that a client which sends requests without reading
/// the responses holds up nothing.
async fn close(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
