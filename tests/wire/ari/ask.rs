//! REST requests as the fake PBX reads them.

use std::collections::HashMap;

use crate::secrets::ARI_CANARY;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use wiremock::Request;

/// The kind of request, in the order in which a call makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Info,
    Filter,
    Channels,
    Bridges,
    Variable,
    Ring,
    Media,
    Bridge,
    AddMedia,
    Answer,
    AddCaller,
    /// Calls a callee.
    Originate,
    SetVariable,
    Continue,
    /// Checks whether the caller still exists.
    Look,
    HangUp,
    DropMedia,
    DropBridge,
    /// Opening the events socket: not REST, but a client's request too.
    Events,
}

#[derive(Debug, Clone)]
/// A request.
pub struct Ask {
    /// The user: each client of the tests uses the name of its application.
    pub user: String,
    pub verb: Verb,
    /// The channel, bridge or application in the request.
    pub id: String,
    pub query: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Ask {
    /// Parses a request; `None` if the user is not permitted or there is no such resource.
    pub fn read(request: &Request) -> Option<Ask> {
        let user = user(request.headers.get("authorization")?.to_str().ok()?)?;
        let path = request.url.path().strip_prefix("/ari/")?;
        let parts: Vec<&str> = path.split('/').collect();
        let query: HashMap<String, String> = request.url.query_pairs().into_owned().collect();
        let is_media = |id: &str| id.starts_with("trunkless-");
        let added = query.get("channel").is_some_and(|id| is_media(id) && id.contains("-m-"));
        let (verb, id) = match (request.method.as_str(), parts.as_slice()) {
            ("GET", ["asterisk", "info"]) => (Verb::Info, ""),
            ("PUT", ["applications", app, "eventFilter"]) => (Verb::Filter, *app),
            ("GET", ["channels"]) => (Verb::Channels, ""),
            ("GET", ["bridges"]) => (Verb::Bridges, ""),
            ("POST", ["channels", "externalMedia"]) => {
                (Verb::Media, query.get("channelId").map_or("", String::as_str))
            }
            ("POST", ["channels"]) => {
                (Verb::Originate, query.get("channelId").map_or("", String::as_str))
            }
            ("POST", ["bridges"]) => (Verb::Bridge, query.get("bridgeId").map_or("", |id| id)),
            ("POST", ["bridges", id, "addChannel"]) if added => (Verb::AddMedia, *id),
            ("POST", ["bridges", id, "addChannel"]) => (Verb::AddCaller, *id),
            ("GET", ["channels", id]) => (Verb::Look, *id),
            ("GET", ["channels", id, "variable"]) => (Verb::Variable, *id),
            ("POST", ["channels", id, "variable"]) => (Verb::SetVariable, *id),
            ("POST", ["channels", id, "ring"]) => (Verb::Ring, *id),
            ("POST", ["channels", id, "answer"]) => (Verb::Answer, *id),
            ("POST", ["channels", id, "continue"]) => (Verb::Continue, *id),
            ("DELETE", ["channels", id]) if is_media(id) => (Verb::DropMedia, *id),
            ("DELETE", ["channels", id]) => (Verb::HangUp, *id),
            ("DELETE", ["bridges", id]) => (Verb::DropBridge, *id),
            _ => return None,
        };
        let id = id.to_owned();
        Some(Ask { user, verb, id, query, body: request.body.clone() })
    }

    pub fn get(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// True if the request concerns something that belongs to its user: an object with one of the
    /// application's ids, or a caller in the application, which the tests name APP.NUMBER.
    pub fn is_about_own(&self) -> bool {
        let caller = self.id.rsplit_once('.').is_some_and(|(app, _)| app == self.user);
        let object = is_object_of(&self.user, &self.id);
        object || caller || self.id == self.user || self.id.is_empty()
    }
}

/// True if a channel or bridge id is one that the bridge would make for this application.
pub fn is_object_of(app: &str, id: &str) -> bool {
    let Some(rest) = id.strip_prefix(&format!("trunkless-{app}-")) else { return false };
    let parts: Vec<&str> = rest.split('-').collect();
    let ["m" | "b" | "c", seconds, hex, ref again @ ..] = parts[..] else { return false };
    let number = seconds.bytes().all(|b| b.is_ascii_digit());
    number && hex.len() == 10 && matches!(again, [] | ["again"])
}

/// The user in an Authorization field; `None` unless the password is one of the tests'.
pub fn user(authorization: &str) -> Option<String> {
    let plain = BASE64.decode(authorization.strip_prefix("Basic ")?).ok()?;
    let plain = String::from_utf8(plain).ok()?;
    let (user, password) = plain.split_once(':')?;
    ["secret", ARI_CANARY].contains(&password).then(|| user.to_owned())
}
