//! Liveness, readiness and metrics, for monitoring.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::watch;

use crate::call::admission::Admission;
use crate::call::counters::OFFERED;
use crate::call::ports::PortPool;
use crate::call::switchboard::Switchboard;
use crate::control::metrics;
use crate::record::recorder::Recorder;
use crate::telemetry::counter::{Counters, Labelled};
use crate::telemetry::histogram::Histogram;
use crate::telemetry::{PANICS, PbxStatuses};

/// The state that the server reports.
#[derive(Clone)]
pub struct Watched {
    pub counters: Counters,
    pub histograms: &'static [&'static [&'static Histogram]],
    pub labelled: &'static [&'static [&'static Labelled]],
    pub pbxs: PbxStatuses,
    /// The calls in progress.
    pub switchboard: Switchboard,
    /// The limits of calls.
    pub admission: Admission,
    /// The pool of RTP ports.
    pub ports: PortPool,
    /// True once the program is shutting down.
    pub stopping: Arc<std::sync::atomic::AtomicBool>,
    /// Nothing if no call is to be recorded.
    pub recorder: watch::Receiver<Option<Recorder>>,
}

impl Watched {
    /// True if calls from at least one PBX can be taken.
    fn is_ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
            && !self.recorder.borrow().as_ref().is_some_and(Recorder::refuses)
            && self.pbxs.all().iter().any(|pbx| pbx.get().0)
    }

    fn json(&self) -> String {
        let pbxs: serde_json::Map<_, _> = self
            .pbxs
            .all()
            .iter()
            .map(|pbx| {
                let (ready, state) = pbx.get();
                let value = json!({ "mode": pbx.mode, "ready": ready, "state": state });
                (pbx.name.clone(), value)
            })
            .collect();
        json!({
            "ready": self.is_ready(),
            "stopping": self.stopping.load(Ordering::Relaxed),
            "calls": self.switchboard.len(),
            "offered": OFFERED.get(),
            "panics": PANICS.get(),
            "version": env!("CARGO_PKG_VERSION"),
            "pbxs": pbxs,
            "recording": self.recorder.borrow().as_ref().map(|recorder| {
                let trouble = recorder.trouble();
                let state = trouble.as_deref().unwrap_or("ready");
                json!({ "ready": trouble.is_none(), "state": state })
            }),
        })
        .to_string()
    }
}

pub fn routes(watched: Watched) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(measure))
        .with_state(watched)
}

fn answer(status: StatusCode, watched: &Watched) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], watched.json() + "\n").into_response()
}

/// Liveness: 200 whatever the state of the PBXs.
async fn health(State(watched): State<Watched>) -> Response {
    answer(StatusCode::OK, &watched)
}

/// Readiness: 200 while calls can be taken, otherwise 503.
async fn ready(State(watched): State<Watched>) -> Response {
    let ready = watched.is_ready();
    answer(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &watched)
}

async fn measure(State(watched): State<Watched>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::text(&watched)).into_response()
}
