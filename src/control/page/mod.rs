//! The page for people: its files, which are part of the program. Anyone may read them, because
//! they contain nothing: the page asks for a token and then uses the control API.
//!
//! The Content-Security-Policy allows scripts and styles from these files only, and no scripts that
//! are made of text, so that a caller's name can never become one.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use crate::control::Control;
use crate::control::problem::Problem;

/// The files, with their types.
const FILES: &[(&str, &str, &str)] = &[
    ("index.html", HTML, include_str!("files/index.html")),
    ("style.css", "text/css; charset=utf-8", include_str!("files/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("files/icon.svg")),
    ("main.js", SCRIPT, include_str!("files/main.js")),
    ("api.js", SCRIPT, include_str!("files/api.js")),
    ("audio.js", SCRIPT, include_str!("files/audio.js")),
    ("detail.js", SCRIPT, include_str!("files/detail.js")),
    ("dom.js", SCRIPT, include_str!("files/dom.js")),
    ("ended.js", SCRIPT, include_str!("files/ended.js")),
    ("format.js", SCRIPT, include_str!("files/format.js")),
    ("health.js", SCRIPT, include_str!("files/health.js")),
    ("live.js", SCRIPT, include_str!("files/live.js")),
    ("player.js", SCRIPT, include_str!("files/player.js")),
];
const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'";

pub fn routes() -> Router<Control> {
    Router::new().route("/", get(index)).route("/page/{file}", get(file))
}

async fn index(headers: HeaderMap) -> Response {
    serve("index.html", &headers)
}

async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    serve(&name, &headers)
}

fn serve(name: &str, headers: &HeaderMap) -> Response {
    let Some((_, kind, text)) = FILES.iter().find(|(known, ..)| *known == name) else {
        let why = "the page has no such file";
        return Problem::new(StatusCode::NOT_FOUND, "not_found", why).into_response();
    };
    let hash: String = Sha256::digest(text)[..12].iter().map(|b| format!("{b:02x}")).collect();
    let tag = format!("\"{hash}\"");
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // each load asks whether the file is still the same, as after an update
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == tag.as_str());
    let tag = [(header::ETAG, tag)];
    match known {
        true => (StatusCode::NOT_MODIFIED, fixed, tag).into_response(),
        false => (fixed, tag, [(header::CONTENT_TYPE, *kind)], *text).into_response(),
    }
}
