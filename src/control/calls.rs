//! Calls and commands: `GET /v1/calls`, `GET /v1/calls/{id}`, `POST /v1/calls/{id}/commands`. Owns
//! the clock.
//!
//! docs/openapi.yaml describes them.

use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::info;

use crate::call::OrderRequest;
use crate::call::live::reply_json;
use crate::command::{Failure, Order, Reply, Sender};
use crate::control::Control;
use crate::control::connections::{Lasting, Purpose};
use crate::control::guard::{Granted, clip};
use crate::control::problem::Problem;
use crate::control::tokens::Scope;
use crate::stream::extension;

/// How long a response waits for the first reply.
const FIRST_REPLY: Duration = Duration::from_secs(2);
/// The longest time that a response waits for the last reply, if the request asks for that.
const MAX_WAIT: u64 = 120;

pub async fn list(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
) -> Result<Response, Problem> {
    granted.require(Scope::Read)?;
    let calls: Vec<Value> =
        control.switchboard.live().iter().map(|call| granted.shown(call.json())).collect();
    Ok(json(StatusCode::OK, &json!({ "calls": calls })))
}

pub async fn show(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    granted.require(Scope::Read)?;
    let call = control.switchboard.find(&id).ok_or_else(no_such_call)?;
    Ok(json(StatusCode::OK, &granted.shown(call.json())))
}

/// Gives a command to a call. Responds once it is accepted, done or failed; with `?wait=SECONDS`,
/// once it is done or failed, or that time is over. If too many requests wait already, it does not
/// wait: the command is more important than its outcome.
pub async fn command(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Extension(lasting): Extension<Lasting>,
    Path(id): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    granted.require(Scope::Control)?;
    let invalid = |why: String| Problem::new(StatusCode::BAD_REQUEST, "invalid", why);
    let read = read(&body).and_then(|order| Ok((order, wait(&uri)?)));
    let (mut order, mut wait) = read.map_err(|why| {
        log_refused(&id, &granted, &why);
        invalid(why)
    })?;
    order.by = Sender::Http(granted.name().to_owned());
    if !wait.is_zero() && lasting.keep(Purpose::Outcome, granted.name()).is_err() {
        wait = Duration::ZERO;
    }
    let (command, order_id) = (extension::name(&order.command), order.id.clone());
    let reply = give(&control, &id, order, wait).await?;
    let status = match &reply {
        Reply::Done => StatusCode::OK,
        Reply::Accepted | Reply::Progress(_) => StatusCode::ACCEPTED,
        Reply::Failed(Failure::NotAllowed) => StatusCode::FORBIDDEN,
        Reply::Failed(Failure::QueueFull) => StatusCode::TOO_MANY_REQUESTS,
        Reply::Failed(_) => StatusCode::CONFLICT,
    };
    Ok(json(status, &reply_json(command, &order_id, &reply).into()))
}

/// Reads a command.
fn read(body: &[u8]) -> Result<Order, String> {
    let body: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|why| format!("the body is not a JSON object: {why}"))?;
    let name = body.get("command").and_then(Value::as_str).unwrap_or_default();
    match extension::read(name, Some(&body), &body) {
        Some(order) => order.map_err(|unusable| unusable.why),
        None => Err(format!("\"command\" is not one of {}", extension::NAMES.join(", "))),
    }
}

/// Logs a command that is not well formed.
pub fn log_refused(call: &str, granted: &Granted, why: &str) {
    let (call, by) = (clip(call), Sender::Http(granted.name().to_owned()));
    info!(call, %by, why = clip(why), "command refused");
}

/// Reads `wait` from the query.
fn wait(uri: &Uri) -> Result<Duration, String> {
    let query = uri.query().unwrap_or_default();
    let value = query.split('&').find_map(|pair| pair.strip_prefix("wait="));
    let Some(value) = value else { return Ok(Duration::ZERO) };
    let seconds = value.parse::<u64>().ok().filter(|seconds| *seconds <= MAX_WAIT);
    let why = || format!("wait is not a number of seconds from 0 to {MAX_WAIT}");
    seconds.map(Duration::from_secs).ok_or_else(why)
}

/// Gives an order to a call and returns the last reply within the time: a final one, or with no
/// time the first.
///
/// # Errors
/// Returns 404 if there is no such call.
pub async fn give(
    control: &Control,
    id: &str,
    order: Order,
    wait: Duration,
) -> Result<Reply, Problem> {
    let Some(call) = control.switchboard.find(id) else { return Err(no_such_call()) };
    let (replies, mut receiver) = mpsc::unbounded_channel();
    let (by, command) = (order.by.clone(), extension::name(&order.command));
    let request = OrderRequest { order, replies };
    if let Err(failure) = control.switchboard.send(&call.id, request) {
        let failure = if failure == Failure::NoSuchCall { Failure::Ended } else { failure };
        info!(call = call.id, %by, command, why = %failure, "command failed");
        return Ok(Reply::Failed(failure));
    }
    let deadline = Instant::now() + FIRST_REPLY.max(wait);
    // a call that is over drops the sender
    let mut last = Reply::Failed(Failure::Ended);
    let mut any = false;
    loop {
        match timeout_at(deadline, receiver.recv()).await {
            Ok(Some(reply)) => {
                let goes_on = matches!(reply, Reply::Accepted | Reply::Progress(_));
                (last, any) = (reply, true);
                if !goes_on || wait.is_zero() {
                    return Ok(last);
                }
            }
            Ok(None) => return Ok(if any { Reply::Failed(Failure::Ended) } else { last }),
            Err(_) => return Ok(if any { last } else { Reply::Accepted }),
        }
    }
}

pub fn no_such_call() -> Problem {
    let why = "no live call has this id; GET /v1/calls lists them";
    Problem::new(StatusCode::NOT_FOUND, "not_found", why)
}

pub fn json(status: StatusCode, value: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, value.to_string() + "\n").into_response()
}
