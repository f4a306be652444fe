//! A request before the socket: a server names the WebSocket's URL, or decides otherwise about the
//! caller. Owns I/O.
//!
//! The hosts of the URLs are listed in the configuration, redirects are not followed, and the body
//! of an answer is never logged: it may contain tokens.

use std::str::FromStr;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde_json::{Map, Value};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::http::Uri;

use crate::command::Cause;
use crate::dns::HttpLookup;
use crate::stream::StreamInfo;
use crate::stream::dialect::{Dialect, Session};
use crate::stream::model::filled;
use crate::stream::proxy::Proxy;
use crate::stream::unreachable::ConnectError;

/// Time limit of the request, within that of reaching the AI.
pub const LIMIT: Duration = Duration::from_secs(2);
/// Longest body of an answer.
const MAX_BODY: usize = 64 * 1024;
/// The most parameters of an answer; the others are left out.
const MAX_PARAMETERS: usize = 50;
/// Maximum length of a parameter's name and value, in characters.
const MAX_TEXT: usize = 499;

/// A host that a created URL may have: `ai.example.com`, `*.example.com`, with `ws://` before it if
/// it is reached without TLS, and with a port if it is not the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    secure: bool,
    host: String,
    port: u16,
}

impl FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<AllowedHost, String> {
        let error = || {
            format!(
                "\"{text}\" is not a host: write \"ai.example.com\", \"*.example.com\" or \
                 \"ws://127.0.0.1:8080\""
            )
        };
        let (secure, rest) = match text.strip_prefix("ws://") {
            Some(rest) => (false, rest),
            None => (true, text.strip_prefix("wss://").unwrap_or(text)),
        };
        let uri: Uri =
            format!("ws://{}", rest.replacen('*', "any", 1)).parse().map_err(|_| error())?;
        let starred = rest.strip_prefix("*.");
        let good = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let authority = starred.unwrap_or(rest);
        let port = authority.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
        let (host, port) = match port {
            Some((host, port)) => (host, port.parse().map_err(|_| error())?),
            None => (authority, if secure { 443 } else { 80 }),
        };
        if host.is_empty() || !authority.chars().all(good) || uri.host().is_none() || port == 0 {
            return Err(error());
        }
        let star = if starred.is_some() { "*." } else { "" };
        Ok(AllowedHost { secure, host: format!("{star}{}", host.to_ascii_lowercase()), port })
    }
}

impl AllowedHost {
    fn allows(&self, uri: &Uri) -> bool {
        let secure = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            _ => return false,
        };
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let same = match self.host.strip_prefix('*') {
            Some(end) => host.len() > end.len() && host.ends_with(end),
            None => host == self.host,
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        same && secure == self.secure && port == self.port
    }
}

/// The keys of `[ai.create]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CreateOptions {
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    /// With placeholders such as `{from_number}`.
    pub body: Option<Value>,
    /// Where the answer has the URL; `None` for an answer in our own form.
    pub url_field: Option<String>,
    pub allow_hosts: Vec<AllowedHost>,
    pub proxy: Option<Proxy>,
    /// The AI has a URL of its own, for answers without one.
    pub has_default_url: bool,
    /// These complete the body.
    pub dialect: Dialect,
    pub session: Session,
}

/// A fault in [`CreateOptions`].
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("is not an HTTP method, such as \"POST\"")]
    Method,
    /// The URL is not printed, because it may contain a token.
    #[error("must be an http or https URL")]
    Url,
    #[error("\"{0}\" is not a valid header name or value")]
    Header(String),
    #[error("the HTTP client cannot be set up: {0}")]
    Setup(String),
}

/// An answer of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    Connect {
        /// `None`: the AI's own URL.
        url: Option<String>,
        parameters: Vec<(String, String)>,
    },
    /// Refuse or end the call.
    Reject(Cause),
    /// Transfer the caller: the name of a target.
    Transfer(String),
}

/// A request that can be made for each call.
#[derive(Debug, Clone)]
pub struct Create {
    options: CreateOptions,
    method: Method,
    url: Url,
    headers: HeaderMap,
    client: reqwest::Client,
}

impl Create {
    /// # Errors
    /// Returns an error for the part of the options that is invalid.
    pub fn new(options: CreateOptions, tls: rustls::ClientConfig) -> Result<Create, CreateError> {
        let method = options.method.to_ascii_uppercase();
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| CreateError::Method)?;
        let url = Url::parse(&options.url).map_err(|_| CreateError::Url)?;
        if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
            return Err(CreateError::Url);
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &options.headers {
            let error = || CreateError::Header(name.clone());
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| error())?;
            let mut value = HeaderValue::from_str(value).map_err(|_| error())?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        // reqwest comes without a crypto provider; a second call has no effect
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .dns_resolver(HttpLookup)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("trunkless/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            .no_proxy();
        let setup = |error: reqwest::Error| CreateError::Setup(error.without_url().to_string());
        let builder = match &options.proxy {
            Some(proxy) => builder.proxy(proxy.for_http().map_err(setup)?),
            None => builder,
        };
        let client = builder.build().map_err(setup)?;
        Ok(Create { options, method, url, headers, client })
    }

    /// True if the AI has a URL of its own.
    pub fn has_default_url(&self) -> bool {
        self.options.has_default_url
    }

    /// True if the same request is made.
    pub fn is_same(&self, other: &Create) -> bool {
        self.options == other.options
    }

    /// Returns what may be secret: the values of headers and of the URL's query.
    pub fn secrets(&self) -> Vec<String> {
        let headers = self.options.headers.iter().map(|(_, value)| value.clone());
        headers.chain(self.url.query_pairs().map(|(_, value)| value.into_owned())).collect()
    }

    /// The server, for the log.
    fn server(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Makes the request for a call.
    ///
    /// # Errors
    /// Returns [`ConnectError::Create`] if the server gives no usable answer in time.
    pub async fn request(
        &self,
        info: &StreamInfo,
        limit: Duration,
    ) -> Result<Created, ConnectError> {
        let failed = |why: String| ConnectError::Create(format!("{}: {why}", self.server()));
        let limit = limit.min(LIMIT);
        match timeout(limit, self.ask(info)).await {
            Ok(answer) => {
                let body = answer.map_err(failed)?;
                read(&self.options, &body).map_err(failed)
            }
            Err(_) => Err(failed(format!("no answer within {limit:?}"))),
        }
    }

    async fn ask(&self, info: &StreamInfo) -> Result<Value, String> {
        let mut request = self.client.request(self.method.clone(), self.url.clone());
        request = request.header("accept", "application/json");
        let CreateOptions { dialect, session, body, url_field, .. } = &self.options;
        let body = match url_field {
            Some(_) => dialect.creation_body(self.url.path(), body.as_ref(), session, info),
            None => body.as_ref().map(|body| filled(body, info)),
        };
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let words = |error: reqwest::Error| chain(&error.without_url());
        let mut answer = request.headers(self.headers.clone()).send().await.map_err(words)?;
        let status = answer.status();
        if status.is_redirection() {
            return Err(format!("it redirects ({}), which is not followed", status.as_u16()));
        }
        if !status.is_success() {
            return Err(format!("it answered {}", status.as_u16()));
        }
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(words)? {
            body.extend_from_slice(&part);
            if body.len() > MAX_BODY {
                return Err(format!("the answer is longer than {MAX_BODY} bytes"));
            }
        }
        // the parser's message would show a part of the answer
        serde_json::from_slice(&body).map_err(|_| "the answer is not JSON".to_owned())
    }
}

/// Reads an answer.
fn read(options: &CreateOptions, body: &Value) -> Result<Created, String> {
    let Some(field) = &options.url_field else { return read_own(options, body) };
    let found = match field.starts_with('/') {
        true => body.pointer(field),
        false => field.split('.').try_fold(body, |value, part| match value {
            Value::Array(all) => all.get(part.parse::<usize>().ok()?),
            value => value.get(part),
        }),
    };
    let url = found.and_then(Value::as_str);
    let url = url.ok_or_else(|| format!("the answer has no text in {field}"))?;
    Ok(Created::Connect { url: Some(allowed(options, url)?), parameters: Vec::new() })
}

/// Reads an answer in our own form.
fn read_own(options: &CreateOptions, body: &Value) -> Result<Created, String> {
    let Value::Object(body) = body else {
        return Err("the answer is not a JSON object".to_owned());
    };
    match body.get("reject") {
        None | Some(Value::Bool(false) | Value::Null) => {}
        Some(Value::Bool(true)) => return Ok(Created::Reject(Cause::Rejected)),
        Some(cause) => {
            let known = |wanted: &Cause| cause.as_str() == Some(wanted.name());
            let cause = Cause::ALL.into_iter().find(known);
            let causes = || Cause::ALL.map(Cause::name).join(", ");
            let cause =
                cause.ok_or_else(|| format!("reject is neither true nor one of: {}", causes()))?;
            return Ok(Created::Reject(cause));
        }
    }
    match body.get("transfer") {
        None | Some(Value::Null) => {}
        Some(Value::String(to)) if !to.is_empty() => return Ok(Created::Transfer(to.clone())),
        Some(_) => return Err("transfer is not the name of a target".to_owned()),
    }
    let url = match body.get("url") {
        None | Some(Value::Null) => None,
        Some(Value::String(url)) => Some(allowed(options, url)?),
        Some(_) => return Err("url is not a text".to_owned()),
    };
    let parameters = match body.get("parameters") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(all)) => parameters(all),
        Some(_) => return Err("parameters is not an object".to_owned()),
    };
    Ok(Created::Connect { url, parameters })
}

fn parameters(all: &Map<String, Value>) -> Vec<(String, String)> {
    let cut = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
    let text = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::String(text) => cut(text),
            Value::Bool(_) | Value::Number(_) => cut(&value.to_string()),
            _ => return None,
        };
        Some((cut(name), value)).filter(|(name, value)| !name.is_empty() && !value.is_empty())
    };
    all.iter().filter_map(text).take(MAX_PARAMETERS).collect()
}

/// Returns the URL if it leads to a listed host.
fn allowed(options: &CreateOptions, url: &str) -> Result<String, String> {
    let uri: Uri = url.parse().map_err(|_| "the answer's URL cannot be read".to_owned())?;
    if options.allow_hosts.iter().any(|host| host.allows(&uri)) {
        return Ok(url.to_owned());
    }
    let scheme = uri.scheme_str().unwrap_or_default();
    let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    let host = uri.host().unwrap_or_default();
    Err(format!(
        "the answer's URL leads to {scheme}://{host}{port}, which allow_hosts does not list"
    ))
}

/// Returns an error's text with its causes.
fn chain(error: &dyn std::error::Error) -> String {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(url_field: Option<&str>) -> CreateOptions {
        let hosts = ["ai.test", "*.vendor.test:8443", "ws://127.0.0.1:9"];
        CreateOptions {
            url_field: url_field.map(str::to_owned),
            allow_hosts: hosts.map(|host| host.parse().unwrap()).into(),
            ..CreateOptions::default()
        }
    }

    fn own(body: &Value) -> Result<Created, String> {
        read(&options(None), body)
    }

    #[test]
    fn only_listed_hosts_are_dialled() {
        for (url, good) in [
            ("wss://ai.test/x?token=1", true),
            ("wss://AI.test:443/x", true),
            ("wss://a.b.vendor.test:8443/", true),
            ("ws://127.0.0.1:9/", true),
            ("ws://ai.test/", false),
            ("wss://ai.test:8443/", false),
            ("wss://vendor.test:8443/", false),
            ("wss://evilvendor.test:8443/", false),
            ("wss://a.vendor.test/", false),
            ("wss://ai.test.evil.test/", false),
            ("wss://ai.test@evil.test/", false),
            ("wss://127.0.0.1:9/", false),
            ("ws://127.0.0.1/", false),
            ("ws://169.254.169.254/", false),
            ("https://ai.test/", false),
            ("ai.test", false),
            ("", false),
        ] {
            let found = read(&options(Some("u")), &json!({ "u": url }));
            assert_eq!(found.is_ok(), good, "{url}: {found:?}");
            assert!(!format!("{found:?}").contains("token=1") || good, "{url}");
        }
        for bad in ["", "*", "*.", "https://a", "a/b", "a b", "a:x", "a:0", "*a.test", "a*.test"] {
            assert!(bad.parse::<AllowedHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_url_is_found_in_an_answer() {
        let body = json!({"a": {"b": ["x", "wss://ai.test/1"]}, "c.d": "wss://ai.test/2", "n": 5});
        for (field, url) in [
            ("a.b.1", Some("wss://ai.test/1")),
            ("/a/b/1", Some("wss://ai.test/1")),
            ("/c.d", Some("wss://ai.test/2")),
            ("a.b.7", None),
            ("a.b", None),
            ("n", None),
            ("", None),
        ] {
            let found = read(&options(Some(field)), &body);
            let wanted = url
                .map(|url| Created::Connect { url: Some(url.to_owned()), parameters: Vec::new() });
            assert_eq!(found.ok(), wanted, "{field}");
        }
        // a vendor's answer decides nothing else
        let body = json!({"url": "wss://ai.test/", "reject": true, "parameters": {"a": "b"}});
        let found = read(&options(Some("url")), &body);
        assert!(matches!(found, Ok(Created::Connect { parameters, .. }) if parameters.is_empty()));
    }

    #[test]
    fn our_own_form_may_refuse_and_transfer() {
        let connect = |url: Option<&str>, parameters: &[(&str, &str)]| Created::Connect {
            url: url.map(str::to_owned),
            parameters: parameters.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        };
        for (body, expected) in [
            (json!({}), connect(None, &[])),
            (json!({"url": "wss://ai.test/"}), connect(Some("wss://ai.test/"), &[])),
            (
                json!({"parameters": {"a": "b", "n": 5, "t": true, "o": {}, "e": ""}}),
                connect(None, &[("a", "b"), ("n", "5"), ("t", "true")]),
            ),
            (json!({"reject": true}), Created::Reject(Cause::Rejected)),
            (json!({"reject": "busy", "url": "x"}), Created::Reject(Cause::Busy)),
            (json!({"reject": false, "transfer": null}), connect(None, &[])),
            (json!({"transfer": "humans"}), Created::Transfer("humans".to_owned())),
        ] {
            assert_eq!(own(&body), Ok(expected), "{body}");
        }
        for bad in [
            json!([]),
            json!({"reject": "never"}),
            json!({"reject": 5}),
            json!({"transfer": ""}),
            json!({"url": 5}),
            json!({"url": "wss://evil.test"}),
            json!({"parameters": []}),
        ] {
            assert!(own(&bad).is_err(), "{bad}");
        }
        let long = own(&json!({"parameters": {"a": "é".repeat(600)}}));
        let Ok(Created::Connect { parameters, .. }) = long else { panic!("{long:?}") };
        assert_eq!(parameters[0].1.chars().count(), MAX_TEXT);
    }
}
