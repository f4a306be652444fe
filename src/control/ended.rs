//! The last ended calls: `GET /v1/ended`.

use axum::Extension;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::{Value, json};

use crate::call::live::LiveCall;
use crate::control::Control;
use crate::control::guard::Granted;
use crate::control::problem::Problem;
use crate::control::tokens::Scope;

/// The number of calls without `limit`.
const LIMIT: usize = 100;
/// The largest `limit`.
const MAX_LIMIT: usize = 1000;

/// Newest first.
pub async fn list(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    uri: Uri,
) -> Result<Response, Problem> {
    granted.require(Scope::Read)?;
    let limit = limit(&uri)?;
    let (_, ended) = control.switchboard.ended_since(0);
    let calls: Vec<Value> = ended.iter().take(limit).map(|call| json(call, &granted)).collect();
    Ok(crate::control::calls::json(StatusCode::OK, &json!({ "calls": calls })))
}

/// An ended call: the call, its summary and its timeline.
pub fn json(call: &LiveCall, granted: &Granted) -> Value {
    let mut value = call.history().json();
    value["call"] = call.json();
    granted.shown(value)
}

/// Reads `limit` from the query.
fn limit(uri: &Uri) -> Result<usize, Problem> {
    let query = uri.query().unwrap_or_default();
    let value = query.split('&').find_map(|pair| pair.strip_prefix("limit="));
    let Some(value) = value else { return Ok(LIMIT) };
    let limit = value.parse::<usize>().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    let why = || format!("limit is not a number from 1 to {MAX_LIMIT}");
    limit.ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "invalid", why()))
}
