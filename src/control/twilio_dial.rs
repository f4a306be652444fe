//! Calls out in the shape of Twilio's API: `POST /2010-04-01/Accounts/{AccountSid}/Calls.json`
//! (<https://www.twilio.com/docs/voice/api/call-resource#create-a-call-resource>). Owns connections
//! to the programs that keep their TwiML at a URL.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::call::outgoing::SignedUrl;
use crate::call::placing::{CallWish, Line, Refused};
use crate::control::calls::json;
use crate::control::dial::{
    callback, check_parameters, detection, detection_limit, event, seconds, signed_url, wish,
};
use crate::control::guard::{Granted, clip};
use crate::control::problem::Problem;
use crate::control::tokens::Scope;
use crate::control::twilio::{form, resource, value};
use crate::control::{Control, twiml};
use crate::stream::dialect::sid;

/// The form fields that are carried out.
const FIELDS: [&str; 17] = [
    "To",
    "From",
    "Twiml",
    "Url",
    "Method",
    "Timeout",
    "Record",
    "RecordingChannels",
    "RecordingTrack",
    "StatusCallback",
    "StatusCallbackEvent",
    "StatusCallbackMethod",
    "MachineDetection",
    "MachineDetectionTimeout",
    "AsyncAmd",
    "AsyncAmdStatusCallback",
    "AsyncAmdStatusCallbackMethod",
];

/// A number of Twilio's errors, and what is wrong.
type Wrong = (u32, String);

/// The document that says what becomes of the call.
enum Twiml {
    Text(String),
    At(SignedUrl),
}

/// Places a call.
pub async fn create(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Path(account): Path<String>,
    body: Bytes,
) -> Result<Response, Problem> {
    granted.require(Scope::Dial).map_err(Problem::for_twilio)?;
    let bad = |(number, why): Wrong| Problem::twilio(StatusCode::BAD_REQUEST, number, why);
    let noted = |problem: Problem| {
        control.note_refused(Some("Calls.json"), &problem.message);
        problem
    };
    let (mut wish, document) = read_form(&form(&body), &granted).map_err(bad).map_err(noted)?;
    let lines = control.placer.lines();
    let own: Vec<_> = lines.into_iter().filter(|(_, line)| line.account_sid == account).collect();
    let allows = |line: &Line| line.rules.allow.iter().any(|pattern| pattern.matches(&wish.to));
    let line = own.iter().find(|(_, line)| allows(line)).or(own.first());
    let Some((pbx, line)) = line else {
        let why = "no PBX with this AccountSid places calls; set allow in its [pbx.NAME.dial]";
        return Err(Problem::twilio(StatusCode::NOT_FOUND, 20404, why));
    };
    let text = match document {
        Twiml::Text(text) => text,
        Twiml::At(url) => {
            line.rules.may_request(&url.url).map_err(|why| noted(for_twilio(&why)))?;
            // no program is asked about more calls than may be placed
            let reserved = control.placer.reserve(pbx, &wish).map_err(|why| for_twilio(&why))?;
            let seed = random();
            let form = call_form(&account, &sid("CA", &seed), &reserved.from, &wish.to);
            (wish.sid_seed, wish.reserved) = (Some(seed), Some(reserved));
            let text = match &control.requests {
                Ok(requests) => requests.text(&url, &form, twiml::MAX_BYTES).await,
                Err(why) => Err(why.clone()),
            };
            let failed = |why| (11200, format!("the TwiML could not be had from Url: {why}"));
            text.map_err(failed).map_err(bad).map_err(noted)?
        }
    };
    let stream = twiml::stream_of(&text).and_then(|(ai, parameters)| {
        check_parameters(&parameters)?;
        Ok((ai, parameters))
    });
    (wish.ai, wish.parameters) = stream.map_err(|why| (12100, why)).map_err(bad).map_err(noted)?;
    let call = control.placer.place(pbx, wish).await.map_err(|refused| for_twilio(&refused))?;
    Ok(json(StatusCode::CREATED, &granted.shown(resource(&call))))
}

/// Returns a text that no one can guess.
fn random() -> String {
    let mut bytes = [0u8; 16];
    // if this fails, calls have ids that are not unique
    let _ = getrandom::fill(&mut bytes);
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the form that a program gets when it is asked for its TwiML.
fn call_form(account: &str, call: &str, from: &str, to: &str) -> Vec<(&'static str, String)> {
    let form = [
        ("AccountSid", account),
        ("ApiVersion", "2010-04-01"),
        ("CallSid", call),
        ("CallStatus", "queued"),
        ("Called", to),
        ("Caller", from),
        ("Direction", "outbound-api"),
        ("From", from),
        ("To", to),
    ];
    form.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
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
fn read_form(fields: &[(String, String)], granted: &Granted) -> Result<(CallWish, Twiml), Wrong> {
    let plain = |why: String| (20001, why);
    let get = |name: &str| value(fields, name).filter(|value| !value.is_empty());
    let unknown =
        fields.iter().find(|(name, value)| !value.is_empty() && !FIELDS.contains(&name.as_str()));
    if let Some((name, _)) = unknown {
        return Err(plain(format!("{} is not supported; leave it out", clip(name))));
    }
    let mut wish = wish(granted);
    let to = get("To").ok_or_else(|| (21201, "No 'To' number is specified".to_owned()))?;
    wish.to = to.to_owned();
    wish.from = get("From").map(str::to_owned);
    let document = match (get("Twiml"), get("Url")) {
        // as with Twilio, Twiml takes precedence
        (Some(text), _) => Twiml::Text(text.to_owned()),
        (None, Some(url)) => {
            let url = signed_url("the TwiML", url, get("Method"), granted);
            Twiml::At(url.map_err(|why| (21205, why))?)
        }
        (None, None) => {
            return Err((21205, "send the document as Twiml, or its address as Url".to_owned()));
        }
    };
    if let Some(timeout) = get("Timeout") {
        wish.ring = Some(seconds(timeout.parse().ok()).map_err(plain)?);
    }
    read_recording(&get, &mut wish).map_err(plain)?;
    read_detection(&get, granted, &mut wish).map_err(plain)?;
    if let Some(url) = get("StatusCallback") {
        let words = fields.iter().filter(|(name, _)| name == "StatusCallbackEvent");
        let words = words.flat_map(|(_, words)| words.split_ascii_whitespace());
        let events = words.map(event).collect::<Result<_, _>>().map_err(plain)?;
        let callback = callback(url, get("StatusCallbackMethod"), events, granted);
        wish.callbacks.status = Some(Arc::new(callback.map_err(plain)?));
    }
    Ok((wish, document))
}

/// Reads whether the call is recorded: both parties, each on a channel of its own.
fn read_recording<'a>(
    get: &impl Fn(&str) -> Option<&'a str>,
    wish: &mut CallWish,
) -> Result<(), String> {
    wish.record = flag("Record", get("Record"))?;
    let both = get("RecordingChannels").is_none_or(|channels| channels == "dual")
        && get("RecordingTrack").is_none_or(|track| track == "both");
    let why = "recordings have both tracks on two channels; leave out RecordingChannels and \
               RecordingTrack";
    both.then_some(()).ok_or_else(|| why.to_owned())
}

/// Reads what is to be found out of who answers. The AI speaks meanwhile, as with `AsyncAmd=true`.
fn read_detection<'a>(
    get: &impl Fn(&str) -> Option<&'a str>,
    granted: &Granted,
    wish: &mut CallWish,
) -> Result<(), String> {
    let message_end = match get("MachineDetection") {
        None => None,
        Some("Enable") => Some(false),
        Some("DetectMessageEnd") => Some(true),
        Some(_) => return Err("MachineDetection is not Enable or DetectMessageEnd".to_owned()),
    };
    // as with Twilio, the others mean nothing without it
    if message_end.is_none() {
        return Ok(());
    }
    let limit = get("MachineDetectionTimeout");
    let limit = limit.map(|seconds| detection_limit(seconds.parse().ok())).transpose()?;
    flag("AsyncAmd", get("AsyncAmd"))?;
    let callback = get("AsyncAmdStatusCallback");
    let method = get("AsyncAmdStatusCallbackMethod");
    let to = callback.map(|url| signed_url("AsyncAmdStatusCallback", url, method, granted));
    wish.callbacks.answered_by = to.transpose()?.map(Arc::new);
    wish.detection = detection(message_end, limit)?;
    Ok(())
}

fn flag(name: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(format!("{name} is not true or false")),
    }
}
