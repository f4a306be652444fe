//! The checks of every request to the control API: Host, Origin, token, the token's scope, and the
//! size. There is no CORS, so that no web page of another site can read a response. Owns the clock.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::watch;
use tracing::warn;

use crate::control::Control;
use crate::control::connections::Lasting;
use crate::control::masks;
use crate::control::problem::{self, Problem};
use crate::control::tokens::{self, Access, Scope, Token};
use crate::telemetry::CONTROL_REFUSED;

/// Maximum size of a body: the most variables, or the longest TwiML document, with escapes.
const MAX_BODY: usize = 1 << 20;
/// The log shows this many characters of a text that a client chose.
const MAX_SHOWN: usize = 256;

/// The token of a request that was let through.
#[derive(Clone)]
pub struct Granted {
    token: Arc<Token>,
    control: Control,
}

impl Granted {
    /// The token's name.
    pub fn name(&self) -> &str {
        &self.token.name
    }

    /// The token's text, to sign what its owner asks for.
    pub fn secret(&self) -> SecretString {
        self.token.secret.clone()
    }

    /// True if the present configuration has the token, with this scope.
    fn is_valid(&self, access: &Access, scope: Scope) -> bool {
        let token = tokens::find(&access.tokens, self.token.secret.expose_secret());
        let is_on = scope != Scope::Listen || access.listen_in;
        is_on && token.is_some_and(|token| token.allows(scope))
    }

    /// The same value, with its phone numbers hidden unless the token may see them.
    pub fn shown(&self, mut value: Value) -> Value {
        if !self.allows(Scope::Numbers) {
            masks::mask(&mut value);
        }
        value
    }

    pub fn allows(&self, scope: Scope) -> bool {
        self.token.allows(scope)
    }

    /// Names of the token's scopes.
    pub fn scopes(&self) -> Vec<&'static str> {
        self.token.scopes.iter().map(|scope| scope.name()).collect()
    }

    /// # Errors
    /// Returns 403 if the token does not have the scope.
    pub fn require(&self, scope: Scope) -> Result<(), Problem> {
        if self.token.allows(scope) {
            return Ok(());
        }
        let word = scope.name();
        let why = format!("the token \"{}\" does not have the scope {word}", self.name());
        self.control.note_refused(None, &why);
        Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", why))
    }
}

/// Lets a request through, or refuses it.
pub async fn guard(
    State(control): State<Control>,
    Extension(lasting): Extension<Lasting>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    // Twilio's libraries expect their own form of an error
    let for_twilio = path.starts_with("/2010-04-01/");
    let admitted = async {
        let granted = admit(&control, request.headers()).inspect_err(|(_, why)| {
            control.note_refused(Some(&path), why);
        });
        let granted = granted.map_err(|(problem, _)| problem)?;
        lasting.admit();
        let (mut parts, body) = request.into_parts();
        let body = read(body).await.inspect_err(|problem| {
            control.note_refused(Some(&path), &problem.message);
        })?;
        parts.extensions.insert(granted);
        Ok::<_, Problem>(Request::from_parts(parts, Body::from(body)))
    };
    match admitted.await {
        Ok(request) => problem::explain(next.run(request).await, for_twilio),
        Err(problem) if for_twilio => problem.for_twilio().into_response(),
        Err(problem) => problem.into_response(),
    }
}

impl Control {
    /// Counts a request that is refused, and logs it.
    pub fn note_refused(&self, path: Option<&str>, why: &str) {
        CONTROL_REFUSED.add(1);
        if self.refusal_log().admits(std::time::Instant::now()) {
            warn!(path = path.map(clip), "control request refused: {why}");
        }
    }
}

/// The start of a text, for the log.
pub fn clip(text: &str) -> &str {
    text.char_indices().nth(MAX_SHOWN).map_or(text, |(end, _)| &text[..end])
}

/// Reads a body. One that is too long is read to its end, so that the client reads the response.
async fn read(body: Body) -> Result<Bytes, Problem> {
    let (mut body, mut all, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(part) = body.next().await {
        let broken = |_| Problem::new(StatusCode::BAD_REQUEST, "invalid", "the body is incomplete");
        let part = part.map_err(broken)?;
        length += part.len();
        if length <= MAX_BODY {
            all.extend_from_slice(&part);
        }
    }
    if length > MAX_BODY {
        let why = format!("the body is longer than {MAX_BODY} bytes");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", why));
    }
    Ok(all.into())
}

/// Returns once a reload took this scope from the token. For responses that last.
pub async fn revoked(access: &mut watch::Receiver<Access>, granted: &Granted, scope: Scope) {
    if access.wait_for(|access| !granted.is_valid(access, scope)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Lets a request for the page's files through, which needs no token, unless its Host is foreign.
pub async fn guard_page(State(control): State<Control>, request: Request, next: Next) -> Response {
    let checked = check_host(&control.access.borrow(), request.headers()).map(drop);
    match checked {
        Ok(()) => next.run(request).await,
        Err((problem, why)) => {
            control.note_refused(Some(request.uri().path()), why);
            problem.into_response()
        }
    }
}

/// Returns the Host of a request.
fn check_host<'a>(
    access: &Access,
    headers: &'a HeaderMap,
) -> Result<&'a str, (Problem, &'static str)> {
    if access.tokens.is_empty() {
        let why = "the control API is not served: the configuration has no token";
        return Err((Problem::new(StatusCode::NOT_FOUND, "not_found", why), why));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_allowed(host, &access.hosts) {
        let why = format!("the Host \"{host}\" is not allowed; add it to [control] hosts");
        return Err((Problem::new(StatusCode::FORBIDDEN, "host", why), "its Host is not allowed"));
    }
    Ok(host)
}

fn admit(control: &Control, headers: &HeaderMap) -> Result<Granted, (Problem, &'static str)> {
    let access = control.access.borrow();
    let host = check_host(&access, headers)?;
    if let Some(origin) = headers.get(header::ORIGIN)
        && !is_own(origin.to_str().unwrap_or_default(), host, &access.hosts)
    {
        let why = "web pages of other sites may not use the control API";
        return Err((Problem::new(StatusCode::FORBIDDEN, "origin", why), "its Origin is foreign"));
    }
    let unauthorized = |why: &'static str| {
        let text = format!("{why}; send Authorization: Bearer TOKEN");
        (Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", text), why)
    };
    let text = credentials(headers).ok_or_else(|| unauthorized("no token was sent"))?;
    let token = tokens::find(&access.tokens, &text);
    let token = token.ok_or_else(|| unauthorized("the token is not known"))?;
    Ok(Granted { token: Arc::new(token.clone()), control: control.clone() })
}

/// Returns the token, or the password of Basic authentication, as Twilio's libraries send it.
fn credentials(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.trim().to_owned()),
        "basic" => {
            let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
            pair.split_once(':').map(|(_, password)| password.to_owned())
        }
        _ => None,
    }
}

/// True for an address, for `localhost` and for a configured name. Other names may be those of an
/// attacker's page, which resolve to this host (DNS rebinding).
fn is_allowed(host: &str, names: &[String]) -> bool {
    let name = name_of(host);
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || is_known(name, names)
}

/// True if the page that sends the request is from the same host and port, or from a configured
/// name.
fn is_own(origin: &str, host: &str, names: &[String]) -> bool {
    let Some((_, authority)) = origin.split_once("://") else { return false };
    authority.eq_ignore_ascii_case(host) || is_known(name_of(authority), names)
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn is_known(name: &str, names: &[String]) -> bool {
    names.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_known_names_are_hosts() {
        let names = ["pbx.example.com".to_owned()];
        for good in ["127.0.0.1:8072", "[::1]:8072", "localhost", "10.0.0.7", "PBX.example.com:80"]
        {
            assert!(is_allowed(good, &names), "{good}");
        }
        for bad in ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            assert!(!is_allowed(bad, &names), "{bad}");
        }
    }

    #[test]
    fn only_pages_of_the_same_host_are_let_in() {
        let names = ["pbx.example.com".to_owned()];
        let is_own = |origin| is_own(origin, "127.0.0.1:8072", &names);
        for good in
            ["http://127.0.0.1:8072", "https://pbx.example.com", "https://PBX.example.com:1"]
        {
            assert!(is_own(good), "{good}");
        }
        for bad in
            ["", "null", "http://127.0.0.1:80", "http://localhost:8072", "https://evil.example"]
        {
            assert!(!is_own(bad), "{bad}");
        }
    }

    #[test]
    fn texts_in_the_log_are_bounded() {
        assert_eq!(clip(&"ä".repeat(300)), "ä".repeat(256));
        assert_eq!(clip("/v1"), "/v1");
    }

    #[test]
    fn credentials_of_both_schemes() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            credentials(&headers)
        };
        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc ").as_deref(), Some("abc"));
        // user:pass:word
        assert_eq!(of("Basic dXNlcjpwYXNzOndvcmQ=").as_deref(), Some("pass:word"));
        for bad in ["abc", "Basic !", "Basic dXNlcg==", "Digest x"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
