//! `docs/commands.json` against the program: every command with its members, their values and
//! defaults, and every message in return.

use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Map, Value, json};
use trunkless::command::{Failure, Order, Reply};
use trunkless::media::machine::Finding;
use trunkless::stream::dialect::{Dialect, Extensions, Session};
use trunkless::stream::extension::{self, NAMES};
use trunkless::stream::{CallState, HeardSign, OrderReply, StreamInfo, ToAi, Unusable};

fn table() -> Value {
    let path = crate::root().join("docs/commands.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the table")).expect("JSON")
}

fn read(message: &Value) -> Result<Order, Unusable> {
    let message = message.as_object().expect("an object");
    let event = message["event"].as_str().expect("a name");
    let body = message.get(event).and_then(Value::as_object);
    extension::read(event, body, message).unwrap_or_else(|| panic!("unknown: {event}"))
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|word| word.as_str().expect("a word")).collect()
}

/// Returns the message with another value of a member, or without it.
fn with(message: &Value, event: &str, member: &str, value: Option<Value>) -> Value {
    let mut message = message.clone();
    let body = message.as_object_mut().unwrap().entry(event).or_insert_with(|| json!({}));
    let body = body.as_object_mut().unwrap();
    match value {
        Some(value) => drop(body.insert(member.to_owned(), value)),
        None => drop(body.remove(member)),
    }
    message
}

#[test]
fn the_commands_are_those_of_the_program() {
    let table = table();
    let commands = table["commands"].as_object().unwrap();
    let mut names: Vec<&str> = NAMES.to_vec();
    names.sort_unstable();
    let mut listed: Vec<&str> = commands.keys().map(String::as_str).collect();
    listed.sort_unstable();
    assert_eq!(listed, names);
    for (event, command) in commands {
        let example = &command["example"];
        let order = read(example).unwrap_or_else(|e| panic!("{event}: {}", e.why));
        assert_eq!(Value::from(order.id), example["id"]);
        let mut members = command["members"].as_object().unwrap().clone();
        members.insert("when".to_owned(), table["every_command"]["when"].clone());
        for (member, about) in &members {
            check_member(event, example, member, about);
        }
        let body = example.get(event).and_then(Value::as_object).cloned().unwrap_or_default();
        let unknown: Vec<&String> = body.keys().filter(|key| !members.contains_key(*key)).collect();
        assert!(unknown.is_empty(), "{event}: the example has {unknown:?}");
    }
}

fn check_member(event: &str, example: &Value, member: &str, about: &Value) {
    let order = |value| read(&with(example, event, member, value));
    let place = format!("{event}.{member}");
    if let Some(values) = about.get("values") {
        for word in words(values) {
            assert!(order(Some(word.into())).is_ok(), "{place}: {word} is refused");
        }
        assert!(order(Some("no-such-word".into())).is_err(), "{place}: any word is taken");
    }
    if let (Some(least), Some(most)) = (about["least"].as_u64(), about["most"].as_u64()) {
        for (value, valid) in [(least, true), (most, true), (least - 1, false), (most + 1, false)] {
            assert_eq!(order(Some(value.into())).is_ok(), valid, "{place}: {value}");
        }
    }
    if about["type"] == "text" {
        assert!(order(Some(json!([]))).is_err(), "{place}: takes more than text");
    }
    if about["type"] == "object" {
        assert!(order(Some("text".into())).is_err(), "{place}: takes more than an object");
    }
    if let Some(most) = about["most_members"].as_u64() {
        let object = |n: u64| -> Map<String, Value> {
            (0..n).map(|n| (format!("name{n}"), json!("x"))).collect()
        };
        assert!(order(Some(object(most).into())).is_ok(), "{place}");
        assert!(order(Some(object(most + 1).into())).is_err(), "{place}");
    }
    match about.get("default") {
        Some(default) => {
            let (without, with) = (order(None), order(Some(default.clone())));
            assert_eq!(without.unwrap(), with.unwrap(), "{place}: another default");
        }
        None => assert!(order(None).is_err(), "{place} may be missing"),
    }
}

#[test]
fn the_replies_are_those_of_the_program() {
    let table = table();
    let replies =
        [Reply::Accepted, Reply::Progress("ringing"), Reply::Done, Reply::Failed(Failure::Busy)];
    assert_eq!(words(&table["replies"]["statuses"]), replies.each_ref().map(Reply::status));
    let reasons = table["replies"]["reasons"].as_object().unwrap();
    let all = Failure::ALL.map(|failure| (failure.word().to_owned(), failure.to_string().into()));
    assert_eq!(*reasons, Map::from_iter(all));
    let page = crate::page("docs/call-control.md").text;
    for word in reasons.keys().map(String::as_str).chain(NAMES) {
        assert!(page.contains(&format!("`{word}`")), "docs/call-control.md lacks `{word}`");
    }
}

/// Encodes a message as on the AI's WebSocket.
fn encoded(message: &ToAi) -> Value {
    let info = StreamInfo { stream_sid: "MZ…".into(), ..StreamInfo::default() };
    let mut codec = Dialect::Twilio.codec(info, Extensions::Always, &Session::default());
    let mut out = BytesMut::new();
    codec.encode(message, &mut out);
    let mut value: Value = serde_json::from_slice(&out).expect("JSON");
    value["sequenceNumber"] = Value::Null;
    value
}

#[test]
fn the_messages_to_the_ai_are_those_of_the_program() {
    let table = table();
    let busy = Reply::Failed(Failure::Busy);
    let reply = OrderReply { id: "2".into(), command: "transfer", reply: busy, why: None };
    let mark = |cleared| ToAi::Mark { name: "greeting".into(), cleared };
    let [played, discarded] = [1200, 3400].map(Duration::from_millis);
    let heard = |sign| ToAi::Heard(sign);
    let machine = Finding::AnsweredBy { machine: true, confidence: 86 };
    let beep = Finding::Beep { hertz: 1000, length: Duration::from_millis(400), confidence: 98 };
    let events = &table["events"];
    for (listed, message) in [
        (&table["replies"]["result"], ToAi::Reply(Box::new(reply))),
        (&events["call"], ToAi::State(CallState::TransferFailed(Failure::Busy))),
        (&events["mark_played"], mark(false)),
        (&events["mark_cleared"], mark(true)),
        (&events["cleared"], ToAi::Cleared { played, discarded, at: 0, by_caller: false }),
        (&events["interrupted"], ToAi::Cleared { played, discarded, at: 0, by_caller: true }),
        (&events["speechStarted"], heard(HeardSign::SpeechStarted { at_ms: 5240 })),
        (&events["speechStopped"], heard(HeardSign::SpeechStopped { at_ms: 6480 })),
        (&events["answeredBy"], heard(HeardSign::Answer { finding: machine, at_ms: 3700 })),
        (&events["beep"], heard(HeardSign::Answer { finding: beep, at_ms: 9180 })),
        (&events["parameters"], ToAi::Parameters(Box::new(vec![("user".into(), "7001".into())]))),
    ] {
        let mut listed = listed.clone();
        listed["sequenceNumber"] = Value::Null;
        assert_eq!(listed, encoded(&message));
    }
    let states = [
        CallState::Held,
        CallState::Resumed,
        CallState::Transferring,
        CallState::Transferred,
        CallState::TransferFailed(Failure::Busy),
    ];
    assert_eq!(words(&events["states"]), states.map(extension::state));
}
