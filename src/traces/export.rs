//! Sends the traces of calls to a collector, by OTLP over HTTP. Owns a task and its connections.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use secrecy::ExposeSecret as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::call::ended::Record;
use crate::call::live::{EventKind, LiveCall};
use crate::dns::HttpLookup;
use crate::traces::{ERRORS, LOST, SENT, TracesSettings, spans};

/// Ended calls that wait to be sent. Beyond that, their traces are lost, and counted.
const MAX_WAITING: usize = 1000;
/// Calls in one request.
const MAX_BATCH: usize = 50;
/// How long a request waits for more calls.
const GATHER: Duration = Duration::from_secs(1);
/// Time limit of a request.
const LIMIT: Duration = Duration::from_secs(10);
/// Maximum length of an error in the log, in characters.
const MAX_ERROR: usize = 300;
/// Pauses before a request is repeated. After the last one, its traces are lost.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(15)];

enum Message {
    Ended(Arc<Ended>),
    /// Notify the sender once everything before has been sent.
    Flush(oneshot::Sender<()>),
}

/// A call that has ended.
struct Ended {
    call: LiveCall,
    record: Record,
}

/// Takes the ends of calls. Never blocks.
#[derive(Clone)]
pub struct Traces(mpsc::Sender<Message>);

impl Traces {
    /// Starts the task that sends the traces. It ends when the last handle is dropped.
    ///
    /// # Errors
    /// Returns an error if the HTTP client cannot be set up.
    pub fn start(settings: TracesSettings) -> anyhow::Result<Traces> {
        // reqwest comes without a crypto provider; a second call has no effect
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .timeout(LIMIT)
            .dns_resolver(HttpLookup)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("trunkless/", env!("CARGO_PKG_VERSION")));
        let builder = match settings.tls {
            Some(tls) => builder.tls_backend_preconfigured(tls),
            None => builder.tls_certs_only([]),
        };
        let headers = settings.headers.iter();
        let headers: HashMap<String, String> =
            headers.map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect();
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(builder.build()?)
            .with_endpoint(settings.endpoint.as_str())
            .with_timeout(LIMIT)
            // the library's pauses would block a thread of the runtime
            .with_retry_policy(RetryPolicy::disabled())
            .with_headers(headers)
            .build()?;
        let name = KeyValue::new("service.name", "trunkless");
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder_empty().with_attributes([name, version]).build();
        exporter.set_resource(&resource);
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        tokio::spawn(run(exporter, receiver, settings.endpoint));
        Ok(Traces(sender))
    }

    /// Queues the trace of a call that has ended.
    pub fn send(&self, call: &LiveCall, event: &EventKind<'_>) {
        let EventKind::Ended(record) = event else { return };
        let ended = Ended { call: call.snapshot(), record: (*record).clone() };
        if self.0.try_send(Message::Ended(Arc::new(ended))).is_err() {
            LOST.add(1);
        }
    }

    /// Waits until everything so far has been sent, or given up.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.0.send(Message::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }
}

async fn run(exporter: SpanExporter, mut messages: mpsc::Receiver<Message>, endpoint: String) {
    let mut link = Link { exporter, endpoint, fails: false };
    while let Some(message) = messages.recv().await {
        let (mut batch, mut flushed) = (Vec::new(), Vec::new());
        take(message, &mut batch, &mut flushed);
        let until = Instant::now() + GATHER;
        while flushed.is_empty() && batch.len() < MAX_BATCH {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(Some(message)) = timeout(left, messages.recv()).await else { break };
            take(message, &mut batch, &mut flushed);
        }
        if !batch.is_empty() {
            link.send(&batch).await;
        }
        for done in flushed {
            let _ = done.send(());
        }
    }
}

fn take(message: Message, batch: &mut Vec<Arc<Ended>>, flushed: &mut Vec<oneshot::Sender<()>>) {
    match message {
        Message::Ended(ended) => batch.push(ended),
        Message::Flush(done) => flushed.push(done),
    }
}

/// The collector.
struct Link {
    exporter: SpanExporter,
    endpoint: String,
    /// True if the last request failed.
    fails: bool,
}

impl Link {
    /// Sends the traces of these calls, in several attempts.
    async fn send(&mut self, calls: &[Arc<Ended>]) {
        let count = calls.len() as u64;
        for pause in PAUSES.into_iter().map(Some).chain([None]) {
            let spans = calls.iter().flat_map(|ended| spans::of(&ended.call, &ended.record));
            match self.exporter.export(spans.collect()).await {
                Ok(()) => {
                    SENT.add(count);
                    if std::mem::take(&mut self.fails) {
                        info!(collector = self.endpoint, "traces are accepted again");
                    }
                    return;
                }
                Err(error) => {
                    ERRORS.add(1);
                    if !std::mem::replace(&mut self.fails, true) {
                        let collector = &self.endpoint;
                        // it may quote the collector's response
                        let error: String = error.to_string().chars().take(MAX_ERROR).collect();
                        warn!(
                            collector,
                            error, "traces not accepted by the collector: check otlp_endpoint"
                        );
                    }
                }
            }
            match pause {
                Some(pause) => sleep(pause).await,
                None => LOST.add(count),
            }
        }
    }
}
