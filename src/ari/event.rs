//! Events from the ARI WebSocket, and the channels and bridges in ARI's lists.
//!
//! Formats: Asterisk's `rest-api/api-docs/{events,channels,bridges}.json`, versions 16 to 22.
//! Unknown types and fields are ignored; missing fields get defaults.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use serde::Deserialize;

/// An event from the PBX. Channels and bridges are given by their ids.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    StasisStart {
        channel: Box<Channel>,
        args: Vec<String>,
    },
    StasisEnd {
        channel: String,
    },
    HangupRequest {
        channel: String,
        /// The Q.850 cause; 0 if the PBX gives none.
        cause: u16,
    },
    Destroyed {
        channel: String,
        /// The Q.850 cause; 0 if the PBX gives none.
        cause: u16,
    },
    Digit {
        channel: String,
        digit: char,
    },
    Hold {
        channel: String,
        on: bool,
    },
    BridgeDestroyed {
        bridge: String,
    },
    /// The state of a call to a channel; empty when the call begins.
    Dial {
        channel: String,
        status: String,
    },
    /// Another client took over our application: no more events follow on this socket.
    Replaced,
    /// An event to ignore.
    Other,
}

/// The event types that we handle. An event filter on the PBX suppresses the others.
pub const WANTED: [&str; 10] = [
    "StasisStart",
    "StasisEnd",
    "ChannelHangupRequest",
    "ChannelDestroyed",
    "ChannelDtmfReceived",
    "ChannelHold",
    "ChannelUnhold",
    "BridgeDestroyed",
    "Dial",
    "ApplicationReplaced",
];

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Party {
    pub name: String,
    pub number: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Dialplan {
    pub context: String,
    pub exten: String,
    pub app_name: String,
    pub app_data: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Channel {
    pub id: String,
    /// For example `PJSIP/carrier-0000000a`.
    pub name: String,
    pub state: String,
    /// The SIP Call-ID of a SIP channel.
    pub protocol_id: String,
    pub caller: Party,
    pub connected: Party,
    pub dialplan: Dialplan,
    /// The variables listed in `channelvars` of ari.conf, and UNICASTRTP_LOCAL_… of an external
    /// media channel.
    pub channelvars: BTreeMap<String, String>,
}

impl Channel {
    pub fn is_up(&self) -> bool {
        self.state == "Up"
    }

    /// True if the dialplan has joined the channel with the one of this id.
    pub fn is_joined_with(&self, id: &str) -> bool {
        let dialplan = &self.dialplan;
        dialplan.app_name == "Bridge" && dialplan.app_data.split(',').next() == Some(id)
    }

    /// True while the channel is in this Stasis application.
    pub fn is_in(&self, app: &str) -> bool {
        let dialplan = &self.dialplan;
        let name = dialplan.app_data.split(',').next().unwrap_or_default();
        // the argument as written in the dialplan, possibly quoted
        dialplan.app_name == "Stasis" && name.trim_matches(['"', ' ']) == app
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Bridge {
    pub id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    r#type: String,
    application: String,
    channel: Channel,
    bridge: Bridge,
    args: Vec<String>,
    digit: String,
    cause: serde_json::Value,
    peer: Channel,
    dialstatus: String,
}

/// Parses one WebSocket message for the application `app`.
///
/// # Errors
/// Returns an error if it is not a JSON object or a known field has the wrong type.
pub fn parse(text: &str, app: &str) -> Result<Event, serde_json::Error> {
    // events of unknown types may contain anything: look at the type first
    #[derive(Deserialize)]
    struct Type {
        r#type: String,
    }
    let kind: Type = serde_json::from_str(text)?;
    if !WANTED.contains(&kind.r#type.as_str()) {
        return Ok(Event::Other);
    }
    let raw: Raw = serde_json::from_str(text)?;
    if !raw.application.is_empty() && raw.application != app {
        return Ok(Event::Other);
    }
    let channel = raw.channel;
    // an event about a channel that it does not name
    let about_channel = raw.r#type.starts_with("Channel") || raw.r#type.starts_with("Stasis");
    if about_channel && channel.id.is_empty() {
        return Ok(Event::Other);
    }
    let cause = raw.cause.as_u64().and_then(|cause| u16::try_from(cause).ok()).unwrap_or(0);
    Ok(match raw.r#type.as_str() {
        "StasisStart" => Event::StasisStart { channel: Box::new(channel), args: raw.args },
        "StasisEnd" => Event::StasisEnd { channel: channel.id },
        "ChannelHangupRequest" => Event::HangupRequest { channel: channel.id, cause },
        "ChannelDestroyed" => Event::Destroyed { channel: channel.id, cause },
        "ChannelDtmfReceived" => match raw.digit.chars().next() {
            Some(digit) => Event::Digit { channel: channel.id, digit },
            None => Event::Other,
        },
        "ChannelHold" => Event::Hold { channel: channel.id, on: true },
        "ChannelUnhold" => Event::Hold { channel: channel.id, on: false },
        "Dial" => Event::Dial { channel: raw.peer.id, status: raw.dialstatus },
        "BridgeDestroyed" => Event::BridgeDestroyed { bridge: raw.bridge.id },
        "ApplicationReplaced" => Event::Replaced,
        _ => Event::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_enters_the_application() {
        // sent by Asterisk 16.28
        let text = r#"{"type":"StasisStart","args":["a","k=v"],
            "channel":{"id":"1795445732.12","name":"PJSIP/carrier-0000000a","state":"Ring",
            "protocol_id":"3b3d@lab","caller":{"name":"","number":"carrier"},
            "connected":{"name":"","number":""},"dialplan":{"context":"from-carrier",
            "exten":"801","priority":2,"app_name":"Stasis","app_data":"aibridge,a,k=v"},
            "creationtime":"2026-11-23T14:55:32.678+0000","language":"en"},
            "asterisk_id":"02:00:7f:00:00:02","application":"aibridge"}"#;
        let Ok(Event::StasisStart { channel, args }) = parse(text, "aibridge") else {
            panic!("not parsed");
        };
        assert_eq!(args, ["a", "k=v"]);
        assert!(!channel.is_up() && channel.is_in("aibridge") && !channel.is_in("ai"));
        assert_eq!((&*channel.protocol_id, &*channel.dialplan.exten), ("3b3d@lab", "801"));
        assert_eq!(parse(text, "other").ok(), Some(Event::Other));
    }

    #[test]
    fn unknown_missing_and_malformed_fields() {
        let other = Some(Event::Other);
        assert_eq!(parse(r#"{"type":"New","channel":7,"x":[[]]}"#, "a").ok(), other);
        assert_eq!(parse(r#"{"type":"StasisEnd"}"#, "a").ok(), other);
        assert_eq!(
            parse(r#"{"type":"ChannelDtmfReceived","channel":{"id":"1"}}"#, "a").ok(),
            other
        );
        let deep = format!("{}{}", "[".repeat(9000), "]".repeat(9000));
        let _ = parse(&format!(r#"{{"type":"New","x":{deep}}}"#), "a");
        let _ = parse(&format!(r#"{{"type":"StasisEnd","channel":{{"id":{deep}}}}}"#), "a");
        let end = parse(r#"{"type":"StasisEnd","channel":{"id":"1","more":{}}}"#, "a").ok();
        assert_eq!(end, Some(Event::StasisEnd { channel: "1".into() }));
        for (text, cause) in [(r#","cause":44"#, 44), (r#","cause":"x""#, 0), ("", 0)] {
            let text = format!(r#"{{"type":"ChannelHangupRequest","channel":{{"id":"1"}}{text}}}"#);
            let request = Event::HangupRequest { channel: "1".into(), cause };
            assert_eq!(parse(&text, "a").ok(), Some(request));
        }
        for bad in ["", "[]", "{}", r#"{"type":"StasisEnd","channel":7}"#] {
            assert!(parse(bad, "a").is_err(), "{}", &bad[..bad.len().min(40)]);
        }
    }
}
