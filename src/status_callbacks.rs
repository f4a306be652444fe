//! Status callbacks of calls that we place: requests to the program that asked for the call, in
//! the shape of Twilio's (<https://www.twilio.com/docs/voice/api/call-resource#statuscallback>) and
//! signed like them. The requests of one call go out in order. Owns tasks and connections.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::call::answering::Verdict;
use crate::call::live::{EventKind, LiveCall, rfc2822, unix};
use crate::call::outgoing::{CallbackEvent, Callbacks, SignedUrl, status};
use crate::signed_requests::{Form, SignedRequests};
use crate::telemetry::counter::counters;

/// Reports that wait for the task. Beyond that, they are lost, and counted.
const MAX_WAITING: usize = 4096;
/// Calls whose reports are being sent. Those of others are lost, and counted.
const MAX_CALLS: usize = 4096;
/// Reports of one call that wait; there are five at most.
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
    /// `None` if the program does not want this event.
    request: Option<(SignedUrl, Form)>,
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
        let client = SignedRequests::new(LIMIT)?;
        let (reports, receiver) = mpsc::channel(MAX_WAITING);
        let tasks = TaskTracker::new();
        tokio::spawn(distribute(client, receiver, tasks.clone()));
        Ok(StatusCallbacks { reports, tasks })
    }

    /// Passes an event on, if the call has a callback for it.
    pub fn send(&self, call: &LiveCall, event: &EventKind<'_>) {
        let Callbacks { status, answered_by } = &call.callbacks;
        if status.is_none() && answered_by.is_none() {
            return;
        }
        let kind = match event {
            EventKind::Dialling => CallbackEvent::Initiated,
            EventKind::Ringing => CallbackEvent::Ringing,
            EventKind::Answered => CallbackEvent::Answered,
            EventKind::Ended(_) => CallbackEvent::Completed,
            EventKind::AnsweredBy(verdict) => {
                let to = answered_by.as_deref().cloned();
                let request = to.map(|to| (to, detection_form(call, verdict)));
                return self.put(Report { call: call.id.clone(), request, last: false });
            }
            _ => return,
        };
        let status = status.as_ref().filter(|status| status.events.contains(&kind));
        let request = status.map(|status| (status.to.clone(), form(call, kind)));
        let last = kind == CallbackEvent::Completed;
        self.put(Report { call: call.id.clone(), request, last });
    }

    fn put(&self, report: Report) {
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
    client: SignedRequests,
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
async fn send_all(client: SignedRequests, mut reports: mpsc::Receiver<Report>) {
    let mut number = 0;
    while let Ok(Some(report)) = timeout(QUIET, reports.recv()).await {
        let Some((to, mut form)) = report.request else { continue };
        if form.iter().any(|(name, _)| *name == "CallStatus") {
            form.push(("SequenceNumber", number.to_string()));
            number += 1;
        }
        let mut result = client.send(&to, &form).await;
        if result.is_err() {
            sleep(PAUSE).await;
            result = client.send(&to, &form).await;
        }
        match result {
            Ok(_) => SENT.add(1),
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

fn form(call: &LiveCall, event: CallbackEvent) -> Form {
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
    if let Some(verdict) = state.answered_by {
        form.push(("AnsweredBy", verdict.by.word().to_owned()));
    }
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

/// The form of Twilio's `AsyncAmdStatusCallback`.
fn detection_form(call: &LiveCall, verdict: &Verdict) -> Form {
    vec![
        ("AccountSid", call.account_sid.clone()),
        ("AnsweredBy", verdict.by.word().to_owned()),
        ("CallSid", call.call_sid.clone()),
        ("MachineDetectionDuration", verdict.took.as_millis().to_string()),
    ]
}
