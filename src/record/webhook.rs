//! Tells somebody's server that a recording is finished: a POST signed as Standard Webhooks asks
//! (<https://www.standardwebhooks.com>, HMAC-SHA-256 over id, time and body). Owns I/O.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sha2::Sha256;

use crate::record::sidecar::{Sidecar, rfc3339};

const LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("the HTTP client cannot be set up: {0}")]
    Setup(String),
    /// It is not printed: it may hold a token.
    #[error("is no http or https URL")]
    Url,
    #[error("a secret is base64 after whsec_, of 24 to 64 bytes: openssl rand -base64 32")]
    Secret,
    #[error("{0}")]
    Http(String),
    #[error("the server answers {0}")]
    Status(StatusCode),
    /// 410: it wants no more of them.
    #[error("the server answers 410 Gone: nothing more is sent for this recording")]
    Gone,
}

pub struct Webhook {
    url: String,
    key: Option<Vec<u8>>,
    client: reqwest::Client,
}

impl Webhook {
    /// `secret`: `whsec_` and base64; without one nothing is signed.
    ///
    /// # Errors
    /// What is wrong with URL or secret.
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
        // reqwest comes without one; a second call changes nothing
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .timeout(LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("trunkless/", env!("CARGO_PKG_VERSION")));
        let builder = match tls {
            Some(tls) => builder.tls_backend_preconfigured(tls),
            None => builder.tls_certs_only([]),
        };
        let client = builder.build().map_err(|e| WebhookError::Setup(e.to_string()))?;
        Ok(Webhook { url: url.to_owned(), key, client })
    }

    /// `location`: where the recording is. `unix`: now.
    ///
    /// # Errors
    /// What the server or the way to it says; to be tried again but for [`WebhookError::Gone`].
    pub async fn tell(
        &self,
        sidecar: &Sidecar,
        location: &str,
        unix: Duration,
    ) -> Result<(), WebhookError> {
        let body = json!({
            "type": "recording.finished",
            "timestamp": rfc3339(unix),
            "data": { "location": location, "recording": sidecar },
        })
        .to_string();
        let id = format!("rec_{}", sidecar.id);
        let seconds = unix.as_secs().to_string();
        let mut request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", &seconds);
        if let Some(key) = &self.key {
            request = request.header("webhook-signature", signature(key, &id, &seconds, &body));
        }
        let answer = request.body(body).send().await;
        // its text holds the URL, and that may hold a token
        let answer = answer.map_err(|e| WebhookError::Http(chain(&e.without_url())))?;
        match answer.status() {
            StatusCode::GONE => Err(WebhookError::Gone),
            status if status.is_success() => Ok(()),
            status => Err(WebhookError::Status(status)),
        }
    }
}

/// An error with its causes.
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
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks libraries' own tests.
    #[test]
    fn signed_as_the_standard_says() {
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let signed = signature(&key, id, "1614265330", "{\"test\": 2432232314}");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets_and_urls() {
        for bad in ["", "short", "whsec_AAAA", "not base64 at all, but long enough for a key!"] {
            assert!(key(bad).is_err(), "{bad}");
        }
        for bad in ["", "ftp://x/", "recordings", "http://"] {
            assert!(Webhook::new(bad, None, None).is_err(), "{bad}");
        }
        assert!(Webhook::new("http://127.0.0.1:9/hook", None, None).is_ok());
    }
}
