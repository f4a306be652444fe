//! The events of a call, in order, and its figures at the end: the part of a call that is still
//! shown after it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use serde_json::{Value, json};

use crate::call::live::{EventKind, reply_json};
use crate::command::Reply;

/// A call keeps this many moments; later ones but its end are counted only.
const MAX_MOMENTS: usize = 50;

/// The moments of a call, and its summary once it has ended. Both are kept as text, because many
/// ended calls are kept.
#[derive(Debug, Clone, Default)]
pub struct History {
    moments: Vec<String>,
    /// Moments beyond [`MAX_MOMENTS`].
    left_out: u64,
    summary: Option<String>,
}

impl History {
    /// Adds an event at `at`, counted from the start of the call. Only the final reply to a command
    /// is kept. `summary`: the figures of the ended call.
    pub fn note(&mut self, at: Duration, event: &EventKind<'_>, summary: Option<Value>) {
        let at_ms = at.as_millis() as u64;
        let mut moment = json!({ "at_ms": at_ms, "type": event.name(), "command": null });
        match event {
            EventKind::Command { reply: Reply::Accepted | Reply::Progress(_), .. } => return,
            EventKind::Command { by, command, id, reply } => {
                let mut result = reply_json(command, id, reply);
                result.insert("by".to_owned(), by.to_string().into());
                moment["command"] = result.into();
            }
            _ => {}
        }
        if let Some(summary) = summary {
            self.summary = Some(summary.to_string());
        } else if self.moments.len() >= MAX_MOMENTS {
            self.left_out += 1;
            return;
        }
        self.moments.push(moment.to_string());
    }

    /// Returns the members `summary`, `timeline` and `timeline_left_out`.
    pub fn json(&self) -> Value {
        let read = |text: &String| serde_json::from_str::<Value>(text).unwrap_or_default();
        json!({
            "summary": self.summary.as_ref().map(read),
            "timeline": self.moments.iter().map(read).collect::<Vec<_>>(),
            "timeline_left_out": self.left_out,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Failure, Sender};

    #[test]
    fn final_replies_are_kept_and_the_end_always_is() {
        let mut history = History::default();
        let by = Sender::Http("desk".to_owned());
        for reply in [Reply::Accepted, Reply::Progress("ringing"), Reply::Failed(Failure::Busy)] {
            let event = EventKind::Command { by: &by, command: "transfer", id: "1", reply: &reply };
            history.note(Duration::from_secs(2), &event, None);
        }
        let shown = history.json();
        assert_eq!(shown["timeline"].as_array().map(Vec::len), Some(1));
        let moment = &shown["timeline"][0];
        assert_eq!(
            (&moment["at_ms"], &moment["command"]["by"]),
            (&json!(2000), &json!("http:desk"))
        );
        for _ in 0..2 * MAX_MOMENTS {
            history.note(Duration::ZERO, &EventKind::Held(true), None);
        }
        history.note(Duration::from_secs(9), &EventKind::Answered, Some(json!({"a": 1})));
        let shown = history.json();
        assert_eq!(shown["timeline_left_out"], 51);
        assert_eq!(
            (&shown["timeline"][50]["at_ms"], &shown["summary"]["a"]),
            (&json!(9000), &json!(1))
        );
    }
}
