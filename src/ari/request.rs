//! Our REST requests: encoding them and parsing their responses.
//!
//! Paths and parameters: Asterisk's `rest-api/api-docs`, `applications.json`, `asterisk.json`,
//! `bridges.json` and `channels.json`.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use crate::ari::event::{Bridge, Channel, WANTED};

/// The ordinary reason of a hang-up.
pub const NORMAL: &str = "normal";

#[derive(Debug, Clone, PartialEq)]
pub enum RestRequest {
    /// `host`: our address, to which its RTP is sent.
    ExternalMedia {
        id: String,
        app: String,
        host: SocketAddr,
        format: &'static str,
    },
    CreateBridge {
        id: String,
    },
    AddChannel {
        bridge: String,
        channel: String,
    },
    Answer {
        channel: String,
    },
    Ring {
        channel: String,
    },
    SetVariable {
        channel: String,
        name: String,
        value: String,
    },
    /// Reads a channel variable; `name` may be a dialplan function.
    Variable {
        channel: String,
        name: String,
    },
    /// Continues in the dialplan, after `Stasis()` or at a context, extension and priority.
    Continue {
        channel: String,
        to: Option<(String, String, u32)>,
    },
    RemoveChannel {
        bridge: String,
        channel: String,
    },
    /// Calls an endpoint into our application.
    Originate {
        id: String,
        /// The id of the Local channel's other half. Asterisk's own choice would be `id` followed
        /// by `;2`, and `Bridge()` accepts any channel whose id begins with its argument.
        other_id: String,
        app: String,
        endpoint: String,
        timeout_s: u64,
        /// The caller's channel; `None` if we place the call.
        originator: Option<String>,
        /// The number that the callee is to see.
        caller_id: Option<String>,
        /// The format of the audio; by default that of the originator.
        format: Option<&'static str>,
    },
    /// `reason`: one of ARI's words, such as `normal` or `busy`.
    HangUp {
        channel: String,
        reason: &'static str,
    },
    /// Starts or stops music on hold for one channel.
    Music {
        channel: String,
        on: bool,
    },
    /// Presses keys towards a channel; `w` is a pause.
    Digits {
        channel: String,
        digits: String,
    },
    DeleteBridge {
        id: String,
    },
    /// Reads one channel.
    Channel {
        channel: String,
    },
    Channels,
    Bridges,
    /// Lists the applications that have an events socket.
    Applications,
    /// Plays to one channel; `media` is such as `tone:dial`.
    Play {
        channel: String,
        media: String,
    },
    /// Reads the identity of the PBX and the time when it started.
    Info,
    EventFilter {
        app: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Put,
    Delete,
}

/// The HTTP form of a request, relative to the PBX's `/ari`.
#[derive(Debug, Clone, PartialEq)]
pub struct Wire {
    pub method: Method,
    pub path: String,
    pub query: Vec<(&'static str, String)>,
    pub body: Option<String>,
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Answered {
        status: u16,
        body: String,
    },
    /// No connection, with the cause: the PBX did nothing.
    Unreachable(String),
    /// No response: the PBX may have done it.
    Unknown,
}

impl Outcome {
    pub fn is_success(&self) -> bool {
        matches!(self, Outcome::Answered { status: 200..=299, .. })
    }

    /// True if the PBX certainly did not do it. After an error of the server or of a proxy, it may
    /// have.
    pub fn is_undone(&self) -> bool {
        matches!(self, Outcome::Unreachable(_) | Outcome::Answered { status: 300..=499, .. })
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Answered { status, .. } => Some(*status),
            _ => None,
        }
    }

    fn body(&self) -> &str {
        match self {
            Outcome::Answered { body, .. } => body,
            _ => "",
        }
    }

    /// The result as text for the log.
    pub fn text(&self) -> String {
        match self {
            Outcome::Answered { status, body } => {
                #[derive(Deserialize)]
                struct Error {
                    message: String,
                }
                let error: Option<Error> = serde_json::from_str(body).ok();
                let message = error.map_or(String::new(), |e| format!(" {:.120}", e.message));
                format!("answered {status}{message}")
            }
            Outcome::Unreachable(why) => format!("no connection: {why}"),
            Outcome::Unknown => "no answer".to_owned(),
        }
    }

    /// The response to [`RestRequest::Channel`].
    pub fn channel(&self) -> Option<Channel> {
        self.is_success().then(|| serde_json::from_str(self.body()).ok())?
    }

    /// The response to [`RestRequest::Channels`].
    pub fn channels(&self) -> Option<Vec<Channel>> {
        self.is_success().then(|| serde_json::from_str(self.body()).ok())?
    }

    /// The response to [`RestRequest::Bridges`].
    pub fn bridges(&self) -> Option<Vec<Bridge>> {
        self.is_success().then(|| serde_json::from_str(self.body()).ok())?
    }

    /// The response to [`RestRequest::Variable`].
    pub fn value(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Value {
            value: String,
        }
        let value: Value = self.is_success().then(|| serde_json::from_str(self.body()).ok())??;
        Some(value.value)
    }

    /// Identifies the PBX, from the response to [`RestRequest::Info`]. Two on one host may have the
    /// same entity id, because it is made of the network card's address. The second in which the
    /// PBX started distinguishes them; the whole time would change with the time zone.
    pub fn identity(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct System {
            entity_id: String,
        }
        #[derive(Deserialize)]
        struct Info {
            system: System,
        }
        let info: Info = self.is_success().then(|| serde_json::from_str(self.body()).ok())??;
        let id = info.system.entity_id;
        let started = self.startup_time().unwrap_or_default();
        let second = started.split(':').nth(2).and_then(|rest| rest.split(['+', '-', 'Z']).next());
        (!id.is_empty()).then(|| format!("{id} {}", second.unwrap_or_default()))
    }

    /// The response to [`RestRequest::Info`].
    pub fn startup_time(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Status {
            startup_time: String,
        }
        #[derive(Deserialize)]
        struct Info {
            status: Status,
        }
        let info: Info = self.is_success().then(|| serde_json::from_str(self.body()).ok())??;
        Some(info.status.startup_time)
    }

    /// The PBX's RTP address in the response to [`RestRequest::ExternalMedia`]. If it is
    /// unspecified (0.0.0.0), `pbx` is used instead.
    pub fn media_address(&self, pbx: IpAddr) -> Option<SocketAddr> {
        let channel: Channel =
            self.is_success().then(|| serde_json::from_str(self.body()).ok())??;
        let var = |name: &str| channel.channelvars.get(name);
        let port: u16 = var("UNICASTRTP_LOCAL_PORT")?.parse().ok().filter(|p| *p != 0)?;
        let ip = var("UNICASTRTP_LOCAL_ADDRESS").and_then(|ip| ip.parse::<IpAddr>().ok());
        Some(SocketAddr::new(ip.filter(|ip| !ip.is_unspecified()).unwrap_or(pbx), port))
    }
}

impl RestRequest {
    /// The kind of request, for the log.
    pub fn name(&self) -> &'static str {
        match self {
            RestRequest::ExternalMedia { .. } => "externalMedia",
            RestRequest::CreateBridge { .. } => "create bridge",
            RestRequest::AddChannel { .. } => "addChannel",
            RestRequest::Answer { .. } => "answer",
            RestRequest::Ring { .. } => "ring",
            RestRequest::SetVariable { .. } => "set variable",
            RestRequest::Variable { .. } => "variable",
            RestRequest::Continue { .. } => "continue",
            RestRequest::RemoveChannel { .. } => "removeChannel",
            RestRequest::Originate { .. } => "originate",
            RestRequest::HangUp { .. } => "hang up",
            RestRequest::Music { .. } => "music on hold",
            RestRequest::Digits { .. } => "dtmf",
            RestRequest::DeleteBridge { .. } => "delete bridge",
            RestRequest::Channel { .. } => "channel",
            RestRequest::Channels => "list channels",
            RestRequest::Bridges => "list bridges",
            RestRequest::Applications => "list applications",
            RestRequest::Play { .. } => "play",
            RestRequest::Info => "info",
            RestRequest::EventFilter { .. } => "event filter",
        }
    }

    /// True for requests that tear down a call. They do not queue behind requests that set up new
    /// ones.
    pub fn releases(&self) -> bool {
        matches!(
            self,
            RestRequest::Channel { .. }
                | RestRequest::SetVariable { .. }
                | RestRequest::Continue { .. }
                | RestRequest::HangUp { .. }
                | RestRequest::DeleteBridge { .. }
        )
    }

    pub fn wire(&self) -> Wire {
        let of = |kind: &str, id: &str, verb: &str| format!("/{kind}/{}{verb}", encoded(id));
        let channel = |id: &str, verb: &str| of("channels", id, verb);
        let (method, path) = match self {
            RestRequest::ExternalMedia { .. } => {
                (Method::Post, "/channels/externalMedia".to_owned())
            }
            RestRequest::CreateBridge { .. } => (Method::Post, "/bridges".to_owned()),
            RestRequest::AddChannel { bridge, .. } => {
                (Method::Post, of("bridges", bridge, "/addChannel"))
            }
            RestRequest::Answer { channel: id } => (Method::Post, channel(id, "/answer")),
            RestRequest::Ring { channel: id } => (Method::Post, channel(id, "/ring")),
            RestRequest::SetVariable { channel: id, .. } => {
                (Method::Post, channel(id, "/variable"))
            }
            RestRequest::Variable { channel: id, .. } => (Method::Get, channel(id, "/variable")),
            RestRequest::Continue { channel: id, .. } => (Method::Post, channel(id, "/continue")),
            RestRequest::RemoveChannel { bridge, .. } => {
                (Method::Post, of("bridges", bridge, "/removeChannel"))
            }
            RestRequest::Originate { .. } => (Method::Post, "/channels".to_owned()),
            RestRequest::HangUp { channel: id, .. } => (Method::Delete, channel(id, "")),
            RestRequest::Music { channel: id, on: true } => (Method::Post, channel(id, "/moh")),
            RestRequest::Music { channel: id, on: false } => (Method::Delete, channel(id, "/moh")),
            RestRequest::Digits { channel: id, .. } => (Method::Post, channel(id, "/dtmf")),
            RestRequest::DeleteBridge { id } => (Method::Delete, of("bridges", id, "")),
            RestRequest::Channel { channel: id } => (Method::Get, channel(id, "")),
            RestRequest::Channels => (Method::Get, "/channels".to_owned()),
            RestRequest::Bridges => (Method::Get, "/bridges".to_owned()),
            RestRequest::Applications => (Method::Get, "/applications".to_owned()),
            RestRequest::Play { channel: id, .. } => (Method::Post, channel(id, "/play")),
            RestRequest::Info => (Method::Get, "/asterisk/info".to_owned()),
            RestRequest::EventFilter { app } => {
                (Method::Put, of("applications", app, "/eventFilter"))
            }
        };
        let body = matches!(self, RestRequest::EventFilter { .. }).then(event_filter);
        Wire { method, path, query: self.query(), body }
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        match self {
            RestRequest::ExternalMedia { id, app, host, format } => vec![
                ("channelId", id.clone()),
                ("app", app.clone()),
                ("external_host", host.to_string()),
                ("format", (*format).to_owned()),
            ],
            RestRequest::CreateBridge { id } => {
                vec![("type", "mixing".to_owned()), ("bridgeId", id.clone())]
            }
            RestRequest::AddChannel { channel, .. }
            | RestRequest::RemoveChannel { channel, .. } => vec![("channel", channel.clone())],
            RestRequest::SetVariable { name, value, .. } => {
                vec![("variable", name.clone()), ("value", value.clone())]
            }
            RestRequest::Variable { name, .. } => vec![("variable", name.clone())],
            RestRequest::Continue { to: Some((context, extension, priority)), .. } => vec![
                ("context", context.clone()),
                ("extension", extension.clone()),
                ("priority", priority.to_string()),
            ],
            RestRequest::Originate {
                id,
                other_id,
                app,
                endpoint,
                timeout_s,
                originator,
                caller_id,
                format,
            } => {
                let purpose = if originator.is_some() { "transfer" } else { "outgoing" };
                let query = vec![
                    ("endpoint", endpoint.clone()),
                    ("app", app.clone()),
                    ("appArgs", purpose.to_owned()),
                    ("channelId", id.clone()),
                    ("otherChannelId", other_id.clone()),
                    ("timeout", timeout_s.to_string()),
                ];
                let originator = originator.iter().map(|id| ("originator", id.clone()));
                let caller_id = caller_id.iter().map(|id| ("callerId", id.clone()));
                let format = format.iter().map(|name| ("formats", (*name).to_owned()));
                query.into_iter().chain(originator).chain(caller_id).chain(format).collect()
            }
            RestRequest::HangUp { reason, .. } => vec![("reason", (*reason).to_owned())],
            RestRequest::Digits { digits, .. } => vec![("dtmf", digits.clone())],
            RestRequest::Play { media, .. } => vec![("media", media.clone())],
            RestRequest::Info => vec![("only", "system,status".to_owned())],
            _ => Vec::new(),
        }
    }
}

fn event_filter() -> String {
    let allowed: Vec<_> = WANTED.iter().map(|t| serde_json::json!({ "type": t })).collect();
    serde_json::json!({ "allowed": allowed }).to_string()
}

/// Encodes an id as a path segment (RFC 3986 §3.3): all but unreserved characters are escaped.
pub fn encoded(id: &str) -> String {
    let mut out = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char);
            }
            // writing to a string cannot fail
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(body: &str) -> Outcome {
        Outcome::Answered { status: 200, body: body.to_owned() }
    }

    #[test]
    fn wire_format() {
        let media = RestRequest::ExternalMedia {
            id: "trunkless-a-m-1".into(),
            app: "a".into(),
            host: "[2001:db8::1]:4000".parse().unwrap(),
            format: "ulaw",
        };
        let wire = media.wire();
        assert_eq!((wire.method, wire.path.as_str()), (Method::Post, "/channels/externalMedia"));
        assert!(wire.query.contains(&("external_host", "[2001:db8::1]:4000".to_owned())));
        let originate = RestRequest::Originate {
            id: "trunkless-a-t-1".into(),
            other_id: "trunkless-a-o-1".into(),
            app: "a".into(),
            endpoint: "Local/600@services".into(),
            timeout_s: 20,
            originator: Some("1.1".into()),
            caller_id: None,
            format: None,
        };
        let query = originate.wire().query;
        assert!(query.contains(&("channelId", "trunkless-a-t-1".to_owned())));
        assert!(query.contains(&("otherChannelId", "trunkless-a-o-1".to_owned())));
        let odd = RestRequest::Answer { channel: "a/../b?c%".into() };
        assert_eq!(odd.wire().path, "/channels/a%2F..%2Fb%3Fc%25/answer");
        assert!(
            RestRequest::EventFilter { app: "a".into() }.wire().body.unwrap().contains("StasisEnd")
        );
    }

    #[test]
    fn media_address_of_the_pbx() {
        let pbx: IpAddr = "192.0.2.9".parse().unwrap();
        let of = |ip: &str, port: &str| {
            ok(&format!(
                r#"{{"id":"m","channelvars":{{"UNICASTRTP_LOCAL_PORT":"{port}","UNICASTRTP_LOCAL_ADDRESS":"{ip}"}}}}"#
            ))
            .media_address(pbx)
        };
        assert_eq!(of("127.0.0.1", "16058"), Some("127.0.0.1:16058".parse().unwrap()));
        assert_eq!(of("0.0.0.0", "16058"), Some("192.0.2.9:16058".parse().unwrap()));
        assert_eq!(of("::1", "16058"), Some("[::1]:16058".parse().unwrap()));
        for port in ["0", "99999", "x", ""] {
            assert_eq!(of("127.0.0.1", port), None, "{port}");
        }
        assert_eq!(ok("{}").media_address(pbx), None);
        assert_eq!(Outcome::Unknown.media_address(pbx), None);
    }

    #[test]
    fn responses_are_parsed() {
        let info = r#"{"status":{"startup_time":"2026-11-23T14:55:32.678+0000"}}"#;
        assert_eq!(ok(info).startup_time().as_deref(), Some("2026-11-23T14:55:32.678+0000"));
        assert_eq!(ok(info).identity(), None);
        let at = |time| {
            let system = r#""system":{"version":"22","entity_id":"02:42:ac:11:00:02"}"#;
            ok(&format!("{{{system},\"status\":{{\"startup_time\":\"{time}\"}}}}")).identity()
        };
        let same = Some("02:42:ac:11:00:02 32.678".to_owned());
        assert_eq!(at("2026-11-23T14:55:32.678+0000"), same);
        assert_eq!(at("2026-11-23T09:55:32.678-0500"), same, "in another time zone");
        assert_eq!(at(""), Some("02:42:ac:11:00:02 ".to_owned()));
        assert_eq!(ok(r#"{"value":"DEMO"}"#).value().as_deref(), Some("DEMO"));
        assert_eq!(ok(r#"[{"id":"b","channels":["x"]}]"#).bridges().unwrap()[0].id, "b");
        assert_eq!(ok("nonsense").channels(), None);
        let refused = Outcome::Answered { status: 404, body: r#"{"message":"gone"}"#.into() };
        assert_eq!((refused.text().as_str(), refused.channels()), ("answered 404 gone", None));
    }
}
