//! Ultravox.

use std::collections::HashSet;
use std::time::Instant;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use trunkless::media::g711;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::server::{
    Config, Protocol, Scene, Session, heard_after, hears, members, press, resumed,
};
use crate::call::Call;
use crate::log::steady;
use crate::stream::{AGENT, agent_frames};

/// The state of the server.
#[derive(Default)]
struct Ultravox {
    /// Ids of tools without a result.
    invocations: HashSet<String>,
}

impl Protocol for Ultravox {
    const PATH: &str = "/calls/1/server_web_socket";
    /// The URL is all that is needed.
    const KEY: (&str, &str) = ("upgrade", "websocket");
    const LINEAR: bool = true;

    fn check(&mut self, message: &Message) -> Result<Option<Vec<u8>>, String> {
        let text = match message {
            Message::Binary(audio) if audio.len() == 320 => {
                let sample = |pair: &[u8]| g711::encode(i16::from_le_bytes([pair[0], pair[1]]));
                return Ok(Some(audio.chunks(2).map(sample).collect()));
            }
            Message::Text(text) => text,
            other => return Err(format!("{other:?}")),
        };
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match value["type"].as_str().unwrap_or_default() {
            "ping" => members(&value, &["type", "timestamp"], &[])?,
            "user_text_message" => {
                members(&value, &["type", "text", "urgency"], &[])?;
                let urgency = value["urgency"].as_str().unwrap_or_default();
                if !["immediate", "soon", "later"].contains(&urgency) {
                    return Err(format!("{value}"));
                }
            }
            "client_tool_result" => {
                let all = ["result", "agentReaction", "errorType", "errorMessage"];
                members(&value, &["type", "invocationId"], &all)?;
                let known = self.invocations.remove(value["invocationId"].as_str().unwrap());
                if !known || value.get("result").is_some() == value.get("errorType").is_some() {
                    return Err(format!("{value}"));
                }
            }
            _ => return Err(format!("unknown: {value}")),
        }
        Ok(None)
    }

    fn sends(&mut self, message: &Value) {
        if message["type"] == "client_tool_invocation" {
            self.invocations.insert(message["invocationId"].as_str().unwrap().to_owned());
        }
    }
}

type Agent = Session<Ultravox>;

async fn scene(ai: &str, rest: &str) -> Scene {
    Scene::new::<Ultravox>(&Config { dialect: "ultravox", ai, rest }).await
}

async fn talking(scene: &Scene) -> (Call, Agent) {
    let mut call = scene.invited().await;
    let mut agent: Agent = scene.session().await;
    agent.say(&json!({"type": "call_started", "callId": "c1"})).await;
    call.answered().await;
    (call, agent)
}

async fn play(agent: &mut Agent, frames: &[u8]) {
    let pcm: Vec<u8> = frames.iter().flat_map(|s| g711::decode(*s).to_le_bytes()).collect();
    for piece in pcm.chunks(3333) {
        agent.send(Message::binary(piece.to_vec())).await;
    }
}

async fn ask(agent: &mut Agent, id: &str, name: &str, parameters: &Value) {
    let kind = "client_tool_invocation";
    let call =
        json!({"type": kind, "toolName": name, "invocationId": id, "parameters": parameters});
    agent.say(&call).await;
}

async fn call_tool(agent: &mut Agent, id: &str, name: &str, parameters: &Value) -> Value {
    ask(agent, id, name, parameters).await;
    agent.text("invocationId", id).await
}

fn output(result: &Value) -> Value {
    serde_json::from_str(result["result"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_call_is_created_for_each_caller() {
    let api = MockServer::start().await;
    let create = format!(
        "[ai.create]\nurl = \"{}/api/calls\"\nheaders = {{ X-API-Key = \"a-key\" }}\n\
         url_field = \"joinUrl\"\nallow_hosts = [\"ws://ADDRESS\"]\n\
         [pbx.main.transfer]\ntargets = {{ humans = \"1001\" }}",
        api.uri()
    );
    let session = "greeting = \"Hello {from_number}\"\n\
                   [ai.session]\nsystemPrompt = \"You talk to {from_number}.\"";
    let scene = scene(session, &create).await;
    let url = format!("ws://{}{}", scene.address(), Ultravox::PATH);
    Mock::given(method("POST"))
        .and(path("/api/calls"))
        .and(header("x-api-key", "a-key"))
        .respond_with(ResponseTemplate::new(201).set_body_json(json!({"joinUrl": url})))
        .mount(&api)
        .await;
    let mut call = scene.invited().await;
    let mut agent: Agent = scene.session().await;
    let request: Value = api.received_requests().await.unwrap()[0].body_json().unwrap();
    assert_eq!(request["systemPrompt"], "You talk to 5550100.");
    assert_eq!(request["firstSpeakerSettings"]["agent"]["text"], "Hello 5550100");
    assert_eq!(request["medium"]["serverWebSocket"]["inputSampleRate"], 8000);
    let tools = request["selectedTools"].as_array().unwrap();
    assert_eq!(
        (tools.len(), &tools[1]["temporaryTool"]["modelToolName"]),
        (4, &"transfer_call".into())
    );
    // the agent speaks at once, while the caller is not connected
    play(&mut agent, &agent_frames(0..50)).await;
    call.answered().await;
    hears(&call, 0..50).await;
    call.say(0..25).await;
    assert_eq!(agent.heard(25).await, Vec::from_iter(0..25));
    call.bye().await;
    agent.closed().await;
    assert_eq!(scene.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_cleared_buffer_silences_the_next_packet() {
    steady("interruption", async || {
        let scene = scene("", "").await;
        let (call, mut agent) = talking(&scene).await;
        play(&mut agent, &agent_frames(0..100)).await;
        call.media.numbered(AGENT, 5).await;
        let at = Instant::now();
        agent.say(&json!({"type": "playback_clear_buffer"})).await;
        play(&mut agent, &agent_frames(200..205)).await;
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
    let scene = scene("", "[pbx.main.transfer]\ntargets = { humans = \"1001\" }").await;
    let (mut call, mut agent) = talking(&scene).await;
    scene.be_busy(&call);
    let keys = call_tool(&mut agent, "i1", "send_dtmf", &json!({"digits": "4"})).await;
    assert_eq!(
        (output(&keys), &keys["agentReaction"]),
        (json!({"status": "done"}), &"speaks-once".into())
    );
    let busy = call_tool(&mut agent, "i2", "transfer_call", &json!({"target": "humans"})).await;
    assert_eq!(
        (&output(&busy)["reason"], &busy["agentReaction"]),
        (&"busy".into(), &"speaks".into())
    );
    resumed(&scene).await;
    call_tool(&mut agent, "i3", "set_disposition", &json!({"status": "SALE"})).await;
    let unknown = call_tool(&mut agent, "i4", "look_up", &json!({})).await;
    assert_eq!(unknown["errorType"], "implementation-error");
    for key in ['4', '2', '#'] {
        press(&mut call, key).await;
    }
    agent.text("text", "[keys pressed: 42#]").await;
    play(&mut agent, &agent_frames(0..40)).await;
    ask(&mut agent, "i5", "hang_up", &json!({})).await;
    assert!(call.hung_up().await.contains("cause=16"));
    hears(&call, 0..40).await;
    agent.closed().await;
    let record = scene.bridge.record().await;
    assert_eq!(record.reason.label(), "ai_hangup");
    assert_eq!(record.disposition.expect("a disposition").status, "SALE");
}

#[tokio::test]
async fn an_agent_that_ends_the_call_is_heard_to_the_end_and_one_that_fails_is_not() {
    let scene = scene("", "[calls]\non_ai_failure = [\"hangup:busy\"]").await;
    let (call, mut agent) = talking(&scene).await;
    play(&mut agent, &agent_frames(0..40)).await;
    agent.close(1000).await;
    call.hung_up().await;
    hears(&call, 0..40).await;
    assert_eq!(scene.bridge.end().await, "ai_hangup");
    let (call, agent) = talking(&scene).await;
    agent.reset();
    assert!(call.hung_up().await.contains("cause=17"));
    assert_eq!(scene.bridge.end().await, "ai_closed");
}
