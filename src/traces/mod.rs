//! Traces of calls for OpenTelemetry: one for each call, made of its record at its end, so that
//! nothing is added to the frame path. [`spans`] turns a record into spans, [`export`] sends them.
//! Needs the feature `otel`.

#[cfg(feature = "otel")]
mod export;
#[cfg(feature = "otel")]
mod spans;

use secrecy::SecretString;

use crate::telemetry::counter::counters;

#[cfg(feature = "otel")]
pub use export::Traces;
#[cfg(not(feature = "otel"))]
pub use without::Traces;

counters! {
    total SENT = "traces_sent", "Calls whose traces the collector has accepted.";
    total ERRORS = "traces_errors", "Requests with traces that failed.";
    total LOST = "traces_lost", "Calls whose traces were given up.";
}

/// Where the traces go.
pub struct TracesSettings {
    /// The whole URL, with `/v1/traces`.
    pub endpoint: String,
    /// Header fields of the requests: names and values.
    pub headers: Vec<(String, SecretString)>,
    /// For `https`.
    pub tls: Option<rustls::ClientConfig>,
}

/// The place of [`export`] without the feature. The configuration has no collector then.
#[cfg(not(feature = "otel"))]
mod without {
    use crate::call::live::{EventKind, LiveCall};
    use crate::traces::TracesSettings;

    #[derive(Clone)]
    pub struct Traces;

    impl Traces {
        /// # Errors
        /// Always returns an error.
        pub fn start(_: TracesSettings) -> anyhow::Result<Traces> {
            anyhow::bail!("this trunkless was built without the feature otel")
        }

        pub fn send(&self, _: &LiveCall, _: &EventKind<'_>) {}

        pub async fn flush(&self) {}
    }
}
