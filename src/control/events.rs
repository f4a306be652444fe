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
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::call::live::{EventKind, LiveCall};
use crate::control::Control;
use crate::control::connections::{Lasting, Purpose};
use crate::control::guard::{Granted, revoked};
use crate::control::masks;
use crate::control::problem::Problem;
use crate::control::tokens::Scope;

/// Events that a slow reader may be behind. After that, it misses some.
const MAX_BEHIND: usize = 1024;
/// A comment is sent after this long without an event, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The events for all readers: as they are, and with hidden phone numbers.
#[derive(Clone)]
pub struct Events {
    plain: broadcast::Sender<Arc<Text>>,
    masked: broadcast::Sender<Arc<Text>>,
}

struct Text {
    name: &'static str,
    data: String,
}

impl Default for Events {
    fn default() -> Events {
        Events { plain: broadcast::channel(MAX_BEHIND).0, masked: broadcast::channel(MAX_BEHIND).0 }
    }
}

impl Events {
    /// Passes an event to the readers.
    pub fn send(&self, call: &LiveCall, event: &EventKind<'_>) {
        if self.plain.receiver_count() + self.masked.receiver_count() == 0 {
            return;
        }
        let mut value = event.json(call);
        let text = |value: &Value| Arc::new(Text { name: event.name(), data: value.to_string() });
        if self.plain.receiver_count() > 0 {
            let _ = self.plain.send(text(&value));
        }
        if self.masked.receiver_count() > 0 {
            masks::mask(&mut value);
            let _ = self.masked.send(text(&value));
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
    let events = &control.events;
    let sender = if granted.allows(Scope::Numbers) { &events.plain } else { &events.masked };
    let reader = (sender.subscribe(), control.access.clone(), granted);
    let events = stream::unfold(reader, |(mut receiver, mut access, granted)| async {
        let received = tokio::select! {
            received = receiver.recv() => received,
            () = revoked(&mut access, &granted, Scope::Read) => return None,
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
