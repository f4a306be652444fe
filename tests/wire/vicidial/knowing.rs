//! The AI and the records learn what VICIdial knows of a call.

use std::time::Duration;

use serde_json::{Value, json};

use crate::vicidial::fake::{Vicidial, until};
use crate::vicidial::{CALL, LEAD, dial, rig, talk};

#[tokio::test]
async fn the_ai_knows_the_lead_and_the_agent() {
    for broken in [false, true] {
        let vicidial = Vicidial::start().await;
        vicidial.world().broken_lead = broken;
        let rig = rig(&vicidial, "wait_for_lead = \"300ms\"").await;
        let (mut call, stream) = talk(&rig).await;
        let parameters = stream.parameters.clone();
        for (name, value) in [
            ("vici_call_id", CALL),
            ("lead_id", LEAD),
            ("call_type", "outbound"),
            ("user", "7001"),
            ("campaign", "AITEST"),
            ("name", if broken { "A|B" } else { "Maria" }),
            ("city", "Tampa"),
        ] {
            assert_eq!(parameters[name], value, "{name}: {parameters}");
        }
        assert_eq!(parameters["phone"], parameters["from_number"]);
        vicidial.world().end(CALL, "XFER");
        call.bye().await;
        stream.stopped().await;
        until(|| vicidial.world().status(CALL) == "AINSP").await;
        until(|| vicidial.kept_calls() == 0).await;
        let shared = vicidial.count("logged_in_agents");
        assert!(vicidial.world().asked.len() - shared <= 10);
    }
}

/// VICIdial is slow: the call is not, and the AI gets the rest when it is known.
#[tokio::test]
async fn what_is_known_later_is_a_message_of_its_own() {
    let vicidial = Vicidial::start().await;
    let slow = Duration::from_millis(700);
    let all = ["logged_in_agents", "lead_all_info"];
    vicidial.world().slow = all.into_iter().map(|function| (function, slow)).collect();
    let rig = rig(&vicidial, "[ai]\nextensions = \"always\"").await;
    let begin = tokio::time::Instant::now();
    let (mut call, stream) = talk(&rig).await;
    assert!(begin.elapsed() < Duration::from_millis(500), "answered at once");
    assert_eq!(stream.parameters["lead_id"], LEAD);
    assert_eq!(stream.parameters["user"], Value::Null);
    stream.expect_own();
    let mut later = json!({});
    until(|| {
        for message in stream.own() {
            for (name, value) in message["parameters"].as_object().into_iter().flatten() {
                later[name] = value.clone();
            }
        }
        later["user"] == "7001" && later["name"] == "Maria"
    })
    .await;
    assert_eq!((&later["campaign"], &later["city"]), (&json!("AITEST"), &json!("Tampa")));
    call.bye().await;
}

/// VICIdial names the agent some milliseconds after it has dialled.
#[tokio::test]
async fn an_agent_who_is_named_later_is_found() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    vicidial.world().agents = vec![("7001".to_owned(), String::new())];
    let (mut call, _stream) = talk(&rig).await;
    vicidial.asked("logged_in_agents", 0).await;
    vicidial.world().begin("7001", CALL);
    vicidial.asked("logged_in_agents", 1).await;
    call.bye().await;
    let record = rig.bridge.record().await;
    assert_eq!(record.details["user"], "7001", "{record:?}");
}

/// The campaign of an inbound call is its in-group.
#[tokio::test]
async fn an_inbound_call_has_the_campaign_of_its_in_group() {
    let (vicidial, id) = (Vicidial::start().await, "Y1231456150000402027");
    let rig = rig(&vicidial, "wait_for_lead = \"300ms\"").await;
    vicidial.world().begin("7001", id);
    let mut call = dial(&rig, id).await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    assert_eq!(stream.parameters["call_type"], "inbound");
    assert_eq!(stream.parameters["campaign"], "SUPPORT");
    call.bye().await;
}

/// A route may depend on the campaign, which VICIdial names after it has dialled.
#[tokio::test]
async fn a_route_waits_for_the_campaign_but_not_for_long() {
    let route = "[[route]]\nname = \"test\"\ncampaign = \"AI*\"\n\
                 parameters = { routed = \"yes\" }\n";
    for slow in [false, true] {
        let vicidial = Vicidial::start().await;
        if slow {
            vicidial.world().slow =
                [("logged_in_agents", Duration::from_millis(900))].into_iter().collect();
        }
        let rig = rig(&vicidial, route).await;
        let (mut call, stream) = talk(&rig).await;
        let expected = match slow {
            false => [json!("yes"), json!("AITEST"), json!("7001")],
            true => [Value::Null, Value::Null, Value::Null],
        };
        let names = ["routed", "campaign", "user"];
        assert_eq!(names.map(|name| stream.parameters[name].clone()), expected, "slow: {slow}");
        call.bye().await;
        let record = rig.bridge.record().await;
        assert_eq!(record.route.as_deref(), (!slow).then_some("test"));
    }
}

/// Calls without an id of VICIdial are plain calls.
#[tokio::test]
async fn another_call_is_a_plain_one() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (call, stream) = rig.call().await;
    assert_eq!(stream.parameters["vici_call_id"], Value::Null);
    stream.close(1000).await;
    call.hung_up().await;
    assert_eq!(vicidial.world().asked.len(), 0);
}

/// The record of a call, and the sidecar of its recording, say which lead it was.
#[tokio::test]
async fn records_and_sidecars_have_the_lead() {
    let (vicidial, recordings) = (Vicidial::start().await, tempfile::tempdir().unwrap());
    let more = format!("[recording]\ndirectory = {:?}\n", recordings.path());
    let rig = rig(&vicidial, &more).await;
    let (mut call, _stream) = talk(&rig).await;
    vicidial.asked("lead_all_info", 0).await;
    call.say(0..50).await;
    call.bye().await;
    let details = rig.bridge.record().await.details;
    let expected = json!({"vici_call_id": CALL, "lead_id": LEAD, "user": "7001",
        "campaign": "AITEST", "call_type": "outbound"});
    assert_eq!(json!(details), expected);
    rig.bridge.shutdown().await;
    let sidecar = find(recordings.path()).expect("a sidecar");
    let sidecar: Value = serde_json::from_str(&std::fs::read_to_string(sidecar).unwrap()).unwrap();
    assert_eq!(sidecar["call"]["details"], expected);
    assert_eq!(sidecar["call"]["from_name"], CALL);
}

fn find(folder: &std::path::Path) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path) {
                return Some(found);
            }
        } else if path.extension().is_some_and(|end| end == "json") {
            return Some(path);
        }
    }
    None
}
