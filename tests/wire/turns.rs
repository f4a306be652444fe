//! Turn latency as programs see it: in the call, its record and its sidecar.

use serde_json::json;
use trunkless::folder::Root;
use trunkless::record::library;

use crate::control::{READER, bearer, request, rig};

/// The members of a turn latency in docs/openapi.yaml, sorted.
fn described() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let file: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let members = &file["components"]["schemas"]["TurnLatency"]["required"];
    let members = members.as_array().unwrap().iter();
    let mut names: Vec<String> = members.map(|m| m.as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_turn_is_in_the_call_its_record_and_its_sidecar() {
    let directory = tempfile::tempdir().unwrap();
    let (rig, api) = rig(&format!("[recording]\ndirectory = {:?}", directory.path())).await;
    let (mut call, stream) = rig.call().await;
    let path = format!("GET /v1/calls/{}", stream.call_sid);
    let (_, before) = request(api, &path, &bearer(READER), "").await;
    assert!(before.get("turn_latency").is_none(), "{before}");
    call.say(0..30).await;
    stream.hears(29).await;
    stream.listen(1000).await;
    stream.play_frames(0..25).await;
    // the turn is certain 200 ms after the caller has stopped
    stream.listen(1500).await;
    let (_, shown) = request(api, &path, &bearer(READER), "").await;
    let latency = shown["turn_latency"].clone();
    let figure = |name: &str| latency[name].as_u64().unwrap_or_else(|| panic!("{shown}"));
    assert_eq!(latency["turns"], 1);
    let (last, ai, bridge) = (figure("last_ms"), figure("last_ai_ms"), figure("last_bridge_ms"));
    assert!(last.abs_diff(ai + bridge) <= 1 && bridge < 200, "{latency}");
    assert_eq!((figure("median_ms"), figure("p95_ms")), (last, last));
    let mut names: Vec<String> = latency.as_object().unwrap().keys().cloned().collect();
    names.sort();
    assert_eq!(names, described());

    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    rig.bridge.shutdown().await;
    assert_eq!(record.turns.len(), 1);
    assert_eq!(record.summary.turn_latency.map(|latency| latency.last), Some(record.turns[0]));
    let root = Root::new(directory.path().to_owned());
    let sidecar = library::find(&root, &record.recordings[0]).unwrap();
    let sidecar = library::read(&root, &sidecar).unwrap();
    let turn = record.turns[0];
    assert_eq!(
        serde_json::to_value(&sidecar).unwrap()["turns"],
        json!([{
            "caller_stopped_ms": turn.caller_stopped.as_millis() as u64,
            "ai_first_audio_ms": turn.ai_first_audio.as_millis() as u64,
            "first_rtp_ms": turn.first_rtp.as_millis() as u64,
        }])
    );
}

#[tokio::test]
async fn turn_latency_can_be_turned_off() {
    let rig = crate::bridge::Rig::new("[telemetry]\nturn_latency = false").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..30).await;
    stream.hears(29).await;
    stream.play_frames(0..25).await;
    stream.listen(1200).await;
    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    assert!(record.turns.is_empty() && record.summary.turn_latency.is_none());
}
