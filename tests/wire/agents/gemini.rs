//! Gemini Live. With `GEMINI_EVENTS=FILE`, all messages are appended to a file for
//! `tests/models/gemini_events.py`.

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::io::Write as _;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use trunkless::media::g711;

use super::server::{
    Config, Protocol, Scene, Session, heard_after, hears, members, press, resumed,
};
use crate::call::Call;
use crate::log::steady;
use crate::stream::{AGENT, agent_frames};

/// At this rate, audio passes without a changed byte.
const PLAIN: &str = "sample_rate = 8000";
const SESSION: &str = "sample_rate = 8000\ngreeting = \"Hello {from_number}\"\n\
                       [ai.session]\nsystemInstruction = \"You talk to {from_number}.\"\n\
                       contextWindowCompression = { slidingWindow = {} }";

/// The state of the server.
#[derive(Default)]
struct Gemini {
    set_up: bool,
    complete: bool,
    /// The calls of functions without a response: ids and names.
    calls: HashMap<String, String>,
}

/// Appends a message to the file of `GEMINI_EVENTS`.
fn keep(side: &str, event: &Value) {
    if let Some(file) = std::env::var_os("GEMINI_EVENTS") {
        let mut file = std::fs::File::options().append(true).create(true).open(file).unwrap();
        // one write, because the tests run side by side
        file.write_all(format!("[\"{side}\",{event}]\n").as_bytes()).unwrap();
    }
}

impl Gemini {
    fn setup(&mut self, setup: &Value) -> Result<(), String> {
        if std::mem::replace(&mut self.set_up, true) {
            return Err("a second setup".to_owned());
        }
        let required = ["model", "generationConfig", "sessionResumption"];
        let optional = ["systemInstruction", "tools", "contextWindowCompression"];
        members(setup, &required, &optional)?;
        members(&setup["sessionResumption"], &[], &["handle"])?;
        let model = setup["model"].as_str().unwrap_or_default();
        if !model.starts_with("models/") {
            return Err(format!("model: {model}"));
        }
        for tool in setup["tools"].as_array().into_iter().flatten() {
            for function in tool["functionDeclarations"].as_array().into_iter().flatten() {
                members(function, &["name", "description", "behavior"], &["parameters"])?;
            }
        }
        Ok(())
    }

    fn audio(audio: &Value) -> Result<Option<Vec<u8>>, String> {
        members(audio, &["mimeType", "data"], &[])?;
        let data = BASE64.decode(audio["data"].as_str().unwrap_or_default());
        let data = data.map_err(|error| error.to_string())?;
        let sample = |pair: &[u8]| g711::encode(i16::from_le_bytes([pair[0], pair[1]]));
        match (audio["mimeType"].as_str(), data.len()) {
            (Some("audio/pcm;rate=8000"), 320) => Ok(Some(data.chunks(2).map(sample).collect())),
            // each second sample is near enough
            (Some("audio/pcm;rate=16000"), 640) => {
                Ok(Some(data.chunks(4).map(|pairs| sample(&pairs[..2])).collect()))
            }
            other => Err(format!("audio: {other:?}")),
        }
    }
}

impl Protocol for Gemini {
    const PATH: &str = "/ws/live";
    const KEY: (&str, &str) = ("x-goog-api-key", "a-key");
    const LINEAR: bool = true;

    fn check(&mut self, message: &Message) -> Result<Option<Vec<u8>>, String> {
        let Message::Text(text) = message else { return Err(format!("{message:?}")) };
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        keep("client", &value);
        members(&value, &[], &["setup", "realtimeInput", "clientContent", "toolResponse"])?;
        let one = value.as_object().and_then(|all| all.iter().next().filter(|_| all.len() == 1));
        let (name, body) = one.ok_or("not one member")?;
        match name.as_str() {
            "setup" => self.setup(body)?,
            _ if !self.complete => return Err(format!("before setupComplete: {value}")),
            "realtimeInput" => {
                members(body, &[], &["audio", "text"])?;
                if let Some(audio) = body.get("audio") {
                    return Self::audio(audio);
                }
            }
            "clientContent" => members(body, &["turns", "turnComplete"], &[])?,
            _ => {
                for response in body["functionResponses"].as_array().into_iter().flatten() {
                    members(response, &["id", "name", "response"], &[])?;
                    let name = self.calls.remove(response["id"].as_str().unwrap_or_default());
                    if name.as_deref() != response["name"].as_str()
                        || !response["response"].is_object()
                    {
                        return Err(format!("not the response to {name:?}: {value}"));
                    }
                }
            }
        }
        Ok(None)
    }

    fn sends(&mut self, message: &Value) {
        keep("server", message);
        self.complete |= message.get("setupComplete").is_some();
        for call in message["toolCall"]["functionCalls"].as_array().into_iter().flatten() {
            let text = |name: &str| call[name].as_str().unwrap().to_owned();
            self.calls.insert(text("id"), text("name"));
        }
    }
}

type Live = Session<Gemini>;

async fn scene(ai: &str, rest: &str) -> Scene {
    Scene::new::<Gemini>(&Config { dialect: "gemini-live", ai, rest }).await
}

/// Accepts a connection, up to its setup.
async fn set_up(scene: &Scene) -> (Live, Value) {
    let live: Live = scene.session().await;
    let setup = live.with("/setup").await;
    (live, setup["setup"].clone())
}

async fn talking(scene: &Scene) -> (Call, Live) {
    let mut call = scene.invited().await;
    let (mut live, _) = set_up(scene).await;
    live.say_binary(&json!({"setupComplete": {}})).await;
    call.answered().await;
    (call, live)
}

/// Speaks linear audio.
async fn speak(live: &mut Live, rate: u32, pcm: &[u8]) {
    let mime_type = format!("audio/pcm;rate={rate}");
    let parts = json!([{"inlineData": {"mimeType": mime_type, "data": BASE64.encode(pcm)}}]);
    live.say_binary(&json!({"serverContent": {"modelTurn": {"parts": parts}}})).await;
}

/// Speaks frames at the rate of the call.
async fn play(live: &mut Live, frames: &[u8]) {
    let pcm: Vec<u8> = frames.iter().flat_map(|s| g711::decode(*s).to_le_bytes()).collect();
    // pieces that end within a sample
    for piece in pcm.chunks(3333) {
        speak(live, 8000, piece).await;
    }
}

async fn tell_handle(live: &mut Live, handle: &str) {
    let update = json!({"newHandle": handle, "resumable": true});
    live.say_binary(&json!({"sessionResumptionUpdate": update})).await;
}

async fn ask(live: &mut Live, id: &str, name: &str, args: &Value) {
    let calls = json!([{"id": id, "name": name, "args": args}]);
    live.say_binary(&json!({"toolCall": {"functionCalls": calls}})).await;
}

/// Calls a function and returns its response.
async fn call_tool(live: &mut Live, id: &str, name: &str, args: &Value) -> Value {
    ask(live, id, name, args).await;
    let response = |text: &Value| {
        let responses = text.pointer("/toolResponse/functionResponses")?.as_array()?;
        responses.iter().find(|response| response["id"] == id).cloned()
    };
    live.json(id, response).await["response"].clone()
}

#[tokio::test]
async fn the_model_greets_and_audio_passes_untouched() {
    let scene = scene(SESSION, "").await;
    let mut call = scene.invited().await;
    let (mut live, setup) = set_up(&scene).await;
    let instruction = &setup["systemInstruction"]["parts"][0]["text"];
    assert_eq!(*instruction, "You talk to 5550100.");
    assert_eq!(setup["contextWindowCompression"], json!({"slidingWindow": {}}));
    live.say_binary(&json!({"setupComplete": {}})).await;
    call.answered().await;
    let greeting = live.with("/realtimeInput/text").await;
    let text = greeting["realtimeInput"]["text"].as_str().unwrap();
    assert!(text.ends_with("Hello 5550100"), "{text}");
    play(&mut live, &agent_frames(0..50)).await;
    live.say_binary(&json!({"serverContent": {"generationComplete": true}})).await;
    hears(&call, 0..50).await;
    call.say(0..25).await;
    assert_eq!(live.heard(25).await, Vec::from_iter(0..25));
    // as text, too
    live.say(&json!({"serverContent": {"turnComplete": true}})).await;
    call.bye().await;
    live.closed().await;
    assert_eq!(scene.bridge.end().await, "caller_hangup");
}

/// Returns the ratio of a tone to everything else, in dB. `audio` is a whole number of periods.
fn purity(audio: &[f64], hertz: f64) -> f64 {
    let (mut sine, mut cosine, mut energy) = (0.0, 0.0, 0.0);
    for (n, sample) in audio.iter().enumerate() {
        let angle = hertz * TAU * n as f64 / 8000.0;
        sine += sample * angle.sin();
        cosine += sample * angle.cos();
        energy += sample * sample;
    }
    let tone = 2.0 * (sine * sine + cosine * cosine) / audio.len() as f64;
    10.0 * (tone / (energy - tone).max(1e-9)).log10()
}

#[tokio::test]
async fn speech_at_24_khz_reaches_the_telephone_clean() {
    let scene = scene("", "").await;
    let (call, mut live) = talking(&scene).await;
    let tone = |n: u32| (1000.0 * TAU * f64::from(n) / 24_000.0).sin() * 12_000.0;
    let pcm: Vec<u8> = (0..24_000).flat_map(|n| (tone(n).round() as i16).to_le_bytes()).collect();
    for piece in pcm.chunks(9601) {
        speak(&mut live, 24_000, piece).await;
    }
    let loud = |heard: &mut Vec<crate::media::Heard>| {
        let loud = heard.iter().filter(|h| !h.is_silence() && h.payload_type != 101);
        let loud: Vec<Vec<u8>> = loud.map(|h| h.payload.clone()).collect();
        (loud.len() >= 49).then_some(loud)
    };
    let frames = call.media.heard.wait("the tone", loud).await;
    let heard: Vec<f64> =
        frames[5..45].iter().flatten().map(|s| f64::from(g711::decode(*s))).collect();
    // mu-law itself leaves about 38 dB
    let db = purity(&heard, 1000.0);
    assert!(db > 36.0, "{db} dB");
}

#[tokio::test]
async fn an_interruption_silences_the_next_packet() {
    steady("interruption", async || {
        let scene = scene(PLAIN, "").await;
        let (call, mut live) = talking(&scene).await;
        play(&mut live, &agent_frames(0..100)).await;
        call.media.numbered(AGENT, 5).await;
        let at = Instant::now();
        live.say_binary(&json!({"serverContent": {"interrupted": true}})).await;
        play(&mut live, &agent_frames(200..205)).await;
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
    let (mut call, mut live) = talking(&scene).await;
    scene.be_busy(&call);
    let done = json!({"status": "done"});
    assert_eq!(call_tool(&mut live, "f1", "send_dtmf", &json!({"digits": "4"})).await, done);
    let to = json!({"target": "humans"});
    assert_eq!(call_tool(&mut live, "f2", "transfer_call", &to).await["reason"], "busy");
    resumed(&scene).await;
    let sale = json!({"status": "SALE"});
    assert_eq!(call_tool(&mut live, "f3", "set_disposition", &sale).await, done);
    let unknown = call_tool(&mut live, "f4", "look_up", &json!({"a": 1})).await;
    assert_eq!(unknown["error"]["status"], "failed");
    for key in ['4', '2', '#'] {
        press(&mut call, key).await;
    }
    let keys = live.with("/realtimeInput/text").await;
    assert_eq!(keys["realtimeInput"]["text"], "[keys pressed: 42#]");
    play(&mut live, &agent_frames(0..40)).await;
    ask(&mut live, "f5", "hang_up", &json!({})).await;
    assert!(call.hung_up().await.contains("cause=16"));
    hears(&call, 0..40).await;
    live.closed().await;
    let record = scene.bridge.record().await;
    assert_eq!(record.reason.label(), "ai_hangup");
    assert_eq!(record.disposition.expect("a disposition").status, "SALE");
}

#[tokio::test]
async fn the_session_continues_on_another_connection() {
    let session = format!("silent_timeout = \"500ms\"\n{SESSION}");
    let scene = scene(&session, "").await;
    let (mut call, mut live) = talking(&scene).await;
    tell_handle(&mut live, "handle-1").await;
    play(&mut live, &agent_frames(0..30)).await;
    // Google ends the connection in the ordinary way: it is left after the model's turn
    live.say_binary(&json!({"goAway": {"timeLeft": "50s"}})).await;
    live.say_binary(&json!({"serverContent": {"generationComplete": true}})).await;
    tell_handle(&mut live, "handle-2").await;
    let (mut second, setup) = set_up(&scene).await;
    assert_eq!(setup["sessionResumption"], json!({"handle": "handle-2"}));
    live.closed().await;
    second.say_binary(&json!({"setupComplete": {}})).await;
    // the model has spoken before, so it may be silent now
    call.say(0..35).await;
    second.heard(35).await;
    play(&mut second, &agent_frames(30..60)).await;
    hears(&call, 0..60).await;
    // the connection breaks, and Google refuses the next one once
    second.reset();
    let (mut refused, setup) = set_up(&scene).await;
    assert_eq!(setup["sessionResumption"], json!({"handle": "handle-2"}));
    refused.close_with(1011, "another connection is open").await;
    let (mut third, setup) = set_up(&scene).await;
    assert_eq!(setup["sessionResumption"], json!({"handle": "handle-2"}));
    third.say_binary(&json!({"setupComplete": {}})).await;
    play(&mut third, &agent_frames(60..80)).await;
    hears(&call, 0..80).await;
    call.bye().await;
    third.closed().await;
    assert_eq!(scene.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_model_that_fails_leads_down_the_ladder() {
    let scene = scene(PLAIN, "[calls]\non_ai_failure = [\"hangup:busy\"]").await;
    // before the answer
    let mut call = scene.invited().await;
    let (mut live, _) = set_up(&scene).await;
    live.close_with(1007, "API key not valid.").await;
    assert_eq!(call.refused().await.code(), Some(486));
    let record = scene.bridge.record().await;
    assert_eq!(record.reason.label(), "ai_unreachable");
    assert_eq!(record.ai_end.as_deref(), Some("close frame 1007: API key not valid."));
    // in mid-call: without a handle, and with audio that cannot be used
    let (call, live) = talking(&scene).await;
    live.reset();
    assert!(call.hung_up().await.contains("cause=17"));
    assert_eq!(scene.bridge.end().await, "ai_closed");
    let (call, mut live) = talking(&scene).await;
    tell_handle(&mut live, "handle").await;
    speak(&mut live, 22_050, &[0; 100]).await;
    assert!(call.hung_up().await.contains("cause=17"));
    let record = scene.bridge.record().await;
    assert!(record.ai_end.unwrap_or_default().contains("22050 Hz"));
}
