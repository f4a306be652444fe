//! The tools that the model has called, and those that it may call.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;

use serde_json::{Value, json};

use crate::stream::{ToolCall, model};

/// Tools that may wait for their output at once.
const MAX_OPEN: usize = 64;
/// Calls that are remembered, so that none is carried out twice.
const MAX_SEEN: usize = 256;
/// Maximum length of the id of a call, and of the name of its tool, in bytes.
const MAX_ID: usize = 256;

/// A call of a tool, as the model has written it.
#[derive(Debug, Clone)]
pub(super) struct FunctionCall {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

impl FunctionCall {
    /// Reads the call in an item; `None` if it is not one, or was not written to its end.
    pub fn of(item: &Value) -> Option<FunctionCall> {
        let text = |name: &str| item[name].as_str().filter(|text| !text.is_empty());
        let complete = text("status").is_none_or(|status| status == "completed");
        if item["type"] != "function_call" || !complete {
            return None;
        }
        let (id, name) = (text("call_id")?.to_owned(), text("name")?.to_owned());
        let arguments = text("arguments").unwrap_or_default().to_owned();
        (id.len().max(name.len()) <= MAX_ID).then_some(FunctionCall { id, name, arguments })
    }
}

/// The tools of a session and their calls.
#[derive(Debug)]
pub(super) struct Calls {
    /// The definitions of our tools.
    tools: Vec<Value>,
    /// Their names.
    ours: Vec<&'static str>,
    /// Ids and names of the calls without an output.
    open: Vec<(String, String)>,
    /// Calls of our tools that wait for the end of the response.
    held: Vec<FunctionCall>,
    /// The ids of the last calls.
    seen: VecDeque<String>,
}

impl Calls {
    /// `settings`: the user's session. A tool in it with the name of one that we have takes its
    /// place. `allowed`: our tools that are offered, `None` = all.
    pub fn new(settings: Option<&Value>, allowed: Option<&[String]>, targets: &[String]) -> Calls {
        let own = settings.and_then(|settings| settings["tools"].as_array());
        let is_own = |name: &str| own.into_iter().flatten().any(|tool| tool["name"] == name);
        let mut tools = model::tools(allowed, targets);
        tools.retain(|tool| !is_own(tool.name));
        let definition = |tool: &model::Tool| {
            json!({
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            })
        };
        Calls {
            ours: tools.iter().map(|tool| tool.name).collect(),
            tools: tools.iter().map(definition).collect(),
            open: Vec::new(),
            held: Vec::new(),
            seen: VecDeque::new(),
        }
    }

    /// The definitions of our tools.
    pub fn tools(&self) -> &[Value] {
        &self.tools
    }

    /// Takes a call. Returns it if the tool is not ours, and the call is new.
    ///
    /// # Errors
    /// Returns the reason if it cannot be taken.
    pub fn take(&mut self, call: FunctionCall) -> Result<Option<ToolCall>, &'static str> {
        if self.seen.contains(&call.id) {
            return Ok(None);
        }
        if self.open.len() >= MAX_OPEN {
            return Err("more than 64 tools called at once");
        }
        if self.seen.len() >= MAX_SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(call.id.clone());
        self.open.push((call.id.clone(), call.name.clone()));
        if self.ours.contains(&call.name.as_str()) {
            self.held.push(call);
            return Ok(None);
        }
        let FunctionCall { id, name, arguments } = call;
        Ok(Some(ToolCall { id, name, arguments }))
    }

    /// Takes the calls of our tools that wait for the end of the response.
    pub fn take_held(&mut self) -> Vec<FunctionCall> {
        std::mem::take(&mut self.held)
    }

    /// Notes the output of a call. Returns the tool's name, if the model made that call here.
    pub fn answered(&mut self, id: &str) -> Option<String> {
        let place = self.open.iter().position(|(open, _)| open == id)?;
        Some(self.open.swap_remove(place).1)
    }

    /// True if no call waits for its output.
    pub fn are_answered(&self) -> bool {
        self.open.is_empty()
    }
}
