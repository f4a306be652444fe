//! Messages of Gemini Live.

use super::*;
use crate::command::{Failure, Reply};
use crate::stream::testing::{encoded, in_words, sent};
use crate::stream::{OrderReply, ToolResult};

fn info() -> StreamInfo {
    StreamInfo {
        parameters: vec![("from_number".into(), "+49".into())],
        targets: vec!["sales".into()],
        ..StreamInfo::default()
    }
}

fn live(settings: Value, greeting: Option<&str>) -> Live {
    let greeting = greeting.map(str::to_owned);
    Live::new(info(), &Session { settings: Some(settings), greeting, ..Session::default() })
}

fn ready() -> Live {
    let mut live = live(json!({}), None);
    assert_eq!(decode(&mut live, &json!({"setupComplete": {}})), [""; 0]);
    assert!(live.is_ready());
    live
}

/// Returns the meaning of a message in a few words. Google sends them as binary ones.
fn decode(live: &mut Live, message: &Value) -> Vec<String> {
    let text = message.to_string();
    let words = in_words(live, Received::Binary(text.as_bytes()));
    words
        .into_iter()
        .map(|word| if word.starts_with("audio [") { "audio".into() } else { word })
        .collect()
}

fn spoken(mime_type: &str, samples: usize) -> Value {
    let data = BASE64.encode(vec![0; 2 * samples]);
    let parts = json!([{"inlineData": {"mimeType": mime_type, "data": data}}]);
    json!({"serverContent": {"modelTurn": {"role": "model", "parts": parts}}})
}

fn call(id: &str, name: &str, args: &Value) -> Value {
    json!({"toolCall": {"functionCalls": [{"id": id, "name": name, "args": args}]}})
}

fn handle(new: &str) -> Value {
    json!({"sessionResumptionUpdate": {"newHandle": new, "resumable": !new.is_empty()}})
}

fn setup_of(live: &mut Live) -> Value {
    let Message::Text(text) = live.hello().remove(0) else { panic!("binary") };
    let setup: Value = serde_json::from_str(&text).unwrap();
    setup["setup"].clone()
}

#[test]
fn the_setup_completes_the_session() {
    let mut plain = live(json!({}), None);
    let setup = setup_of(&mut plain);
    assert_eq!(setup["model"], "models/gemini-3.8-live");
    assert_eq!(setup["generationConfig"], json!({"responseModalities": ["AUDIO"]}));
    assert_eq!(setup["sessionResumption"], json!({}));
    assert_eq!(setup.get("contextWindowCompression"), None);
    let functions = &setup["tools"][0]["functionDeclarations"];
    let names: Vec<&Value> =
        functions.as_array().unwrap().iter().map(|function| &function["name"]).collect();
    assert_eq!(names, model::TOOLS);
    assert_eq!(functions[0].get("parameters"), None);
    let target = json!({"type": "STRING", "enum": ["sales"]});
    assert_eq!(functions[1]["parameters"]["properties"]["target"], target);

    let own = json!({"name": "hang_up", "description": "own"});
    let settings = json!({
        "model": "models/other",
        "systemInstruction": "Caller: {from_number}.",
        "generationConfig": {"temperature": 0.5},
        "contextWindowCompression": {"slidingWindow": {}},
        "tools": [{"googleSearch": {}}, {"functionDeclarations": [own.clone()]}],
    });
    let setup = setup_of(&mut live(settings, None));
    assert_eq!(setup["model"], "models/other");
    assert_eq!(setup["systemInstruction"], json!({"parts": [{"text": "Caller: +49."}]}));
    let config = json!({"temperature": 0.5, "responseModalities": ["AUDIO"]});
    assert_eq!(setup["generationConfig"], config);
    assert_eq!(setup["contextWindowCompression"], json!({"slidingWindow": {}}));
    let tools = setup["tools"].as_array().unwrap();
    assert_eq!((tools.len(), &tools[1]["functionDeclarations"][0]), (3, &own));
    let ours = tools[2]["functionDeclarations"].as_array().unwrap();
    assert_eq!((ours.len(), &ours[0]["name"]), (3, &json!("transfer_call")));

    let none = Session { tools: Some(vec![]), ..Session::default() };
    assert_eq!(setup_of(&mut Live::new(info(), &none)).get("tools"), None);
}

#[test]
fn sessions_that_cannot_work_are_refused() {
    assert_eq!(check(None), Ok(()));
    assert_eq!(
        check(Some(&json!({"generationConfig": {"responseModalities": ["AUDIO"]}}))),
        Ok(())
    );
    for (settings, part) in [
        (json!({"model": 5}), "model"),
        (json!({"tools": {}}), "tools"),
        (json!({"generationConfig": "x"}), "generationConfig"),
        (json!({"sessionResumption": true}), "sessionResumption"),
        (
            json!({"generationConfig": {"responseModalities": ["TEXT"]}}),
            "generationConfig.responseModalities",
        ),
    ] {
        assert_eq!(check(Some(&settings)).unwrap_err().0, part);
    }
}

#[test]
fn the_model_greets_once_the_caller_is_connected() {
    let mut live = live(json!({}), Some("Hello {from_number}"));
    live.hello();
    decode(&mut live, &json!({"setupComplete": {"sessionId": "s"}}));
    live.add_parameters(vec![("lead_id".into(), "7".into())]);
    live.opening().into_iter().for_each(|message| live.further.push_back(message));
    let opening = sent(&mut live);
    let content = &opening[0]["clientContent"];
    assert_eq!(content["turns"][0]["parts"][0]["text"], "More is known of this call:\nlead_id: 7");
    assert_eq!(content["turnComplete"], false);
    let text = opening[1]["realtimeInput"]["text"].as_str().unwrap();
    assert!(text.ends_with("Hello +49"), "{text}");
    assert_eq!(ready().opening(), []);
}

#[test]
fn messages_are_decoded() {
    let pcm = "audio/pcm;rate=24000";
    let thought = json!([{"text": "so", "thought": true}]);
    for (message, expected) in [
        (spoken(pcm, 480), "audio"),
        (spoken("audio/pcm", 480), "audio"),
        (spoken("audio/pcm; rate=16000", 320), "audio"),
        (spoken("audio/ogg", 5), "inlineData is not audio/pcm"),
        (
            spoken("audio/pcm;rate=22050", 5),
            "the model's audio has 22050 Hz, which is not supported",
        ),
        (spoken("audio/pcm;rate=x", 5), "the model's audio has 0 Hz, which is not supported"),
        (
            json!({"serverContent": {"modelTurn": {"parts": [{"inlineData": {
                "mimeType": pcm, "data": "!"}}]}}}),
            "inlineData is not valid base64",
        ),
        (json!({"serverContent": {"modelTurn": {"parts": thought}}}), ""),
        (json!({"serverContent": {"interrupted": true}}), "clear"),
        (json!({"serverContent": {"turnComplete": true}, "usageMetadata": {"a": 1}}), ""),
        (json!({"somethingNew": [1]}), ""),
        (call("f1", "look_up", &json!({"a": 1})), "tool look_up {\"a\":1}"),
        (call("f2", "hang_up", &json!({})), "order f2"),
        (call("f3", "transfer_call", &json!({})), "unusable f3"),
        (json!({"toolCall": {"functionCalls": [{"name": "hang_up"}]}}), "order call-1"),
        (json!({"toolCall": {"functionCalls": 5}}), "not a JSON message in Google's format"),
        (json!([1]), "not a JSON message in Google's format"),
    ] {
        assert_eq!(decode(&mut ready(), &message).join(" "), expected, "{message}");
    }
    assert_eq!(in_words(&mut ready(), Received::Text("{]")).len(), 1);
    let text = spoken(pcm, 480).to_string();
    assert_eq!(in_words(&mut ready(), Received::Text(&text)).len(), 1);
    let junk = [0xff, 0];
    assert_eq!(in_words(&mut ready(), Received::Binary(&junk)).len(), 1);
}

#[test]
fn audio_is_resampled_in_both_directions() {
    for (rate, bytes) in [(None, 640), (Some(8000), 320)] {
        let session = Session { sample_rate: rate, ..Session::default() };
        let mut live = Live::new(info(), &session);
        let text = encoded(&mut live, &ToAi::Audio { samples: [0xff; 160], t_ms: 0 });
        let message: Value = serde_json::from_str(&text).unwrap();
        let audio = &message["realtimeInput"]["audio"];
        assert_eq!(audio["mimeType"], format!("audio/pcm;rate={}", rate.unwrap_or(16_000)));
        let data = BASE64.decode(audio["data"].as_str().unwrap()).unwrap();
        assert_eq!(data, vec![0; bytes]);
    }
    // 20 ms at either rate are 160 samples of the call, also after a change
    let mut live = ready();
    for (rate, samples) in [(24_000, 480), (24_000, 480), (8000, 160)] {
        let text = spoken(&format!("audio/pcm;rate={rate}"), samples).to_string();
        let said = in_words(&mut live, Received::Text(&text));
        assert_eq!(said, [format!("audio {:?}", [0xff; 160])], "{rate}");
    }
}

#[test]
fn results_are_sent_while_the_model_waits_for_them() {
    let mut live = ready();
    decode(&mut live, &call("f1", "transfer_call", &json!({"target": "sales"})));
    let reply = |reply| {
        let id = "f1".to_owned();
        ToAi::Reply(Box::new(OrderReply { id, command: "transfer", reply, why: None }))
    };
    assert_eq!(encoded(&mut live, &reply(Reply::Accepted)), "");
    let failed = encoded(&mut live, &reply(Reply::Failed(Failure::Busy)));
    let failed: Value = serde_json::from_str(&failed).unwrap();
    let response = &failed["toolResponse"]["functionResponses"][0];
    assert_eq!((&response["id"], &response["name"]), (&json!("f1"), &json!("transfer_call")));
    assert_eq!(response["response"]["reason"], "busy");
    assert_eq!(encoded(&mut live, &reply(Reply::Done)), "", "it has been answered");

    let result = |id: &str, output: &str, failed| {
        let (id, name, output) = (id.to_owned(), "look_up".to_owned(), output.to_owned());
        ToAi::ToolResult(Box::new(ToolResult { id, name, output, failed }))
    };
    for (output, failed, expected) in [
        ("{\"a\":1}", false, json!({"output": {"a": 1}})),
        ("plain", false, json!({"output": "plain"})),
        ("no", true, json!({"error": "no"})),
    ] {
        decode(&mut live, &call("f2", "look_up", &json!({})));
        let sent = encoded(&mut live, &result("f2", output, failed));
        let sent: Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(sent["toolResponse"]["functionResponses"][0]["response"], expected);
    }
    decode(&mut live, &call("f3", "look_up", &json!({})));
    decode(&mut live, &json!({"toolCallCancellation": {"ids": ["f3"]}}));
    assert_eq!(encoded(&mut live, &result("f3", "late", false)), "");
    for n in 0..=MAX_OPEN {
        let said = decode(&mut live, &call(&n.to_string(), "look_up", &json!({})));
        assert_eq!(said[0].starts_with("tool"), n < MAX_OPEN, "{said:?}");
    }
}

#[test]
fn the_session_moves_when_nothing_would_be_lost() {
    let mut live = ready();
    assert_eq!(decode(&mut live, &handle("h1")), [""; 0]);
    assert_eq!(decode(&mut live, &handle("")), [""; 0]);
    assert_eq!(live.resumption(), Some("h1"), "the last one that works");
    assert_eq!(decode(&mut live, &json!({"goAway": {"timeLeft": "50s"}})), [""; 0]);
    decode(&mut live, &spoken("audio/pcm;rate=24000", 480));
    assert_eq!(decode(&mut live, &handle("h2")), [""; 0], "the model speaks");
    decode(&mut live, &json!({"serverContent": {"generationComplete": true}}));
    decode(&mut live, &call("f1", "look_up", &json!({})));
    assert_eq!(decode(&mut live, &handle("h3")), [""; 0], "a tool is open");
    decode(&mut live, &json!({"toolCallCancellation": {"ids": ["f1"]}}));
    assert_eq!(decode(&mut live, &handle("h4")), ["Google ends the connection soon"]);
    assert_eq!(live.resumption(), Some("h4"));

    let info = StreamInfo { resumed: true, resumption: Some("h4".into()), ..info() };
    let greeting = Some("Hello".to_owned());
    let session = Session { greeting, ..Session::default() };
    let mut next = Live::new(info.clone(), &session);
    assert_eq!(setup_of(&mut next)["sessionResumption"], json!({"handle": "h4"}));
    assert_eq!(next.opening(), [], "no second greeting");
    // another session knows nothing
    let mut fresh = Live::new(StreamInfo { resumption: None, ..info }, &session);
    let Message::Text(text) = fresh.opening().remove(0) else { panic!("binary") };
    assert!(text.contains("interrupted"), "{text}");

    let long = "x".repeat(MAX_HANDLE + 1);
    decode(&mut fresh, &handle(&long));
    assert_eq!(fresh.resumption(), None);
}

#[test]
fn keys_are_text_of_the_caller() {
    let mut live = ready();
    "12#".chars().for_each(|key| drop(encoded(&mut live, &ToAi::Digit(key))));
    assert_eq!(sent(&mut live), [json!({"realtimeInput": {"text": "[keys pressed: 12#]"}})]);
    let late = ToAi::Parameters(Box::new(vec![("lead_id".into(), "7".into())]));
    assert_eq!(encoded(&mut live, &late), "");
    assert_eq!(sent(&mut live)[0]["clientContent"]["turnComplete"], false);
}
