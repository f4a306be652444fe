//! ElevenLabs Agents.

use std::collections::HashSet;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use trunkless::media::frame::Samples;
use trunkless::media::g711;

use super::server::{
    Config, Protocol, Scene, Session, heard_after, hears, members, press, resumed,
};
use crate::call::Call;
use crate::log::steady;
use crate::stream::{AGENT, agent_frames};

const SESSION: &str = "greeting = \"Hello {from_number}\"\n\
                       [ai.session]\nagent_id = \"agent_1\"\n";
const PLAIN: &str = "session = { agent_id = \"agent_1\" }";
const METADATA: &str = "conversation_initiation_metadata";

/// The state of the server.
#[derive(Default)]
struct ElevenLabs {
    initiated: bool,
    /// The format of the caller's audio, once it has been announced.
    format: Option<String>,
    /// The pings and calls of tools without an answer.
    pings: Vec<i64>,
    calls: HashSet<String>,
}

impl Protocol for ElevenLabs {
    const PATH: &str = "/v1/convai/conversation?agent_id=agent_1";
    const KEY: (&str, &str) = ("xi-api-key", "a-key");

    fn check(&mut self, message: &Message) -> Result<Option<Vec<u8>>, String> {
        let Message::Text(text) = message else { return Err(format!("{message:?}")) };
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if value.get("user_audio_chunk").is_some() {
            members(&value, &["user_audio_chunk"], &[])?;
            let chunk = value["user_audio_chunk"].as_str().unwrap_or_default();
            let audio = BASE64.decode(chunk).map_err(|error| error.to_string())?;
            return match (self.format.as_deref(), audio.len()) {
                (Some("ulaw_8000"), 160) => Ok(Some(audio)),
                (Some("pcm_8000"), 320) => Ok(Some(from_pcm(&audio))),
                other => Err(format!("audio: {other:?}")),
            };
        }
        let is_first = !std::mem::replace(&mut self.initiated, true);
        match value["type"].as_str().unwrap_or_default() {
            "conversation_initiation_client_data" if is_first => {
                let all = ["conversation_config_override", "user_id", "custom_llm_extra_body"];
                members(&value, &["type", "dynamic_variables"], &all)?;
                if let Some(overrides) = value.get("conversation_config_override") {
                    members(overrides, &[], &["agent", "tts", "conversation"])?;
                    let agent = &overrides["agent"];
                    members(agent, &[], &["first_message", "language", "prompt"])?;
                }
            }
            _ if is_first => return Err(format!("first: {value}")),
            "pong" => {
                members(&value, &["type", "event_id"], &[])?;
                if value["event_id"].as_i64() != Some(self.pings.remove(0)) {
                    return Err(format!("not the ping's: {value}"));
                }
            }
            "client_tool_result" => {
                members(&value, &["type", "tool_call_id", "result", "is_error"], &[])?;
                let known = self.calls.remove(value["tool_call_id"].as_str().unwrap_or_default());
                if !known || !value["result"].is_string() || !value["is_error"].is_boolean() {
                    return Err(format!("{value}"));
                }
            }
            "user_message" => members(&value, &["type", "text"], &[])?,
            _ => return Err(format!("unknown: {value}")),
        }
        Ok(None)
    }

    fn sends(&mut self, message: &Value) {
        match message["type"].as_str() {
            Some(METADATA) => {
                let event = &message["conversation_initiation_metadata_event"];
                self.format = event["user_input_audio_format"].as_str().map(str::to_owned);
            }
            Some("ping") => self.pings.extend(message["ping_event"]["event_id"].as_i64()),
            Some("client_tool_call") => {
                let id = message["client_tool_call"]["tool_call_id"].as_str().unwrap();
                self.calls.insert(id.to_owned());
            }
            _ => {}
        }
    }
}

type Agent = Session<ElevenLabs>;

fn from_pcm(audio: &[u8]) -> Vec<u8> {
    let sample = |pair: &[u8]| g711::encode(i16::from_le_bytes([pair[0], pair[1]]));
    audio.chunks(2).map(sample).collect()
}

async fn scene(ai: &str, rest: &str) -> Scene {
    Scene::new::<ElevenLabs>(&Config { dialect: "elevenlabs", ai, rest }).await
}

/// Accepts the session, up to its request.
async fn requested(scene: &Scene) -> (Agent, Value) {
    let agent: Agent = scene.session().await;
    let request = agent.text("type", "conversation_initiation_client_data").await;
    (agent, request)
}

fn metadata(format: &str) -> Value {
    let event = json!({
        "conversation_id": "conv_1",
        "agent_output_audio_format": format,
        "user_input_audio_format": format,
    });
    json!({"type": METADATA, "conversation_initiation_metadata_event": event})
}

async fn talking(scene: &Scene) -> (Call, Agent) {
    let mut call = scene.invited().await;
    let (mut agent, _) = requested(scene).await;
    agent.say(&metadata("ulaw_8000")).await;
    call.answered().await;
    (call, agent)
}

async fn play(agent: &mut Agent, audio: &[u8], event_id: i64) {
    let event = json!({"audio_base_64": BASE64.encode(audio), "event_id": event_id});
    agent.say(&json!({"type": "audio", "audio_event": event})).await;
}

async fn ask(agent: &mut Agent, id: &str, name: &str, parameters: &Value) {
    let call = json!({
        "tool_name": name, "tool_call_id": id, "parameters": parameters, "event_id": 1,
    });
    agent.say(&json!({"type": "client_tool_call", "client_tool_call": call})).await;
}

/// Calls a tool. Returns its result, and true if that is an error.
async fn call_tool(agent: &mut Agent, id: &str, name: &str, parameters: &Value) -> (Value, bool) {
    ask(agent, id, name, parameters).await;
    let result = agent.text("tool_call_id", id).await;
    let text = serde_json::from_str(result["result"].as_str().unwrap()).unwrap();
    (text, result["is_error"].as_bool().unwrap())
}

#[tokio::test]
async fn the_caller_hears_all_of_the_greeting_and_audio_passes_untouched() {
    let scene = scene(SESSION, "").await;
    let mut call = scene.invited().await;
    let (mut agent, request) = requested(&scene).await;
    assert_eq!(request["dynamic_variables"]["from_number"], "5550100");
    let overrides = &request["conversation_config_override"];
    assert_eq!(*overrides, json!({"agent": {"first_message": "Hello 5550100"}}));
    agent.say(&metadata("ulaw_8000")).await;
    play(&mut agent, &agent_frames(0..50), 1).await;
    agent.say(&json!({"type": "ping", "ping_event": {"event_id": 2, "ping_ms": 500}})).await;
    agent.text("type", "pong").await;
    call.answered().await;
    hears(&call, 0..50).await;
    call.say(0..25).await;
    assert_eq!(agent.heard(25).await, Vec::from_iter(0..25));
    agent.say(&json!({"type": "vad_score", "vad_score_event": {"vad_score": 0.5}})).await;
    for piece in agent_frames(50..80).chunks(333) {
        play(&mut agent, piece, 3).await;
    }
    hears(&call, 0..80).await;
    call.bye().await;
    agent.closed().await;
    assert_eq!(scene.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn pcm_is_converted() {
    let scene = scene(PLAIN, "").await;
    let mut call = scene.invited().await;
    let (mut agent, _) = requested(&scene).await;
    agent.say(&metadata("pcm_8000")).await;
    call.answered().await;
    // mu-law has two zeros, of which PCM keeps one
    let frame: Samples = std::array::from_fn(|n| 0x80 | n as u8);
    let frames: Vec<Vec<u8>> = (0..30).map(|n| frame.map(|s| s ^ n).to_vec()).collect();
    let linear = |s: &u8| g711::decode(*s).to_le_bytes();
    let pcm: Vec<u8> = frames.iter().flatten().flat_map(linear).collect();
    // pieces that end within a sample
    for piece in pcm.chunks(333) {
        play(&mut agent, piece, 1).await;
    }
    call.media.until("the last frame", |heard| heard.payload == frames[29]).await;
    let heard = call.media.packets();
    let heard: Vec<_> = heard.into_iter().filter(|h| !h.is_silence()).map(|h| h.payload).collect();
    assert_eq!(heard, frames);
    let packet = call.talker.packet(&frame);
    call.send_rtp(&packet).await;
    agent.hears(&frame).await;
    call.bye().await;
    agent.closed().await;
}

#[tokio::test]
async fn an_interruption_silences_the_next_packet_and_drops_what_is_older() {
    steady("interruption", async || {
        let scene = scene(PLAIN, "").await;
        let (call, mut agent) = talking(&scene).await;
        play(&mut agent, &agent_frames(0..100), 1).await;
        call.media.numbered(AGENT, 5).await;
        let at = Instant::now();
        agent.say(&json!({"type": "interruption", "interruption_event": {"event_id": 2}})).await;
        play(&mut agent, &agent_frames(100..110), 2).await;
        play(&mut agent, &agent_frames(200..205), 3).await;
        let last = |h: &crate::media::Heard| {
            crate::media::indices(std::slice::from_ref(h), AGENT) == [204]
        };
        call.media.until("the answer", last).await;
        match heard_after(&call, at) - 5 {
            0 | 1 => Ok(()),
            late => Err(format!("{late} frames after the caller spoke")),
        }
    })
    .await;
}

#[tokio::test]
async fn tools_act_on_the_call() {
    let scene = scene(PLAIN, "[pbx.main.transfer]\ntargets = { humans = \"1001\" }").await;
    let (call, mut agent) = talking(&scene).await;
    scene.be_busy(&call);
    let done = (json!({"status": "done"}), false);
    let digits = json!({"digits": "4"});
    assert_eq!(call_tool(&mut agent, "t2", "send_dtmf", &digits).await, done);
    let to = json!({"target": "humans"});
    let (result, is_error) = call_tool(&mut agent, "t1", "transfer_call", &to).await;
    assert_eq!((&result["reason"], is_error), (&json!("busy"), true));
    resumed(&scene).await;
    let sale = json!({"status": "SALE"});
    assert_eq!(call_tool(&mut agent, "t3", "set_disposition", &sale).await, done);
    let (unknown, is_error) = call_tool(&mut agent, "t4", "look_up", &json!({"a": 1})).await;
    assert_eq!((&unknown["status"], is_error), (&json!("failed"), true));
    play(&mut agent, &agent_frames(0..40), 1).await;
    ask(&mut agent, "t5", "hang_up", &json!({})).await;
    assert!(call.hung_up().await.contains("cause=16"));
    hears(&call, 0..40).await;
    agent.closed().await;
    let record = scene.bridge.record().await;
    assert_eq!(record.reason.label(), "ai_hangup");
    assert_eq!(record.disposition.expect("a disposition").status, "SALE");
}

#[tokio::test]
async fn keys_of_the_caller_are_one_message() {
    let scene = scene(PLAIN, "").await;
    let (mut call, agent) = talking(&scene).await;
    for key in ['4', '2', '#'] {
        press(&mut call, key).await;
    }
    agent.text("text", "[keys pressed: 42#]").await;
    call.bye().await;
    agent.closed().await;
}

#[tokio::test]
async fn an_agent_that_fails_leads_down_the_ladder() {
    let scene = scene(PLAIN, "[calls]\non_ai_failure = [\"hangup:busy\"]").await;
    // before the answer: a format that is not supported, and a refusal
    let mut call = scene.invited().await;
    let (mut agent, _) = requested(&scene).await;
    agent.say(&metadata("mp3_44100")).await;
    assert_eq!(call.refused().await.code(), Some(486));
    let record = scene.bridge.record().await;
    assert_eq!(record.reason.label(), "ai_unreachable");
    let why = record.ai_end.unwrap_or_default();
    assert!(why.contains("mp3_44100") && why.contains("mu-law 8000 Hz"), "{why}");
    let mut call = scene.invited().await;
    let (mut agent, _) = requested(&scene).await;
    agent.close(1008).await;
    assert_eq!(call.refused().await.code(), Some(486));
    assert_eq!(scene.bridge.end().await, "ai_unreachable");
    // in mid-call
    let (call, mut agent) = talking(&scene).await;
    let event = json!({"code": 1002, "error_type": "llm_timeout", "message": "no answer"});
    agent.say(&json!({"type": "error", "error_event": event})).await;
    assert!(call.hung_up().await.contains("cause=17"));
    assert_eq!(scene.bridge.end().await, "ai_closed");
    let (call, agent) = talking(&scene).await;
    agent.reset();
    assert!(call.hung_up().await.contains("cause=17"));
    assert_eq!(scene.bridge.end().await, "ai_closed");
}

#[tokio::test]
async fn an_agent_that_ends_the_call_is_heard_to_the_end() {
    let scene = scene(PLAIN, "").await;
    let (call, mut agent) = talking(&scene).await;
    play(&mut agent, &agent_frames(0..40), 1).await;
    agent.close(1000).await;
    call.hung_up().await;
    hears(&call, 0..40).await;
    assert_eq!(scene.bridge.end().await, "ai_hangup");
}
