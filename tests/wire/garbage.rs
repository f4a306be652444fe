//! Invalid messages from the AI that do not end the call.

use tokio_tungstenite::tungstenite::Message;

use crate::bridge::Rig;
use crate::stream::AGENT;

#[tokio::test]
async fn invalid_messages_are_ignored_and_the_call_continues() {
    let rig = Rig::new("").await;
    let (mut call, stream) = rig.call().await;
    let other = "MZ00000000000000000000000000000000";
    let big = "x".repeat(300_000);
    let deep = "[".repeat(50_000);
    let texts = [
        "",
        "not JSON",
        "{",
        "null",
        "[]",
        "{}",
        "\"media\"",
        r#"{"event":7}"#,
        r#"{"event":"bye"}"#,
        r#"{"event":"media"}"#,
        r#"{"event":"media","media":{}}"#,
        r#"{"event":"media","media":{"payload":5}}"#,
        r#"{"event":"media","media":{"payload":"***"}}"#,
        r#"{"event":"media","media":{"payload":""}}"#,
        r#"{"event":"mark"}"#,
        r#"{"event":"mark","mark":{"name":null}}"#,
        r#"{"event":"start","start":{"streamSid":"MZ1"}}"#,
        r#"{"event":"stop"}"#,
        &format!(r#"{{"event":"clear","streamSid":"{other}"}}"#),
        &format!(r#"{{"event":"media","streamSid":"{other}","media":{{"payload":"AAAA"}}}}"#),
        &format!(r#"{{"event":"{big}"}}"#),
        &deep,
    ];
    stream.play_frames(0..20).await;
    for text in texts {
        stream.text(text).await;
    }
    stream.send(Message::Binary(vec![0, 1, 2, 255].into())).await;
    stream.send(Message::Pong(b"not asked for".to_vec().into())).await;
    stream.play_frames(20..30).await;
    call.say(0..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    // none of them cleared or changed the queued audio
    assert_eq!(call.media.numbered(AGENT, 30).await, Vec::from_iter(0..30));
    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    assert_eq!((record.reason.label(), record.ai.ignored), ("caller_hangup", 22));
}

#[tokio::test]
async fn unknown_fields_are_ignored() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    let media = stream.media(&crate::stream::agent_frames(0..5));
    let more =
        r#""sequenceNumber":"7","more":{"a":[1,null]},"media":{"track":"outbound","chunk":1,"#;
    stream.text(media.replace(r#""media":{"#, more)).await;
    stream.text(r#"{"mark":{"x":1,"name":"m"},"more":true,"event":"mark"}"#).await;
    assert_eq!(call.media.numbered(AGENT, 5).await, [0, 1, 2, 3, 4]);
    stream.marked("m").await;
}

#[tokio::test]
async fn escaped_slashes_in_the_payload_are_decoded() {
    let rig = Rig::new("").await;
    let (call, stream) = rig.call().await;
    let media = stream.media(&crate::stream::agent_frames(0..5));
    assert!(media.contains('/'));
    stream.text(media.replace('/', "\\/")).await;
    assert_eq!(call.media.numbered(AGENT, 5).await, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn pings_are_answered() {
    let rig = Rig::new("").await;
    let (_call, stream) = rig.call().await;
    for payload in [&b""[..], b"ping", &[0x5a; 125]] {
        stream.send(Message::Ping(payload.to_vec().into())).await;
        stream.ponged(payload).await;
    }
}
