//! REST requests over reqwest. Owns I/O.

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::ari::request::{Method, Outcome, RestRequest};

/// Asterisk stalls for minutes now and then; a caller does not wait for it.
const LIMIT: Duration = Duration::from_secs(3);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Requests at the same time, for what is made and for what is released: Asterisk takes 100 HTTP
/// sessions unless told otherwise.
const SLOTS: usize = 32;
/// Asterisk closes idle connections after 15 s.
const IDLE: Duration = Duration::from_secs(10);

/// How the PBX's HTTP server is reached.
#[derive(Clone)]
pub struct Target {
    /// `http://192.0.2.1:8088`, with the prefix of http.conf if it has one, without `/ari`.
    pub base: String,
    pub host: String,
    pub port: u16,
    pub username: String,
    pub password: SecretString,
    /// For `https`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

#[derive(Clone)]
pub struct Rest {
    client: reqwest::Client,
    target: Target,
    building: Arc<Semaphore>,
    releasing: Arc<Semaphore>,
}

impl Rest {
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(target: Target) -> Result<Rest, reqwest::Error> {
        // reqwest comes without one; a second call changes nothing
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .timeout(LIMIT)
            .connect_timeout(CONNECT_LIMIT)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(SLOTS)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none());
        builder = match &target.tls {
            Some(tls) => builder.tls_backend_preconfigured((**tls).clone()),
            // no https, no CAs to read
            None => builder.tls_certs_only([]),
        };
        let (building, releasing) = (Semaphore::new(SLOTS), Semaphore::new(SLOTS));
        let (building, releasing) = (Arc::new(building), Arc::new(releasing));
        Ok(Rest { client: builder.build()?, target, building, releasing })
    }

    /// Waits for its turn, asks, and reads the answer.
    pub async fn run(&self, request: &RestRequest) -> Outcome {
        let slots = if request.releases() { &self.releasing } else { &self.building };
        let slot = timeout(LIMIT, slots.acquire()).await;
        let Ok(Ok(_slot)) = slot else {
            return Outcome::Unreachable("too many requests wait for an answer".to_owned());
        };
        let wire = request.wire();
        let method = match wire.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Delete => reqwest::Method::DELETE,
        };
        let password = self.target.password.expose_secret();
        let mut builder = self
            .client
            .request(method, format!("{}/ari{}", self.target.base, wire.path))
            .basic_auth(&self.target.username, Some(password))
            .query(&wire.query);
        if let Some(body) = wire.body {
            builder = builder.header("Content-Type", "application/json").body(body);
        }
        match builder.send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                match response.text().await {
                    Ok(body) => Outcome::Answered { status, body },
                    // it was done, whatever its text was
                    Err(_) => Outcome::Answered { status, body: String::new() },
                }
            }
            Err(error) if error.is_connect() => Outcome::Unreachable(cause(&error)),
            Err(_) => Outcome::Unknown,
        }
    }
}

/// The innermost reason: the outer ones only say that there was an error.
fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
