//! docs/openapi.yaml: its operations and schemas, and which parts of them real responses have
//! shown.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use jsonschema::Validator;
use serde_json::{Value, json};

/// Members that a call has only once something has happened in it. Their own tests hold them
/// against the file: see turns.rs.
const OPTIONAL: &[&str] = &["turn_latency"];

/// Lists of words that a call in a test cannot all show. Another test compares them with the code.
const LISTS: [&str; 7] =
    ["AnsweredBy", "EndReason", "Reason", "CommandName", "AiState", "Scope", "FindingState"];

/// A method of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// With names in braces.
    pub path: String,
    pub method: &'static str,
    /// The JSON pointer of its description.
    pub at: String,
}

pub struct Document {
    pub root: Value,
    /// Responses, parts of schemas and words that were seen.
    seen: BTreeSet<String>,
    /// The schemas that were used, by their pointers.
    validators: RefCell<HashMap<String, Validator>>,
}

/// A name as a part of a JSON pointer.
fn part(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

impl Document {
    pub fn read() -> Document {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.yaml");
        let text = std::fs::read_to_string(path).expect("docs/openapi.yaml");
        let root: Value = serde_saphyr::from_str(&text).expect("YAML");
        assert!(root["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")));
        Document { root, seen: BTreeSet::new(), validators: RefCell::default() }
    }

    pub fn at(&self, pointer: &str) -> &Value {
        self.root.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is not in the file"))
    }

    /// Follows references from a pointer to the pointer of a definition.
    pub fn resolved(&self, pointer: &str) -> String {
        match self.at(pointer)["$ref"].as_str() {
            Some(reference) => self.resolved(reference.strip_prefix('#').expect("a local one")),
            None => pointer.to_owned(),
        }
    }

    /// The pointers of a list's items or of an object's members.
    fn below(&self, pointer: &str) -> Vec<String> {
        match self.root.pointer(pointer) {
            Some(Value::Object(members)) => {
                members.keys().map(|name| format!("{pointer}/{}", part(name))).collect()
            }
            Some(Value::Array(items)) => {
                (0..items.len()).map(|n| format!("{pointer}/{n}")).collect()
            }
            _ => Vec::new(),
        }
    }

    pub fn schema(name: &str) -> String {
        format!("/components/schemas/{name}")
    }

    pub fn operations(&self) -> Vec<Operation> {
        let mut found = Vec::new();
        for (path, item) in self.root["paths"].as_object().expect("paths") {
            for method in METHODS {
                let name = method.to_ascii_lowercase();
                if item.get(&name).is_some() {
                    let at = format!("/paths/{}/{name}", part(path));
                    found.push(Operation { path: path.clone(), method, at });
                }
            }
        }
        found
    }

    pub fn operation(&self, method: &str, path: &str) -> Operation {
        let mut all = self.operations().into_iter();
        let found = all.find(|operation| operation.method == method && operation.path == path);
        found.unwrap_or_else(|| panic!("{method} {path} is not in the file"))
    }

    /// Returns the faults of a value by the schema at `pointer`.
    pub fn faults(&self, pointer: &str, value: &Value) -> Vec<String> {
        let mut validators = self.validators.borrow_mut();
        let validator = validators.entry(pointer.to_owned()).or_insert_with(|| {
            let mut schema = self.at(pointer).clone();
            schema["components"] = json!({"schemas": self.root["components"]["schemas"]});
            let options = jsonschema::draft202012::options().should_validate_formats(true);
            options.build(&schema).unwrap_or_else(|why| panic!("{pointer}: {why}"))
        });
        validator.iter_errors(value).map(|why| format!("{}: {why}", why.instance_path())).collect()
    }

    /// Holds a value against the schema at `pointer`, and notes the parts that it shows.
    pub fn check(&mut self, pointer: &str, value: &Value) {
        let faults = self.faults(pointer, value);
        assert!(faults.is_empty(), "{pointer}: {faults:#?}\n{value:#}");
        self.note(pointer, value);
    }

    fn note(&mut self, pointer: &str, value: &Value) {
        self.seen.insert(pointer.to_owned());
        let schema = self.at(pointer).clone();
        if let Some(reference) = schema["$ref"].as_str() {
            return self.note(&reference[1..], value);
        }
        if schema["enum"].is_array() {
            self.seen.insert(format!("{pointer} = {value}"));
        }
        if schema["type"].is_array() {
            self.seen.insert(format!("{pointer} is null: {}", value.is_null()));
        }
        for branch in self.below(&format!("{pointer}/oneOf")) {
            if self.faults(&branch, value).is_empty() {
                self.note(&branch, value);
            }
        }
        for member in value.as_object().into_iter().flatten() {
            let at = format!("{pointer}/properties/{}", part(member.0));
            if self.root.pointer(&at).is_some() {
                self.note(&at, member.1);
            }
        }
        for item in value.as_array().into_iter().flatten() {
            self.note(&format!("{pointer}/items"), item);
        }
    }

    /// Lists everything that values of the schema at `pointer` can show. A response has exactly
    /// the members that its schema lists.
    fn list(&self, pointer: &str, all: &mut BTreeSet<String>) {
        all.insert(pointer.to_owned());
        let schema = self.at(pointer);
        if let Some(reference) = schema["$ref"].as_str() {
            return self.list(&reference[1..], all);
        }
        if !LISTS.iter().any(|name| pointer == Document::schema(name)) {
            let words = schema["enum"].as_array().into_iter().flatten();
            all.extend(words.map(|word| format!("{pointer} = {word}")));
        }
        if let Some(types) = schema["type"].as_array() {
            assert!(types.len() == 2 && types[1] == "null", "{pointer}");
            all.extend([true, false].map(|null| format!("{pointer} is null: {null}")));
        }
        if let Some(members) = schema["properties"].as_object() {
            let required: BTreeSet<_> = strings(&schema["required"]).into_iter().collect();
            let names = members.keys().filter(|name| !OPTIONAL.contains(&name.as_str()));
            let names: BTreeSet<_> = names.cloned().collect();
            assert_eq!(required, names, "{pointer}: all members of a response are required");
            assert_eq!(schema["additionalProperties"], false, "{pointer}");
        }
        let branches = ["oneOf", "properties"].map(|name| self.below(&format!("{pointer}/{name}")));
        let items = schema.get("items").map(|_| format!("{pointer}/items"));
        let optional = |next: &str| OPTIONAL.iter().any(|name| next.ends_with(name));
        let branches = branches.iter().flatten().filter(|next| !optional(next));
        branches.chain(&items).for_each(|next| self.list(next, all));
    }

    /// Holds a response against its description: the header fields, the schema, and the code of an
    /// error, which must be one of the examples'.
    pub fn respond(&mut self, operation: &Operation, status: u16, head: &str, body: &Value) {
        let at = format!("{}/responses/{status}", operation.at);
        assert!(
            self.root.pointer(&at).is_some(),
            "{} {}: {status} is not in the file: {body}",
            operation.method,
            operation.path
        );
        let response = self.resolved(&at);
        self.respond_at(&response, head, body);
        if let Some(code) = code(body) {
            self.seen.insert(format!("{at} {code}"));
        }
        self.seen.insert(at);
    }

    pub fn respond_at(&mut self, response: &str, head: &str, body: &Value) {
        for name in self.at(response)["headers"].as_object().into_iter().flatten() {
            assert!(head.contains(&format!("{}: ", name.0.to_lowercase())), "{}: {head}", name.0);
        }
        let kind = self.at(response)["content"].as_object().expect("content").keys().next();
        let kind = kind.expect("a type").clone();
        assert!(head.contains(&format!("content-type: {kind}")), "{response}: {head}");
        let content = format!("{response}/content/{}", part(&kind));
        if kind == "application/json" {
            self.check(&format!("{content}/schema"), body);
        }
        let codes = self.codes(&content);
        if let Some(code) = code(body).filter(|_| !codes.is_empty()) {
            assert!(codes.contains(&code), "{response}: an example with the code {code}");
        }
        self.seen.insert(response.to_owned());
    }

    /// The codes of a response's examples, which must be what they are examples of.
    fn codes(&self, content: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for example in self.below(&format!("{content}/examples")) {
            let value = &self.at(&example)["value"];
            let faults = self.faults(&format!("{content}/schema"), value);
            assert!(faults.is_empty(), "{example}: {faults:?}");
            found.extend(code(value));
        }
        found
    }

    /// Fails unless every response, every part of its schema and every code was seen.
    pub fn was_all_seen(&self) {
        let mut all = BTreeSet::new();
        for operation in self.operations() {
            for at in self.below(&format!("{}/responses", operation.at)) {
                let response = self.resolved(&at);
                for content in self.below(&format!("{response}/content")) {
                    all.extend(self.codes(&content).iter().map(|code| format!("{at} {code}")));
                    match content.ends_with("json") {
                        true => self.list(&format!("{content}/schema"), &mut all),
                        false => self
                            .below(&format!("{content}/x-events"))
                            .iter()
                            .for_each(|event| self.list(event, &mut all)),
                    }
                }
                all.insert(at);
            }
        }
        all.extend(self.below("/components/responses"));
        let missing: Vec<&String> = all.difference(&self.seen).collect();
        assert!(missing.is_empty(), "in the file, but never seen: {missing:#?}");
    }
}

/// The methods that a path may have.
pub const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// The code of an error in either form.
fn code(body: &Value) -> Option<String> {
    let code = body.get("error").map_or(&body["code"], |error| &error["code"]);
    (!code.is_null()).then(|| code.to_string())
}

pub fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.map(|item| item.as_str().expect("a string").to_owned()).collect()
}

#[test]
fn a_value_that_is_not_described_is_found() {
    let document = Document::read();
    let call = |value: Value| document.faults(&Document::schema("Missed"), &value).len();
    assert_eq!(call(json!({"missed": 1})), 0);
    assert_eq!(call(json!({"missed": 1, "more": 1})), 1);
    assert_eq!(call(json!({})), 1);
}
