//! Status callbacks of calls that we place: requests to the program that asked for the call, in
//! the shape of Twilio's (<https://www.twilio.com/docs/voice/api/call-resource#statuscallback>) and
//! signed like them. The requests of one call go out in order. Owns tasks and connections.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use sha1::Sha1;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::call::live::{EventKind, LiveCall, rfc2822, unix};
use crate::call::outgoing::{CallbackEvent, StatusCallback, status};
use crate::dns::HttpLookup;
use crate::outbox::webhook::chain;
use crate::telemetry::counter::counters;
use crate::tls;

/// Reports that wait for the task. Beyond that, they are lost, and counted.
const MAX_WAITING: usize = 4096;
/// Calls whose reports are being sent. Those of others are lost, and counted.
const MAX_CALLS: usize = 4096;
/// Reports of one call that wait; there are four at most.
const MAX_REPORTS: usize = 8;
/// Time limit of a request.
const LIMIT: Duration = Duration::from_secs(5);
/// A call that is quiet for this long is forgotten: the report of its end was lost.
const QUIET: Duration = Duration::from_secs(24 * 3600);
/// The pause before a request is repeated, once.
const PAUSE: Duration = Duration::from_secs(1);

counters! {
    total SENT = "status_callbacks", "Status callbacks that were accepted.";
    total ERRORS = "status_callback_errors", "Status callbacks given up after two attempts.";
    total LOST = "status_callbacks_lost", "Status callbacks that were not tried: too many waited.";
}

/// A report about a call.
struct Report {
    call: String,
    callback: Arc<StatusCallback>,
    /// The form; `None` if the program does not want this event.
    form: Option<Vec<(&'static str, String)>>,
    /// True if no more follow.
    last: bool,
}

/// Takes the events of calls. Never blocks.
#[derive(Clone)]
pub struct StatusCallbacks {
    reports: mpsc::Sender<Report>,
    tasks: TaskTracker,
}

impl StatusCallbacks {
    /// Starts the task. It ends when the last handle is dropped.
    ///
    /// # Errors
    /// Returns an error if the HTTP client cannot be set up.
    pub fn start() -> anyhow::Result<StatusCallbacks> {
        // reqwest comes without a crypto provider; a second call has no effect
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .timeout(LIMIT)
            .dns_resolver(HttpLookup)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("trunkless/", env!("CARGO_PKG_VERSION")));
        let builder = match tls::client_config(None) {
            Ok(tls) => builder.tls_backend_preconfigured(tls),
            // https is not possible then: each request fails, and is logged
            Err(_) => builder.tls_certs_only([]),
        };
        let client = builder.build()?;
        let (reports, receiver) = mpsc::channel(MAX_WAITING);
        let tasks = TaskTracker::new();
        tokio::spawn(distribute(client, receiver, tasks.clone()));
        Ok(StatusCallbacks { reports, tasks })
    }

    /// Passes an event on, if the call has a status callback.
    pub fn send(&self, call: &LiveCall, event: &EventKind<'_>) {
        let Some(callback) = &call.callback else { return };
        let kind = match event {
            EventKind::Dialling => CallbackEvent::Initiated,
            EventKind::Ringing => CallbackEvent::Ringing,
            EventKind::Answered => CallbackEvent::Answered,
            EventKind::Ended(_) => CallbackEvent::Completed,
            _ => return,
        };
        let report = Report {
            call: call.id.clone(),
            callback: callback.clone(),
            form: callback.events.contains(&kind).then(|| form(call, kind)),
            last: kind == CallbackEvent::Completed,
        };
        if self.reports.try_send(report).is_err() {
            LOST.add(1);
        }
    }

    /// Waits until the reports so far have been sent, at most for `limit`.
    pub async fn flush(&self, limit: Duration) {
        // when all places of the queue are free, its reports are with their tasks
        let _ = timeout(limit, async {
            let _ = self.reports.reserve_many(MAX_WAITING).await;
            self.tasks.close();
            self.tasks.wait().await;
        })
        .await;
    }
}

/// Gives the reports of each call to a task of its own.
async fn distribute(
    client: reqwest::Client,
    mut reports: mpsc::Receiver<Report>,
    tasks: TaskTracker,
) {
    let mut calls: HashMap<String, mpsc::Sender<Report>> = HashMap::new();
    while let Some(report) = reports.recv().await {
        if calls.len() >= MAX_CALLS {
            // those of calls that were forgotten
            calls.retain(|_, queue| !queue.is_closed());
        }
        let (call, last) = (report.call.clone(), report.last);
        let full = calls.len() >= MAX_CALLS && !calls.contains_key(&call);
        if full {
            LOST.add(1);
            continue;
        }
        let queue = calls.entry(call.clone()).or_insert_with(|| {
            let (queue, receiver) = mpsc::channel(MAX_REPORTS);
            tasks.spawn(send_all(client.clone(), receiver));
            queue
        });
        if queue.try_send(report).is_err() {
            LOST.add(1);
        }
        if last {
            calls.remove(&call);
        }
    }
}

/// Sends the reports of one call.
async fn send_all(client: reqwest::Client, mut reports: mpsc::Receiver<Report>) {
    let mut number = 0;
    while let Ok(Some(report)) = timeout(QUIET, reports.recv()).await {
        let Some(mut form) = report.form else { continue };
        form.push(("SequenceNumber", number.to_string()));
        number += 1;
        let mut result = send_one(&client, &report.callback, &form).await;
        if result.is_err() {
            sleep(PAUSE).await;
            result = send_one(&client, &report.callback, &form).await;
        }
        match result {
            Ok(()) => SENT.add(1),
            Err(why) => {
                ERRORS.add(1);
                warn!(
                    call = report.call,
                    "status callback not accepted: {why}; it is given up after two attempts"
                );
            }
        }
    }
}

async fn send_one(
    client: &reqwest::Client,
    callback: &StatusCallback,
    form: &[(&'static str, String)],
) -> Result<(), String> {
    let token = callback.token.expose_secret();
    let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let request = match callback.get {
        true => {
            let url = with_query(&callback.url, &encoded);
            let signature = signature(token, &url, &[]);
            client.get(url).header("X-Twilio-Signature", signature)
        }
        false => client
            .post(&callback.url)
            .header("X-Twilio-Signature", signature(token, &callback.url, form))
            .header("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
            .body(encoded),
    };
    // the error's text has the URL in it, which may contain a token
    let answer = request.send().await.map_err(|error| chain(&error.without_url()))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("the server answered {status}")),
    }
}

/// Adds a query to a URL, which may have one already.
fn with_query(url: &str, query: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let sign = if url.contains('?') { '&' } else { '?' };
    format!("{url}{sign}{query}")
}

/// Returns the value of `X-Twilio-Signature`: base64(HMAC-SHA1(token, URL + names and values of the
/// form, sorted by name)). Source: Twilio's "Validating requests".
fn signature(token: &str, url: &str, form: &[(&'static str, String)]) -> String {
    let mut pairs: Vec<_> = form.iter().collect();
    pairs.sort_by_key(|(name, _)| *name);
    let mut mac = Hmac::<Sha1>::new_from_slice(token.as_bytes()).expect("any length is a key");
    mac.update(url.as_bytes());
    for (name, value) in pairs {
        mac.update(name.as_bytes());
        mac.update(value.as_bytes());
    }
    STANDARD.encode(mac.finalize().into_bytes())
}

fn form(call: &LiveCall, event: CallbackEvent) -> Vec<(&'static str, String)> {
    let state = call.state();
    let word = match event {
        CallbackEvent::Initiated => "initiated",
        CallbackEvent::Ringing => "ringing",
        CallbackEvent::Answered => "in-progress",
        CallbackEvent::Completed => status(&state, call.outgoing),
    };
    let mut form = vec![
        ("AccountSid", call.account_sid.clone()),
        ("ApiVersion", "2010-04-01".to_owned()),
        ("CallSid", call.call_sid.clone()),
        ("CallStatus", word.to_owned()),
        ("CallbackSource", "call-progress-events".to_owned()),
        ("Called", call.to_number.clone()),
        ("Caller", call.from_number.clone()),
        ("Direction", "outbound-api".to_owned()),
        ("From", call.from_number.clone()),
        ("Timestamp", rfc2822(unix())),
        ("To", call.to_number.clone()),
    ];
    if let Some((ended, _)) = state.ended {
        let talked = state.answered.map(|from| ended.saturating_sub(from).as_secs());
        let talked = talked.unwrap_or_default();
        form.push(("CallDuration", talked.to_string()));
        form.push(("Duration", talked.div_ceil(60).to_string()));
        if let Some(code) = state.refused_code.filter(|code| *code >= 300) {
            form.push(("SipResponseCode", code.to_string()));
        }
    }
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Twilio's documentation of its signature.
    #[test]
    fn requests_are_signed_like_twilios() {
        let form = [
            ("CallSid", "CA1234567890ABCDE"),
            ("Caller", "+14158675310"),
            ("Digits", "1234"),
            ("From", "+14158675310"),
            ("To", "+18005551212"),
        ];
        let form = form.map(|(name, value)| (name, value.to_owned()));
        let url = "https://example.com/myapp.php?foo=1&bar=2";
        assert_eq!(signature("12345", url, &form), "L/OH5YylLD5NRKLltdqwSvS0BnU=");
        assert_eq!(with_query("https://a/b?c=1#d", "e=2"), "https://a/b?c=1&e=2");
        assert_eq!(with_query("https://a/b", "e=2"), "https://a/b?e=2");
    }
}
