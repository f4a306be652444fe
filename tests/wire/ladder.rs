//! A caller whose AI fails goes down the ladder of `on_ai_failure`.

use std::time::{Duration, Instant};

use trunkless::sip::message::Message;

use crate::bridge::{Net, Rig};
use crate::pbx::{Pbx, accept};
use crate::strict::Ai;

/// A rig with a second AI, and this ladder.
async fn rig(ladder: &str, more: &str) -> (Rig, Ai) {
    let net = Net::new();
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let backup = Ai::start(net.host(5)).await;
    let config = format!(
        "[calls]\non_ai_failure = [{ladder}]\n{more}\n\
         [endpoint.backup]\nurl = \"ws://{}/media\"\n\
         [pbx.main.transfer]\ntargets = {{ humans = \"queues,1001,1\" }}\n",
        backup.address
    );
    (Rig::with(net, pbx, ai, &config).await, backup)
}

/// The prompt that is shipped.
fn is_sorry(samples: &[u8]) -> bool {
    let sorry = include_bytes!("../../src/call/assets/sorry.ulaw");
    sorry.windows(samples.len()).step_by(160).any(|part| part == samples)
        && samples.iter().any(|s| *s != samples[0])
}

#[tokio::test]
async fn the_next_ai_takes_the_caller_before_the_answer_and_in_mid_call() {
    let (rig, backup) = rig("\"ai:backup\"", "answer_wait = \"500ms\"").await;
    // refused before the answer
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    rig.ai.handshake().await.refuse("401 Unauthorized").await;
    let second = backup.handshake().await.open().await.started();
    let (second, ()) = tokio::join!(second, async {
        call.answered().await;
    });
    call.say(0..10).await;
    second.hears(9).await;
    call.bye().await;
    second.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");

    // reset in mid-call: what the caller says meanwhile is not lost
    let (mut call, stream) = rig.call().await;
    call.say(0..10).await;
    stream.hears(9).await;
    stream.reset().await;
    call.say(10..20).await;
    let handshake = backup.handshake().await;
    let second = handshake.open().await.started().await;
    second.hears(19).await;
    assert!(second.positions().iter().all(|(_, n)| *n >= 9), "{:?}", second.positions());
    drop(second);
    let _ = call;
}

#[tokio::test]
async fn a_prompt_and_then_a_cause() {
    let (rig, _) = rig("\"play:sorry\", \"hangup:busy\"", "").await;
    let (call, stream) = rig.call().await;
    let begin = Instant::now();
    stream.reset().await;
    call.media.until("the prompt", |heard| is_sorry(&heard.payload)).await;
    assert!(begin.elapsed() < Duration::from_millis(200), "{:?}", begin.elapsed());
    assert_eq!(call.hung_up().await, "Q.850;cause=17;text=\"busy\"");
    let prompt = call.media.packets().iter().filter(|h| is_sorry(&h.payload)).count();
    assert!(prompt > 100, "{prompt} frames of the prompt");
    assert_eq!(rig.bridge.end().await, "ai_closed");

    // before the answer, the caller is answered for the prompt
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    rig.ai.handshake().await.refuse("500 Internal Server Error").await;
    call.answered().await;
    call.media.until("the prompt", |heard| is_sorry(&heard.payload)).await;
    assert!(call.hung_up().await.contains("cause=17"));
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
}

#[tokio::test]
async fn a_refusal_has_the_status_of_its_cause() {
    let (rig, backup) = rig("\"ai:backup\", \"continue\", \"hangup:busy\"", "").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    rig.ai.handshake().await.refuse("403 Forbidden").await;
    backup.handshake().await.refuse("403 Forbidden").await;
    assert_eq!(call.refused().await.code(), Some(486));
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
}

#[tokio::test]
async fn a_transfer_is_ordered_at_once() {
    let (rig, _) = rig("\"transfer:humans\", \"hangup\"", "").await;
    // the PBX refuses to call the target, so the next rung follows
    rig.pbx.answer_with(|request: &Message| match request.method() {
        Some("INVITE") if request.uri().contains("1001@") => {
            Some(Message::response(request, 486, "Busy Here", "pbx"))
        }
        _ => accept(request),
    });
    let (call, stream) = rig.call().await;
    let begin = Instant::now();
    stream.reset().await;
    let mut invite = rig.pbx.request("INVITE").await;
    while !invite.uri().contains("1001@") {
        invite = rig.pbx.request("INVITE").await;
    }
    assert!(begin.elapsed() < Duration::from_millis(200), "{:?}", begin.elapsed());
    assert!(call.hung_up().await.contains("cause=38"));
    assert_eq!(rig.bridge.end().await, "ai_closed");
}

#[tokio::test]
async fn an_ai_that_closes_is_dialled_again() {
    let rig = Rig::new("[calls]\non_ai_close = \"reconnect\"").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..10).await;
    stream.hears(9).await;
    stream.close(1000).await;
    stream.ended().await;
    call.say(10..20).await;
    let again = rig.ai.stream().await;
    again.hears(19).await;
    assert_eq!(again.call_sid, stream.call_sid);
    call.bye().await;
    again.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn an_ai_that_closes_and_restarts_gets_the_caller_back() {
    let rig = Rig::new("[calls]\non_ai_close = \"reconnect\"").await;
    let (mut call, stream) = rig.call().await;
    call.say(0..10).await;
    stream.hears(9).await;
    stream.close(1001).await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        rig.ai.handshake().await.refuse("503 Service Unavailable").await;
    }
    let again = rig.ai.stream().await;
    call.say(10..20).await;
    again.hears(19).await;
    call.bye().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn an_ai_that_cannot_be_reached_is_probed_and_gets_no_calls() {
    let (rig, _) = rig("\"hangup:busy\"", "").await;
    for _ in 0..3 {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        rig.ai.handshake().await.refuse("401 Unauthorized").await;
        assert_eq!(call.refused().await.code(), Some(486));
        assert_eq!(rig.bridge.end().await, "ai_unreachable");
    }
    let opened = Instant::now();
    for _ in 0..20 {
        let mut call = rig.pbx.call(&rig.bridge).await;
        let begin = Instant::now();
        call.invite().await;
        assert_eq!(call.refused().await.code(), Some(486));
        assert!(begin.elapsed() < Duration::from_millis(50), "{:?}", begin.elapsed());
        assert_eq!(rig.bridge.end().await, "ai_unreachable");
    }
    // a probe is a handshake without a stream, so that no bot begins to speak
    let probe = rig.ai.handshake().await;
    assert!(opened.elapsed() > Duration::from_secs(4), "{:?}", opened.elapsed());
    probe.refuse("401 Unauthorized").await;
    rig.ai.handshake().await.expect_only_a_probe().await;
    assert!(opened.elapsed() > Duration::from_secs(9), "{:?}", opened.elapsed());
    let (mut call, stream) = rig.call().await;
    call.bye().await;
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn a_shutdown_sends_callers_to_a_human() {
    let ladder = "\"ai:backup\", \"play:sorry\", \"transfer:humans\", \"hangup\"";
    let (rig, backup) = rig(ladder, "drain = \"300ms\"").await;
    let (call, stream) = rig.call().await;
    let Rig { bridge, pbx, .. } = rig;
    let begin = Instant::now();
    let ended = async {
        stream.until_stop().await;
        call.media.until("the prompt", |heard| is_sorry(&heard.payload)).await;
        let refer = pbx.request("REFER").await;
        assert!(refer.get("Refer-To").is_some_and(|to| to.contains("1001@")), "{refer:?}");
        // this PBX never says what became of it
        assert!(call.hung_up().await.contains("text=\"drain\""));
        assert!(begin.elapsed() < Duration::from_secs(11), "{:?}", begin.elapsed());
    };
    tokio::join!(ended, bridge.shutdown());
    assert!(backup.is_left_alone(Duration::ZERO).await);
}

#[tokio::test]
async fn callers_for_whom_there_is_no_room_are_redirected() {
    let ladder = "\"ai:backup\", \"play:sorry\", \"transfer:humans\", \"hangup\"";
    let (rig, backup) = rig(ladder, "max = 1").await;
    let (mut first, stream) = rig.call().await;
    let mut second = rig.pbx.call(&rig.bridge).await;
    second.invite().await;
    let refused = second.refused().await;
    assert_eq!(refused.code(), Some(302));
    let contact = refused.get("Contact").unwrap_or_default();
    let host = format!("@{}", rig.pbx.address);
    assert!(contact.starts_with("<sip:1001@") && contact.contains(&host), "{contact}");
    assert!(backup.is_left_alone(Duration::from_millis(50)).await);
    first.bye().await;
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}
