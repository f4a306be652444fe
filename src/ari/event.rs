//! Events of the ARI WebSocket, and the objects that its lists hold.
//!
//! Shapes: Asterisk's `rest-api/api-docs/{events,channels,bridges}.json`, versions 16 to 22.
//! Unknown types and fields are passed over, missing ones have defaults.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use serde::Deserialize;

/// What the PBX tells us. Channels and bridges are named by their ids.
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
    },
    Destroyed {
        channel: String,
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
    /// Another client has taken our application's name: nothing follows on this socket.
    Replaced,
    Other,
}

/// The types that we want; the others are kept from the socket by an event filter.
pub const WANTED: [&str; 9] = [
    "StasisStart",
    "StasisEnd",
    "ChannelHangupRequest",
    "ChannelDestroyed",
    "ChannelDtmfReceived",
    "ChannelHold",
    "ChannelUnhold",
    "BridgeDestroyed",
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
    /// `PJSIP/carrier-0000000a`.
    pub name: String,
    pub state: String,
    /// The SIP Call-ID, where the channel is a SIP one.
    pub protocol_id: String,
    pub caller: Party,
    pub connected: Party,
    pub dialplan: Dialplan,
    /// What `channelvars` of ari.conf lists; UNICASTRTP_LOCAL_… of an external media channel.
    pub channelvars: BTreeMap<String, String>,
}

impl Channel {
    pub fn is_up(&self) -> bool {
        self.state == "Up"
    }

    /// Whether the dialplan has it in this Stasis application now.
    pub fn is_in(&self, app: &str) -> bool {
        let dialplan = &self.dialplan;
        let name = dialplan.app_data.split(',').next().unwrap_or_default();
        // as the dialplan has it, quotes included
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
}

/// Reads one message of the WebSocket for the application `app`.
///
/// # Errors
/// When it is no JSON object or a known field has another type.
pub fn parse(text: &str, app: &str) -> Result<Event, serde_json::Error> {
    // types that we do not know may hold anything
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
    // an event about nothing
    let about_channel = raw.r#type.starts_with("Channel") || raw.r#type.starts_with("Stasis");
    if about_channel && channel.id.is_empty() {
        return Ok(Event::Other);
    }
    Ok(match raw.r#type.as_str() {
        "StasisStart" => Event::StasisStart { channel: Box::new(channel), args: raw.args },
        "StasisEnd" => Event::StasisEnd { channel: channel.id },
        "ChannelHangupRequest" => Event::HangupRequest { channel: channel.id },
        "ChannelDestroyed" => Event::Destroyed { channel: channel.id },
        "ChannelDtmfReceived" => match raw.digit.chars().next() {
            Some(digit) => Event::Digit { channel: channel.id, digit },
            None => Event::Other,
        },
        "ChannelHold" => Event::Hold { channel: channel.id, on: true },
        "ChannelUnhold" => Event::Hold { channel: channel.id, on: false },
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
        // as Asterisk 16.28 has sent it
        let text = r#"{"type":"StasisStart","args":["a","k=v"],
            "channel":{"id":"1795445732.12","name":"PJSIP/carrier-0000000a","state":"Ring",
            "protocol_id":"3b3d@lab","caller":{"name":"","number":"carrier"},
            "connected":{"name":"","number":""},"dialplan":{"context":"from-carrier",
            "exten":"801","priority":2,"app_name":"Stasis","app_data":"aibridge,a,k=v"},
            "creationtime":"2026-11-23T14:55:32.678+0000","language":"en"},
            "asterisk_id":"02:00:7f:00:00:02","application":"aibridge"}"#;
        let Ok(Event::StasisStart { channel, args }) = parse(text, "aibridge") else {
            panic!("not read");
        };
        assert_eq!(args, ["a", "k=v"]);
        assert!(!channel.is_up() && channel.is_in("aibridge") && !channel.is_in("ai"));
        assert_eq!((&*channel.protocol_id, &*channel.dialplan.exten), ("3b3d@lab", "801"));
        assert_eq!(parse(text, "other").ok(), Some(Event::Other));
    }

    #[test]
    fn what_is_unknown_missing_or_odd() {
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
        for bad in ["", "[]", "{}", r#"{"type":"StasisEnd","channel":7}"#] {
            assert!(parse(bad, "a").is_err(), "{}", &bad[..bad.len().min(40)]);
        }
    }
}
