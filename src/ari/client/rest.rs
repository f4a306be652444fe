//! Sends REST requests with reqwest. Owns I/O.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::ari::client::counters;
use crate::ari::request::{Method, Outcome, RestRequest};

/// Time limit for a request. Asterisk sometimes stalls for minutes; callers must not wait for that.
const LIMIT: Duration = Duration::from_secs(3);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Concurrent requests, separately for set-up and for teardown. Asterisk's default limit is 100
/// HTTP sessions.
const SLOTS: usize = 32;
/// Idle connections are closed after this time; Asterisk closes them after 15 s.
const IDLE: Duration = Duration::from_secs(10);

/// The PBX's HTTP server: address and credentials.
#[derive(Clone)]
pub struct Target {
    /// For example `http://192.0.2.1:8088`, with the prefix of http.conf if set, without `/ari`.
    pub base: String,
    pub host: String,
    pub port: u16,
    pub username: String,
    pub password: SecretString,
    /// For `https`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Target {
    /// True if it is the same server with the same user and password; the CAs are not compared.
    pub fn is_same(&self, other: &Target) -> bool {
        let of = |t: &Target| {
            (t.base.clone(), t.username.clone(), t.password.expose_secret().to_owned())
        };
        of(self) == of(other)
    }
}

#[derive(Clone)]
pub struct Rest {
    client: reqwest::Client,
    /// The address to which requests are sent; `None` until one is known.
    address: Option<SocketAddr>,
    target: Target,
    /// Slots for requests that set up calls.
    building: Arc<Semaphore>,
    /// Slots for requests that tear down calls.
    releasing: Arc<Semaphore>,
}

impl Rest {
    /// # Errors
    /// Returns an error if the HTTP client cannot be set up.
    pub fn new(target: Target) -> Result<Rest, reqwest::Error> {
        // reqwest is built without a crypto provider; a second call changes nothing
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Rest::client(&target, None)?;
        let (building, releasing) = (Semaphore::new(SLOTS), Semaphore::new(SLOTS));
        let (building, releasing) = (Arc::new(building), Arc::new(releasing));
        Ok(Rest { client, address: None, target, building, releasing })
    }

    /// Returns a client whose requests go to this address of the host, because others may not
    /// answer, or may be another PBX.
    ///
    /// # Errors
    /// Returns an error if the HTTP client cannot be set up.
    pub fn at(&self, address: SocketAddr) -> Result<Rest, reqwest::Error> {
        if self.address == Some(address) {
            return Ok(self.clone());
        }
        let client = Rest::client(&self.target, Some(address))?;
        Ok(Rest { client, address: Some(address), ..self.clone() })
    }

    /// Returns a client with other credentials. Both share the slots.
    ///
    /// # Errors
    /// Returns an error if the HTTP client cannot be set up.
    pub fn with(&self, target: Target) -> Result<Rest, reqwest::Error> {
        let client = Rest::client(&target, self.address)?;
        Ok(Rest { client, target, ..self.clone() })
    }

    /// True if it uses this user and password.
    pub fn is_with(&self, target: &Target) -> bool {
        self.target.is_same(target)
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    fn client(
        target: &Target,
        address: Option<SocketAddr>,
    ) -> Result<reqwest::Client, reqwest::Error> {
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
            // plain HTTP needs no CA certificates
            None => builder.tls_certs_only([]),
        };
        if let Some(address) = address {
            builder = builder.resolve(&target.host, address);
        }
        builder.build()
    }

    /// Waits for a free slot, sends the request and reads the response.
    pub async fn run(&self, request: &RestRequest) -> Outcome {
        let began = Instant::now();
        let outcome = self.perform(request).await;
        counters::REQUESTS.add(1);
        counters::REQUEST.observe(began.elapsed());
        if outcome.status().is_none_or(|status| status >= 500) {
            counters::REQUESTS_FAILED.add(1);
        }
        outcome
    }

    async fn perform(&self, request: &RestRequest) -> Outcome {
        let slots = if request.releases() { &self.releasing } else { &self.building };
        let slot = timeout(LIMIT, slots.acquire()).await;
        let Ok(Ok(_slot)) = slot else {
            return Outcome::Unreachable("too many requests in flight".to_owned());
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
                    // the request was handled, even though its body is lost
                    Err(_) => Outcome::Answered { status, body: String::new() },
                }
            }
            Err(error) if error.is_connect() => Outcome::Unreachable(cause(&error)),
            Err(_) => Outcome::Unknown,
        }
    }
}

/// The innermost cause: the outer ones only state that there was an error.
fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
