//! Requests to the programs that place calls, signed like Twilio's
//! (<https://www.twilio.com/docs/usage/security#validating-requests>). Owns connections.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::redirect::Policy;
use reqwest::{Response, Url};
use secrecy::ExposeSecret;
use sha1::Sha1;

use crate::call::outgoing::SignedUrl;
use crate::dns::HttpLookup;
use crate::outbox::webhook::chain;
use crate::tls;

/// The fields of a form.
pub type Form = Vec<(&'static str, String)>;

/// Sends requests. Clones share the connections.
#[derive(Clone)]
pub struct SignedRequests(reqwest::Client);

impl SignedRequests {
    /// `limit`: the time limit of a request.
    ///
    /// # Errors
    /// Returns an error if the HTTP client cannot be set up.
    pub fn new(limit: Duration) -> reqwest::Result<SignedRequests> {
        // reqwest comes without a crypto provider; a second call has no effect
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .timeout(limit)
            .dns_resolver(HttpLookup)
            .redirect(Policy::none())
            .user_agent(concat!("trunkless/", env!("CARGO_PKG_VERSION")));
        let builder = match tls::client_config(None) {
            Ok(tls) => builder.tls_backend_preconfigured(tls),
            // https is not possible then: each request fails, and is logged
            Err(_) => builder.tls_certs_only([]),
        };
        builder.build().map(SignedRequests)
    }

    /// Sends a form. Returns the response, whose status is one of success.
    ///
    /// # Errors
    /// Returns why there is no such response, without the URL, which may contain a secret.
    pub async fn send(&self, to: &SignedUrl, form: &Form) -> Result<Response, String> {
        let token = to.token.expose_secret();
        let url = sent(&to.url, if to.get { form } else { &[] })?;
        let request = match to.get {
            true => {
                let signature = signature(token, url.as_str(), &[]);
                self.0.get(url).header("X-Twilio-Signature", signature)
            }
            false => {
                let signature = signature(token, url.as_str(), form);
                let mut body = form_urlencoded::Serializer::new(String::new());
                self.0
                    .post(url)
                    .header("X-Twilio-Signature", signature)
                    .header("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
                    .body(body.extend_pairs(form).finish())
            }
        };
        let response = request.send().await.map_err(|error| chain(&error.without_url()))?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(format!("the server answered {status}")),
        }
    }

    /// The same, and returns the text of the response, which may have `max` bytes.
    ///
    /// # Errors
    /// Returns why there is no such text.
    pub async fn text(&self, to: &SignedUrl, form: &Form, max: usize) -> Result<String, String> {
        let mut response = self.send(to, form).await?;
        let mut body = Vec::new();
        let cut_off = |error: reqwest::Error| chain(&error.without_url());
        while let Some(chunk) = response.chunk().await.map_err(cut_off)? {
            body.extend_from_slice(&chunk);
            if body.len() > max {
                return Err(format!("the response is longer than {max} bytes"));
            }
        }
        String::from_utf8(body).map_err(|_| "the response is not UTF-8".to_owned())
    }
}

/// Returns a URL as it is sent, which is what the receiver checks the signature of: without its
/// fragment, and with `query` behind its own query.
fn sent(url: &str, query: &[(&'static str, String)]) -> Result<Url, String> {
    let mut url = Url::parse(url).map_err(|why| format!("its URL cannot be used: {why}"))?;
    url.set_fragment(None);
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    Ok(url)
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
        for (url, plain, with_query) in [
            ("https://a/b?c=1#d", "https://a/b?c=1", "https://a/b?c=1&e=2+3"),
            ("https://A.example", "https://a.example/", "https://a.example/?e=2+3"),
            (
                "https://a/%C3%A9?x=é",
                "https://a/%C3%A9?x=%C3%A9",
                "https://a/%C3%A9?x=%C3%A9&e=2+3",
            ),
        ] {
            assert_eq!(sent(url, &[]).unwrap().as_str(), plain);
            assert_eq!(sent(url, &[("e", "2 3".to_owned())]).unwrap().as_str(), with_query);
        }
        assert!(sent("/b", &[]).is_err());
    }
}
