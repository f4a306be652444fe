//! Calls to a model of the Realtime API: its session, its audio, interruptions, tools and failures.

mod failures;
mod server;
mod tools;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use trunkless::peer::pattern;

use crate::bridge::{Bridge, Net};
use crate::call::{CALLER, Call};
use crate::log::{pass, steady};
use crate::media::indices;
use crate::pbx::Pbx;
use crate::stream::AGENT;
use server::{KEY, Server, Session};

/// A PBX, a model and the bridge between them.
struct Rig {
    pbx: Pbx,
    ai: Server,
    bridge: Bridge,
}

impl Rig {
    async fn new(config: &str) -> Rig {
        let net = Net::new();
        let (pbx, ai) = (Pbx::udp(net.pbx()).await, Server::start(net.ai()).await);
        let address = ai.address;
        let model = format!(
            "[ai]\ndialect = \"openai-realtime\"\nurl = \"ws://{address}/v1/realtime\"\n\
             auth_token = \"{KEY}\"\n\
             session = {{ model = \"test-model\", instructions = \"Call {{from_number}}.\" }}\n"
        );
        let mut tables: toml::Table = toml::from_str(&model).unwrap();
        crate::overlay::lay_over(&mut tables, toml::from_str(config).unwrap());
        let bridge = Bridge::start(net, pbx.address, address, &tables.to_string()).await;
        pbx.registered().await;
        Rig { pbx, ai, bridge }
    }

    /// Sets up a call and returns both ends.
    async fn call(&self) -> (Call, Session) {
        let mut call = self.pbx.call(&self.bridge).await;
        call.invite().await;
        let session = self.ai.session().await;
        call.answered().await;
        (call, session)
    }
}

/// The model says frames of its numbered audio.
async fn say_frames(session: &Session, item: &str, frames: std::ops::Range<usize>) {
    session.say(item, frames.start * 160..frames.end * 160).await;
}

#[tokio::test]
async fn the_model_greets_the_caller_and_hears_every_byte() {
    let rig = Rig::new("[ai]\ngreeting = \"Hello {from_number}!\"").await;
    let (mut call, session) = rig.call().await;
    let update = session.until("the session", |event| event["type"] == "session.update").await;
    assert_eq!(update["session"]["instructions"], "Call 5550100.");
    let tools = update["session"]["tools"].as_array().unwrap();
    let names: Vec<&Value> = tools.iter().map(|tool| &tool["name"]).collect();
    assert_eq!(names, ["hang_up", "send_dtmf", "set_disposition"]);
    let greeting = session.until("the greeting", |e| e["type"] == "response.create").await;
    let instructions = greeting["response"]["instructions"].as_str().unwrap();
    assert!(instructions.ends_with("no more: Hello 5550100!"), "{instructions}");
    // in pieces of any size
    for piece in [0..1, 1..480, 480..4001, 4001..8000] {
        session.say("item_1", piece).await;
    }
    session.done("completed").await;
    assert_eq!(call.media.numbered(AGENT, 50).await, Vec::from_iter(0..50));
    call.say(0..20).await;
    let last = BASE64.encode(pattern::frame(CALLER, 19));
    session.until("the caller's last frame", |event| event["audio"] == last).await;
    assert_eq!(session.heard(), Vec::from_iter(0..20));
    call.bye().await;
    session.closed().await;
    assert_eq!(session.all("response.create").len(), 1);
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_session_that_was_open_before_the_call_is_set_up_for_it() {
    let rig = Rig::new("[ai]\nprewarm = 1\ngreeting = \"Hello!\"").await;
    let session = rig.ai.session().await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    call.answered().await;
    let update = session.until("the session", |event| event["type"] == "session.update").await;
    assert_eq!(update["session"]["instructions"], "Call 5550100.");
    session.until("the greeting", |e| e["type"] == "response.create").await;
    say_frames(&session, "item_1", 0..50).await;
    session.done("completed").await;
    assert_eq!(call.media.numbered(AGENT, 50).await, Vec::from_iter(0..50));
    call.bye().await;
    session.closed().await;
}

/// How an interruption went: frames heard, and truncations by item.
async fn interrupted(rig: &Rig) -> Result<(usize, Vec<(String, u64)>), String> {
    let (mut call, session) = rig.call().await;
    session.begin().await;
    // two utterances that share a frame
    session.say("item_1", 0..3300).await;
    for piece in (3300..16_000).step_by(1270) {
        session.say("item_2", piece..piece + 1270).await;
    }
    call.media.numbered(AGENT, 25).await;
    let at = session.speech_started().await;
    session.until("a truncation", |e| e["type"] == "conversation.item.truncate").await;
    // nothing follows
    pass(Duration::from_millis(120)).await;
    let heard: Vec<_> = call.media.packets().into_iter().filter(|h| !h.is_silence()).collect();
    let late = heard.last().unwrap().at.saturating_duration_since(at);
    let frames = indices(&heard, AGENT);
    assert_eq!(frames, Vec::from_iter(0..frames.len() as u32));
    let truncations = session.all("conversation.item.truncate").into_iter().map(|event| {
        let id = event["item_id"].as_str().unwrap().to_owned();
        (id, event["audio_end_ms"].as_u64().unwrap())
    });
    let truncations = truncations.collect();
    call.bye().await;
    session.closed().await;
    rig.bridge.end().await;
    match late < Duration::from_millis(25) {
        true => Ok((frames.len(), truncations)),
        false => Err(format!("audio {late:?} after the interruption")),
    }
}

#[tokio::test]
async fn an_interruption_is_heard_within_a_frame_and_remembered_to_the_millisecond() {
    let rig = Rig::new("").await;
    steady("an interruption", async || {
        let (frames, truncations) = interrupted(&rig).await?;
        let heard_bytes = frames as u64 * 160;
        assert_eq!(truncations, [("item_2".to_owned(), (heard_bytes - 3300) / 8)]);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_nobody_heard_is_forgotten_and_what_all_was_heard_is_kept() {
    let rig = Rig::new("").await;
    let (mut call, session) = rig.call().await;
    session.begin().await;
    say_frames(&session, "item_1", 0..10).await;
    session.done("completed").await;
    call.media.numbered(AGENT, 10).await;
    pass(Duration::from_millis(40)).await;
    session.speech_started().await;
    session.speech_stopped().await;
    session.begin().await;
    say_frames(&session, "item_2", 10..100).await;
    say_frames(&session, "item_3", 100..200).await;
    call.media.numbered(AGENT, 12).await;
    session.speech_started().await;
    // late audio of an interrupted response is dropped
    let truncations = session.count("conversation.item.truncate", 2).await;
    assert_eq!(truncations[0]["item_id"], "item_2");
    assert_eq!(truncations[1]["item_id"], "item_3");
    assert_eq!(truncations[1]["audio_end_ms"], 0);
    session.speech_stopped().await;
    session.begin().await;
    say_frames(&session, "item_4", 300..310).await;
    call.media
        .until("the next answer", |h| {
            !h.is_silence() && indices(std::slice::from_ref(h), AGENT) == [309]
        })
        .await;
    call.bye().await;
    session.closed().await;
    assert_eq!(session.all("conversation.item.truncate").len(), 2);
}

#[tokio::test]
async fn keys_reach_the_model_as_a_message() {
    let rig = Rig::new("").await;
    let (mut call, session) = rig.call().await;
    let kind = "Content-Type: application/dtmf-relay\r\n";
    for key in ['4', '2', '#'] {
        call.request("INFO", kind, &format!("Signal={key}\r\nDuration=160\r\n")).await;
    }
    let item = session.until("the keys", |e| e["item"]["role"] == "user").await;
    let content = json!([{"type": "input_text", "text": "(keys pressed: 42#)"}]);
    assert_eq!(item["item"]["content"], content);
    session.count("response.create", 1).await;
    call.bye().await;
    session.closed().await;
}
