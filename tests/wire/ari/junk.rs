//! Events that no Asterisk should send: nothing panics, and calls continue.

use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use trunkless::telemetry::PANICS;

use crate::ari::ask::Verb;
use crate::ari::rig::{APP, Rig};

/// Events that are ignored; the link survives.
fn harmless() -> Vec<Message> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let objects = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    let large = "x".repeat(10 << 20);
    let texts = [
        String::new(),
        "null".into(),
        "[]".into(),
        "{".into(),
        "\"StasisStart\"".into(),
        r#"{"type":7}"#.into(),
        r#"{"type":"StasisStart"}"#.into(),
        r#"{"type":"StasisStart","channel":null,"args":null}"#.into(),
        r#"{"type":"StasisEnd","channel":{"id":["ai.1"]}}"#.into(),
        r#"{"type":"StasisEnd","channel":{"id":""}}"#.into(),
        r#"{"type":"StasisEnd","application":"other","channel":{"id":"ai.1"}}"#.into(),
        r#"{"type":"ChannelDtmfReceived","digit":"","channel":{"id":"ai.1"}}"#.into(),
        r#"{"type":"BridgeDestroyed","bridge":{}}"#.into(),
        r#"{"type":"BridgeDestroyed"}"#.into(),
        r#"{"type":"StasisExplosion","channel":{"id":"ai.1"},"more":[{}]}"#.into(),
        r#"{"type":"ChannelHold","channel":{"id":"nobody"}}"#.into(),
        format!(r#"{{"type":"StasisEnd","channel":{{"id":{deep}}}}}"#),
        format!(r#"{{"type":"New","channel":{objects}}}"#),
        format!(r#"{{"type":"ChannelVarset","value":"{large}","channel":{{"id":"ai.1"}}}}"#),
        format!(r#"{{"type":"StasisEnd","channel":{{"id":"{large}"}}}}"#),
    ];
    let binary = [vec![], vec![0xff; 100], br#"{"type":"StasisEnd"}"#.to_vec()];
    let texts = texts.into_iter().map(|t| Message::Text(t.into()));
    texts.chain(binary.into_iter().map(|b| Message::Binary(b.into()))).collect()
}

/// Messages that break the WebSocket itself: the link is opened again.
fn fatal() -> Vec<Message> {
    let frame = |payload: Vec<u8>, kind| Message::Frame(Frame::message(payload, kind, true));
    vec![
        frame(b"{\"type\":\"\xff\xfe\"}".to_vec(), OpCode::Data(Data::Text)),
        frame(vec![b' '; 17 << 20], OpCode::Data(Data::Text)),
        frame(b"from the middle".to_vec(), OpCode::Data(Data::Continue)),
    ]
}

#[tokio::test]
async fn unreadable_events_are_ignored_and_calls_continue() {
    let rig = Rig::new("").await;
    let (mut caller, stream) = rig.call("ai.1").await;
    for junk in harmless() {
        rig.fake.say(APP, junk);
    }
    // events arrive in order: once the key is reported, all of them have been read
    caller.press("7");
    stream.pressed("7").await;
    assert_eq!(rig.fake.count(Verb::Events, APP), 1, "the link survives");
    caller.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    rig.fake.is_clean(APP).await;
    assert_eq!(PANICS.get(), 0);
}

#[tokio::test]
async fn a_broken_link_does_not_end_calls() {
    let rig = Rig::new("").await;
    let (mut caller, stream) = rig.call("ai.1").await;
    for (n, junk) in fatal().into_iter().enumerate() {
        rig.fake.say(APP, junk);
        rig.fake.asked(Verb::Events, APP, n + 2).await;
        let n = n as u32 * 5;
        caller.say(n..n + 5).await;
        assert_eq!(stream.heard(n as usize + 5).await, Vec::from_iter(0..n + 5));
    }
    caller.hang_up();
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
    rig.fake.is_clean(APP).await;
    assert_eq!(PANICS.get(), 0);
}
