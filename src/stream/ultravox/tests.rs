//! Messages of Ultravox.

use super::*;
use crate::command::Failure;
use crate::media::frame::Samples;
use crate::stream::ToolResult;
use crate::stream::testing::{encoded, in_words, sent};

fn info() -> StreamInfo {
    StreamInfo {
        parameters: vec![("from_number".into(), "+49".into())],
        targets: vec!["sales".into()],
        ..StreamInfo::default()
    }
}

fn agent() -> Agent {
    Agent::new(info(), &Session::default())
}

fn tools_of(session: &Session) -> Vec<Value> {
    let body = creation("/api/calls", None, session, &info());
    body["selectedTools"].as_array().unwrap().clone()
}

fn decode(agent: &mut Agent, message: &Value) -> Vec<String> {
    in_words(agent, Received::Text(&message.to_string()))
}

fn invocation(id: &str, name: &str, parameters: &Value) -> Value {
    json!({
        "type": "client_tool_invocation",
        "toolName": name,
        "invocationId": id,
        "parameters": parameters,
    })
}

#[test]
fn a_call_is_created_with_its_audio_greeting_and_tools() {
    let settings = json!({"systemPrompt": "Caller: {from_number}.", "medium": {"webRtc": {}}});
    let greeting = Some("Hello {from_number}".to_owned());
    let session = Session { settings: Some(settings), greeting, ..Session::default() };
    let body = creation("/api/calls", None, &session, &info());
    assert_eq!(body["systemPrompt"], "Caller: +49.");
    let medium = json!({"serverWebSocket": {
        "inputSampleRate": 8000, "outputSampleRate": 8000, "clientBufferSizeMs": 30_000,
    }});
    assert_eq!(body["medium"], medium);
    assert_eq!(body["firstSpeakerSettings"], json!({"agent": {"text": "Hello +49"}}));
    let tools = body["selectedTools"].as_array().unwrap();
    let names: Vec<&Value> =
        tools.iter().map(|tool| &tool["temporaryTool"]["modelToolName"]).collect();
    assert_eq!(names, model::TOOLS);
    let transfer = &tools[1]["temporaryTool"];
    assert_eq!((&transfer["timeout"], &transfer["client"]), (&json!("30s"), &json!({})));
    let target = json!({
        "name": "target",
        "location": "PARAMETER_LOCATION_BODY",
        "schema": {"type": "string", "enum": ["sales"]},
        "required": true,
    });
    assert_eq!(transfer["dynamicParameters"], json!([target]));

    let own = json!({"temporaryTool": {"modelToolName": "hang_up"}});
    let given = json!({"selectedTools": [own, {"toolName": "send_dtmf"}]});
    let body = creation("/api/calls", Some(&given), &Session::default(), &info());
    let tools = body["selectedTools"].as_array().unwrap();
    assert_eq!((tools.len(), &tools[0]), (4, &own));
    assert_eq!(body.get("firstSpeakerSettings"), None);

    let body = creation("/api/agents/1/calls", None, &Session::default(), &info());
    assert_eq!((body.get("selectedTools"), &body["medium"]), (None, &medium));
    let added = &body["toolOverrides"]["add"];
    assert_eq!((added.as_array().unwrap().len(), &added[0]), (4, &tools_of(&session)[0]));
    let none = Session { tools: Some(vec![]), ..Session::default() };
    assert_eq!(creation("/api/calls", None, &none, &info()).get("selectedTools"), None);
    assert_eq!(creation("/agents/1/calls", None, &none, &info()).get("toolOverrides"), None);
    let again = StreamInfo { resumed: true, ..info() };
    let body = creation("/api/calls", None, &session, &again);
    let prompt = body["firstSpeakerSettings"]["agent"]["prompt"].as_str().unwrap();
    assert!(prompt.contains("interrupted"), "{prompt}");
}

#[test]
fn sessions_that_cannot_work_are_refused() {
    let good = json!({"selectedTools": [], "toolOverrides": {}});
    assert_eq!((check(None), check(Some(&good))), (Ok(()), Ok(())));
    for (settings, part) in [
        (json!({"selectedTools": {}}), "selectedTools"),
        (json!({"toolOverrides": []}), "toolOverrides"),
    ] {
        assert_eq!(check(Some(&settings)).unwrap_err().0, part);
    }
}

#[test]
fn messages_are_decoded() {
    for (message, expected) in [
        (json!({"type": "playback_clear_buffer"}), "clear"),
        (json!({"type": "call_started", "callId": "c"}), ""),
        (json!({"type": "state", "state": "listening"}), ""),
        (json!({"type": "pong", "timestamp": 0.0}), ""),
        (json!({"type": "transcript", "role": "agent", "delta": "a", "final": false}), ""),
        (json!({"type": "something_new", "parameters": [1]}), ""),
        (json!({"type": "client_tool_invocation"}), "client_tool_invocation without details"),
        (json!({"type": 5}), "not a JSON message in Ultravox' format"),
        (json!([]), "not a JSON message in Ultravox' format"),
        (invocation("i1", "look_up", &json!({"a": 1})), "tool look_up {\"a\":1}"),
        (invocation("i2", "hang_up", &json!({})), "order i2"),
        (invocation("i3", "hang_up", &Value::Null), "order i3"),
        (invocation("i4", "transfer_call", &json!({"target": "1099"})), "unusable i4"),
    ] {
        assert_eq!(decode(&mut agent(), &message).join(" "), expected, "{message}");
    }
}

#[test]
fn audio_at_8_khz_keeps_each_byte() {
    let mut agent = agent();
    let samples: Samples = std::array::from_fn(|n| n as u8 | 0x80);
    let mut out = BytesMut::new();
    let form = agent.encode(&ToAi::Audio { samples, t_ms: 0 }, &mut out);
    assert_eq!((form, out.len()), (Form::Binary, 320));
    let mut heard = Vec::new();
    for piece in out.chunks(33) {
        agent.decode(Received::Binary(piece), &mut vec![9], &mut |message| match message {
            FromAi::Audio(audio) => heard.extend_from_slice(audio),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(heard, samples);
}

#[test]
fn results_say_how_the_agent_goes_on() {
    let reply = |command, reply| {
        let id = "i1".to_owned();
        ToAi::Reply(Box::new(OrderReply { id, command, reply, why: None }))
    };
    assert_eq!(encoded(&mut agent(), &reply("transfer", Reply::Accepted)), "");
    for (command, given, reaction) in [
        ("hangup", Reply::Done, "listens"),
        ("disposition", Reply::Done, "speaks-once"),
        ("transfer", Reply::Failed(Failure::Busy), "speaks"),
    ] {
        let text = encoded(&mut agent(), &reply(command, given));
        let result: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(result["agentReaction"], reaction);
        assert_eq!((&result["invocationId"], result["result"].is_string()), (&json!("i1"), true));
    }
    let tool = |failed| {
        let (id, name, output) = ("i2".into(), "look_up".into(), "42".into());
        encoded(&mut agent(), &ToAi::ToolResult(Box::new(ToolResult { id, name, output, failed })))
    };
    let good = r#"{"invocationId":"i2","result":"42","type":"client_tool_result"}"#;
    assert_eq!(tool(false), good);
    assert!(tool(true).contains(r#""errorMessage":"42","errorType":"implementation-error""#));
}

#[test]
fn keys_and_parameters_are_messages_of_the_user() {
    let mut agent = agent();
    "4#".chars().for_each(|key| drop(encoded(&mut agent, &ToAi::Digit(key))));
    let keys = json!({
        "type": "user_text_message", "text": "[keys pressed: 4#]", "urgency": "immediate",
    });
    assert_eq!(sent(&mut agent), [keys]);
    agent.add_parameters(vec![("lead_id".into(), "7".into())]);
    let Message::Text(text) = agent.opening().remove(0) else { panic!("binary") };
    assert!(text.contains("lead_id: 7") && text.contains(r#""urgency":"later""#), "{text}");
}
