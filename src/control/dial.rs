//! Calls out: `POST /v1/calls`, and the same in the shape of Twilio's API. They need a token with
//! the scope `dial`, and a PBX that allows the number.

use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value};

use crate::call::outgoing::{CallbackEvent, StatusCallback};
use crate::call::placing::{CallWish, Line, Refused};
use crate::command::Sender;
use crate::control::calls::json;
use crate::control::guard::{Granted, clip};
use crate::control::problem::Problem;
use crate::control::tokens::Scope;
use crate::control::twilio::{form, resource, value};
use crate::control::{Control, twiml};

/// At most this many parameters for the AI.
const MAX_PARAMETERS: usize = 50;
/// The longest name and value of a parameter, in characters. Twilio's limit is for both together.
const MAX_PARAMETER: [usize; 2] = [256, 499];
/// The longest URL.
const MAX_URL: usize = 2048;
/// The form fields of Twilio that are carried out.
const FIELDS: [&str; 10] = [
    "To",
    "From",
    "Twiml",
    "Timeout",
    "Record",
    "RecordingChannels",
    "RecordingTrack",
    "StatusCallback",
    "StatusCallbackEvent",
    "StatusCallbackMethod",
];

/// Places a call. Responds once it has begun, before the callee is called.
pub async fn place(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    body: Bytes,
) -> Result<Response, Problem> {
    granted.require(Scope::Dial)?;
    let invalid = |why: String| Problem::new(StatusCode::BAD_REQUEST, "invalid", why);
    let (pbx, wish) = read(&body, &granted).map_err(|why| {
        control.note_refused(Some("/v1/calls"), &why);
        invalid(why)
    })?;
    let pbx = match pbx {
        Some(pbx) => pbx,
        None => only(&control.placer.lines()).map_err(invalid)?,
    };
    if !control.placer.lines().iter().any(|(name, _)| *name == pbx) {
        let why = "no calls may be placed through this PBX; set allow in its [pbx.NAME.dial]";
        return Err(invalid(why.to_owned()));
    }
    let call = control.placer.place(&pbx, wish).await.map_err(|refused| {
        let status = match refused {
            Refused::NotAllowed(_) | Refused::CallerId(_) | Refused::CallbackHost(_) => {
                StatusCode::FORBIDDEN
            }
            Refused::PerSecond(_) | Refused::PerDay(_) => StatusCode::TOO_MANY_REQUESTS,
            Refused::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        let code = if status == StatusCode::BAD_REQUEST { "invalid" } else { refused.word() };
        Problem::new(status, code, refused.to_string())
    })?;
    Ok(json(StatusCode::CREATED, &granted.shown(call.json())))
}

/// Returns the PBX of a request that names none.
fn only(lines: &[(String, Line)]) -> Result<String, String> {
    match lines {
        [] => Err("no calls may be placed; set allow in [pbx.NAME.dial]".to_owned()),
        [(name, _)] => Ok(name.clone()),
        _ => Err("calls may be placed through several PBXs; send \"pbx\"".to_owned()),
    }
}

/// Reads a request.
fn read(body: &[u8], granted: &Granted) -> Result<(Option<String>, CallWish), String> {
    let body: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|why| format!("the body is not a JSON object: {why}"))?;
    let mut wish = wish(granted);
    let mut pbx = None;
    let text = |name: &str, value: &Value| {
        value.as_str().map(str::to_owned).ok_or_else(|| format!("\"{name}\" is not a text"))
    };
    for (name, value) in &body {
        match name.as_str() {
            "to" => wish.to = text(name, value)?,
            "from" => wish.from = Some(text(name, value)?),
            "pbx" => pbx = Some(text(name, value)?),
            "ai" => wish.ai = text(name, value)?,
            "timeout" => wish.ring = Some(seconds(value.as_u64())?),
            "record" => {
                wish.record =
                    value.as_bool().ok_or_else(|| "\"record\" is not true or false".to_owned())?;
            }
            "parameters" => {
                let object = value.as_object().ok_or("\"parameters\" is not an object")?;
                let all = object.iter().map(|(name, value)| Ok((name.clone(), text(name, value)?)));
                wish.parameters = all.collect::<Result<_, String>>()?;
            }
            "status_callback" => {
                let object = value.as_object().ok_or("\"status_callback\" is not an object")?;
                wish.callback = Some(read_callback(object, granted)?);
            }
            other => return Err(format!("\"{}\" is not known", clip(other))),
        }
    }
    if wish.to.is_empty() {
        return Err("\"to\" is missing: the number to call".to_owned());
    }
    check_parameters(&wish.parameters)?;
    Ok((pbx, wish))
}

fn read_callback(object: &Map<String, Value>, granted: &Granted) -> Result<StatusCallback, String> {
    let strange = |name: &&String| !["url", "method", "events"].contains(&name.as_str());
    if let Some(name) = object.keys().find(strange) {
        return Err(format!("\"{}\" in \"status_callback\" is not known", clip(name)));
    }
    let url = object.get("url").and_then(Value::as_str).unwrap_or_default();
    let method = object.get("method").map(|method| method.as_str().unwrap_or_default());
    let events = match object.get("events") {
        None => Vec::new(),
        Some(value) => {
            let words = value.as_array().into_iter().flatten();
            let words = words.map(|word| word.as_str().unwrap_or_default());
            words.map(event).collect::<Result<_, _>>()?
        }
    };
    callback(url, method, events, granted)
}

/// An empty wish of a token.
fn wish(granted: &Granted) -> CallWish {
    CallWish {
        to: String::new(),
        from: None,
        ai: String::new(),
        parameters: Vec::new(),
        ring: None,
        record: false,
        callback: None,
        by: Sender::Http(granted.name().to_owned()).to_string(),
    }
}

fn seconds(value: Option<u64>) -> Result<Duration, String> {
    let valid = value.filter(|seconds| (1..=600).contains(seconds));
    valid
        .map(Duration::from_secs)
        .ok_or_else(|| "the timeout is not a number of seconds from 1 to 600".to_owned())
}

fn event(word: &str) -> Result<CallbackEvent, String> {
    CallbackEvent::parse(word).ok_or_else(|| {
        let known = CallbackEvent::ALL.map(CallbackEvent::word).join(", ");
        format!("the event \"{}\" is not one of {known}", clip(word))
    })
}

/// Returns where the progress of a call goes; without `events`, only its end, as with Twilio.
fn callback(
    url: &str,
    method: Option<&str>,
    mut events: Vec<CallbackEvent>,
    granted: &Granted,
) -> Result<StatusCallback, String> {
    let get = match method {
        None | Some("POST") => false,
        Some("GET") => true,
        Some(_) => return Err("the method of the status callback is not POST or GET".to_owned()),
    };
    if url.is_empty() || url.len() > MAX_URL {
        let why = format!("the URL of the status callback is missing, or has over {MAX_URL} bytes");
        return Err(why);
    }
    if events.is_empty() {
        events.push(CallbackEvent::Completed);
    }
    Ok(StatusCallback { url: url.to_owned(), get, events, token: granted.secret() })
}

fn check_parameters(parameters: &[(String, String)]) -> Result<(), String> {
    let [name, value] = MAX_PARAMETER;
    let fits = |(n, v): &(String, String)| {
        !n.is_empty() && n.chars().count() <= name && v.chars().count() <= value
    };
    match parameters.len() <= MAX_PARAMETERS && parameters.iter().all(fits) {
        true => Ok(()),
        false => Err(format!(
            "at most {MAX_PARAMETERS} parameters, with names of 1 to {name} characters and values \
             of up to {value}"
        )),
    }
}

/// Places a call: Twilio's `POST /2010-04-01/Accounts/{AccountSid}/Calls.json`.
pub async fn create(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Path(account): Path<String>,
    body: Bytes,
) -> Result<Response, Problem> {
    granted.require(Scope::Dial).map_err(Problem::for_twilio)?;
    let wish = read_form(&form(&body), &granted).inspect_err(|problem| {
        control.note_refused(Some("Calls.json"), &problem.message);
    })?;
    let lines = control.placer.lines();
    let own: Vec<_> = lines.into_iter().filter(|(_, line)| line.account_sid == account).collect();
    let allows = |line: &Line| line.rules.allow.iter().any(|pattern| pattern.matches(&wish.to));
    let line = own.iter().find(|(_, line)| allows(line)).or(own.first());
    let Some((pbx, _)) = line else {
        let why = "no PBX with this AccountSid places calls; set allow in its [pbx.NAME.dial]";
        return Err(Problem::twilio(StatusCode::NOT_FOUND, 20404, why));
    };
    let call = control.placer.place(pbx, wish).await.map_err(|refused| for_twilio(&refused))?;
    Ok(json(StatusCode::CREATED, &granted.shown(resource(&call))))
}

/// Twilio's number for a refusal (<https://www.twilio.com/docs/api/errors>).
fn for_twilio(refused: &Refused) -> Problem {
    let (status, number) = match refused {
        Refused::BadNumber => (StatusCode::BAD_REQUEST, 21211),
        Refused::NotAllowed(_) => (StatusCode::FORBIDDEN, 21215),
        Refused::NoCallerId => (StatusCode::BAD_REQUEST, 21213),
        Refused::CallerId(_) => (StatusCode::FORBIDDEN, 21210),
        Refused::NoSuchAi => (StatusCode::BAD_REQUEST, 12100),
        Refused::NotRecorded | Refused::RingTime(_) => (StatusCode::BAD_REQUEST, 20001),
        Refused::CallbackHost(_) => (StatusCode::FORBIDDEN, 21609),
        Refused::PerSecond(_) | Refused::PerDay(_) => (StatusCode::TOO_MANY_REQUESTS, 20429),
        Refused::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, 20503),
    };
    Problem::twilio(status, number, refused.to_string())
}

/// Reads Twilio's form. What is not carried out is refused, so that nothing is left out without an
/// error.
fn read_form(fields: &[(String, String)], granted: &Granted) -> Result<CallWish, Problem> {
    let bad = |number: u32, why: String| Problem::twilio(StatusCode::BAD_REQUEST, number, why);
    let plain = |why: String| bad(20001, why);
    let get = |name: &str| value(fields, name).filter(|value| !value.is_empty());
    if get("MachineDetection").is_some() {
        return Err(plain("MachineDetection is not supported; leave it out".to_owned()));
    }
    if get("Url").is_some() {
        let why = "Url is not supported; send the document as Twiml";
        return Err(bad(21205, why.to_owned()));
    }
    let unknown =
        fields.iter().find(|(name, value)| !value.is_empty() && !FIELDS.contains(&name.as_str()));
    if let Some((name, _)) = unknown {
        return Err(plain(format!("{} is not supported; leave it out", clip(name))));
    }
    let mut wish = wish(granted);
    let to = get("To").ok_or_else(|| bad(21201, "No 'To' number is specified".to_owned()))?;
    wish.to = to.to_owned();
    wish.from = get("From").map(str::to_owned);
    let text = get("Twiml").ok_or_else(|| bad(21205, "send the document as Twiml".to_owned()))?;
    (wish.ai, wish.parameters) = twiml::stream_of(text).map_err(|why| bad(12100, why))?;
    check_parameters(&wish.parameters).map_err(|why| bad(12100, why))?;
    if let Some(timeout) = get("Timeout") {
        wish.ring = Some(seconds(timeout.parse().ok()).map_err(plain)?);
    }
    wish.record = match get("Record") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(plain("Record is not true or false".to_owned())),
    };
    // both parties are recorded, each on a channel of its own
    let both = get("RecordingChannels").is_none_or(|channels| channels == "dual")
        && get("RecordingTrack").is_none_or(|track| track == "both");
    if !both {
        let why = "recordings have both tracks on two channels; leave out RecordingChannels and \
                   RecordingTrack";
        return Err(plain(why.to_owned()));
    }
    if let Some(url) = get("StatusCallback") {
        let words = fields.iter().filter(|(name, _)| name == "StatusCallbackEvent");
        let words = words.flat_map(|(_, words)| words.split_ascii_whitespace());
        let events = words.map(event).collect::<Result<_, _>>().map_err(plain)?;
        let callback = callback(url, get("StatusCallbackMethod"), events, granted);
        wish.callback = Some(callback.map_err(plain)?);
    }
    Ok(wish)
}
