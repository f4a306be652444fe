//! The AI's side of each dialect, as far as a call needs it whose AI fails or takes over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use trunkless::media::g711;
use trunkless::peer::pattern;

use crate::media::read_linear;

/// A dialect, by the word in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voice(pub &'static str);

pub const ALL: [Voice; 11] = [
    Voice("twilio"),
    Voice("openai-realtime"),
    Voice("l16"),
    Voice("jambonz"),
    Voice("telnyx"),
    Voice("plivo"),
    Voice("exotel"),
    Voice("deepgram-agent"),
    Voice("elevenlabs"),
    Voice("gemini-live"),
    Voice("ultravox"),
];

fn text(value: &Value) -> Message {
    Message::text(value.to_string())
}

fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))
}

impl Voice {
    /// The keys of an AI at this address and path. `ca`: a file with a CA, because it takes long to
    /// read all those of the system.
    pub fn config(self, address: &str, path: &str, ca: &str) -> String {
        let Voice(name) = self;
        let url = format!("url = \"ws://{address}{path}\"");
        let more = match name {
            "ultravox" => {
                return format!(
                    "dialect = \"ultravox\"\nauth_token = \"a-key\"\nca_file = {ca:?}\n\
                     create = {{ ca_file = {ca:?}, \
                     url = \"http://{address}{path}\", url_field = \"joinUrl\", \
                     allow_hosts = [\"ws://{address}\"] }}\n"
                );
            }
            "openai-realtime" => "auth_token = \"a-key\"\nsession = { model = \"m\" }\n",
            "deepgram-agent" => "auth_token = \"a-key\"\n",
            "elevenlabs" => "auth_token = \"a-key\"\nsession = { agent_id = \"a\" }\n",
            "gemini-live" => "auth_token = \"a-key\"\nsample_rate = 8000\n",
            _ => "",
        };
        format!("dialect = \"{name}\"\n{url}\n{more}")
    }

    /// True if a session is set up on the WebSocket, before the caller is answered.
    pub fn has_session(self) -> bool {
        ["openai-realtime", "deepgram-agent", "elevenlabs", "gemini-live"].contains(&self.0)
    }

    /// True if binary messages are audio.
    pub fn is_binary(self) -> bool {
        ["l16", "jambonz", "deepgram-agent", "ultravox"].contains(&self.0)
    }

    /// True if audio is linear on its way.
    pub fn is_linear(self) -> bool {
        ["l16", "jambonz", "exotel", "gemini-live", "ultravox"].contains(&self.0)
    }

    /// The first message of the server.
    pub fn welcome(self) -> Option<Message> {
        match self.0 {
            "openai-realtime" => Some(text(&json!({"type": "session.created", "session": {}}))),
            "deepgram-agent" => Some(text(&json!({"type": "Welcome", "request_id": "1"}))),
            _ => None,
        }
    }

    /// The answer to the message that sets up the session.
    pub fn accepts(self, message: &Message) -> Option<Message> {
        let value: Value = serde_json::from_str(message.to_text().ok()?).ok()?;
        let kind = value["type"].as_str().unwrap_or_default();
        match (self.0, kind) {
            ("openai-realtime", "session.update") => {
                Some(text(&json!({"type": "session.updated", "session": value["session"]})))
            }
            ("deepgram-agent", "Settings") => Some(text(&json!({"type": "SettingsApplied"}))),
            ("elevenlabs", "conversation_initiation_client_data") => {
                let event = json!({
                    "conversation_id": "c",
                    "agent_output_audio_format": "ulaw_8000",
                    "user_input_audio_format": "ulaw_8000",
                });
                Some(text(&json!({
                    "type": "conversation_initiation_metadata",
                    "conversation_initiation_metadata_event": event,
                })))
            }
            ("gemini-live", _) if value.get("setup").is_some() => {
                Some(Message::binary(json!({"setupComplete": {}}).to_string()))
            }
            _ => None,
        }
    }

    /// How a vendor refuses the session, or gives up in mid-call.
    pub fn error(self) -> Option<Message> {
        match self.0 {
            "openai-realtime" => Some(text(&json!({"type": "error", "error": {
                "type": "insufficient_quota", "code": "insufficient_quota",
                "message": "You exceeded your quota.",
            }}))),
            "deepgram-agent" => Some(text(&json!({
                "type": "Error", "code": "INTERNAL_SERVER_ERROR", "description": "quota",
            }))),
            "elevenlabs" => Some(text(&json!({"type": "error", "error_event": {
                "code": 1008, "error_type": "quota_exceeded", "message": "quota",
            }}))),
            "gemini-live" => Some(close(1011, "You exceeded your quota.")),
            _ => None,
        }
    }

    /// A problem that a vendor reports, and that does not end the session.
    pub fn warning(self) -> Option<Message> {
        match self.0 {
            "openai-realtime" => Some(text(&json!({"type": "error", "error": {
                "type": "server_error", "code": "rate_limit", "message": "Slow down.",
            }}))),
            "deepgram-agent" => {
                Some(text(&json!({"type": "Warning", "code": "OTHER", "description": "w"})))
            }
            "gemini-live" => Some(text(&json!({"goAway": {"timeLeft": "50s"}}))),
            _ => None,
        }
    }

    /// The call of a tool.
    pub fn tool(self) -> Option<Message> {
        let (id, name) = ("t", "look_up");
        Some(text(&match self.0 {
            "openai-realtime" => json!({"type": "response.output_item.done", "item": {
                "id": "i", "type": "function_call", "status": "completed", "call_id": id,
                "name": name, "arguments": "{}",
            }}),
            "deepgram-agent" => json!({"type": "FunctionCallRequest", "functions": [
                {"id": id, "name": name, "arguments": "{}", "client_side": true},
            ]}),
            "elevenlabs" => json!({"type": "client_tool_call", "client_tool_call": {
                "tool_name": name, "tool_call_id": id, "parameters": {},
            }}),
            "gemini-live" => json!({"toolCall": {"functionCalls": [
                {"id": id, "name": name, "args": {}},
            ]}}),
            "ultravox" => json!({
                "type": "client_tool_invocation", "toolName": name, "invocationId": id,
                "parameters": {},
            }),
            _ => return None,
        }))
    }

    /// The messages with this audio for the caller, in mu-law.
    pub fn say(self, mu_law: &[u8]) -> Vec<Message> {
        let linear = || mu_law.iter().flat_map(|s| g711::decode(*s).to_le_bytes()).collect();
        let raw: Vec<u8> = if self.is_linear() { linear() } else { mu_law.to_vec() };
        let payload = BASE64.encode(&raw);
        let one = match self.0 {
            "twilio" | "telnyx" | "exotel" => {
                json!({"event": "media", "media": {"payload": payload}})
            }
            "plivo" => {
                let kind = "audio/x-mulaw";
                let media = json!({"contentType": kind, "sampleRate": 8000, "payload": payload});
                json!({"event": "playAudio", "media": media})
            }
            "openai-realtime" => {
                let response = json!({"id": "r", "status": "in_progress", "output": []});
                let delta = json!({
                    "type": "response.output_audio.delta", "response_id": "r", "item_id": "i",
                    "output_index": 0, "content_index": 0, "delta": payload,
                });
                let created = json!({"type": "response.created", "response": response});
                return vec![text(&created), text(&delta)];
            }
            "elevenlabs" => {
                let event = json!({"audio_base_64": payload, "event_id": 1});
                json!({"type": "audio", "audio_event": event})
            }
            "gemini-live" => {
                let blob = json!({"mimeType": "audio/pcm;rate=8000", "data": payload});
                let turn = json!({"modelTurn": {"parts": [{"inlineData": blob}]}});
                json!({ "serverContent": turn })
            }
            _ => return vec![Message::binary(raw)],
        };
        vec![text(&one)]
    }

    /// Reads a numbered frame of a caller: the number of the call, and that of the frame.
    pub fn hears(self, message: &Message) -> Option<(u32, u32)> {
        let raw = match message {
            Message::Binary(data) => data.to_vec(),
            Message::Text(text) => {
                let value: Value = serde_json::from_str(text).expect("JSON");
                let payload = match self.0 {
                    "openai-realtime" => &value["audio"],
                    "elevenlabs" => &value["user_audio_chunk"],
                    "gemini-live" => &value["realtimeInput"]["audio"]["data"],
                    _ => &value["media"]["payload"],
                };
                BASE64.decode(payload.as_str()?).ok()?
            }
            _ => return None,
        };
        if !self.is_linear() {
            return pattern::read(&raw);
        }
        let (pairs, _) = raw.as_chunks::<2>();
        let sample = |pair: &[u8; 2]| g711::encode(i16::from_le_bytes(*pair));
        read_linear(&pairs.iter().map(sample).collect::<Vec<u8>>())
    }
}
