//! The file against the code, without a call: paths, words, and the members of commands.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use trunkless::call::answering::AnsweredBy;
use trunkless::call::end::EndReason;
use trunkless::call::vitals::AiState;
use trunkless::command::{Cause, Digits, Failure};
use trunkless::stream::extension;

use crate::bridge::{Net, Rig};
use crate::control::request;
use crate::openapi::api::{TOKEN, bearer};
use crate::openapi::document::{Document, strings};

/// The part of a source file before its unit tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

/// The first text in quotes after each of `starts`.
fn quoted<'a>(text: &'a str, starts: &[&str]) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    for start in starts {
        let rests = text.split(start).skip(1);
        found.extend(rests.filter_map(|rest| rest.split('"').next()));
    }
    found
}

/// A path without the names of its parameters and without `.json`, which the server also takes
/// as a part of the last parameter.
fn bare(path: &str) -> String {
    let parts = path.trim_end_matches(".json").split('/');
    parts.map(|part| if part.starts_with('{') { "{}" } else { part }).collect::<Vec<_>>().join("/")
}

#[test]
fn the_file_has_the_paths_of_the_router() {
    let routes = code(include_str!("../../../src/control/mod.rs")).split(".route(").skip(1);
    let mut served = BTreeSet::new();
    for route in routes {
        let path = bare(route.split('"').nth(1).expect("a path"));
        for (call, method) in [("get(", "GET"), ("post(", "POST"), ("put(", "PUT")] {
            if route.contains(call) {
                served.insert((path.clone(), method));
            }
        }
    }
    let operations = Document::read().operations();
    let described: BTreeSet<_> =
        operations.iter().map(|operation| (bare(&operation.path), operation.method)).collect();
    assert_eq!(described, served);
}

#[test]
fn the_file_has_the_words_of_the_code() {
    let document = Document::read();
    let set = |words: Vec<String>| words.into_iter().collect::<BTreeSet<String>>();
    let listed = |name: &str| set(strings(&document.at(&Document::schema(name))["enum"]));
    let answerers = AnsweredBy::ALL.map(|by| by.word().to_owned());
    assert_eq!(listed("AnsweredBy"), set(answerers.to_vec()));
    let labels = EndReason::ALL.map(|reason| reason.label().to_owned());
    assert_eq!(listed("EndReason"), set(labels.to_vec()));
    // no response has it: the status 404 is in its place
    let reasons = Failure::ALL.into_iter().filter(|failure| *failure != Failure::NoSuchCall);
    let reasons = reasons.map(|failure| failure.word().to_owned());
    assert_eq!(listed("Reason"), set(reasons.collect()));
    assert_eq!(listed("AiState"), set(AiState::ALL.map(|state| state.word().to_owned()).to_vec()));
    let words =
        |text: &str| set(quoted(code(text), &["=> \""]).into_iter().map(str::to_owned).collect());
    assert_eq!(listed("Scope"), words(include_str!("../../../src/control/tokens.rs")));
    let status = include_str!("../../../src/control/status.rs");
    let (states, _) = status.split_once("impl Finding {").expect("the words of states");
    assert_eq!(listed("FindingState"), words(states));
    let commands = extension::NAMES.map(str::to_owned);
    let names: Vec<String> = commands.iter().cloned().chain(["redirect".to_owned()]).collect();
    assert_eq!(listed("CommandName"), set(names));
    let schemas = document.commands();
    let described = schemas.iter().map(|schema| document.command(schema));
    assert_eq!(set(described.collect()), set(commands.to_vec()));
    let causes = &document.at(&Document::schema("Hangup"))["properties"]["cause"]["enum"];
    assert_eq!(strings(causes), Cause::ALL.map(Cause::name));

    let events = document.operation("GET", "/v1/events").at.clone()
        + "/responses/200/content/text~1event-stream/x-events";
    let described: BTreeSet<&str> =
        document.at(&events).as_object().expect("events").keys().map(String::as_str).collect();
    let sent = code(include_str!("../../../src/call/live.rs"));
    let mut sent: BTreeSet<&str> = quoted(sent, &["=> \""]);
    sent.retain(|word| word.starts_with("call."));
    sent.extend(quoted(code(include_str!("../../../src/control/events.rs")), &[".event(\""]));
    assert_eq!(described, sent);
}

#[test]
fn the_file_has_the_members_and_form_fields_that_are_read() {
    let document = Document::read();
    let mut described = BTreeSet::new();
    for schema in document.commands() {
        let members = document.at(&schema)["properties"].as_object().expect("properties");
        described.extend(members.keys().cloned());
    }
    described.remove("command");
    let reader = code(include_str!("../../../src/stream/extension.rs"));
    let read = quoted(reader, &[".get(\"", ".text(\"", ".word(\""]);
    assert_eq!(described, read.into_iter().map(str::to_owned).collect());

    // `Url` of an update is read only to be refused
    let (mut fields, mut words, mut queries) =
        (BTreeSet::from(["Url"]), BTreeSet::new(), BTreeSet::new());
    for at in document.operations() {
        let operation = document.at(&at.at);
        let form = "/requestBody/content/application~1x-www-form-urlencoded/schema/properties";
        let form = operation.pointer(form).and_then(Value::as_object);
        if at.at.ends_with("Calls.json/post") {
            // a new call has a list of the fields that it takes
            let (_, list) = code(include_str!("../../../src/control/twilio_dial.rs"))
                .split_once("const FIELDS")
                .expect("the list");
            let (list, _) = list.split_once("];").expect("its end");
            let described: BTreeSet<&str> =
                form.into_iter().flatten().map(|(n, _)| n.as_str()).collect();
            assert_eq!(described, quoted(list, &["    \""]));
            continue;
        }
        for (name, schema) in form.into_iter().flatten() {
            fields.insert(name.as_str());
            words.extend(schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str));
        }
        for (index, _) in operation["parameters"].as_array().into_iter().flatten().enumerate() {
            let parameter = format!("{}/parameters/{index}", at.at);
            let parameter = document.at(&document.resolved(&parameter));
            queries.extend(parameter["name"].as_str());
        }
    }
    let reader = code(include_str!("../../../src/control/twilio.rs"));
    assert_eq!(fields, quoted(reader, &["value(&fields, \""]));
    let (before, rest) = reader.split_once("\nfn filters(").expect("the filters of a list");
    let (filters, after) = rest.split_once("\n}\n").expect("their end");
    let mut read = quoted(before, &["Some(\"", " | \""]);
    read.extend(quoted(after, &["Some(\"", " | \""]));
    assert_eq!(words, read);
    let waits = code(include_str!("../../../src/control/calls.rs"));
    let waits = quoted(waits, &["strip_prefix(\""]).into_iter().map(|name| &name[..name.len() - 1]);
    let limits = quoted(code(include_str!("../../../src/control/ended.rs")), &["strip_prefix(\""]);
    let limits = limits.into_iter().map(|name| &name[..name.len() - 1]);
    let filters = quoted(filters, &["\n            \"", " | \""]);
    let captures = code(include_str!("../../../src/control/capture.rs"));
    let captures = quoted(captures, &["\n            \""]);
    let known = filters.into_iter().chain(waits).chain(limits).chain(captures);
    assert_eq!(queries, known.collect());
}

#[test]
fn a_member_that_is_left_out_has_the_default_of_the_file() {
    let document = Document::read();
    let mut defaults = 0;
    for schema in document.commands() {
        let members = document.at(&schema)["properties"].as_object().expect("properties");
        for name in members.keys() {
            let member = document.resolved(&format!("{schema}/properties/{name}"));
            let default = &document.at(&member)["default"];
            if default.is_null() {
                continue;
            }
            let mut body = document.at(&schema)["examples"][0].clone();
            let read = |body: &Value| {
                let body = body.as_object().expect("an object");
                extension::read(&document.command(&schema), Some(body), body)
            };
            body.as_object_mut().expect("an object").remove(name);
            let without = read(&body);
            body[name] = default.clone();
            assert!(matches!(without, Some(Ok(_))), "{body}");
            assert_eq!(read(&body), without, "{body}");
            defaults += 1;
        }
    }
    assert!(defaults > 12, "{defaults}");
}

impl Document {
    /// The pointers of the schemas of all commands.
    fn commands(&self) -> Vec<String> {
        let branches = self.at(&Document::schema("Command"))["oneOf"].as_array().expect("oneOf");
        let branches = branches.iter().filter_map(|branch| branch["$ref"].as_str());
        branches.map(|reference| reference[1..].to_owned()).collect()
    }

    fn command(&self, schema: &str) -> String {
        let name = &self.at(schema)["properties"]["command"]["const"];
        name.as_str().expect("a name").to_owned()
    }

    /// Values at and beyond the bounds of a member, by its schema.
    fn trials(&self, member: &str) -> Vec<Value> {
        let schema = self.at(&self.resolved(member)).clone();
        let mut trials =
            vec![json!([]), json!([1]), json!(-1), json!(1.5), json!(true), json!("?")];
        trials.extend(schema["enum"].as_array().into_iter().flatten().cloned());
        trials.extend(
            ["minimum", "maximum"]
                .iter()
                .filter_map(|bound| schema[bound].as_i64())
                .flat_map(|bound| [bound - 1, bound, bound + 1].map(Value::from)),
        );
        for length in ["minLength", "maxLength"].iter().filter_map(|bound| schema[bound].as_u64()) {
            let lengths = [length.saturating_sub(1), length, length + 1];
            trials.extend(lengths.map(|length| "1".repeat(length as usize).into()));
        }
        if schema["pattern"].is_string() {
            trials.extend((' '..='\u{a0}').map(|key| json!(key.to_string())));
            for (keys, pauses) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let (keys, pauses) = (Digits::MAX + keys, Digits::MAX_PAUSES + pauses);
                let mixed = "w1".repeat(keys) + &"W".repeat(pauses - keys);
                trials.extend(["1".repeat(keys), "w".repeat(pauses), mixed].map(Value::from));
            }
        }
        for count in ["minProperties", "maxProperties"].iter().filter_map(|b| schema[b].as_u64()) {
            for count in [count - 1, count, count + 1] {
                let members: Map<_, _> = (0..count).map(|n| (format!("v{n}"), json!(n))).collect();
                trials.push(members.into());
            }
        }
        if schema["additionalProperties"].is_object() {
            let values = [json!("x"), json!(1), json!(true), json!([]), json!({}), Value::Null];
            trials.extend(values.map(|value| json!({"name": value})));
            trials.push(json!({"": 1}));
        }
        trials
    }
}

/// No call has the id in the path, so the server says 404 to a command that is well formed, and 400
/// to others.
#[tokio::test]
async fn commands_have_the_members_and_bounds_of_the_file() {
    let document = Document::read();
    let net = Net::new();
    let address = crate::http::free(net.bridge());
    let config =
        format!("[control]\nlisten = \"{address}\"\n[control.tokens.desk]\ntoken = \"{TOKEN}\"\n");
    let pbx = crate::pbx::Pbx::udp(net.pbx()).await;
    let ai = crate::strict::Ai::start(net.ai()).await;
    let _rig = Rig::with(net, pbx, ai, &config).await;
    let whole = Document::schema("Command");
    let agree = async |body: &Value| {
        let head = "POST /v1/calls/none/commands";
        let (status, answer) = request(address, head, &bearer(TOKEN), &body.to_string()).await;
        assert!([400, 404].contains(&status), "{body}: {status} {answer}");
        let faults = document.faults(&whole, body);
        assert_eq!(status == 404, faults.is_empty(), "{body}: {answer}, the file: {faults:?}");
        status == 404
    };
    for schema in document.commands() {
        let example = document.at(&schema)["examples"][0].clone();
        assert!(document.faults(&schema, &example).is_empty(), "{example}");
        assert!(agree(&example).await, "{example}");
        let members = document.at(&schema)["properties"].as_object().expect("properties");
        for name in members.keys().filter(|name| *name != "id") {
            let mut without = example.clone();
            without.as_object_mut().expect("an object").remove(name);
            agree(&without).await;
            let mut refused = 0;
            for trial in document.trials(&format!("{schema}/properties/{name}")) {
                let mut body = example.clone();
                body[name] = trial;
                refused += u32::from(!agree(&body).await);
            }
            assert!(refused > 0, "{schema}: {name} may have any value");
        }
    }
    let path = "/v1/calls/{id}/commands";
    let wait = &document.at(&document.operation("POST", path).at)["parameters"][0]["schema"];
    let (min, max) = (wait["minimum"].as_i64().unwrap(), wait["maximum"].as_i64().unwrap());
    for (value, status) in [(min - 1, 400), (min, 404), (max, 404), (max + 1, 400)] {
        let head = format!("POST /v1/calls/none/commands?wait={value}");
        let (got, _) = request(address, &head, &bearer(TOKEN), "{\"command\":\"hold\"}").await;
        assert_eq!(got, status, "wait={value}");
    }
}
