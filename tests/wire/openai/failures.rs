//! A model that refuses its session, dies, or reaches the end of its time: the caller goes down the
//! ladder, or to another session.

use serde_json::json;

use super::{Rig, say_frames};
use crate::media::Heard;
use crate::stream::AGENT;

/// The prompt that is shipped.
fn is_sorry(heard: &Heard) -> bool {
    let sorry = include_bytes!("../../../src/call/assets/sorry.ulaw");
    sorry.windows(160).step_by(160).any(|part| part == heard.payload) && !heard.is_silence()
}

const LADDER: &str = "[calls]\non_ai_failure = [\"play:sorry\", \"hangup:busy\"]";

#[tokio::test]
async fn a_session_that_is_refused_is_not_answered() {
    let rig = Rig::new("[calls]\non_ai_failure = [\"hangup:busy\"]").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let error = json!({"type": "invalid_request_error", "code": "invalid_value",
        "message": "Invalid value: 'x'.", "param": "session.audio.output.voice"});
    let session = rig.ai.refuse_session(error).await;
    assert_eq!(call.refused().await.code(), Some(486));
    let record = rig.bridge.record().await;
    assert_eq!(record.reason.label(), "ai_unreachable");
    let why = "the AI refused the session: Invalid value: 'x'. (invalid_value)";
    assert_eq!(record.ai_end.as_deref(), Some(why));
    session.check();
    // a wrong key is refused by the handshake
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    rig.ai.refuse("401 Unauthorized").await;
    assert_eq!(call.refused().await.code(), Some(486));
}

/// As with an AI that cannot be reached: the fourth caller does not wait for it.
#[tokio::test]
async fn a_model_that_refuses_sessions_gets_no_calls() {
    let rig = Rig::new("[calls]\non_ai_failure = [\"hangup:busy\"]").await;
    for _ in 0..3 {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        let error = json!({"type": "invalid_request_error", "code": "model_not_found",
            "message": "The model does not exist."});
        rig.ai.refuse_session(error).await;
        assert_eq!(call.refused().await.code(), Some(486));
        rig.bridge.record().await;
    }
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    assert_eq!(call.refused().await.code(), Some(486), "without a session");
    let record = rig.bridge.record().await;
    assert!(record.ai_end.is_some_and(|end| end.contains("not offered")));
}

#[tokio::test]
async fn a_model_that_dies_or_closes_leaves_the_caller_to_the_ladder() {
    let rig = Rig::new(LADDER).await;
    for how in ["reset", "close", "expiry", "quota"] {
        let (call, session) = rig.call().await;
        session.begin().await;
        say_frames(&session, "item_1", 0..3).await;
        call.media.numbered(AGENT, 3).await;
        match how {
            "reset" => session.reset(),
            "close" => session.close(1000).await,
            "expiry" => session.error("session_expired", "The maximum is 60 minutes.").await,
            _ => session.error("insufficient_quota", "You exceeded your quota.").await,
        }
        call.media.until("the prompt", is_sorry).await;
        // the rest is the ladder's, as after any AI
        drop(call);
        drop(session);
    }
}

#[tokio::test]
async fn another_session_continues_the_call() {
    let config = "[ai]\ngreeting = \"Hello!\"\n[calls]\non_ai_close = \"reconnect\"\n\
                  on_ai_failure = [\"play:sorry\", \"hangup:busy\"]";
    let rig = Rig::new(config).await;
    let (mut call, first) = rig.call().await;
    first.count("response.create", 1).await;
    say_frames(&first, "item_1", 0..5).await;
    first.done("completed").await;
    call.media.numbered(AGENT, 5).await;
    first.error("session_expired", "The maximum is 60 minutes.").await;
    let second = rig.ai.session().await;
    let create = second.count("response.create", 1).await.remove(0);
    let instructions = create["response"]["instructions"].as_str().unwrap();
    assert!(instructions.contains("was interrupted") && !instructions.contains("Hello"));
    say_frames(&second, "item_1", 5..10).await;
    assert_eq!(call.media.numbered(AGENT, 10).await, Vec::from_iter(0..10));
    // positions count from the new session
    say_frames(&second, "item_1", 10..60).await;
    call.media.numbered(AGENT, 20).await;
    second.speech_started().await;
    let truncation = second.count("conversation.item.truncate", 1).await.remove(0);
    let heard = call.media.packets().into_iter().filter(|h| !h.is_silence()).count() as u64 - 5;
    assert_eq!(truncation["audio_end_ms"], heard * 20);
    // a session that is refused is a failure
    second.close(1001).await;
    let error = json!({"type": "server_error", "message": "The server had an error."});
    let _third = rig.ai.refuse_session(error).await;
    call.media.until("the prompt", is_sorry).await;
    call.bye().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}
