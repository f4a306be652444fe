//! `GET /v1/events`: the events of all calls, as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use crate::call::live::{EventKind, LiveCall};
use crate::control::Control;
use crate::control::connections::{Lasting, Purpose};
use crate::control::guard::Granted;
use crate::control::problem::Problem;
use crate::control::tokens::{Access, Scope};

/// Events that a slow reader may be behind. After that, it misses some.
const MAX_BEHIND: usize = 1024;
/// A comment is sent after this long without an event, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The events for all readers.
#[derive(Clone)]
pub struct Events(broadcast::Sender<Arc<Text>>);

struct Text {
    name: &'static str,
    data: String,
}

impl Default for Events {
    fn default() -> Events {
        Events(broadcast::channel(MAX_BEHIND).0)
    }
}

impl Events {
    /// Passes an event to the readers.
    pub fn send(&self, call: &LiveCall, event: &EventKind<'_>) {
        if self.0.receiver_count() > 0 {
            let text = Text { name: event.name(), data: event.json(call).to_string() };
            let _ = self.0.send(Arc::new(text));
        }
    }
}

pub async fn events(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Extension(lasting): Extension<Lasting>,
) -> Result<Response, Problem> {
    granted.require(Scope::Read)?;
    let busy = |why: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", why);
    lasting.keep(Purpose::Events, granted.name()).map_err(busy)?;
    let reader = (control.events.0.subscribe(), control.access.clone(), granted);
    let events = stream::unfold(reader, |(mut receiver, mut access, granted)| async {
        let received = tokio::select! {
            received = receiver.recv() => received,
            () = revoked(&mut access, &granted) => return None,
        };
        let event = match received {
            Ok(text) => Event::default().event(text.name).data(&text.data),
            Err(RecvError::Lagged(missed)) => {
                Event::default().event("missed").data(format!("{{\"missed\":{missed}}}"))
            }
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(event), (receiver, access, granted)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Returns once the configuration no longer has the reader's token.
async fn revoked(access: &mut watch::Receiver<Access>, granted: &Granted) {
    let is_revoked = |access: &Access| !granted.is_valid(access, Scope::Read);
    if access.wait_for(is_revoked).await.is_err() {
        std::future::pending::<()>().await;
    }
}
