//! Calls out: `POST /v1/calls`. It needs a token with the scope `dial`, and a PBX that allows the
//! number.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value};

use crate::call::answering::Detection;
use crate::call::outgoing::{CallbackEvent, Callbacks, SignedUrl, StatusCallback};
use crate::call::placing::{CallWish, Line, Refused};
use crate::command::Sender;
use crate::control::Control;
use crate::control::calls::json;
use crate::control::guard::{Granted, clip};
use crate::control::problem::Problem;
use crate::control::tokens::Scope;

/// At most this many parameters for the AI.
const MAX_PARAMETERS: usize = 50;
/// The longest name and value of a parameter, in characters. Twilio's limit is for both together.
const MAX_PARAMETER: [usize; 2] = [256, 499];
/// The longest URL.
const MAX_URL: usize = 2048;
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
    let (mut pbx, mut message_end, mut limit) = (None, None, None);
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
                wish.callbacks.status = Some(Arc::new(read_callback(object, granted)?));
            }
            "machine_detection" => message_end = Some(until(&text(name, value)?)?),
            "machine_detection_timeout" => limit = Some(detection_limit(value.as_u64())?),
            other => return Err(format!("\"{}\" is not known", clip(other))),
        }
    }
    if wish.to.is_empty() {
        return Err("\"to\" is missing: the number to call".to_owned());
    }
    check_parameters(&wish.parameters)?;
    wish.detection = detection(message_end, limit)?;
    Ok((pbx, wish))
}

/// Reads `machine_detection`. Returns true for the end of a machine's message.
fn until(word: &str) -> Result<bool, String> {
    match word {
        "start" => Ok(false),
        "message_end" => Ok(true),
        _ => Err("\"machine_detection\" is not start or message_end".to_owned()),
    }
}

/// Reads how long machine detection may take.
pub(super) fn detection_limit(seconds: Option<u64>) -> Result<Duration, String> {
    let valid = seconds.filter(|seconds| (3..=59).contains(seconds));
    let why = "the timeout of machine detection is not a number of seconds from 3 to 59";
    valid.map(Duration::from_secs).ok_or_else(|| why.to_owned())
}

/// Combines the wishes for machine detection.
pub(super) fn detection(
    message_end: Option<bool>,
    limit: Option<Duration>,
) -> Result<Option<Detection>, String> {
    let usual = Detection::default().limit;
    match message_end {
        Some(message_end) => Ok(Some(Detection { message_end, limit: limit.unwrap_or(usual) })),
        None if limit.is_some() => {
            Err("a timeout of machine detection needs machine detection".to_owned())
        }
        None => Ok(None),
    }
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
pub(super) fn wish(granted: &Granted) -> CallWish {
    CallWish {
        to: String::new(),
        from: None,
        ai: String::new(),
        parameters: Vec::new(),
        ring: None,
        record: false,
        detection: None,
        sid_seed: None,
        callbacks: Callbacks::default(),
        reserved: None,
        by: Sender::Http(granted.name().to_owned()).to_string(),
    }
}

pub(super) fn seconds(value: Option<u64>) -> Result<Duration, String> {
    let valid = value.filter(|seconds| (1..=600).contains(seconds));
    valid
        .map(Duration::from_secs)
        .ok_or_else(|| "the timeout is not a number of seconds from 1 to 600".to_owned())
}

pub(super) fn event(word: &str) -> Result<CallbackEvent, String> {
    CallbackEvent::parse(word).ok_or_else(|| {
        let known = CallbackEvent::ALL.map(CallbackEvent::word).join(", ");
        format!("the event \"{}\" is not one of {known}", clip(word))
    })
}

/// Returns where the progress of a call goes; without `events`, only its end, as with Twilio.
pub(super) fn callback(
    url: &str,
    method: Option<&str>,
    mut events: Vec<CallbackEvent>,
    granted: &Granted,
) -> Result<StatusCallback, String> {
    let to = signed_url("the status callback", url, method, granted)?;
    if events.is_empty() {
        events.push(CallbackEvent::Completed);
    }
    Ok(StatusCallback { to, events })
}

/// Returns a URL of the program. `of`: its use, for errors.
pub(super) fn signed_url(
    of: &str,
    url: &str,
    method: Option<&str>,
    granted: &Granted,
) -> Result<SignedUrl, String> {
    let get = match method {
        None | Some("POST") => false,
        Some("GET") => true,
        Some(_) => return Err(format!("the method of {of} is not POST or GET")),
    };
    if url.is_empty() || url.len() > MAX_URL {
        return Err(format!("the URL of {of} is missing, or has over {MAX_URL} bytes"));
    }
    Ok(SignedUrl { url: url.to_owned(), get, token: granted.secret() })
}

pub(super) fn check_parameters(parameters: &[(String, String)]) -> Result<(), String> {
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
