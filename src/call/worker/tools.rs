//! The tools that the AI of one call has called, and that its user's server carries out. Each runs
//! as a task beside the call. Owns tasks, the log and the clock.

use std::task::{Context, Poll};
use std::time::Instant;

use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::call::counters;
use crate::call::{ToolRequest, ToolServer};
use crate::stream::{StreamInfo, ToolCall, ToolResult};

/// Tools of one call that are carried out at once. Beyond that, they are refused.
const MAX_IN_FLIGHT: usize = 4;
/// Maximum length of a tool's arguments, in bytes.
const MAX_ARGUMENTS: usize = 64 * 1024;

/// The outcome of a tool.
struct Outcome {
    /// The AI that called it: see [`Tools::ai`].
    ai: u32,
    tool: ToolCall,
    output: Result<String, String>,
    began: Instant,
}

/// The tools of one call.
pub(super) struct Tools {
    /// The call's id.
    call: String,
    /// Grows with each AI that gets the call. The next one knows nothing of the tools before.
    ai: u32,
    in_flight: usize,
    /// With a place for each tool in flight.
    outcomes: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    /// `None` outside of the program, where no tools are called.
    runtime: Option<Handle>,
}

impl Tools {
    pub fn new(call: &str) -> Tools {
        Tools {
            call: call.to_owned(),
            ai: 0,
            in_flight: 0,
            outcomes: mpsc::channel(MAX_IN_FLIGHT),
            runtime: Handle::try_current().ok(),
        }
    }

    /// Has a tool carried out. Returns the refusal if that is not possible.
    pub fn call(
        &mut self,
        server: Option<&ToolServer>,
        info: &StreamInfo,
        tool: ToolCall,
    ) -> Option<ToolResult> {
        let why = match (server, &self.runtime) {
            _ if self.in_flight >= MAX_IN_FLIGHT => "too many tools are in use; try again",
            _ if tool.arguments.len() > MAX_ARGUMENTS => "the arguments are too long",
            (Some(server), Some(runtime)) => {
                let (began, ai, sender) = (Instant::now(), self.ai, self.outcomes.0.clone());
                let request = ToolRequest {
                    call_sid: info.call_sid.clone(),
                    tool: tool.clone(),
                    parameters: info.parameters.clone(),
                };
                let output = server(request);
                self.in_flight += 1;
                runtime.spawn(async move {
                    let output = output.await;
                    // the call may be over
                    let _ = sender.send(Outcome { ai, tool, output, began }).await;
                });
                return None;
            }
            _ => "there is no such tool",
        };
        counters::tool_called("refused");
        info!(call = self.call, tool = shown(&tool.name), "tool refused: {why}");
        Some(failed(tool, why))
    }

    /// Returns the next result; `None` if the AI that gets it is gone.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<ToolResult>> {
        // a sender is kept here, so that the channel never ends
        let Poll::Ready(Some(outcome)) = self.outcomes.1.poll_recv(cx) else {
            return Poll::Pending;
        };
        self.in_flight -= 1;
        let Outcome { ai, tool, output, began } = outcome;
        let (call, name) = (&self.call, shown(&tool.name));
        let took_ms = began.elapsed().as_millis() as u64;
        let result = match output {
            Ok(output) => {
                counters::tool_called("done");
                info!(call, tool = name, took_ms, "tool called");
                let ToolCall { id, name, .. } = tool;
                ToolResult { id, name, output, failed: false }
            }
            Err(why) => {
                counters::tool_called("failed");
                warn!(call, tool = name, took_ms, "tool failed: {why}; check [ai] tool_webhook");
                failed(tool, &why)
            }
        };
        Poll::Ready((ai == self.ai).then_some(result))
    }

    /// Another AI has the call: it gets no results of tools that it has not called.
    pub fn change_ai(&mut self) {
        self.ai += 1;
    }
}

/// Returns the result of a tool that failed.
fn failed(tool: ToolCall, why: &str) -> ToolResult {
    let output = json!({"status": "failed", "reason": why}).to_string();
    let ToolCall { id, name, .. } = tool;
    ToolResult { id, name, output, failed: true }
}

/// Returns a tool's name for the log, as the model wrote it.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn tool(id: &str) -> ToolCall {
        ToolCall { id: id.to_owned(), name: "look_up".to_owned(), arguments: "{}".to_owned() }
    }

    async fn next(tools: &mut Tools) -> Option<ToolResult> {
        std::future::poll_fn(|cx| tools.poll(cx)).await
    }

    #[tokio::test]
    async fn outputs_reach_the_ai_that_called_the_tool() {
        let server: ToolServer = Arc::new(|request: ToolRequest| {
            Box::pin(async move {
                match request.tool.id.as_str() {
                    "bad" => Err("timed out".to_owned()),
                    id => Ok(format!("output {id}")),
                }
            })
        });
        let (mut tools, info) = (Tools::new("c"), StreamInfo::default());
        assert_eq!(tools.call(Some(&server), &info, tool("1")), None);
        let result = next(&mut tools).await.expect("a result");
        assert_eq!((result.id.as_str(), result.output.as_str()), ("1", "output 1"));
        assert_eq!(tools.call(Some(&server), &info, tool("bad")), None);
        let result = next(&mut tools).await.expect("a result");
        assert_eq!(result.output, r#"{"reason":"timed out","status":"failed"}"#);
        // another AI
        assert_eq!(tools.call(Some(&server), &info, tool("2")), None);
        tools.change_ai();
        assert_eq!(next(&mut tools).await, None);
        // more than may be in flight
        for id in ["3", "4", "5", "6"] {
            assert_eq!(tools.call(Some(&server), &info, tool(id)), None);
        }
        let refused = tools.call(Some(&server), &info, tool("7")).expect("refused");
        assert!(refused.failed && refused.output.contains("too many"), "{refused:?}");
        for _ in 0..4 {
            assert!(next(&mut tools).await.is_some());
        }
        let long = ToolCall { arguments: "x".repeat(MAX_ARGUMENTS + 1), ..tool("8") };
        assert!(tools.call(Some(&server), &info, long).expect("refused").output.contains("long"));
        let refused = tools.call(None, &info, tool("9")).expect("refused");
        assert!(refused.output.contains("no such tool"), "{refused:?}");
    }
}
