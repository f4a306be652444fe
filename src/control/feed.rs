//! `GET /v1/live`: the live calls once a second, as server-sent events. Owns the clock.
//!
//! The workers publish the figures of their calls, so that no request reaches them. All readers
//! share one snapshot per second. A reader gets what has changed since its last event; one that is
//! slow gets fewer events, and they have everything in them that it has missed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::call::live::LiveCall;
use crate::call::vitals::Figures;
use crate::control::Control;
use crate::control::connections::{Lasting, Purpose};
use crate::control::ended;
use crate::control::guard::{Granted, revoked};
use crate::control::problem::Problem;
use crate::control::tokens::Scope;

/// Interval between two events.
const INTERVAL: Duration = Duration::from_secs(1);
/// A snapshot is taken again after this long.
const FRESH: Duration = Duration::from_millis(900);

/// A live call at one moment, as JSON.
struct Shown {
    id: String,
    call: Value,
    /// The hash of `call`.
    hash: u64,
    figures: Value,
}

type Snapshot = Arc<Vec<Shown>>;
/// A snapshot, and when it was taken.
type Kept = Option<(Instant, Snapshot)>;

/// The last snapshots, with and without phone numbers.
#[derive(Clone, Default)]
pub struct Snapshots(Arc<Mutex<[Kept; 2]>>);

impl Snapshots {
    /// Returns the live calls as they were less than a second ago.
    fn take(&self, control: &Control, granted: &Granted) -> Snapshot {
        // a panic in another thread leaves them consistent, so poisoning is ignored
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut kept[usize::from(granted.allows(Scope::Numbers))];
        let now = Instant::now();
        if let Some((at, snapshot)) = place
            && now.duration_since(*at) < FRESH
        {
            return snapshot.clone();
        }
        let live = control.switchboard.live();
        let snapshot: Snapshot = Arc::new(live.iter().map(|call| shown(call, granted)).collect());
        *place = Some((now, snapshot.clone()));
        snapshot
    }
}

fn shown(call: &LiveCall, granted: &Granted) -> Shown {
    let state = call.state();
    let [names, extensions] = &call.targets;
    let value = granted.shown(json!({
        "call": call.json(),
        "ai": call.ais.get(state.ai),
        "targets": { "names": names, "extensions": extensions },
    }));
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    let figures = figures(&call.vitals.get(), call.listeners());
    Shown { id: call.id.clone(), call: value, hash: hasher.finish(), figures }
}

fn figures(of: &Figures, listeners: usize) -> Value {
    json!({
        "ai": of.ai.word(),
        "caller_dbfs": Figures::dbfs(of.peaks.caller),
        "ai_dbfs": Figures::dbfs(of.peaks.ai),
        "packets_in": of.packets_in,
        "packets_out": of.packets_out,
        "lost": of.lost,
        "concealed_ms": of.concealed_ms,
        "jitter_ms": of.jitter_ms,
        "round_trip_ms": of.round_trip.map(|time| time.as_millis() as u64),
        "playout_floor_ms": of.playout_floor_ms,
        "listeners": listeners,
    })
}

/// The contents that one reader has got so far.
#[derive(Default)]
struct Known {
    /// The hashes of the calls.
    calls: HashMap<String, u64>,
    status: Value,
    /// The number of calls that had ended; `None` before the first event.
    ended: Option<u64>,
}

impl Known {
    /// Returns what has changed.
    fn next(&mut self, control: &Control, granted: &Granted) -> Value {
        // first, so that no call is in neither list
        let snapshot = control.snapshots.take(control, granted);
        let (count, ended) = control.switchboard.ended_since(self.ended.unwrap_or(u64::MAX));
        self.ended = Some(count);
        let mut before = std::mem::take(&mut self.calls);
        let mut changed = Vec::new();
        let mut figures = serde_json::Map::new();
        for shown in snapshot.iter() {
            if before.remove(&shown.id) != Some(shown.hash) {
                changed.push(shown.call.clone());
            }
            self.calls.insert(shown.id.clone(), shown.hash);
            figures.insert(shown.id.clone(), shown.figures.clone());
        }
        let status = control.status.json(&control.access.borrow().ais);
        let new_status = (status != self.status).then(|| status.clone());
        self.status = status;
        json!({
            "calls": changed,
            "figures": figures,
            "gone": before.into_keys().collect::<Vec<_>>(),
            "ended": ended.iter().map(|call| ended::json(call, granted)).collect::<Vec<_>>(),
            "status": new_status,
        })
    }
}

pub async fn live(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Extension(lasting): Extension<Lasting>,
) -> Result<Response, Problem> {
    granted.require(Scope::Read)?;
    let busy = |why: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", why);
    lasting.keep(Purpose::Live, granted.name()).map_err(busy)?;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = (control.access.clone(), control, granted, ticks, Known::default());
    let events =
        stream::unfold(state, |(mut access, control, granted, mut ticks, mut known)| async {
            tokio::select! {
                _ = ticks.tick() => {}
                () = revoked(&mut access, &granted, Scope::Read) => return None,
            }
            let data = known.next(&control, &granted).to_string();
            let event = Event::default().event("live").data(data);
            Some((Ok::<_, Infallible>(event), (access, control, granted, ticks, known)))
        });
    Ok(Sse::new(events).into_response())
}
