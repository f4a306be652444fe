//! Deepgram Voice Agent.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::server::{
    Config, Protocol, Scene, Session, heard_after, hears, members, press, resumed,
};
use crate::call::Call;
use crate::log::steady;
use crate::stream::{AGENT, agent_frames};

const SESSION: &str = "greeting = \"Hello {from_number}\"\n\
                       [ai.session.think]\nprompt = \"You talk to {from_number}.\"";

/// The state of the server.
#[derive(Default)]
struct Deepgram {
    welcomed: bool,
    configured: bool,
    applied: bool,
    /// The calls of functions without an answer: ids and names.
    calls: HashMap<String, String>,
}

impl Deepgram {
    fn settings(&mut self, value: &Value) -> Result<(), String> {
        if !self.welcomed || std::mem::replace(&mut self.configured, true) {
            return Err("Settings before Welcome, or again".to_owned());
        }
        members(value, &["type", "audio", "agent"], &["tags", "experimental", "mip_opt_out"])?;
        let input = json!({"encoding": "mulaw", "sample_rate": 8000});
        let output = json!({"encoding": "mulaw", "sample_rate": 8000, "container": "none"});
        if value["audio"] != json!({"input": input, "output": output}) {
            return Err(format!("audio: {}", value["audio"]));
        }
        let agent = &value["agent"];
        members(agent, &["listen", "think", "speak"], &["greeting", "language", "context"])?;
        members(&agent["think"], &["provider"], &["prompt", "functions", "endpoint"])?;
        for part in ["listen", "think", "speak"] {
            members(&agent[part]["provider"], &["type", "model"], &["temperature"])?;
        }
        for function in agent["think"]["functions"].as_array().into_iter().flatten() {
            let all = ["name", "description", "parameters", "defer_until_eot"];
            members(function, &all, &[])?;
        }
        Ok(())
    }
}

impl Protocol for Deepgram {
    const PATH: &str = "/v1/agent/converse";
    const KEY: (&str, &str) = ("Authorization", "Token a-key");

    fn check(&mut self, message: &Message) -> Result<Option<Vec<u8>>, String> {
        let text = match message {
            Message::Binary(audio) if self.applied && audio.len() == 160 => {
                return Ok(Some(audio.to_vec()));
            }
            Message::Text(text) => text,
            other => return Err(format!("too early, or not 20 ms: {other:?}")),
        };
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match value["type"].as_str().unwrap_or_default() {
            "Settings" => self.settings(&value)?,
            _ if !self.applied => return Err(format!("before SettingsApplied: {value}")),
            "FunctionCallResponse" => {
                members(&value, &["type", "id", "name", "content"], &[])?;
                let name = self.calls.remove(value["id"].as_str().unwrap_or_default());
                if name.as_deref() != value["name"].as_str() || !value["content"].is_string() {
                    return Err(format!("not the answer to {name:?}: {value}"));
                }
            }
            "InjectUserMessage" => members(&value, &["type", "content"], &[])?,
            _ => return Err(format!("unknown: {value}")),
        }
        Ok(None)
    }

    fn sends(&mut self, message: &Value) {
        match message["type"].as_str() {
            Some("Welcome") => self.welcomed = true,
            Some("SettingsApplied") => self.applied = true,
            Some("FunctionCallRequest") => {
                for call in message["functions"].as_array().unwrap() {
                    let text = |name: &str| call[name].as_str().unwrap().to_owned();
                    self.calls.insert(text("id"), text("name"));
                }
            }
            _ => {}
        }
    }
}

type Agent = Session<Deepgram>;

async fn scene(ai: &str, rest: &str) -> Scene {
    Scene::new::<Deepgram>(&Config { dialect: "deepgram-agent", ai, rest }).await
}

/// Accepts the session, up to its settings.
async fn welcomed(scene: &Scene) -> (Agent, Value) {
    let mut agent: Agent = scene.session().await;
    agent.say(&json!({"type": "Welcome", "request_id": "a-request"})).await;
    let settings = agent.text("type", "Settings").await;
    (agent, settings)
}

async fn talking(scene: &Scene) -> (Call, Agent) {
    let mut call = scene.invited().await;
    let (mut agent, _) = welcomed(scene).await;
    agent.say(&json!({"type": "SettingsApplied"})).await;
    call.answered().await;
    (call, agent)
}

fn said(role: &str) -> Value {
    json!({"type": "ConversationText", "role": role, "content": "…"})
}

async fn ask(agent: &mut Agent, id: &str, name: &str, arguments: &Value) {
    let function = json!({
        "id": id, "name": name, "arguments": arguments.to_string(), "client_side": true,
    });
    agent.say(&json!({"type": "FunctionCallRequest", "functions": [function]})).await;
}

/// Calls a function and returns its result.
async fn call_tool(agent: &mut Agent, id: &str, name: &str, arguments: &Value) -> Value {
    ask(agent, id, name, arguments).await;
    let response = agent.text("id", id).await;
    serde_json::from_str(response["content"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn the_caller_hears_all_of_the_greeting_and_audio_passes_untouched() {
    let scene = scene(SESSION, "").await;
    let mut call = scene.invited().await;
    let (mut agent, settings) = welcomed(&scene).await;
    assert_eq!(settings["agent"]["greeting"], "Hello 5550100");
    assert_eq!(settings["agent"]["think"]["prompt"], "You talk to 5550100.");
    // the agent speaks as soon as it is configured, while the caller is not connected
    agent.say(&json!({"type": "SettingsApplied"})).await;
    agent.say(&said("assistant")).await;
    agent.send(Message::binary(agent_frames(0..50))).await;
    agent.say(&json!({"type": "AgentAudioDone"})).await;
    call.answered().await;
    hears(&call, 0..50).await;
    call.say(0..25).await;
    assert_eq!(agent.heard(25).await, Vec::from_iter(0..25));
    for piece in agent_frames(50..80).chunks(333) {
        agent.send(Message::binary(piece.to_vec())).await;
    }
    hears(&call, 0..80).await;
    call.bye().await;
    agent.closed().await;
    assert_eq!(scene.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn speech_of_the_caller_silences_the_next_packet() {
    steady("barge-in", async || {
        let scene = scene("", "").await;
        let (call, mut agent) = talking(&scene).await;
        agent.send(Message::binary(agent_frames(0..100))).await;
        call.media.numbered(AGENT, 5).await;
        let at = Instant::now();
        agent.say(&json!({"type": "UserStartedSpeaking"})).await;
        agent.send(Message::binary(agent_frames(200..205))).await;
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
    let scene = scene(SESSION, "[pbx.main.transfer]\ntargets = { humans = \"1001\" }").await;
    let (call, mut agent) = talking(&scene).await;
    scene.be_busy(&call);
    let keys = call_tool(&mut agent, "f2", "send_dtmf", &json!({"digits": "4"})).await;
    assert_eq!(keys, json!({"status": "done"}));
    let to = json!({"target": "humans"});
    let result = call_tool(&mut agent, "f1", "transfer_call", &to).await;
    assert_eq!((&result["status"], &result["reason"]), (&json!("failed"), &json!("busy")));
    resumed(&scene).await;
    let sale = call_tool(&mut agent, "f3", "set_disposition", &json!({"status": "SALE"})).await;
    assert_eq!(sale, json!({"status": "done"}));
    let unknown = call_tool(&mut agent, "f4", "look_up", &json!({"a": 1})).await;
    assert_eq!(unknown["status"], "failed");
    let wrong = call_tool(&mut agent, "f5", "transfer_call", &json!({"target": "mars"})).await;
    assert_eq!(wrong["reason"], "invalid");
    // the model hangs up before all of its goodbye has arrived
    agent.say(&said("assistant")).await;
    ask(&mut agent, "f6", "hang_up", &json!({})).await;
    agent.send(Message::binary(agent_frames(0..20))).await;
    agent.send(Message::binary(agent_frames(20..40))).await;
    agent.say(&json!({"type": "AgentAudioDone"})).await;
    assert!(call.hung_up().await.contains("cause=16"));
    hears(&call, 0..40).await;
    agent.closed().await;
    let record = scene.bridge.record().await;
    assert_eq!(record.reason.label(), "ai_hangup");
    assert_eq!(record.disposition.expect("a disposition").status, "SALE");
}

#[tokio::test]
async fn tools_that_are_not_offered_are_refused() {
    let scene = scene("tools = [\"hang_up\"]", "").await;
    let mut call = scene.invited().await;
    let (mut agent, settings) = welcomed(&scene).await;
    let functions = settings["agent"]["think"]["functions"].as_array().unwrap();
    assert_eq!((functions.len(), &functions[0]["name"]), (1, &json!("hang_up")));
    agent.say(&json!({"type": "SettingsApplied"})).await;
    call.answered().await;
    let result = call_tool(&mut agent, "f1", "send_dtmf", &json!({"digits": "1"})).await;
    assert_eq!(result["status"], "failed");
    call.bye().await;
    agent.closed().await;
}

#[tokio::test]
async fn keys_of_the_caller_are_one_message() {
    let scene = scene("", "").await;
    let (mut call, agent) = talking(&scene).await;
    for key in ['4', '2', '#'] {
        press(&mut call, key).await;
    }
    agent.text("content", "[keys pressed: 42#]").await;
    call.bye().await;
    agent.closed().await;
}

#[tokio::test]
async fn an_agent_that_fails_leads_down_the_ladder() {
    let scene = scene("", "[calls]\non_ai_failure = [\"hangup:busy\"]").await;
    let refusal = json!({"type": "Error", "code": "INVALID_SETTINGS", "description": "no such"});
    // before the answer
    let mut call = scene.invited().await;
    let (mut agent, _) = welcomed(&scene).await;
    agent.say(&refusal).await;
    assert_eq!(call.refused().await.code(), Some(486));
    let record = scene.bridge.record().await;
    assert_eq!(record.reason.label(), "ai_unreachable");
    let why = record.ai_end.unwrap_or_default();
    assert_eq!(why, "Deepgram reports INVALID_SETTINGS: no such; check [ai.session]");
    // in mid-call
    let (call, mut agent) = talking(&scene).await;
    agent.say(&json!({"type": "Error", "code": "ASR_CONNECTION_CLOSED"})).await;
    assert!(call.hung_up().await.contains("cause=17"));
    assert_eq!(scene.bridge.end().await, "ai_closed");
    let (call, agent) = talking(&scene).await;
    agent.reset();
    assert!(call.hung_up().await.contains("cause=17"));
    assert_eq!(scene.bridge.end().await, "ai_closed");
}
