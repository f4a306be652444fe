//! Packet captures: `GET /v1/calls/{id}/capture` and `GET /v1/calls/next/capture`. Owns
//! connections.
//!
//! The response is the file, for as long as the capture lasts: it is made while the client reads
//! it, and ends when the client closes the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tracing::info;

use crate::call::switchboard::NotCaptured;
use crate::capture::counters::{RUNNING, STARTED};
use crate::capture::reader::{self, Limits, Reader};
use crate::capture::redact::Redactor;
use crate::control::Control;
use crate::control::connections::{Lasting, Purpose};
use crate::control::guard::{Granted, clip, revoked};
use crate::control::problem::Problem;
use crate::control::tokens::Scope;

/// At most this many captures at once.
const MAX_CAPTURES: usize = 4;
/// The longest capture, in seconds, and the usual one.
const SECONDS: (u64, u64) = (3600, 600);
/// The largest file, in megabytes, and the usual one.
const MEGABYTES: (u64, u64) = (1000, 100);
/// How long a capture waits for the next call.
const WAIT: Duration = Duration::from_secs(600);

/// The captures that are running.
#[derive(Clone, Default)]
pub struct Captures(Arc<AtomicUsize>);

/// The place of one capture among those that are running.
struct Place(Captures);

impl Captures {
    fn place(&self) -> Option<Place> {
        let more = |running: usize| (running < MAX_CAPTURES).then_some(running + 1);
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        before.is_ok().then(|| {
            RUNNING.replace(0, 1);
            Place(self.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
        RUNNING.replace(1, 0);
    }
}

/// A running capture. Dropping it ends the capture.
struct Running {
    reader: Reader,
    /// The id of the call, or the words for a call that has not come yet.
    call: String,
    /// The name of the token.
    by: String,
    _place: Place,
}

impl Drop for Running {
    fn drop(&mut self) {
        let figures = self.reader.figures();
        let why = self
            .reader
            .end()
            .map_or("its client has closed the connection".to_owned(), |end| end.text());
        let [packets, messages] = figures.written;
        let dropped: u64 = figures.dropped.iter().sum();
        let call = self.reader.call().unwrap_or(&self.call);
        let (by, bytes) = (&self.by, figures.bytes);
        info!(call, by, packets, messages, dropped, bytes, "packet capture ended: {why}");
    }
}

/// The query of a request.
struct Wanted {
    limits: Limits,
    redactor: Redactor,
    /// The PBX of the next call.
    pbx: Option<String>,
}

fn read(uri: &Uri, secrets: &[String]) -> Result<Wanted, String> {
    let (mut seconds, mut megabytes, mut keys, mut pbx) = (SECONDS.1, MEGABYTES.1, false, None);
    let number = |name: &str, value: &str, most: u64| {
        let number = value.parse::<u64>().ok().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| format!("{name} is not a number from 1 to {most}"))
    };
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match &*name {
            "seconds" => seconds = number("seconds", &value, SECONDS.0)?,
            "megabytes" => megabytes = number("megabytes", &value, MEGABYTES.0)?,
            "keys" => keys = value.parse().map_err(|_| "keys is not true or false")?,
            "pbx" => pbx = Some(value.into_owned()),
            other => return Err(format!("\"{}\" is not a parameter of a capture", clip(other))),
        }
    }
    let (time, bytes) = (Duration::from_secs(seconds), megabytes * 1_000_000);
    let limits = Limits { time, wait: None, bytes };
    Ok(Wanted { limits, redactor: Redactor { keys, secrets: secrets.to_vec() }, pbx })
}

/// Captures a live call.
pub async fn capture(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Extension(lasting): Extension<Lasting>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    granted.require(Scope::Capture)?;
    let wanted = read(&uri, &control.access.borrow().secrets).map_err(invalid)?;
    let call = control.switchboard.find(&id).ok_or_else(no_such_call)?;
    if call.state().ended.is_some() {
        return Err(conflict("ended", "the call has ended"));
    }
    let place = place(&control, &lasting, &granted)?;
    let title = title(&format!("call {} on {}", call.id, call.pbx), &granted, &wanted);
    let (tap, reader) = reader::begin(wanted.limits, wanted.redactor, title);
    control.switchboard.capture(&call.id, tap).map_err(|why| match why {
        NotCaptured::NoSuchCall => conflict("ended", "the call has ended"),
        NotCaptured::Already => conflict("captured", "the call is being captured already"),
        NotCaptured::Busy => busy("too many commands are open in the call".to_owned()),
    })?;
    Ok(respond(&control, reader, call.id.clone(), granted, place))
}

/// Captures the next call, from its beginning.
pub async fn capture_next(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Extension(lasting): Extension<Lasting>,
    uri: Uri,
) -> Result<Response, Problem> {
    granted.require(Scope::Capture)?;
    let wanted = read(&uri, &control.access.borrow().secrets).map_err(invalid)?;
    let what = match &wanted.pbx {
        Some(pbx) if !control.switchboard.has_pbx(pbx) => {
            let why = format!("there is no [pbx.{}]", clip(pbx));
            return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", why));
        }
        Some(pbx) => format!("the next call of {pbx}"),
        None => "the next call".to_owned(),
    };
    let place = place(&control, &lasting, &granted)?;
    let limits = Limits { wait: Some(WAIT), ..wanted.limits };
    let title = title(&what, &granted, &wanted);
    let (tap, reader) = reader::begin(limits, wanted.redactor, title);
    control.switchboard.capture_next(wanted.pbx, tap);
    Ok(respond(&control, reader, what, granted, place))
}

fn invalid(why: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid", why)
}

fn no_such_call() -> Problem {
    let why = "no live call has this id; GET /v1/calls lists them";
    Problem::new(StatusCode::NOT_FOUND, "not_found", why)
}

fn busy(why: String) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", why)
}

fn conflict(code: &'static str, why: &str) -> Problem {
    Problem::new(StatusCode::CONFLICT, code, why)
}

/// Takes a place among the captures, and keeps the connection.
fn place(control: &Control, lasting: &Lasting, granted: &Granted) -> Result<Place, Problem> {
    let place = control.captures.place().ok_or_else(|| {
        busy(format!("{MAX_CAPTURES} captures are running, which is the most; end one of them"))
    })?;
    lasting.keep(Purpose::Capture, granted.name()).map_err(|why| busy(why.to_owned()))?;
    Ok(place)
}

/// The comment at the beginning of the file.
fn title(what: &str, granted: &Granted, wanted: &Wanted) -> String {
    let keys = if wanted.redactor.keys { "" } else { " and the keys that were pressed" };
    let by = granted.name();
    format!("trunkless capture of {what}, by {by}. Credentials{keys} were removed.")
}

/// Streams the file.
fn respond(
    control: &Control,
    reader: Reader,
    call: String,
    granted: Granted,
    place: Place,
) -> Response {
    STARTED.add(1);
    let by = granted.name().to_owned();
    info!(call, by, "packet capture started: it contains what is said in the call");
    let running = Running { reader, call, by, _place: place };
    let state = (running, control.access.clone(), granted);
    let parts = stream::unfold(state, |(mut running, mut access, granted)| async {
        // a reload may have brought others
        running.reader.hide(&access.borrow().secrets);
        let part = tokio::select! {
            part = running.reader.part() => part?,
            () = revoked(&mut access, &granted, Scope::Capture) => return None,
        };
        Some((Ok::<_, std::convert::Infallible>(part), (running, access, granted)))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-pcapng")];
    (kind, Body::from_stream(parts)).into_response()
}
