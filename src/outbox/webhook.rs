//! Sends events to a server: a POST signed according to Standard Webhooks
//! (<https://www.standardwebhooks.com>, HMAC-SHA-256 over id, time and body). Owns I/O.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::dns::HttpLookup;

/// Time limit of a request.
const LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("the HTTP client cannot be set up: {0}")]
    Setup(String),
    /// The URL is not printed, because it may contain a token.
    #[error("must be an http or https URL")]
    Url,
    #[error("must be base64 of 24 to 64 bytes, optionally after whsec_ (openssl rand -base64 32)")]
    Secret,
    #[error("{0}")]
    Http(String),
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// 410: the server refuses further attempts.
    #[error("the server answered 410 Gone: no more attempts")]
    Gone,
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("the answer is not text")]
    NotText,
}

/// A webhook's address and signing key.
pub struct Webhook {
    url: String,
    /// Requests are not signed without one.
    key: Option<Vec<u8>>,
    client: reqwest::Client,
}

impl Webhook {
    /// Creates a webhook. `secret` is base64, usually after `whsec_`; without one, requests are not
    /// signed.
    ///
    /// # Errors
    /// Returns an error if the URL or the secret is invalid, or the HTTP client cannot be set up.
    pub fn new(
        url: &str,
        secret: Option<&SecretString>,
        tls: Option<rustls::ClientConfig>,
    ) -> Result<Webhook, WebhookError> {
        let parsed = reqwest::Url::parse(url).map_err(|_| WebhookError::Url)?;
        if !["http", "https"].contains(&parsed.scheme()) || !parsed.has_host() {
            return Err(WebhookError::Url);
        }
        let key = secret.map(|s| key(s.expose_secret())).transpose()?;
        // reqwest comes without a crypto provider; a second call has no effect
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .timeout(LIMIT)
            .dns_resolver(HttpLookup)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("trunkless/", env!("CARGO_PKG_VERSION")));
        let builder = match tls {
            Some(tls) => builder.tls_backend_preconfigured(tls),
            None => builder.tls_certs_only([]),
        };
        let client = builder.build().map_err(|e| WebhookError::Setup(e.to_string()))?;
        Ok(Webhook { url: url.to_owned(), key, client })
    }

    /// Sends an event. `id` is the same in each attempt, `unix` is the current time.
    ///
    /// # Errors
    /// Returns an error if the request failed. It can be repeated, except after
    /// [`WebhookError::Gone`].
    pub async fn send(&self, id: &str, body: &str, unix: Duration) -> Result<(), WebhookError> {
        self.post(id, body, unix).await.map(drop)
    }

    /// Sends a question, and returns the body of the answer, of at most `max` bytes.
    ///
    /// # Errors
    /// Returns an error if the request failed, or the answer is not a text of that length.
    pub async fn ask(
        &self,
        id: &str,
        body: &str,
        unix: Duration,
        max: usize,
    ) -> Result<String, WebhookError> {
        let mut answer = self.post(id, body, unix).await?;
        let mut text = Vec::new();
        let broken = |e: reqwest::Error| WebhookError::Http(chain(&e.without_url()));
        while let Some(part) = answer.chunk().await.map_err(broken)? {
            if text.len() + part.len() > max {
                return Err(WebhookError::TooLong(max));
            }
            text.extend_from_slice(&part);
        }
        String::from_utf8(text).map_err(|_| WebhookError::NotText)
    }

    async fn post(
        &self,
        id: &str,
        body: &str,
        unix: Duration,
    ) -> Result<reqwest::Response, WebhookError> {
        let seconds = unix.as_secs().to_string();
        let mut request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", &seconds);
        if let Some(key) = &self.key {
            request = request.header("webhook-signature", signature(key, id, &seconds, body));
        }
        let answer = request.body(body.to_owned()).send().await;
        // the error's text has the URL in it, which may contain a token
        let answer = answer.map_err(|e| WebhookError::Http(chain(&e.without_url())))?;
        match answer.status() {
            StatusCode::GONE => Err(WebhookError::Gone),
            status if status.is_success() => Ok(answer),
            status => Err(WebhookError::Status(status)),
        }
    }

    /// Checks that the server can be reached, without an event.
    ///
    /// # Errors
    /// Returns [`WebhookError::Http`] if there is no answer.
    pub async fn probe(&self) -> Result<StatusCode, WebhookError> {
        let answer = self.client.head(&self.url).send().await;
        let answer = answer.map_err(|e| WebhookError::Http(chain(&e.without_url())))?;
        Ok(answer.status())
    }
}

/// Returns an error's text with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn key(secret: &str) -> Result<Vec<u8>, WebhookError> {
    let text = secret.strip_prefix("whsec_").unwrap_or(secret);
    let key = STANDARD.decode(text).map_err(|_| WebhookError::Secret)?;
    if (24..=64).contains(&key.len()) { Ok(key) } else { Err(WebhookError::Secret) }
}

fn signature(key: &[u8], id: &str, seconds: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example comes from the tests of the Standard Webhooks libraries.
    #[test]
    fn signatures_follow_the_standard() {
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let signed = signature(&key, id, "1614265330", "{\"test\": 2432232314}");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn invalid_secrets_and_urls_are_refused() {
        for bad in ["", "short", "whsec_AAAA", "not base64 at all, but long enough for a key!"] {
            assert!(key(bad).is_err(), "{bad}");
        }
        for bad in ["", "ftp://x/", "recordings", "http://"] {
            assert!(Webhook::new(bad, None, None).is_err(), "{bad}");
        }
        assert!(Webhook::new("http://127.0.0.1:9/hook", None, None).is_ok());
    }
}
