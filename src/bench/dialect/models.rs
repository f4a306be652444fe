//! The AI's side of the dialects of models. No message announces the caller, so a stream starts
//! with the caller's first audio.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde_json::{Value, json};

use crate::bench::dialect::{AiSide, Format, Said};
use crate::stream::dialect::Dialect;

/// Returns the AI's side of a model's dialect.
pub(super) fn side(dialect: Dialect) -> Box<dyn AiSide> {
    match dialect {
        Dialect::Deepgram => Box::new(Deepgram),
        Dialect::ElevenLabs => Box::new(ElevenLabs { talkspurt: 0 }),
        Dialect::Ultravox => Box::new(Ultravox),
        _ => Box::new(OpenAi { response: 0, speaks: false }),
    }
}

/// Returns the caller's number in a text that is the placeholder `{from_number}` in the
/// configuration.
fn number(value: &Value) -> Option<u32> {
    value.as_str().and_then(|text| text.parse().ok())
}

/// Each talkspurt is a response, because the bridge plays nothing more of one that was interrupted.
struct OpenAi {
    /// Number of the response.
    response: u32,
    /// True until the response is done.
    speaks: bool,
}

impl OpenAi {
    /// Returns the event that ends a response.
    fn done(&mut self, status: &str) -> Option<String> {
        let id = format!("resp_{:020}", self.response);
        let response = json!({"id": id, "status": status, "output": []});
        let event = json!({"type": "response.done", "response": response});
        std::mem::take(&mut self.speaks).then(|| event.to_string())
    }
}

impl AiSide for OpenAi {
    fn format(&self) -> Format {
        Format { is_text: true, is_linear: false }
    }

    fn starts_with_audio(&self) -> bool {
        true
    }

    fn read(&mut self, message: &Value) -> Result<Said, &'static str> {
        if message["type"] != "session.update" {
            return Ok(Said::default());
        }
        let session = &message["session"];
        let reply = json!({"type": "session.updated", "session": session}).to_string();
        let caller = number(&session["instructions"]);
        Ok(Said { starts: false, caller, reply: Some(reply) })
    }

    fn around(&self) -> (String, &'static str) {
        let number = self.response;
        let before =
            format!(r#"{{"type":"response.output_audio.delta","event_id":"event_{number:020}","#);
        let ids = format!(
            r#""response_id":"resp_{number:020}","item_id":"item_{number:020}","output_index":0,"#
        );
        (format!(r#"{before}{ids}"content_index":0,"delta":""#), "\"}")
    }

    fn begin_talkspurt(&mut self) -> Vec<String> {
        let done = self.done("completed");
        self.response += 1;
        self.speaks = true;
        let id = format!("resp_{:020}", self.response);
        let created = json!({"type": "response.created", "response": {"id": id}});
        done.into_iter().chain([created.to_string()]).collect()
    }

    fn clear(&mut self) -> Vec<String> {
        let event = |kind: &str| json!({"type": kind, "item_id": "item_caller"}).to_string();
        let started = event("input_audio_buffer.speech_started");
        let done = self.done("cancelled");
        let stopped = event("input_audio_buffer.speech_stopped");
        [Some(started), done, Some(stopped)].into_iter().flatten().collect()
    }
}

struct Deepgram;

impl AiSide for Deepgram {
    fn format(&self) -> Format {
        Format { is_text: false, is_linear: false }
    }

    fn hello(&self) -> Option<&'static str> {
        Some(r#"{"type":"Welcome","request_id":"bench"}"#)
    }

    fn starts_with_audio(&self) -> bool {
        true
    }

    fn read(&mut self, message: &Value) -> Result<Said, &'static str> {
        if message["type"] != "Settings" {
            return Ok(Said::default());
        }
        let caller = number(&message["agent"]["greeting"]);
        let reply = Some(r#"{"type":"SettingsApplied"}"#.to_owned());
        Ok(Said { starts: false, caller, reply })
    }

    fn clear(&mut self) -> Vec<String> {
        vec![r#"{"type":"UserStartedSpeaking"}"#.to_owned()]
    }
}

/// Each talkspurt has an event number, because the bridge plays nothing more up to the one that was
/// interrupted.
struct ElevenLabs {
    talkspurt: u32,
}

impl AiSide for ElevenLabs {
    fn format(&self) -> Format {
        Format { is_text: true, is_linear: false }
    }

    fn starts_with_audio(&self) -> bool {
        true
    }

    fn read(&mut self, message: &Value) -> Result<Said, &'static str> {
        if message["type"] != "conversation_initiation_client_data" {
            return Ok(Said::default());
        }
        let caller = number(&message["dynamic_variables"]["from_number"]);
        let reply = json!({
            "type": "conversation_initiation_metadata",
            "conversation_initiation_metadata_event": {
                "conversation_id": "bench",
                "agent_output_audio_format": "ulaw_8000",
                "user_input_audio_format": "ulaw_8000",
            },
        });
        Ok(Said { starts: false, caller, reply: Some(reply.to_string()) })
    }

    fn around(&self) -> (String, &'static str) {
        let before = r#"{"type":"audio","audio_event":{"event_id":"#;
        (format!(r#"{before}{},"audio_base_64":""#, self.talkspurt), "\"}}")
    }

    fn begin_talkspurt(&mut self) -> Vec<String> {
        self.talkspurt += 1;
        Vec::new()
    }

    fn clear(&mut self) -> Vec<String> {
        let event = json!({"event_id": self.talkspurt});
        vec![json!({"type": "interruption", "interruption_event": event}).to_string()]
    }
}

struct Ultravox;

impl AiSide for Ultravox {
    fn format(&self) -> Format {
        Format { is_text: false, is_linear: true }
    }

    fn starts_with_audio(&self) -> bool {
        true
    }

    fn read(&mut self, _message: &Value) -> Result<Said, &'static str> {
        Ok(Said::default())
    }

    fn clear(&mut self) -> Vec<String> {
        vec![r#"{"type":"playback_clear_buffer"}"#.to_owned()]
    }
}
