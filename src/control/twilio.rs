//! Calls and recordings in the shape of Twilio's REST API, version 2010-04-01
//! (<https://www.twilio.com/docs/voice/api/call-resource>), so that libraries for Twilio can end,
//! redirect and record the calls of this bridge.

use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::{Value, json};

use crate::call::live::{LiveCall, rfc2822};
use crate::call::outgoing::status;
use crate::command::{Cause, Command, Failure, Order, RecordCommand, Reply, Sender, When};
use crate::control::calls::{give, json, log_refused};
use crate::control::guard::{Granted, clip};
use crate::control::problem::Problem;
use crate::control::tokens::Scope;
use crate::control::{Control, twiml};
use crate::stream::dialect::sid;

/// Twilio's own name for the recording that is running.
const CURRENT: &str = "Twilio.CURRENT";

type Answer = Result<Response, Problem>;

fn not_found(uri: &Uri) -> Problem {
    let why = format!("The requested resource {} was not found", uri.path());
    Problem::twilio(StatusCode::NOT_FOUND, 20404, why)
}

fn bad(number: u32, why: impl Into<String>) -> Problem {
    Problem::twilio(StatusCode::BAD_REQUEST, number, why)
}

fn require(granted: &Granted, scope: Scope) -> Result<(), Problem> {
    granted.require(scope).map_err(Problem::for_twilio)
}

/// Finds a call of an account. `name` may have the ending `.json`.
fn find(
    control: &Control,
    account: &str,
    name: &str,
    uri: &Uri,
) -> Result<std::sync::Arc<LiveCall>, Problem> {
    let call = control.switchboard.find(name.trim_end_matches(".json"));
    call.filter(|call| call.account_sid == account).ok_or_else(|| not_found(uri))
}

pub async fn list(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Path(account): Path<String>,
    uri: Uri,
) -> Answer {
    require(&granted, Scope::Read)?;
    let calls = control.switchboard.live();
    let query = form(uri.query().unwrap_or_default().as_bytes());
    let filters = filters(&query)?;
    let calls = calls.iter().filter(|call| call.account_sid == account);
    let suits = |call: &Value| filters.iter().all(|(member, value)| call[*member] == **value);
    let calls: Vec<Value> = calls.map(|call| granted.shown(resource(call))).filter(suits).collect();
    Ok(json(
        StatusCode::OK,
        &json!({
            "calls": calls,
            "page": 0,
            "page_size": calls.len(),
            "start": 0,
            "end": calls.len().saturating_sub(1),
            "uri": uri.path(),
            "first_page_uri": uri.path(),
            "next_page_uri": null,
            "previous_page_uri": null,
        }),
    ))
}

/// Reads the filters of a list: members of a call, and their values. A filter that was ignored
/// would list calls that the program does not mean, and might end.
fn filters(query: &[(String, String)]) -> Result<Vec<(&'static str, &str)>, Problem> {
    let mut filters = Vec::new();
    for (name, value) in query {
        let member = match name.as_str() {
            "Status" => "status",
            "To" => "to",
            "From" => "from",
            // all calls are on one page
            "PageSize" | "Page" => continue,
            other => {
                let why = format!("{} is not supported; use Status, To or From", clip(other));
                return Err(bad(20001, why));
            }
        };
        filters.push((member, value.as_str()));
    }
    Ok(filters)
}

pub async fn show(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Path((account, name)): Path<(String, String)>,
    uri: Uri,
) -> Answer {
    require(&granted, Scope::Read)?;
    let call = find(&control, &account, &name, &uri)?;
    Ok(json(StatusCode::OK, &granted.shown(resource(&call))))
}

/// Ends a call (`Status=completed`, or `canceled` before its answer), or redirects it (`Twiml=`).
pub async fn update(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Path((account, name)): Path<(String, String)>,
    uri: Uri,
    body: Bytes,
) -> Answer {
    require(&granted, Scope::Control)?;
    let call = find(&control, &account, &name, &uri)?;
    let fields = form(&body);
    let status = value(&fields, "Status");
    let command = match (status, value(&fields, "Twiml")) {
        (Some("canceled"), _) if call.state().answered.is_some() => {
            return Err(bad(21220, "Call is not queued or ringing. Cannot cancel."));
        }
        (Some("completed" | "canceled"), _) => {
            Command::Hangup { cause: Cause::Normal, status: None }
        }
        (Some(other), _) => {
            return Err(bad(20001, format!("Status is {other}, not completed or canceled")));
        }
        (None, Some(text)) => {
            let redirect = twiml::read(text).map_err(|why| {
                log_refused(&call.id, &granted, &why);
                bad(12100, why)
            })?;
            Command::Redirect(Box::new(redirect))
        }
        (None, None) if value(&fields, "Url").is_some() => {
            return Err(bad(20001, "Url is not supported; send the document as Twiml"));
        }
        (None, None) => return Err(bad(20001, "send Status=completed, or Twiml")),
    };
    let ends = matches!(command, Command::Hangup { .. });
    match order(&control, &granted, &call, command).await? {
        Reply::Failed(Failure::Ended | Failure::NoSuchCall) if ends => {}
        Reply::Failed(Failure::Ended | Failure::NoSuchCall) => {
            return Err(bad(21220, "Call is not in-progress. Cannot redirect."));
        }
        Reply::Failed(failure) => return Err(refused(failure)),
        _ => {}
    }
    let mut resource = granted.shown(resource(&call));
    if ends {
        resource["status"] = status.into();
    }
    Ok(json(StatusCode::OK, &resource))
}

fn refused(failure: Failure) -> Problem {
    match failure {
        Failure::NotAllowed => Problem::twilio(StatusCode::FORBIDDEN, 21215, format!("{failure}")),
        _ => bad(21220, format!("{failure}")),
    }
}

pub async fn start_recording(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Path((account, name)): Path<(String, String)>,
    uri: Uri,
) -> Answer {
    require(&granted, Scope::Control)?;
    let call = find(&control, &account, &name, &uri)?;
    record(&control, &granted, &call, RecordCommand::Start).await?;
    Ok(json(StatusCode::CREATED, &recording(&call, "in-progress")))
}

/// Pauses, resumes or stops the recording of a call.
pub async fn update_recording(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Path((account, name, of)): Path<(String, String, String)>,
    uri: Uri,
    body: Bytes,
) -> Answer {
    require(&granted, Scope::Control)?;
    let call = find(&control, &account, &name, &uri)?;
    let of = of.trim_end_matches(".json");
    if of != CURRENT && of != recording_sid(&call) {
        return Err(not_found(&uri));
    }
    let fields = form(&body);
    let (command, status) = match value(&fields, "Status") {
        Some("paused") => (RecordCommand::Pause, "paused"),
        Some("in-progress") => (RecordCommand::Resume, "in-progress"),
        Some("stopped") => (RecordCommand::Stop, "stopped"),
        _ => return Err(bad(20001, "Status is not paused, in-progress or stopped")),
    };
    record(&control, &granted, &call, command).await?;
    Ok(json(StatusCode::OK, &recording(&call, status)))
}

async fn record(
    control: &Control,
    granted: &Granted,
    call: &LiveCall,
    command: RecordCommand,
) -> Result<(), Problem> {
    match order(control, granted, call, Command::Record(command)).await? {
        Reply::Failed(failure) => {
            Err(bad(21220, format!("Requested resource is not eligible for recording: {failure}")))
        }
        _ => Ok(()),
    }
}

async fn order(
    control: &Control,
    granted: &Granted,
    call: &LiveCall,
    command: Command,
) -> Result<Reply, Problem> {
    let by = Sender::Http(granted.name().to_owned());
    let order = Order { id: String::new(), by, when: When::Now, command };
    give(control, &call.id, order, Duration::ZERO).await
}

/// Twilio's form of a call.
pub(super) fn resource(call: &LiveCall) -> Value {
    let state = call.state();
    let status = status(&state, call.outgoing);
    let duration = state.answered.zip(state.ended);
    let duration = duration.map(|(from, (to, _))| to.saturating_sub(from).as_secs().to_string());
    let path = format!("/2010-04-01/Accounts/{}/Calls/{}", call.account_sid, call.call_sid);
    json!({
        "sid": call.call_sid,
        "account_sid": call.account_sid,
        "api_version": "2010-04-01",
        "from": call.from_number,
        "from_formatted": call.from_number,
        "caller_name": call.from_name,
        "to": call.to_number,
        "to_formatted": call.to_number,
        "direction": if call.outgoing { "outbound-api" } else { "inbound" },
        "status": status,
        "date_created": rfc2822(call.started),
        "date_updated": rfc2822(state.ended.map_or(call.started, |(at, _)| at)),
        "start_time": state.answered.map(rfc2822),
        "end_time": state.ended.map(|(at, _)| rfc2822(at)),
        "duration": duration,
        "answered_by": state.answered_by.map(|verdict| verdict.by.word()),
        "forwarded_from": null,
        "group_sid": null,
        "parent_call_sid": null,
        "phone_number_sid": "",
        "price": null,
        "price_unit": "USD",
        "queue_time": "0",
        "trunk_sid": null,
        "annotation": null,
        "uri": format!("{path}.json"),
        "subresource_uris": { "recordings": format!("{path}/Recordings.json") },
    })
}

fn recording_sid(call: &LiveCall) -> String {
    sid("RE", &call.id)
}

fn recording(call: &LiveCall, status: &str) -> Value {
    let sid = recording_sid(call);
    json!({
        "sid": sid,
        "account_sid": call.account_sid,
        "call_sid": call.call_sid,
        "api_version": "2010-04-01",
        "channels": 2,
        "source": "StartCallRecordingAPI",
        "status": status,
        "uri": format!(
            "/2010-04-01/Accounts/{}/Calls/{}/Recordings/{sid}.json",
            call.account_sid, call.call_sid
        ),
    })
}

/// Reads a form, or a query.
pub(super) fn form(body: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(body).into_owned().collect()
}

pub(super) fn value<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_filters_are_refused() {
        let query = form(b"To=%2B491&Status=ringing&PageSize=50&Page=0");
        assert_eq!(filters(&query), Ok(vec![("to", "+491"), ("status", "ringing")]));
        for bad in ["StartTime%3E=2026-01-01", "ParentCallSid=CA1", "to=1", "PageToken=x"] {
            let refused = filters(&form(bad.as_bytes())).unwrap_err();
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}");
            assert!(refused.message.contains("is not supported"), "{bad}");
        }
    }
}
