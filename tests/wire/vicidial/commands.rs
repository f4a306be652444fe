//! The commands that only a call of VICIdial has.

use std::time::Duration;

use serde_json::json;

use crate::vicidial::fake::{Vicidial, until};
use crate::vicidial::{LEAD, order, rig, talk};

#[tokio::test]
async fn leads_are_changed() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "custom_fields = [\"favorite_color\"]").await;
    let (mut call, stream) = talk(&rig).await;
    let fields = json!({"fields": {"email": "m@example.com", "favorite_color": "blue"}});
    assert_eq!(order(&stream, "updateLead", fields).await["status"], "done");
    let asked = vicidial.asked("update_lead", 0).await;
    assert_eq!((&*asked["email"], &*asked["lead_id"]), ("m@example.com", LEAD));
    assert_eq!((&*asked["favorite_color"], &*asked["custom_fields"]), ("blue", "Y"));

    let callback = json!({"at": "2026-11-24 10:00:00", "comments": "a & b"});
    assert_eq!(order(&stream, "callback", callback).await["status"], "done");
    let asked = vicidial.asked("update_lead", 1).await;
    for (name, value) in [
        ("callback", "Y"),
        ("callback_datetime", "2026-11-24 10:00:00"),
        ("callback_comments", "a & b"),
        ("callback_type", "ANYONE"),
        ("campaign_id", "AITEST"),
    ] {
        assert_eq!(asked[name], value, "{name}");
    }

    assert_eq!(order(&stream, "doNotCall", json!({})).await["status"], "done");
    let asked = vicidial.asked("add_dnc_phone", 0).await;
    assert_eq!(asked["campaign_id"], "AITEST");
    assert_eq!(order(&stream, "doNotCall", json!({"list": "system"})).await["status"], "done");
    assert_eq!(vicidial.asked("add_dnc_phone", 1).await["campaign_id"], "SYSTEM_INTERNAL");
    call.bye().await;
}

/// A callback without another status holds the lead until its time, even if the AI hangs up before
/// VICIdial has answered.
#[tokio::test]
async fn a_callback_decides_the_status() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, stream) = talk(&rig).await;
    vicidial.world().slow = [("update_lead", Duration::from_millis(500))].into();
    let callback = json!({"event": "callback", "streamSid": stream.sid, "id": "c",
        "callback": {"at": "2026-11-24 10:00:00"}});
    stream.order(&callback).await;
    stream.close(1000).await;
    assert_eq!(vicidial.asked("ra_call_control", 0).await["status"], "CBHOLD");
    call.bye().await;
    until(|| vicidial.kept_calls() == 0).await;
}

#[tokio::test]
async fn a_time_that_does_not_exist_is_refused() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, stream) = talk(&rig).await;
    for at in ["2026-99-24 10:00:00", "2026-11-24 24:00:00", "2026-11-24", "tomorrow"] {
        let reply = order(&stream, "callback", json!({"at": at})).await;
        assert_eq!(reply["reason"], "invalid", "{at}");
    }
    call.bye().await;
}

/// An AI that is talked into it cannot use the API for anything else.
#[tokio::test]
async fn parameters_of_the_api_are_not_fields() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, stream) = talk(&rig).await;
    for name in ["function", "user", "pass", "status", "list_id", "delete_lead", "other"] {
        let fields = json!({"fields": {"email": "m@example.com", name: "add_user"}});
        let reply = order(&stream, "updateLead", fields).await;
        assert_eq!((&reply["status"], &reply["reason"]), (&json!("failed"), &json!("not_allowed")));
    }
    assert_eq!(vicidial.count("update_lead"), 0);
    call.bye().await;
}

/// VICIdial would cut a longer status without an error.
#[tokio::test]
async fn a_status_that_vicidial_would_cut_is_refused() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, stream) = talk(&rig).await;
    for (event, body) in [
        ("disposition", json!({"status": "INTERESTED"})),
        ("hangup", json!({"status": "INTERESTED"})),
        ("transfer", json!({"to": "sales", "status": "INTERESTED"})),
    ] {
        let reply = order(&stream, event, body).await;
        assert_eq!(reply["reason"], "bad_status", "{event}: {reply}");
    }
    assert_eq!(order(&stream, "hangup", json!({"status": "NI"})).await["status"], "done");
    assert_eq!(vicidial.asked("ra_call_control", 0).await["status"], "NI");
    call.bye().await;
    let record = rig.bridge.record().await;
    assert_eq!(record.disposition.map(|of| of.status).as_deref(), Some("NI"));
}

/// An attended transfer needs a second call, which VICIdial does not know.
#[tokio::test]
async fn an_attended_transfer_is_not_possible() {
    let vicidial = Vicidial::start().await;
    let rig = rig(&vicidial, "").await;
    let (mut call, stream) = talk(&rig).await;
    let reply = order(&stream, "transfer", json!({"to": "sales", "type": "attended"})).await;
    assert_eq!(reply["reason"], "unsupported");
    call.bye().await;
}
