//! A session from its first event to its last, without a network.

use std::time::Duration;

use crate::command::{Command, Failure, Order};

use super::*;

/// A session and what it sends.
struct Rig {
    codec: Realtime,
    audio: Vec<u8>,
}

/// The outcome of a message from the server.
#[derive(Debug, PartialEq)]
enum Got {
    Audio(usize),
    Clear,
    Order(Order),
    Unusable(String),
    Tool(String, String),
    Failed(String),
    Ended(String),
    Warning(String),
    Ignored(&'static str),
}

impl Rig {
    fn new(settings: Value) -> Rig {
        let session = Session { settings: Some(settings), ..Session::default() };
        Rig::with(session, StreamInfo::default())
    }

    fn with(session: Session, info: StreamInfo) -> Rig {
        Rig { codec: Realtime::new(info, session), audio: Vec::new() }
    }

    /// A session that the server has accepted, with a caller.
    fn talking() -> Rig {
        let info = StreamInfo { targets: vec!["sales".to_owned()], ..StreamInfo::default() };
        let mut rig = Rig::with(Session::default(), info);
        assert_eq!(rig.codec.hello().len(), 1);
        assert_eq!(rig.get(&json!({"type": "session.updated"})), []);
        assert!(rig.codec.opening().is_empty());
        rig
    }

    fn get(&mut self, event: &Value) -> Vec<Got> {
        self.decode(&event.to_string())
    }

    fn decode(&mut self, text: &str) -> Vec<Got> {
        let mut got = Vec::new();
        self.codec.decode(Received::Text(text), &mut self.audio, &mut |message| {
            got.push(match message {
                FromAi::Audio(audio) => Got::Audio(audio.len()),
                FromAi::Clear => Got::Clear,
                FromAi::Order(order) => match *order {
                    Ok(order) => Got::Order(order),
                    Err(unusable) => Got::Unusable(unusable.why),
                },
                FromAi::Tool(tool) => Got::Tool(tool.id, tool.name),
                FromAi::Failed(why) => Got::Failed(why),
                FromAi::SessionEnded(why) => Got::Ended(why),
                FromAi::Warning(why) => Got::Warning(why),
                FromAi::Ignored(why) => Got::Ignored(why),
                FromAi::Mark(name) => panic!("mark {name}"),
                FromAi::Done(how) => panic!("{how}"),
            });
        });
        got
    }

    /// Takes the messages that are sent by themselves.
    fn sent(&mut self) -> Vec<Value> {
        let next = std::iter::from_fn(|| self.codec.next_message());
        next.map(|message| value(&message)).collect()
    }

    fn send(&mut self, message: &ToAi) -> Vec<Value> {
        let mut out = BytesMut::new();
        assert_eq!(self.codec.encode(message, &mut out), Form::Text);
        let first = (!out.is_empty()).then(|| serde_json::from_slice(&out).expect("JSON"));
        first.into_iter().chain(self.sent()).collect()
    }

    fn cleared(&mut self, at: u64, discarded: u64) -> Vec<Value> {
        self.cleared_by(at, discarded, false)
    }

    fn cleared_by(&mut self, at: u64, discarded: u64, by_caller: bool) -> Vec<Value> {
        let time = |bytes: u64| Duration::from_micros(bytes * 125);
        let (played, discarded) = (time(at), time(discarded));
        self.send(&ToAi::Cleared { played, discarded, at, by_caller })
    }

    /// The model calls a tool in a response.
    fn calls(&mut self, id: &str, name: &str, arguments: &str) -> Vec<Got> {
        self.get(&json!({"type": "response.created", "response": {"id": format!("r{id}")}}));
        let item = call(id, name, arguments);
        self.get(&json!({"type": "response.output_item.done", "item": item}))
    }

    fn done(&mut self, id: &str, status: &str) -> Vec<Got> {
        let response = json!({"id": format!("r{id}"), "status": status});
        self.get(&json!({"type": "response.done", "response": response}))
    }
}

fn value(message: &Message) -> Value {
    match message {
        Message::Text(text) => serde_json::from_str(text).expect("JSON"),
        Message::Binary(_) => panic!("binary"),
    }
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    let name = name.to_owned();
    json!({"type": "function_call", "call_id": id, "name": name, "arguments": arguments})
}

fn delta(response: &str, item: &str, bytes: usize) -> Value {
    let delta = BASE64.encode(vec![0x55; bytes]);
    json!({
        "type": DELTA, "event_id": "e", "response_id": response, "item_id": item,
        "output_index": 0, "content_index": 0, "delta": delta,
    })
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap_or_default()).collect()
}

#[test]
fn the_session_is_accepted_or_refused() {
    let mut rig = Rig::new(json!({"instructions": "Call {from_number}", "model": "m"}));
    let hello = value(&rig.codec.hello()[0]);
    assert_eq!(hello["type"], "session.update");
    assert_eq!(hello["session"]["instructions"], "Call {from_number}");
    assert_eq!(hello["session"]["model"], Value::Null);
    assert_eq!(rig.get(&json!({"type": "session.created"})), []);
    assert!(!rig.codec.is_ready());
    let format = json!({"format": {"type": "audio/pcmu"}});
    let session = json!({"audio": {"input": format, "output": format}});
    assert_eq!(rig.get(&json!({"type": "session.updated", "session": session})), []);
    assert!(rig.codec.is_ready());
    // more has become known before the caller was connected
    rig.codec.add_parameters(vec![("from_number".to_owned(), "+49".to_owned())]);
    let opening = rig.codec.opening();
    assert_eq!(value(&opening[0])["session"]["instructions"], "Call +49");
    assert_eq!(opening.len(), 1);

    for (event, why) in [
        (
            json!({"type": "error", "error": {
                "type": "invalid_request_error", "code": "invalid_value",
                "message": "Invalid voice 'x' for sk-proj-0123456789abcdef0123."
            }}),
            "the AI refused the session: Invalid voice 'x' for … (invalid_value)",
        ),
        (
            json!({"type": "session.updated", "session": {"audio": {
                "input": {"format": {"type": "audio/pcm"}}
            }}}),
            "the AI wants input audio as audio/pcm, not G.711 mu-law",
        ),
    ] {
        let mut rig = Rig::new(json!({}));
        rig.codec.hello();
        assert_eq!(rig.get(&event), [Got::Failed(why.to_owned())]);
        assert!(!rig.codec.is_ready());
    }
}

#[test]
fn the_greeting_is_said_once_the_caller_is_there_and_again_if_that_failed() {
    let greeting = Some("Hello!".to_owned());
    let mut rig = Rig::with(Session { greeting, ..Session::default() }, StreamInfo::default());
    rig.codec.hello();
    rig.get(&json!({"type": "session.updated"}));
    assert!(rig.sent().is_empty());
    let opening = rig.codec.opening();
    let create = value(&opening[0]);
    assert_eq!(create["type"], "response.create");
    let instructions = |create: &Value| create["response"]["instructions"].to_string();
    assert!(instructions(&create).contains("Hello!"), "{create}");
    rig.get(&json!({"type": "response.created", "response": {"id": "r1"}}));
    let failed = json!({"type": "response.done", "response": {
        "id": "r1", "status": "failed", "status_details": {"error": {"code": "server_error"}}
    }});
    let why = "the model could not answer, and is asked again: server_error".to_owned();
    assert_eq!(rig.get(&failed), [Got::Warning(why)]);
    assert!(instructions(&rig.sent()[0]).contains("Hello!"));
    let why = "the model cannot answer: server_error".to_owned();
    assert_eq!(rig.get(&failed), [Got::Failed(why)]);
}

#[test]
fn audio_passes_both_ways() {
    let mut rig = Rig::talking();
    let samples = std::array::from_fn(|n| n as u8);
    let sent = rig.send(&ToAi::Audio { samples, t_ms: 20 });
    assert_eq!(
        sent,
        [json!({"type": "input_audio_buffer.append", "audio": BASE64.encode(samples)})]
    );
    assert_eq!(rig.get(&delta("r", "i", 161)), [Got::Audio(161)]);
    assert_eq!(rig.audio, vec![0x55; 161]);
    // as no server writes it, but JSON allows
    let odd = delta("r", "i", 5).to_string().replacen("response.", "response\\u002e", 1);
    assert_eq!(rig.decode(&odd), [Got::Audio(5)]);
    let bad = json!({"type": DELTA, "response_id": "r", "item_id": "i", "delta": "%"});
    assert_eq!(rig.get(&bad), [Got::Ignored("delta is not valid base64")]);
    for bad in ["", "[]", "{}", "{\"type\":5}", "x"] {
        assert_eq!(rig.decode(bad), [Got::Ignored("not an event of the Realtime API")], "{bad}");
    }
    assert_eq!(rig.get(&json!({"type": "rate_limits.updated", "rate_limits": []})), []);
}

#[test]
fn an_interruption_truncates_what_was_not_heard() {
    let mut rig = Rig::talking();
    rig.get(&json!({"type": "response.created", "response": {"id": "r1"}}));
    rig.get(&delta("r1", "i1", 8000));
    let started = json!({"type": "input_audio_buffer.speech_started"});
    assert_eq!(rig.get(&started), [Got::Clear]);
    assert_eq!(rig.get(&delta("r1", "i1", 800)), []);
    let sent = rig.cleared(1601, 6399);
    let expected = json!({
        "type": "conversation.item.truncate", "event_id": sent[0]["event_id"],
        "item_id": "i1", "content_index": 0, "audio_end_ms": 200,
    });
    assert_eq!(sent, [expected]);
    rig.done("1", "cancelled");
    // everything was heard
    rig.get(&json!({"type": "input_audio_buffer.speech_stopped"}));
    rig.get(&json!({"type": "response.created", "response": {"id": "r2"}}));
    assert_eq!(rig.get(&delta("r2", "i2", 800)), [Got::Audio(800)]);
    rig.done("2", "completed");
    assert_eq!(rig.get(&started), [Got::Clear]);
    assert!(rig.cleared(8800, 0).is_empty());

    // a user who does not want to be interrupted
    let mut rig = Rig::new(json!({"audio": {"input": {"turn_detection": {
        "type": "server_vad", "interrupt_response": false
    }}}}));
    assert_eq!(rig.get(&started), []);
}

/// The bridge hears the caller before the server does.
#[test]
fn an_interruption_by_the_bridge_cancels_the_response_and_truncates_it() {
    let mut rig = Rig::talking();
    rig.get(&json!({"type": "response.created", "response": {"id": "r1"}}));
    rig.get(&delta("r1", "i1", 8000));
    // these 800 were on their way when the bridge discarded the others, and are not played
    rig.get(&delta("r1", "i1", 800));
    let sent = rig.cleared_by(1601, 6399, true);
    assert_eq!(types(&sent), ["response.cancel", "conversation.item.truncate"]);
    assert_eq!((&sent[1]["item_id"], &sent[1]["audio_end_ms"]), (&json!("i1"), &json!(200)));
    assert_eq!(rig.get(&delta("r1", "i1", 800)), [], "the rest of it is not played");
    // the server notices too
    let started = json!({"type": "input_audio_buffer.speech_started"});
    assert_eq!(rig.get(&started), [Got::Clear]);
    assert!(rig.cleared(8800, 0).is_empty());
    rig.done("1", "cancelled");
    rig.get(&json!({"type": "input_audio_buffer.speech_stopped"}));
    rig.get(&json!({"type": "response.created", "response": {"id": "r2"}}));
    assert_eq!(rig.get(&delta("r2", "i2", 1600)), [Got::Audio(1600)]);
    // 100 ms of the new answer were played
    let sent = rig.cleared_by(8800 + 800, 800, true);
    assert_eq!(types(&sent), ["response.cancel", "conversation.item.truncate"]);
    assert_eq!((&sent[1]["item_id"], &sent[1]["audio_end_ms"]), (&json!("i2"), &json!(100)));
    rig.done("2", "cancelled");
    // nothing is said, so there is nothing to cancel
    assert!(rig.cleared_by(10_400, 0, true).is_empty());
}

#[test]
fn keys_are_an_utterance_of_the_caller() {
    let mut rig = Rig::talking();
    let frame = ToAi::Audio { samples: [0; 160], t_ms: 0 };
    for key in ['1', '2'] {
        assert!(rig.send(&ToAi::Digit(key)).is_empty());
        (1..75).for_each(|_| assert_eq!(types(&rig.send(&frame)), ["input_audio_buffer.append"]));
    }
    let sent = rig.send(&frame);
    let all = ["input_audio_buffer.append", "conversation.item.create", "response.create"];
    assert_eq!(types(&sent), all);
    let content = json!([{"type": "input_text", "text": "(keys pressed: 12)"}]);
    assert_eq!(sent[1]["item"], json!({"type": "message", "role": "user", "content": content}));
    rig.send(&ToAi::Digit('3'));
    let sent = rig.send(&ToAi::Digit('#'));
    // the model is still asked for the first answer
    assert_eq!(types(&sent), ["conversation.item.create"]);
    assert_eq!(sent[0]["item"]["content"][0]["text"], "(keys pressed: 3#)");
}

#[test]
fn tools_are_called_once_and_answered_together() {
    let mut rig = Rig::talking();
    let got = rig.calls("1", "look_up", "{}");
    assert_eq!(got, [Got::Tool("1".into(), "look_up".into())]);
    assert_eq!(rig.calls("2", "weather", ""), [Got::Tool("2".into(), "weather".into())]);
    assert_eq!(rig.calls("1", "look_up", "{}"), []);
    // call control waits for the end of the response
    assert_eq!(rig.calls("3", "set_disposition", r#"{"status":"SALE"}"#), []);
    let response = json!({"id": "r3", "status": "completed", "output": [
        call("2", "weather", ""), call("4", "other", "")
    ]});
    let got = rig.get(&json!({"type": "response.done", "response": response}));
    assert_eq!(got[0], Got::Tool("4".into(), "other".into()));
    let Got::Order(order) = &got[1] else { panic!("{got:?}") };
    assert_eq!(order.id, "3");

    let reply = |id: &str, reply| {
        let command = "disposition";
        ToAi::Reply(Box::new(OrderReply { id: id.to_owned(), command, reply, why: None }))
    };
    assert!(rig.send(&reply("3", Reply::Accepted)).is_empty());
    let sent = rig.send(&reply("3", Reply::Done));
    let output =
        json!({"type": "function_call_output", "call_id": "3", "output": "{\"status\":\"done\"}"});
    assert_eq!(types(&sent), ["conversation.item.create"]);
    assert_eq!(sent[0]["item"], output);
    let result = |id: &str| {
        let (id, output) = (id.to_owned(), "sunny".to_owned());
        let result = ToolResult { id, name: String::new(), output, failed: false };
        ToAi::ToolResult(Box::new(result))
    };
    assert_eq!(types(&rig.send(&result("1"))), ["conversation.item.create"]);
    assert_eq!(types(&rig.send(&result("2"))), ["conversation.item.create"]);
    // an answer to a call of another session
    assert!(rig.send(&result("9")).is_empty());
    let sent = rig.send(&result("4"));
    assert_eq!(types(&sent), ["conversation.item.create", "response.create"]);
    assert_eq!(sent[0]["item"]["output"], "sunny");
}

#[test]
fn nothing_is_said_after_a_hang_up_but_after_one_that_failed() {
    for (name, reply, expected) in [
        ("hang_up", Reply::Done, vec!["conversation.item.create"]),
        (
            "transfer_call",
            Reply::Failed(Failure::Busy),
            vec!["conversation.item.create", "response.create"],
        ),
    ] {
        let mut rig = Rig::talking();
        rig.calls("1", name, r#"{"target":"sales"}"#);
        let got = rig.done("1", "completed");
        assert!(matches!(&got[..], [Got::Order(_)]), "{got:?}");
        let reply = OrderReply { id: "1".into(), command: "x", reply, why: None };
        assert_eq!(types(&rig.send(&ToAi::Reply(Box::new(reply)))), expected, "{name}");
    }
}

#[test]
fn call_control_that_the_caller_interrupts_is_not_carried_out() {
    let mut rig = Rig::talking();
    rig.calls("1", "hang_up", "{}");
    assert_eq!(rig.get(&json!({"type": "input_audio_buffer.speech_started"})), [Got::Clear]);
    assert_eq!(rig.done("1", "cancelled"), []);
    let sent = rig.sent();
    assert_eq!(types(&sent), ["conversation.item.create"]);
    assert!(sent[0]["item"]["output"].to_string().contains("interrupted"), "{sent:?}");
    // arguments that were not written to their end
    let item = json!({"type": "function_call", "status": "incomplete", "call_id": "2",
        "name": "look_up", "arguments": "{\"a"});
    assert_eq!(rig.get(&json!({"type": "response.output_item.done", "item": item})), []);
    // one that is wrong
    rig.calls("3", "send_dtmf", "{\"digits\":\"x\"}");
    let got = rig.done("3", "completed");
    assert!(matches!(&got[..], [Got::Unusable(why)] if why.contains("may have 0-9")), "{got:?}");
}

#[test]
fn a_tool_of_the_users_takes_the_place_of_ours() {
    let tools = json!([{"type": "function", "name": "hang_up", "description": "mine"}]);
    let mut rig = Rig::new(json!({"tools": tools}));
    let hello = value(&rig.codec.hello()[0]);
    let names: Vec<&Value> =
        hello["session"]["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
    assert_eq!(names, ["hang_up", "send_dtmf", "set_disposition"]);
    assert_eq!(rig.calls("1", "hang_up", "{}"), [Got::Tool("1".into(), "hang_up".into())]);
    // a tool that was not offered is not carried out
    let got = rig.calls("2", "transfer_call", "{}");
    assert_eq!(got, [Got::Tool("2".into(), "transfer_call".into())]);
}

#[test]
fn errors_are_ignored_reported_or_fatal() {
    let mut rig = Rig::talking();
    let mut error = |code: &str, event_id: &str| {
        let error = json!({"type": "invalid_request_error", "code": code, "message": "M.",
            "event_id": event_id});
        rig.get(&json!({"type": "error", "error": error}))
    };
    assert_eq!(error("response_cancel_not_active", ""), []);
    assert_eq!(error("invalid_value", "trunkless_truncate_7"), []);
    assert_eq!(error("conversation_already_has_active_response", "trunkless_response_1"), []);
    assert_eq!(error("odd", ""), [Got::Warning("M. (odd)".to_owned())]);
    assert_eq!(error("session_expired", ""), [Got::Ended("M. (session_expired)".to_owned())]);
    for code in ["insufficient_quota", "invalid_api_key"] {
        assert_eq!(error(code, ""), [Got::Failed(format!("M. ({code})"))]);
    }
    assert_eq!(rig.get(&json!({"type": "error"})), [Got::Warning("it gives no reason".to_owned())]);
    let quota = json!({"id": "r", "status": "failed", "status_details": {"error": {
        "type": "insufficient_quota"
    }}});
    let got = rig.get(&json!({"type": "response.done", "response": quota}));
    assert_eq!(got, [Got::Failed("the model cannot answer: insufficient_quota".to_owned())]);
}

#[test]
fn what_becomes_known_later_is_a_system_message() {
    let mut rig = Rig::talking();
    let known = vec![("lead_id".to_owned(), "7".to_owned())];
    let sent = rig.send(&ToAi::Parameters(Box::new(known)));
    assert_eq!(types(&sent), ["conversation.item.create"]);
    assert_eq!(sent[0]["item"]["role"], "system");
    assert_eq!(sent[0]["item"]["content"][0]["text"], "More is known of this call:\nlead_id: 7");
}

#[test]
fn orders_reach_call_control() {
    let mut rig = Rig::talking();
    rig.calls("1", "transfer_call", r#"{"target":"sales"}"#);
    let got = rig.done("1", "completed");
    let [Got::Order(Order { command: Command::Transfer(transfer), .. })] = &got[..] else {
        panic!("{got:?}")
    };
    assert_eq!(transfer.to, "sales");
}
